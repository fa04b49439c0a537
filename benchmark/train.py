"""The training loop, one for every method: deterministic order, evaluation per epoch, exact resume, NaN stops it."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..methods.base import Method, TrainContext
from .checkpoints import Progress, Snapshots, copy_state
from .config import RunConfig, TrainConfig
from .data import DeviceSet, split_batch
from .errors import BenchError
from .images import Frames
from .metrics import Histograms, accuracy, at_tau, pxap
from .passes import Task, validation_pass
from .seeds import seed_for
from .selection import update_roles
from .stopwatch import Stopwatch
from .store import jsonable
from .views import Reader

log = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]
LOOK_EVERY = 50  # steps between two looks at the loss: a GPU runs ahead meanwhile, and a long epoch that fails stops


class DivergedError(Exception):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Validation:
    """What is evaluated after every epoch: all validation images, masks of the few, and whose maps pick `loc`."""

    frames: Frames
    masks: Mapping[int, np.ndarray]
    tasks: tuple[Task, ...]
    positive_class: int


@dataclass(frozen=True)
class Training:
    """One training: the method, its data and its settings."""

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


def train(job: Training) -> tuple[Progress, dict[int, str]]:
    """Trains to the end, or on from the newest snapshot; returns the roles and the SHA-256 of each kept epoch.

    Raises DivergedError when a loss is not finite, BenchError for a method that breaks its contract.
    """
    device = job.context.device
    method = job.method.to(device)
    torch.manual_seed(seed_for("setup", job.seed))  # whatever setup draws is the same every time
    job.context.generator.manual_seed(seed_for("setup", job.seed))
    method.setup(job.context)
    optimizer = make_optimizer(method, job.config)
    scaler = torch.amp.GradScaler(device.type, enabled=job.config.precision == "fp16" and device.type == "cuda")
    snapshots = Snapshots(job.folder)
    progress = snapshots.load(method, optimizer, scaler)
    for name, seconds in progress.times.items():
        job.watch.add(name, seconds)
    history = History(job.folder / "history.jsonl", progress.history_bytes)
    started, saved = time.monotonic() - progress.seconds, time.monotonic()
    if progress.epoch < 0:
        _finish_epoch(job, progress, history, 0, {"epoch": 0})
    with _determinism(job.run.deterministic):
        for epoch in range(progress.epoch + 1, job.config.epochs + 1):
            entry = _run_epoch(job, optimizer, scaler, epoch)
            progress.images += len(job.data.labels)
            _finish_epoch(job, progress, history, epoch, entry)
            progress.seconds = time.monotonic() - started
            if epoch < job.config.epochs and time.monotonic() - saved >= job.run.snapshot_seconds:
                progress.times = job.watch.seconds()
                with job.watch.part("write"):
                    snapshots.save(progress, method, optimizer, scaler)
                saved = time.monotonic()
    with job.watch.part("write"):
        return progress, snapshots.write_candidates(progress)


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


def _run_epoch(job: Training, optimizer: torch.optim.Optimizer, scaler: Any, epoch: int) -> dict[str, Any]:
    """One pass over the training images; returns the history entry without its evaluation."""
    method, context, watch = job.method, job.context, job.watch
    context.epoch = epoch
    # One address per epoch for dropout and for the method's own draws: a resumed run needs no generator state.
    torch.manual_seed(seed_for("global", job.seed, epoch))
    context.generator.manual_seed(seed_for("method", job.seed, epoch))
    rate = job.config.lr_at(epoch)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    method.train()
    method.on_epoch_start(context)
    began = time.monotonic()
    sums: dict[str, Tensor] = {}
    for step, batch in enumerate(job.data.epoch_batches(job.seed, epoch, watch), 1):
        with watch.part("augment"):
            batch = method.augment(batch, context)
        losses = train_step(method, batch, optimizer, scaler, job)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value * (len(batch.labels) / len(job.data.labels))
        if step % LOOK_EVERY == 0:
            _refuse_divergence(sums, epoch)
    method.on_epoch_end(context)
    losses = _refuse_divergence(sums, epoch)
    return {"epoch": epoch, "lr": rate, "losses": losses, "seconds": time.monotonic() - began}


def _refuse_divergence(sums: Mapping[str, Tensor], epoch: int) -> dict[str, float]:
    """The losses so far as numbers: the one place where a training waits for its GPU. Raises DivergedError."""
    if not sums:
        return {}
    device = sums["total"].device
    values = torch.stack([v.double().reshape(()).to(device) for v in sums.values()])
    losses = dict(zip(sums, values.tolist(), strict=True))
    if not all(math.isfinite(v) for v in losses.values()):
        raise DivergedError(f"the loss of epoch {epoch} is not finite ({losses}); a lower train.lr usually helps")
    return losses


def train_step(
    method: Method, batch: Any, optimizer: torch.optim.Optimizer, scaler: Any, job: Training
) -> dict[str, Tensor]:
    """One update, its batch cut in parts where memory asks for it; returns the detached mean losses."""
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for part, weight in split_batch(batch, job.config.micro_batch):
        with job.watch.part("forward"), autocast(job.config.precision, job.context.device):
            losses = method.loss(part, job.context)
        if "total" not in losses:
            raise BenchError(f"Method '{type(method).registered_name}': loss() returned no \"total\".")
        with job.watch.part("backward"):
            scaler.scale(losses["total"] * weight).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach().float() * weight
    with job.watch.part("step"):
        scaler.step(optimizer)
        scaler.update()
    return sums


def _finish_epoch(job: Training, progress: Progress, history: "History", epoch: int, entry: dict[str, Any]) -> None:
    """Evaluates the model, lets the epoch take its roles and writes the history line."""
    with job.watch.part("evaluate"):
        val, curves = evaluate(job)
    found = {(t.protocol.name, t.view.method.label): c["pxap"] for t, c in curves.items()}
    taken = update_roles(progress.roles, epoch, val["accuracy"], val["loss"], found)
    if taken or epoch == job.config.epochs:
        with job.watch.part("write"):
            progress.candidates[epoch] = copy_state(job.method)
    if epoch < job.config.epochs:
        # `last` means the last of the schedule; until then it would only force a copy of every epoch.
        progress.roles.pop("last")
    progress.prune()
    progress.epoch = epoch
    entry = {**entry, "val": val, "valpx": {f"{t.protocol.name}/{t.view.method.label}": c for t, c in curves.items()}}
    progress.history_bytes = history.append(entry)
    job.report({**entry, "epochs": job.config.epochs, "images": len(job.data.labels)})


def evaluate(job: Training) -> tuple[dict[str, float], dict[Task, dict[str, float]]]:
    """Accuracy (percent) and cross-entropy of the validation images, PxAP and Dice at 0.5 of the masked ones."""
    v = job.validation
    views = tuple(dict.fromkeys(t.view for t in v.tasks))
    reader = Reader(job.method, views, v.positive_class, job.context.num_classes)
    device, batch = job.context.device, job.run.score_batch
    logits, scored = validation_pass(reader, v.tasks, v.frames, v.masks, device, batch)
    labels = v.frames.labels
    loss = float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)))
    curves = {t: _quality(scored[t.name].histograms) for t in v.tasks}
    return {"accuracy": accuracy(logits, labels), "loss": loss}, curves


def _quality(histograms: Histograms) -> dict[str, float]:
    if not histograms.foreground.size:
        return {"pxap": float("nan"), "dice_at_half": float("nan")}
    return {"pxap": pxap(histograms), "dice_at_half": at_tau(histograms, 0.5)["dice"]}


class History:
    """The JSON lines of a training, one an epoch; lines after the snapshot that was resumed are cut off."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as handle:
            handle.truncate(keep_bytes)

    def append(self, entry: Mapping[str, Any]) -> int:
        """Adds a line (NaN as null) and returns the file's length in bytes."""
        with self.path.open("ab") as handle:
            handle.write(json.dumps(jsonable(entry)).encode() + b"\n")
            return handle.tell()


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Mixed precision of a training step; fp16 has no use on a CPU and becomes bf16 there."""
    if precision == "fp32":
        return contextlib.nullcontext()
    half = torch.float16 if precision == "fp16" and device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, half)


@contextlib.contextmanager
def _determinism(asked: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(asked or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
