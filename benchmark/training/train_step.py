"""The updates of a training: optimizer, a step, an epoch from any step on, and what happens when the loss diverges."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...methods.base import Batch, Method, Share, TrainContext
from ..core.errors import BenchError
from ..core.seeds import seed_for
from ..core.shutdown import Stopped
from ..core.timing import Stopwatch
from ..data.image_cache import Frames
from ..data.train_loader import DeviceSet, Start, epoch_order, pieces
from ..distributed.process_group import ALONE, Losses, Team
from ..planning.config import RunConfig, TrainConfig
from ..scoring.inference import PixelMasks, Task
from .checkpoints import Midway
from .micro_batches import split_batch

Report = Callable[[dict[str, Any]], None]
LOOK_EVERY = 50  # steps between two looks at the loss: a GPU runs ahead meanwhile, and a long epoch that fails stops


class DivergedError(Exception):
    """The loss, or what the model says of validation images, became NaN or infinite.

    facts: `status` ("diverged"), `epoch`, `step` (1, 2, …; of the epoch), `ids` of the images of that step, `seed`, and
    the `losses` of that step as text. What is kept: the snapshots, and the weights that had taken a role by then.
    """

    def __init__(self, message: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.facts = {"status": "diverged", **(facts or {})}

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.facts)


@dataclass(frozen=True)
class Validation:
    """What is evaluated after every epoch: all validation images, masks of the few, whose maps pick `loc`, and which
    classes have a region of interest."""

    frames: Frames
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
    team: Team = ALONE
    losses: Callable[[Batch], Losses] | None = None  # what the team made of the method's loss
    weights: Mapping[str, Any] = field(default_factory=dict)  # where the backbone started, with the hash of a file

    def loss(self, batch: Batch) -> Losses:
        """The method's losses of a batch, or of a part of it."""
        return self.method.loss(batch, self.context) if self.losses is None else self.losses(batch)


def make_optimizer(method: Method, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer over the method's own groups; each group keeps its ratio to the base rate in `scale`."""
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
    # One kernel for all parameters, and under fp16 no question to the device whether a gradient overflowed.
    fused = all(p.is_cuda for g in groups for p in g["params"])
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    settings = {"momentum": config.momentum, "weight_decay": config.weight_decay, "nesterov": config.momentum > 0}
    return torch.optim.SGD(groups, lr=config.lr, fused=fused, **settings)


def make_scaler(job: Training) -> torch.amp.GradScaler:
    """The scaler of the loss, which does something under fp16 on a GPU alone."""
    kind = job.context.device.type
    return torch.amp.GradScaler(kind, enabled=job.config.precision == "fp16" and kind == "cuda")


def run_epoch(
    job: Training,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    at: Midway,
    restore: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Trains an epoch from where `at` stands to its end, moving `at`; returns the history entry without evaluation.

    restore: sets everything to where an epoch was left, once the method knows which epoch it is. Raises DivergedError,
    and Stopped after a step if a stop was requested; `at` and the model then hold what is needed to go on.
    """
    method, context, team = job.method, job.context, job.team
    rate = _begin(job, optimizer, at.epoch)
    restore()
    began, count = time.monotonic() - at.seconds, len(job.data.labels)
    sizes = [len(rows) for rows in epoch_order(count, job.config.batch_size, job.seed, at.epoch)]
    start = Start(at.step, team.rank, team.size)
    for batch in job.data.epoch_batches(job.seed, at.epoch, job.watch, start):
        whole = sizes[at.step]
        context.share = _share(job, whole)
        with job.watch.part("augment"):
            batch = method.augment(batch, context)
        losses = train_step(method, batch, optimizer, scaler, job)
        at.add(losses, whole / count)
        if at.step % LOOK_EVERY == 0:
            look(job, at)
        if team.requested():
            at.seconds = time.monotonic() - began
            look(job, at)  # what has diverged is no state to go on from
            raise Stopped
    if not at.ended:
        context.share = None
        method.on_epoch_end(context)
        at.ended = True
    at.seconds = time.monotonic() - began
    return {"epoch": at.epoch, "lr": rate, "losses": look(job, at), "seconds": at.seconds}


def _begin(job: Training, optimizer: torch.optim.Optimizer, epoch: int) -> float:
    """Everything as an epoch starts; returns the learning rate."""
    context = job.context
    context.epoch, context.share = epoch, None
    # One address per epoch for dropout and for the method's own draws: between epochs no generator state is needed.
    torch.manual_seed(seed_for("global", job.seed, epoch))
    context.generator.manual_seed(seed_for("method", job.seed, epoch))
    rate = job.config.lr_at(epoch)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    job.method.train()
    job.method.on_epoch_start(context)
    return rate


def _share(job: Training, whole: int) -> Share | None:
    """What of a batch of `whole` images is here, None where all of it is."""
    if job.team.size == 1:
        return None
    cut = pieces(whole, job.config.micro_batch, job.team.rank, job.team.size)
    return Share(whole, tuple(p.own for p in cut), job.team.add)


def train_step(method: Method, batch: Batch, optimizer: torch.optim.Optimizer, scaler: Any, job: Training) -> Losses:
    """One update, its batch cut in parts where memory asks for it; returns the detached mean losses.

    In a team the losses are this process's share of the mean.
    """
    optimizer.zero_grad(set_to_none=True)
    sums: Losses = {}
    context, team = job.context, job.team
    whole = context.share.total if context.share else len(batch.labels)
    cut = pieces(whole, job.config.micro_batch, team.rank, team.size)
    counts = [p.own.stop - p.own.start for p in cut]
    for number, part in enumerate(split_batch(batch, counts)):
        weight = counts[number] / whole
        if team.size > 1:
            piece = cut[number]
            context.share = Share(piece.whole.stop - piece.whole.start, (piece.within,), team.add)
        with team.holding(last=number == len(cut) - 1):
            with job.watch.part("forward"), autocast(job.config.precision, context.device), team.whole_batch(context):
                losses = job.loss(part)
            if "total" not in losses:
                raise BenchError(f"Method '{type(method).registered_name}': loss() returned no \"total\".")
            with job.watch.part("backward"):
                team.backward(scaler.scale(losses["total"] * weight))
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach().float() * weight
    with job.watch.part("step"):
        scaler.step(optimizer)
        scaler.update()
    return sums


def look(job: Training, at: Midway) -> dict[str, float]:
    """The mean losses so far as numbers: the one place where a training waits for its GPU. Raises DivergedError."""
    unseen, at.unseen = at.unseen, []
    losses = _numbers(job.team, at.sums)
    if all(math.isfinite(v) for v in losses.values()):
        return losses
    for number, values in enumerate(unseen, at.step - len(unseen) + 1):
        found = _numbers(job.team, values)
        if not all(math.isfinite(v) for v in found.values()):
            raise diverged(job, at.epoch, number, found)
    raise diverged(job, at.epoch, at.step, losses)


def _numbers(team: Team, losses: Losses) -> dict[str, float]:
    """Losses of whatever shape and type as numbers, those of a team added up."""
    if not losses:
        return {}
    device = losses["total"].device
    values = team.add(torch.stack([v.double().reshape(()).to(device) for v in losses.values()]))
    return dict(zip(losses, values.tolist(), strict=True))


def diverged(
    job: Training, epoch: int, step: int, losses: Mapping[str, float], what: str = "the loss"
) -> DivergedError:
    """The error for a step after which something is not finite, with the images of that step."""
    rows = epoch_order(len(job.data.labels), job.config.batch_size, job.seed, epoch)[step - 1].tolist()
    ids = [str(job.ids[row]) for row in rows] if job.ids else [str(row) for row in rows]
    texts = {name: str(value) for name, value in losses.items()}  # JSON has no NaN
    facts = {"epoch": epoch, "step": step, "ids": ids, "seed": job.seed, "losses": texts}
    few = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
    seen = "".join(f"{name} {value:g}, " for name, value in losses.items())
    return DivergedError(
        f"{what} is not finite from step {step} of {job.data.batches_per_epoch()} of epoch {epoch} on "
        f"({seen}images {few}); a lower train.lr usually helps",
        facts,
    )


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Mixed precision of a training step; fp16 has no use on a CPU and becomes bf16 there."""
    if precision == "fp32":
        return contextlib.nullcontext()
    half = torch.float16 if precision == "fp16" and device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, half)
