"""The lines of `bench check` about training: losses, frozen parts, mixed precision, hooks after a step, resuming."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from ...methods.base import Batch, Method
from ..core.mask_guard import Withheld
from ..core.shutdown import Stopped
from ..distributed.process_group import ProcessGroup
from ..training.checkpoints import EpochCursor
from ..training.micro_batches import take_images
from ..training.train_step import Training, make_optimizer, make_scaler, own_params, run_epoch, train_step
from ..training.trainer import Trainer
from .trial import Bench, BrokenError, SkippedError

RESUMED_AT = 2  # steps of the first epoch, which has four
PART = 7  # images of a batch of 16 at once


# -- losses -----------------------------------------------------------------------------------------------------------
def check_loss(bench: Bench) -> str | None:
    """losses of every update are finite and differentiable on a mixed batch, on one class, on constant teacher maps.

    In parts of a batch as well, each with all fields that `augment` added.
    """
    job = bench.training()
    for what, case in _mixes(bench.batch(), job.context.num_classes).items():
        _updates_finite(job, bench.augmented(job, case), what)
    parts = replace(job, config=replace(job.config, micro_batch=PART))
    _all_finite(_step(parts, bench.augmented(job, bench.batch())), "on a batch in parts")
    return None


def _all_finite(losses: Mapping[str, Tensor], where: str) -> None:
    if bad := [name for name, value in losses.items() if not torch.isfinite(value).all()]:
        raise BrokenError(f"{where} the loss '{bad[0]}' is {float(losses[bad[0]])}")


def _mixes(batch: Batch, classes: int) -> dict[str, Batch]:
    cases = {"a mixed batch": batch}
    for label in range(0 if isinstance(batch.labels, Withheld) else classes):
        cases[f"class {label} only"] = take_images(batch, (batch.labels == label).nonzero()[:, 0])
    if batch.teachers:
        flat = {name: torch.zeros_like(maps) for name, maps in batch.teachers.items()}
        alone = torch.zeros_like(batch.maps) if isinstance(batch.maps, Tensor) else batch.maps
        cases["constant teacher maps"] = replace(batch, maps=alone, teachers=flat)
    return cases


def _updates_finite(job: Training, batch: Batch, what: str) -> None:
    """The updates of a batch one by one, with a step after each. Raises BrokenError where one is not finite."""
    method, context = job.method, job.context
    method.train()
    optimizer = make_optimizer(method, job.config)
    for number, update in enumerate(method.updates(batch, context), start=1):
        params = own_params(method, optimizer, update)
        losses = update.losses(batch, context)
        where = f"on {what}" + (f", in update {number}," if number > 1 else "")
        if "total" not in losses:
            raise BrokenError('loss() returned no "total"' if number == 1 else f'{where} there is no "total"')
        total = losses["total"]
        if total.ndim or not torch.isfinite(total):
            raise BrokenError(f"{where} the total is {total.tolist() if total.numel() < 9 else tuple(total.shape)}")
        method.zero_grad()
        total.backward(inputs=params)
        if bad := [n for n, p in method.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]:
            raise BrokenError(f"{where} the gradient of {bad[0]} is not finite")
        optimizer.step()
    method.zero_grad()


def check_bf16(bench: Bench) -> str | None:
    """a training step under bfloat16 autocast has finite losses."""
    job = bench.training()
    job = replace(job, config=replace(job.config, precision="bf16"))
    _all_finite(_step(job, bench.augmented(job, bench.batch())), "under bfloat16")
    return None


def _step(job: Training, batch: Batch, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    job.method.train()
    optimizer = optimizer or make_optimizer(job.method, job.config)
    return train_step(job, batch, optimizer, make_scaler(job))


# -- what a step may change -------------------------------------------------------------------------------------------
def check_frozen(bench: Bench) -> str | None:
    """after two steps frozen parameters, and buffers of frozen parts, are bit for bit as before.

    What `on_step_end` itself changes, such as an average of weights, is the method's own and left out.
    """
    job = bench.training()
    method = job.method
    frozen = {n for n, p in method.named_parameters() if not p.requires_grad}
    if not frozen:
        raise SkippedError("nothing is frozen")
    learning = {n.rpartition(".")[0] for n, p in method.named_parameters() if p.requires_grad}
    parts = {n.rpartition(".")[0] for n in frozen} - learning
    before = {k: v.clone() for k, v in method.state_dict().items() if k in frozen or k.rpartition(".")[0] in parts}
    optimizer, kept = make_optimizer(method, job.config), set[str]()
    with _watched_hook(method, kept):
        for step in range(2):
            job.context.step = step
            _step(job, bench.augmented(job, bench.batch()), optimizer)
    held = {k: v for k, v in before.items() if k not in kept}
    if moved := [k for k, v in method.state_dict().items() if k in held and not torch.equal(v, held[k])]:
        raise BrokenError(f"{len(moved)} frozen tensors moved, first {moved[0]} (is its BatchNorm in train mode?)")
    if not held:
        raise SkippedError("what is frozen is kept by on_step_end")
    return f"{len(held)} tensors"


@contextmanager
def _watched_hook(method: Method, kept: set[str]) -> Iterator[None]:
    """While it is open, collects the names of what `on_step_end` changes."""
    honest = method.on_step_end

    def watched(context: object) -> None:
        before = _state(method)
        honest(context)  # pyright: ignore[reportArgumentType]
        kept.update(_differing(before, method.state_dict()))

    method.on_step_end = watched
    try:
        yield
    finally:
        del method.on_step_end


def check_hooks(bench: Bench) -> str | None:
    """what runs after a step leaves modes, parameters and hooks of the model in place, and everything finite."""
    job = bench.training()
    method, factor = job.method, job.method.lr_scale(job.context)
    if not isinstance(factor, float | int) or not 0 <= factor < math.inf:
        raise BrokenError(f"lr_scale() gave {factor!r}; a finite number from 0 on is expected")
    if type(method).on_step_end is Method.on_step_end and type(method).updates is Method.updates:
        raise SkippedError("it has neither updates() nor on_step_end()")
    before: list[tuple[object, ...]] = []
    honest = method.on_step_end

    def watched(context: object) -> None:
        before.append(_layout(method))
        honest(context)  # pyright: ignore[reportArgumentType]
        before.append(_layout(method))

    method.on_step_end = watched
    _step(job, bench.augmented(job, bench.batch()))
    names = ("modes of modules (train or eval)", "parameters or which of them train", "hooks")
    for what, was, now in zip(names, *before, strict=True):
        if was != now:
            raise BrokenError(f"on_step_end() changed the {what}; change values alone, in place")
    if bad := [k for k, v in method.state_dict().items() if v.is_floating_point() and not torch.isfinite(v).all()]:
        raise BrokenError(f"after a step {bad[0]} is not finite")
    return None


def _layout(model: nn.Module) -> tuple[object, ...]:
    """Modes, parameters and hooks of a model, apart from all values."""
    return (
        [m.training for m in model.modules()],
        [(n, id(p), p.requires_grad) for n, p in model.named_parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
    )


# -- resuming ---------------------------------------------------------------------------------------------------------
class _StopsAt(ProcessGroup):
    """A single process that is asked to stop after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def requested(self) -> int:
        """Yes, once."""
        self.left -= 1
        return 130 if self.left == 0 else 0


def check_resume(bench: Bench) -> str | None:
    """a training that was stopped in the middle of an epoch ends it with the same bits as one that was not."""
    with TemporaryDirectory() as folder:
        whole = _begin(bench, Path(folder) / "whole", 0)
        _run(whole, EpochCursor(1))
        stopped = _begin(bench, Path(folder) / "stopped", RESUMED_AT)
        cursor = stopped.progress.cursor = EpochCursor(1)
        try:
            _run(stopped, cursor)
        except Stopped:
            stopped.progress.epoch = 0
            stopped.save()
        else:
            raise SkippedError("its epoch is too short to be stopped in")
        resumed = _begin(bench, Path(folder) / "stopped", 0)
        left = resumed.progress.cursor
        if left is None:
            raise BrokenError("its checkpoint could not be loaded again")
        run_epoch(
            resumed.job, resumed.train_state.optimizer, resumed.train_state.scaler, left,
            lambda: resumed.snapshots.restore_again(resumed.train_state),
        )  # fmt: skip
    differing = _differing(whole.job.method.state_dict(), resumed.job.method.state_dict())
    if differing:
        raise BrokenError(
            f"stopped after {RESUMED_AT} steps and resumed, {len(differing)} tensors differ from a training that was "
            f"not stopped, first {differing[0]}. What changes while it trains must be a parameter or a registered "
            "buffer, random numbers come from context.generator or torch's own"
        )
    return None


def _begin(bench: Bench, folder: Path, stop_at: int) -> Trainer:
    return Trainer.begin(replace(bench.training(set_up=False), folder=folder, process_group=_StopsAt(stop_at)))


def _run(trainer: Trainer, cursor: EpochCursor) -> None:
    run_epoch(trainer.job, trainer.train_state.optimizer, trainer.train_state.scaler, cursor)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def _differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name, value in one.items() if not torch.equal(value, other[name])]
