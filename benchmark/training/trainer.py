"""The training loop, one for every method: deterministic order, evaluation per epoch, exact resume, NaN stops it."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..core.files import jsonable
from ..core.metrics import Histograms, accuracy, at_tau, pxap
from ..core.seeds import seed_for
from ..core.shutdown import Stopped
from ..scoring.inference import PassSettings, Task, validation_pass
from ..scoring.map_extractor import MapExtractor
from .checkpoint_selection import update_slots
from .checkpoints import EpochCursor, Progress, Snapshots, TrainState, copy_state
from .train_step import (
    DivergedError,
    Training,
    Validation,
    autocast,
    diverged,
    make_optimizer,
    make_scaler,
    run_epoch,
    train_step,
)

__all__ = [
    "DivergedError", "Training", "Validation", "autocast", "evaluate", "make_optimizer", "run_epoch", "train",
    "train_step",
]  # fmt: skip


def train(job: Training) -> tuple[Progress, dict[int, str]]:
    """Trains from the newest snapshot to the end; returns the progress and the SHA-256 of each kept epoch's weights.

    Raises DivergedError when a loss is not finite, BenchError for a method that breaks its contract, and Stopped, with
    a snapshot of the very step, when a stop was requested. Of several processes only the first writes.
    """
    trainer = Trainer.begin(job)
    job, progress = trainer.job, trainer.progress
    with _determinism(job.run.deterministic):
        try:
            if progress.epoch < 0:
                trainer.finish_epoch(EpochCursor(0), {"epoch": 0})
            for epoch in range(progress.epoch + 1, job.config.epochs + 1):
                trainer.run_epoch(epoch)
                if epoch < job.config.epochs:
                    trainer.save_if_due()
                    job.process_group.check()
        except DivergedError:
            if job.process_group.first:  # the last good weights; the snapshots stay as well
                trainer.snapshots.write_candidates(progress)
            raise
        except Stopped:
            if job.process_group.requested() >= 0:  # else another process has taken over, and the folder is its own
                trainer.save()
            raise
    with job.watch.part("write"):
        return progress, trainer.snapshots.write_candidates(progress)


class Trainer:
    """State of a running training: its data and model, its snapshots, and how far it has come."""

    def __init__(self, job: Training, train_state: TrainState, snapshots: Snapshots, progress: Progress) -> None:
        self.job, self.train_state, self.snapshots, self.progress = job, train_state, snapshots, progress
        self.history = (
            History(job.folder / "history.jsonl", progress.history_bytes) if job.process_group.first else None
        )
        self.started, self.saved = time.monotonic() - progress.seconds, time.monotonic()
        if progress.cursor and not job.process_group.first:  # the first has the losses of all
            progress.cursor.sums = {k: torch.zeros_like(v) for k, v in progress.cursor.sums.items()}

    @classmethod
    def begin(cls, job: Training) -> "Trainer":
        """A new training, or one resumed from its newest snapshot."""
        method = job.method.to(job.context.device)
        torch.manual_seed(seed_for("setup", job.seed))  # whatever setup draws is the same every time
        job.context.generator.manual_seed(seed_for("setup", job.seed))
        method.setup(job.context)
        train_state = TrainState(method, make_optimizer(method, job.config), make_scaler(job), job.context.generator)
        snapshots = Snapshots(job.folder, job.config.micro_batch)
        progress = snapshots.load(train_state)
        for name, seconds in progress.times.items():
            job.watch.add(name, seconds)
        shared_loss = job.process_group.join(method, train_state.optimizer, job.context)
        return cls(replace(job, shared_loss=shared_loss), train_state, snapshots, progress)

    def run_epoch(self, epoch: int) -> None:
        """Trains and evaluates an epoch, or the rest of it."""
        job, left = self.job, self.progress.cursor
        cursor = self.progress.cursor = left or EpochCursor(epoch)
        restore = (lambda: self.snapshots.restore_again(self.train_state)) if left else (lambda: None)
        entry = run_epoch(job, self.train_state.optimizer, self.train_state.scaler, cursor, restore)
        self.finish_epoch(cursor, entry)
        self.progress.images += len(job.data.labels)
        self.progress.cursor = None
        self.progress.seconds = time.monotonic() - self.started

    def finish_epoch(self, cursor: EpochCursor, entry: dict[str, Any]) -> None:
        """Evaluates the model, updates the best-checkpoint table with this epoch and writes the history line."""
        job, progress, epoch = self.job, self.progress, cursor.epoch
        with job.watch.part("evaluate"):
            val, curves = evaluate(job, cursor)
        map_scores = {(t.protocol.name, t.view.method.label): c["pxap"] for t, c in curves.items()}
        if self.history is not None:
            is_best = update_slots(progress.slots, epoch, val["accuracy"], val["loss"], map_scores)
            if is_best or epoch == job.config.epochs:
                with job.watch.part("write"):
                    progress.candidates[epoch] = copy_state(job.method)
            if epoch < job.config.epochs:
                # `last` means the last of the schedule; until then it would only force a copy of every epoch.
                progress.slots.pop("last")
            progress.prune()
            maps = {f"{t.protocol.name}/{t.view.method.label}": c for t, c in curves.items()}
            entry = {**entry, "val": val, "valpx": maps}
            progress.history_bytes = self.history.append(entry)
        progress.epoch = epoch
        job.report({**entry, "epochs": job.config.epochs, "images": len(job.data.labels)})

    def save_if_due(self) -> None:
        """Writes a snapshot where the last one is old enough."""
        if time.monotonic() - self.saved >= self.job.run.snapshot_seconds:
            self.save()

    def save(self) -> None:
        """Writes a snapshot of this moment, unless nothing is done yet."""
        job, cursor = self.job, self.progress.cursor
        if self.progress.epoch < 0 or (cursor and not cursor.step):
            return
        if cursor:
            cursor.sums = {name: job.process_group.add(value) for name, value in cursor.sums.items()}
        self.progress.seconds = time.monotonic() - self.started
        self.progress.times = job.watch.seconds()
        if job.process_group.first:
            with job.watch.part("write"):
                self.snapshots.save(self.progress, self.train_state)
        self.saved = time.monotonic()


def evaluate(job: Training, cursor: EpochCursor) -> tuple[dict[str, float], dict[Task, dict[str, float]]]:
    """Accuracy (percent) and cross-entropy of the validation images, PxAP and Dice at 0.5 of the masked ones.

    Of several processes the first gets them, the others nothing. Raises DivergedError where logits are not finite, and
    Stopped before a batch.
    """
    v = job.validation
    views = tuple(dict.fromkeys(t.view for t in v.tasks))
    reader = MapExtractor(job.method, views, v.regions, job.context.num_classes)
    device, batch = job.context.device, job.run.score_batch

    def finite(logits: torch.Tensor) -> None:
        if cursor.step and not bool(torch.isfinite(logits).all()) and _gives_logits(job):
            raise diverged(job, cursor.epoch, cursor.step, {}, "what the model says of validation images")

    scores = validation_pass(reader, v.tasks, v.frames, v.masks, PassSettings(device, batch, job.process_group), finite)
    if scores is None:
        return {}, {}
    logits, scored = scores
    labels = v.frames.labels
    loss = float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)))
    curves = {t: _quality(scored[t.name].histograms) for t in v.tasks}
    return {"accuracy": accuracy(logits, labels), "loss": loss}, curves


def _gives_logits(job: Training) -> bool:
    """Whether the method predicts logits; where it does not they are NaN, which is no sign of divergence."""
    side = job.config.image_size
    with torch.no_grad():
        return job.method.predict(torch.zeros(1, 3, side, side, device=job.context.device)).logits is not None


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


@contextlib.contextmanager
def _determinism(asked: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(asked or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
