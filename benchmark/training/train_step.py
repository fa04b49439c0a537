"""Optimizer, one training step, and an epoch from any step on; a loss that is not finite ends the training."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...methods.base import Batch, BatchShard, LossFunction, Method, TrainContext, Update
from ..core.errors import BenchError
from ..core.seeds import seed_for
from ..core.shutdown import Stopped
from ..core.timing import Stopwatch
from ..data.image_cache import ImageSplit
from ..data.train_loader import DeviceSet, StepCursor
from ..distributed.batch_shards import cut_batch
from ..distributed.process_group import SINGLE_PROCESS, Losses, ProcessGroup, SharedLoss
from ..planning.config import RunConfig, TrainConfig
from ..scoring.inference import PixelMasks, Task
from .checkpoints import EpochCursor
from .micro_batches import split_batch

Report = Callable[[dict[str, Any]], None]
CHECK_EVERY = 50  # steps; the check for NaN synchronises the GPU, which runs ahead meanwhile


class DivergedError(Exception):
    """The loss, or a logit of a validation image, became NaN or infinite.

    facts: `status` ("diverged"), `epoch`, `step` (1, 2, …; of the epoch), `ids` of the images of that step, `seed`, and
    the `losses` of that step as text. Snapshots and the weights of the best epochs so far are kept.
    """

    def __init__(self, message: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.facts = {"status": "diverged", **(facts or {})}

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.facts)


@dataclass(frozen=True)
class Validation:
    """Data of the evaluation after every epoch.

    frames: all validation images. masks: of the few whose masks may be read. tasks: the maps that select `loc`
    checkpoints. regions: per class, whether it has a region of interest.
    """

    frames: ImageSplit
    masks: PixelMasks
    tasks: tuple[Task, ...]
    regions: tuple[int, ...]


@dataclass(frozen=True)
class Training:
    """One training: the method, its data and its settings. ids: the names of the training images, by row."""

    method: Method
    data: DeviceSet
    validation: Validation
    context: TrainContext
    config: TrainConfig
    run: RunConfig
    seed: int
    folder: Path
    report: Report = lambda event: None
    watch: Stopwatch = field(default_factory=lambda: Stopwatch(torch.device("cpu")))
    ids: Sequence[str] = ()
    process_group: ProcessGroup = SINGLE_PROCESS
    shared_loss: SharedLoss | None = None  # how several processes compute losses together
    weights: Mapping[str, Any] = field(default_factory=dict)  # where the backbone started, with the hash of a file


def make_optimizer(method: Method, config: TrainConfig) -> torch.optim.Optimizer:
    """Optimizer over the method's parameter groups; `scale` of a group is the ratio of its rate to the base rate."""
    groups = [
        {
            **g,
            "params": [g["params"]] if isinstance(g["params"], Tensor) else list(g["params"]),
            "scale": g["lr"] / config.lr,
        }
        for g in method.param_groups(config.lr, config.head_lr_scale)
    ]
    if not groups:
        raise BenchError(f"Method '{type(method).registered_name}' has no parameter to train; write it as a function.")
    # fused: one kernel for all parameters, and under fp16 no synchronisation to learn whether a gradient overflowed
    fused = all(p.is_cuda for g in groups for p in g["params"])
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    settings = {"momentum": config.momentum, "weight_decay": config.weight_decay, "nesterov": config.momentum > 0}
    return torch.optim.SGD(groups, lr=config.lr, fused=fused, **settings)


def make_scaler(job: Training) -> torch.amp.GradScaler:
    """Loss scaler, active under fp16 on a GPU alone."""
    kind = job.context.device.type
    return torch.amp.GradScaler(kind, enabled=job.config.precision == "fp16" and kind == "cuda")


def run_epoch(
    job: Training,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    cursor: EpochCursor,
    restore: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Trains an epoch from where the cursor stands to its end, moving it; returns the history entry without evaluation.

    restore: sets everything to where an epoch was left, once the method knows which epoch it is. Raises DivergedError,
    and Stopped after a step if a stop was requested; the cursor and the model then hold what is needed to go on.
    """
    method, context, process_group = job.method, job.context, job.process_group
    _begin_epoch(job, cursor.epoch)
    restore()
    began, count, done = time.monotonic() - cursor.seconds, len(job.data.labels), context.step
    sizes = [len(rows) for rows in job.data.epoch_order(job.seed, cursor.epoch)]
    start = StepCursor(cursor.step, process_group.rank, process_group.size)
    for batch in job.data.epoch_batches(job.seed, cursor.epoch, job.watch, start):
        whole = sizes[cursor.step]
        context.step, context.shard = done + cursor.step, _shard(job, whole)
        _set_rates(job, optimizer, cursor.epoch)
        with job.watch.part("augment"):
            batch = method.augment(batch, context)
        losses = train_step(job, batch, optimizer, scaler)
        cursor.add(losses, whole / count)
        if cursor.step % CHECK_EVERY == 0:
            check_finite(job, cursor)
        if process_group.requested():
            cursor.seconds = time.monotonic() - began
            check_finite(job, cursor)  # what has diverged is no state to go on from
            raise Stopped
    context.step, context.shard = done + cursor.step, None
    rate = _rate(job, cursor.epoch)
    if not cursor.ended:
        method.on_epoch_end(context)
        cursor.ended = True
    cursor.seconds = time.monotonic() - began
    return {"epoch": cursor.epoch, "lr": rate, "losses": check_finite(job, cursor), "seconds": cursor.seconds}


def _begin_epoch(job: Training, epoch: int) -> None:
    """Sets counters, random numbers and modes as an epoch starts, and tells the method."""
    context = job.context
    context.epoch, context.shard, context.steps_per_epoch = epoch, None, job.data.batches_per_epoch()
    context.step = (epoch - 1) * context.steps_per_epoch
    # One address per epoch for dropout and for the method's own draws: between epochs no generator state is needed.
    torch.manual_seed(seed_for("global", job.seed, epoch))
    context.generator.manual_seed(seed_for("method", job.seed, epoch))
    job.method.train()
    job.method.on_epoch_start(context)


def _rate(job: Training, epoch: int) -> float:
    """The learning rate at this step: the schedule's, times the method's factor. Raises BenchError for a bad factor."""
    factor = job.method.lr_scale(job.context)
    if not 0 <= factor < math.inf:
        raise _contract(job.method, f"lr_scale() gave {factor}; a finite number from 0 on is expected.")
    return job.config.lr_at(epoch) * factor


def _set_rates(job: Training, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Gives every parameter group its own share of the rate."""
    rate = _rate(job, epoch)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def _shard(job: Training, whole: int) -> BatchShard | None:
    """This process's part of a batch of `whole` images; None for a single process, which has all of it."""
    if job.process_group.size == 1:
        return None
    cut = cut_batch(whole, job.config.micro_batch, job.process_group.rank, job.process_group.size)
    return BatchShard(whole, tuple(part.own for part in cut), job.process_group.add)


def train_step(job: Training, batch: Batch, optimizer: torch.optim.Optimizer, scaler: Any) -> Losses:
    """All updates of a batch, then `on_step_end`; returns the detached mean losses, summed over the updates.

    Of several processes each returns its share of the mean. Raises BenchError for a method that breaks its contract.
    """
    sums: Losses = {}
    method, context, shard = job.method, job.context, job.context.shard
    for update in method.updates(batch, context):
        params = own_params(method, optimizer, update)
        optimizer.zero_grad(set_to_none=True)
        _accumulate(job, update, batch, params, scaler, sums)
        context.shard = shard
        if params is not None:
            _drop_gradients(optimizer, params)
        with job.watch.part("step"):
            scaler.step(optimizer)
            scaler.update()
    if not sums:
        raise _contract(method, "updates() made none: yield at least one a step.")
    context.shard = None
    with torch.no_grad():
        method.on_step_end(context)
    return sums


def _accumulate(
    job: Training, update: Update, batch: Batch, params: Sequence[Tensor] | None, scaler: Any, sums: Losses
) -> None:
    """Gradients of an update, its batch cut in parts where memory asks for it; adds the mean losses to `sums`."""
    context, process_group = job.context, job.process_group
    whole = context.shard.total if context.shard else len(batch.images)
    cut = cut_batch(whole, job.config.micro_batch, process_group.rank, process_group.size)
    for number, part in enumerate(split_batch(batch, [c.images for c in cut])):
        micro, last = cut[number], number == len(cut) - 1
        weight = micro.images / whole
        if process_group.size > 1:
            context.shard = BatchShard(micro.whole.stop - micro.whole.start, (micro.within,), process_group.add)
        with process_group.holding(last):
            with (
                job.watch.part("forward"),
                autocast(job.config.precision, context.device),
                process_group.whole_batch(context),
            ):
                shared = job.shared_loss
                losses = update.losses(part, context) if shared is None else shared(update.losses, part)
            if "total" not in losses:
                raise _contract(job.method, f'{_name(update.losses)}() returned no "total".')
            with job.watch.part("backward"):
                _backward(job, scaler.scale(losses["total"] * weight), params)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach().float() * weight


def _backward(job: Training, loss: Tensor, params: Sequence[Tensor] | None) -> None:
    """Gradients of a share of the loss. Raises BenchError where it rests on a graph that an earlier update used up."""
    try:
        job.process_group.backward(loss, params)
    except RuntimeError as problem:
        if "backward through the graph a second time" not in str(problem):
            raise
        raise _contract(
            job.method, "the losses of one update rest on tensors of another: compute them anew, or detach them."
        ) from problem


def own_params(method: Method, optimizer: torch.optim.Optimizer, update: Update) -> Sequence[Tensor] | None:
    """The parameters of an update, None for all. Raises BenchError for what is no update of this method."""
    if not isinstance(update, Update):
        raise _contract(method, f"updates() yielded a {type(update).__name__}; Update(losses, params) is expected.")
    if not callable(update.losses):
        what = type(update.losses).__name__
        raise _contract(
            method,
            f"updates() yielded losses as a {what}; a function of a batch is expected, as in Update(self.loss), since "
            "a batch may be cut in parts.",
        )
    if update.params is None:
        return None
    params = list(update.params)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not params or not all(id(p) in known for p in params):
        which = "no parameters" if not params else "parameters that param_groups() does not give to the optimizer"
        raise _contract(method, f"updates() yielded {which} with {_name(update.losses)}().")
    return params


def _drop_gradients(optimizer: torch.optim.Optimizer, params: Iterable[Tensor]) -> None:
    """Leaves gradients to these parameters alone: an optimizer passes over those that have none."""
    chosen = {id(p) for p in params}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in chosen:
                parameter.grad = None


def _name(function: LossFunction) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _contract(method: Method, problem: str) -> BenchError:
    """The error for a method that breaks its contract."""
    return BenchError(f"Method '{type(method).registered_name}': {problem}")


def check_finite(job: Training, cursor: EpochCursor) -> dict[str, float]:
    """Mean losses so far as numbers; reading them synchronises the GPU. Raises DivergedError if one is not finite."""
    unchecked, cursor.unchecked = cursor.unchecked, []
    losses = _numbers(job.process_group, cursor.sums)
    if all(math.isfinite(v) for v in losses.values()):
        return losses
    for number, values in enumerate(unchecked, cursor.step - len(unchecked) + 1):
        numbers = _numbers(job.process_group, values)
        if not all(math.isfinite(v) for v in numbers.values()):
            raise diverged(job, cursor.epoch, number, numbers)
    raise diverged(job, cursor.epoch, cursor.step, losses)


def _numbers(process_group: ProcessGroup, losses: Losses) -> dict[str, float]:
    """Losses of whatever shape and type as numbers, added up over the processes."""
    if not losses:
        return {}
    device = losses["total"].device
    values = process_group.add(torch.stack([v.double().reshape(()).to(device) for v in losses.values()]))
    return dict(zip(losses, values.tolist(), strict=True))


def diverged(
    job: Training, epoch: int, step: int, losses: Mapping[str, float], what: str = "the loss"
) -> DivergedError:
    """The error for a step after which something is not finite, with the images of that step."""
    rows = job.data.epoch_order(job.seed, epoch)[step - 1].tolist()
    ids = [str(job.ids[row]) for row in rows] if job.ids else [str(row) for row in rows]
    texts = {name: str(value) for name, value in losses.items()}  # JSON has no NaN
    facts = {"epoch": epoch, "step": step, "ids": ids, "seed": job.seed, "losses": texts}
    few = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
    values = "".join(f"{name} {value:g}, " for name, value in losses.items())
    return DivergedError(
        f"{what} is not finite from step {step} of {job.data.batches_per_epoch()} of epoch {epoch} on "
        f"({values}images {few}); a lower train.lr usually helps",
        facts,
    )


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Mixed precision of a training step; fp16 has no use on a CPU and becomes bf16 there."""
    if precision == "fp32":
        return contextlib.nullcontext()
    half = torch.float16 if precision == "fp16" and device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, half)
