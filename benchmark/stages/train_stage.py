"""Training one stage: its method, data and settings, then the record of what came out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...methods.backbones.adapter import Backbone, load_weights
from ...methods.backbones.weights import PINS
from ...methods.base import Method, TrainContext
from ..core.device import forget_peak, peak_memory_mb
from ..core.errors import BenchError
from ..core.files import read_npz
from ..core.protocols import PROTOCOLS
from ..core.timing import Stopwatch, cost_of
from ..data.epoch_order import sampling_of
from ..data.image_cache import MaskForm
from ..data.train_loader import TrainingSet
from ..distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ..planning.config import TrainConfig
from ..planning.method_refs import MethodRef, Resolver
from ..planning.planner import selecting_maps
from ..planning.stage import Experiment, TrainStage
from ..scoring.adaptive_batch import OutOfMemoryRetry
from ..scoring.build import build_method, compile_backbone, statistics_of
from ..scoring.inference import Task
from ..scoring.map_extractor import MapRequest
from ..training.checkpoints import Snapshots
from ..training.trainer import Training, Validation, train
from .context import SELECTION_FORMS, StageContext, checkpoint, common_facts, pixel_masks


def retry_of(stage: TrainStage, ctx: StageContext) -> OutOfMemoryRetry:
    """How many images of a batch this training works on at once, as its folder says."""
    config = stage.inputs.config
    count = len(ctx.manifest(stage.inputs.experiment).split("train"))
    largest = -(-count // -(-count // config.batch_size))
    return OutOfMemoryRetry(ctx.store.run_dir(stage.key), config.micro_batch, largest)


def fit(stage: TrainStage, ctx: StageContext, process_group: ProcessGroup = SINGLE_PROCESS) -> None:
    """Trains a method and writes its checkpoints, history and record; of several processes the first does."""
    device, manifest = ctx.device, ctx.manifest(stage.inputs.experiment)
    forget_peak(device)
    job = _training(stage, ctx, process_group)
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
    common = common_facts(stage, ctx, manifest)
    seen = {"seen": list(stage.inputs.weights_seen)} if stage.inputs.weights_seen else {}
    shared = {"weights": {**job.weights, **seen}, **({"devices": process_group.size} if process_group.size > 1 else {})}
    unlike = {"unlike_published": list(stage.inputs.unlike_published)}
    ctx.store.finish(
        stage.key,
        {
            **common,
            **cost,
            "facts": {**common["facts"], **retry_of(stage, ctx).facts, **shared, **unlike},
            "roles": roles,
            "epochs": job.config.epochs,
            "parameters": sum(p.numel() for p in job.method.parameters()),
            "compiled": ctx.run.compile,
            "peak_memory_mb": peak,
        },
    )
    ctx.report({"stage": stage, "kind": "done", **cost})
    keep = {r["weights"] for r in roles.values()}
    for path in job.folder.glob("epoch-*.safetensors"):
        if path.name not in keep:
            path.unlink()
    snapshots.remove()


def _training(stage: TrainStage, ctx: StageContext, process_group: ProcessGroup) -> Training:
    """The method of a stage with its weights, its data and its settings."""
    inputs, experiment = stage.inputs, stage.inputs.experiment
    ref = inputs.method
    config = dataclasses.replace(stage.inputs.config, micro_batch=retry_of(stage, ctx).used)
    device, manifest = ctx.device, ctx.manifest(experiment)
    card, images = manifest.card, ctx.images(experiment)
    method = build_method(ref, experiment.backbone, config, len(card.classes), experiment.seed, stage.inputs.statistics)
    weights: dict[str, Any] = {}
    if ref.spec.backbone:
        weights = load_weights(_backbone(method), inputs.weights, ctx.store.root / PINS)
    if ctx.run.compile:
        compile_backbone(method)
    pixel = ref.spec.supervision == "pixel"
    frames = images.frames(manifest.split("train"), config.load_size, MaskForm(config.load_size) if pixel else None)
    maps = teacher_maps(stage, ctx, frames.ids)
    sampling = sampling_of(ref.spec)
    data = TrainingSet(frames, config, device, statistics_of(method), maps, sampling).on_device()
    generator, parents = torch.Generator(device), parent_states(stage, ctx)
    context = TrainContext(0, config.epochs, len(card.classes), card.region_classes, device, generator, parents)
    folder, watch = ctx.store.run_dir(stage.key), Stopwatch(device)

    def report(event: dict[str, Any]) -> None:
        ctx.report({"stage": stage, "kind": "train", **event})

    judged = validation(ref, ctx, experiment, config)
    job = Training(method, data, judged, context, config, ctx.run, experiment.seed, folder, report)
    return dataclasses.replace(job, watch=watch, ids=frames.ids, process_group=process_group, weights=weights)


def _backbone(method: Method) -> Backbone:
    found = getattr(method, "backbone", None)
    if not isinstance(found, Backbone):
        raise BenchError(f"Method '{method.registered_name}' must keep the backbone it is given as self.backbone.")
    return found


def validation(ref: MethodRef, ctx: StageContext, experiment: Experiment, config: TrainConfig) -> Validation:
    """What the training of a method evaluates after every epoch."""
    manifest, images = ctx.manifest(experiment), ctx.images(experiment)
    items = manifest.split("val")
    return Validation(
        images.frames(items, config.image_size),
        pixel_masks(items, ctx, experiment, SELECTION_FORMS),
        selection_tasks(ref),
        manifest.card.regions,
    )


def selection_tasks(ref: MethodRef) -> tuple[Task, ...]:
    """One task per protocol and map that picks a `loc` checkpoint of this training."""
    if ref.spec.kind == "none" and not ref.spec.selects:
        return ()
    plain = Resolver({})  # options of this run's explainers must not move the classifier's checkpoints
    tasks = []
    for protocol in PROTOCOLS.values():
        for name in selecting_maps(ref):
            reader = ref if name == ref.label else plain.ref(name)
            map_class = protocol.map_class if reader.spec.class_specific else "any"
            tasks.append(Task(MapRequest(reader, map_class), protocol))
    return tuple(tasks)


def teacher_maps(stage: TrainStage, ctx: StageContext, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """The stored maps a training learns from, in the order of `ids`, by the name of the teacher."""
    found = {}
    for parent, need in stage.inputs.method.parents().items():
        if need.role == "maps" and parent in stage.parents:
            stored = read_npz(ctx.store.run_dir(stage.parents[parent]) / "maps.npz")
            row = {name: k for k, name in enumerate(stored["ids"].tolist())}
            found[need.name] = stored["maps"][[row[i] for i in ids]].astype(np.float32)
    return found


def parent_states(stage: TrainStage, ctx: StageContext) -> dict[str, dict[str, torch.Tensor]]:
    """State dicts of the parents a training starts from."""
    roles = stage.identity["roles"]
    return {name: checkpoint(ctx, stage.parents[name], role)[0] for name, role in roles.items()}
