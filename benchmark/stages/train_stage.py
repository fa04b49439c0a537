"""Training one stage: its method, data and settings, then the record of what came out."""

import dataclasses
from typing import Any

import torch

from ...methods.backbones.adapter import Backbone, load_weights
from ...methods.backbones.weights import PINS
from ...methods.base import Method, TrainContext
from ..core.environment import forget_peak, peak_memory_mb
from ..core.errors import BenchError
from ..core.timing import Stopwatch
from ..data.epoch_order import sampling_of
from ..data.image_cache import MaskForm
from ..data.train_loader import TrainingSet
from ..distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ..planning.planner import Stage
from ..scoring.adaptive_batch import Retry
from ..scoring.build import build_method, compile_backbone, statistics_of
from ..training.checkpoints import Snapshots
from ..training.trainer import Training, train
from .context import Desk, common_facts, parent_states, teacher_maps, validation
from .costs import cost_of


def retry_of(stage: Stage, desk: Desk) -> Retry:
    """How many images of a batch this training works on at once, as its folder says."""
    config = stage.work["config"]
    count = len(desk.manifest(stage.work["cell"]).split("train"))
    largest = -(-count // -(-count // config.batch_size))
    return Retry(desk.store.run_dir(stage.key), config.micro_batch, largest)


def train_stage(stage: Stage, desk: Desk, process_group: ProcessGroup = SINGLE_PROCESS) -> None:
    """Trains a method and writes its checkpoints, history and record; of several processes the first does."""
    device, manifest = desk.device, desk.manifest(stage.work["cell"])
    forget_peak(device)
    job = _training(stage, desk, process_group)
    progress, hashes = train(job)
    peak = process_group.most(peak_memory_mb(device))
    if not process_group.first:
        return
    snapshots = Snapshots(job.folder)
    roles = {
        role: {
            "epoch": r["epoch"],
            "value": r["value"],
            "weights": snapshots.weights_name(r["epoch"]),
            "sha256": hashes[r["epoch"]],
        }
        for role, r in progress.roles.items()
    }
    cost = cost_of(progress.seconds, progress.images, job.watch.seconds())
    common = common_facts(stage, desk, manifest)
    seen = {"seen": stage.work["weights_seen"]} if stage.work["weights_seen"] else {}
    shared = {"weights": {**job.weights, **seen}, **({"devices": process_group.size} if process_group.size > 1 else {})}
    unlike = {"unlike_published": stage.work["unlike_published"]}
    desk.store.finish(
        stage.key,
        {
            **common,
            **cost,
            "facts": {**common["facts"], **retry_of(stage, desk).facts, **shared, **unlike},
            "roles": roles,
            "epochs": job.config.epochs,
            "parameters": sum(p.numel() for p in job.method.parameters()),
            "compiled": desk.run.compile,
            "peak_memory_mb": peak,
        },
    )
    desk.report({"stage": stage, "kind": "done", **cost})
    keep = {r["weights"] for r in roles.values()}
    for path in job.folder.glob("epoch-*.safetensors"):
        if path.name not in keep:
            path.unlink()
    snapshots.remove()


def _training(stage: Stage, desk: Desk, process_group: ProcessGroup) -> Training:
    """The method of a stage with its weights, its data and its settings."""
    ref, cell = stage.work["method"], stage.work["cell"]
    config = dataclasses.replace(stage.work["config"], micro_batch=retry_of(stage, desk).used)
    device, manifest = desk.device, desk.manifest(cell)
    card, images = manifest.card, desk.images(cell)
    method = build_method(ref, cell.backbone, config, len(card.classes), cell.seed, stage.work["statistics"])
    weights: dict[str, Any] = {}
    if ref.spec.backbone:
        weights = load_weights(_backbone(method), stage.work["weights"], desk.store.root / PINS)
    if desk.run.compile:
        compile_backbone(method)
    pixel = ref.spec.supervision == "pixel"
    frames = images.frames(manifest.split("train"), config.load_size, MaskForm(config.load_size) if pixel else None)
    maps = teacher_maps(stage, desk, frames.ids)
    sampling = sampling_of(ref.spec)
    data = TrainingSet(frames, config, device, statistics_of(method), maps, sampling).on_device()
    generator, parents = torch.Generator(device), parent_states(stage, desk)
    context = TrainContext(0, config.epochs, len(card.classes), card.region_classes, device, generator, parents)
    folder, watch = desk.store.run_dir(stage.key), Stopwatch(device)

    def report(event: dict[str, Any]) -> None:
        desk.report({"stage": stage, "kind": "train", **event})

    judged = validation(ref, desk, cell, config)
    job = Training(
        method, data, judged, context, config, desk.run, cell.seed, folder, report, watch, frames.ids, process_group
    )
    return dataclasses.replace(job, weights=weights)


def _backbone(method: Method) -> Backbone:
    found = getattr(method, "backbone", None)
    if not isinstance(found, Backbone):
        raise BenchError(f"Method '{method.registered_name}' must keep the backbone it is given as self.backbone.")
    return found
