"""Training one stage: its method, data and settings, then the record of what came out."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...methods.backbones.adapter import Backbone
from ...methods.backbones.loading import load_weights
from ...methods.backbones.normalisation import IMAGENET
from ...methods.backbones.weights import PINS
from ...methods.base import Method, TrainContext
from ...methods.factory import compile_backbone
from ...methods.spec import MASKED
from ..core.device import forget_peak, peak_memory_mb
from ..core.errors import BenchError
from ..core.files import read_npz
from ..core.protocols import PROTOCOLS
from ..core.timing import Stopwatch, cost_of
from ..data.epoch_order import Sampling, sampling_of
from ..data.image_cache import ImageSplit, MaskForm
from ..data.train_loader import TrainingSet
from ..distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ..planning.checkpoint_slots import selecting_maps
from ..planning.config import TrainConfig
from ..planning.method_refs import MethodRef, Resolver
from ..planning.stage import Experiment, TrainStage
from ..scoring.adaptive_batch import OutOfMemoryRetry
from ..scoring.build import build_adapter, build_method
from ..scoring.inference import Task
from ..scoring.map_extractor import MapRequest
from ..training.checkpoints import Snapshots
from ..training.full_pass import WholeSets
from ..training.trainer import Training, Validation, train
from .context import (
    SELECTION_FORMS,
    StageContext,
    checkpoint,
    common_facts,
    epoch_items,
    pixel_masks,
    target_items,
    trained_model,
)
from .labelled_set import labelled_set, record_of_round


def retry_of(stage: TrainStage, ctx: StageContext) -> OutOfMemoryRetry:
    """How many images of a batch this training works on at once, as its folder says."""
    config = stage.inputs.config
    count = len(epoch_items(stage.inputs, ctx))
    largest = -(-count // -(-count // config.batch_size))
    return OutOfMemoryRetry(ctx.store.run_dir(stage.key), config.micro_batch, largest)


def fit(stage: TrainStage, ctx: StageContext, process_group: ProcessGroup = SINGLE_PROCESS) -> None:
    """Trains a method and writes its checkpoints, history and record; of several processes the first does."""
    device, manifest = ctx.device, ctx.manifest(stage.inputs.experiment)
    forget_peak(device)
    job = _training(stage, ctx, process_group)
    progress, hashes = train(job)
    acquired = record_of_round(stage, ctx, job.method, job.context, process_group)
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
        for role, r in progress.slots.items()
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
            **acquired,
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
    device, card = ctx.device, ctx.manifest(experiment).card
    method, weights = starting_model(stage, ctx)
    if ctx.run.compile:
        compile_backbone(method)
    training_set = training_set_of(stage, ctx, config)
    frames, whole_sets = training_set.frames, whole_sets_of(training_set)
    data = training_set.on_device()
    generator, parents = torch.Generator(device), parent_states(stage, ctx)
    folder, watch = ctx.store.run_dir(stage.key), Stopwatch(device)
    classes, side, images = len(card.classes), config.image_size, ctx.run.score_batch
    full_pass = WholeSets(method, whole_sets, classes, side, images, device, watch, process_group)
    context = TrainContext(0, config.epochs, classes, card.region_classes, device, generator, parents)
    context.whole_set, context.models = full_pass, ParentModels(stage, ctx, parents)
    if some := labelled_set(stage, ctx):
        some.tell(context, ref.round)

    def report(event: dict[str, Any]) -> None:
        ctx.report({"stage": stage, "kind": "train", **event})

    judged = validation(ref, ctx, experiment, config)
    job = Training(method, data, judged, context, config, ctx.run, experiment.seed, folder, report)
    return dataclasses.replace(job, watch=watch, ids=frames.ids, process_group=process_group, weights=weights)


def starting_model(stage: TrainStage, ctx: StageContext) -> tuple[Method, dict[str, Any]]:
    """The method of a stage as training begins, before `setup`: with starting weights, or around its trained source.

    Also what the record says of the weights; those of an adapter are the ones its source started from.
    """
    inputs, experiment = stage.inputs, stage.inputs.experiment
    classes = len(ctx.manifest(experiment).card.classes)
    settings = (experiment.backbone, inputs.config, classes, experiment.seed, inputs.statistics)
    ref, weights = inputs.method, dict[str, Any]()
    if ref.spec.adapts and ref.base:
        key = stage.parents["source"]
        source = build_method(ref.base, *settings)
        source.load_state_dict(checkpoint(ctx, key, stage.identity["roles"]["source"])[0])
        return build_adapter(ref, source, classes, experiment.seed), ctx.store.record(key)["facts"].get("weights", {})
    method = build_method(ref, *settings)
    if ref.spec.backbone:
        weights = load_weights(_backbone(method), inputs.weights, ctx.store.root / PINS)
    return method, weights


def training_set_of(stage: TrainStage, ctx: StageContext, config: TrainConfig) -> TrainingSet:
    """The images a training goes over: its own, for a source-free adapter the target's, or for another both."""
    inputs = stage.inputs
    spec, statistics = inputs.method.spec, inputs.statistics if inputs.method.spec.backbone else IMAGENET
    own, target = None, None
    if spec.source_images or not spec.adapts:
        masks = MaskForm(config.load_size) if spec.supervision in MASKED else None
        items, cache = ctx.manifest(inputs.experiment).split("train"), ctx.images(inputs.experiment)
        if some := labelled_set(stage, ctx):
            items = some.items
            cache.prepare([some.request(config.load_size)])
        frames = cache.frames(items, config.load_size, masks)
        maps = teacher_maps(stage, ctx, frames.ids)
        own = TrainingSet(frames, config, ctx.device, statistics, maps, sampling_of(spec))
        own = dataclasses.replace(own, labelled=some.labelled) if some else own
    if spec.adapts and inputs.experiment.target:
        frames = ctx.images(inputs.experiment.target).frames(target_items(inputs, ctx), config.load_size)
        maps = teacher_maps(stage, ctx, frames.ids, "target")
        target = TrainingSet(frames, config, ctx.device, statistics, maps, Sampling(views=spec.views), withheld=True)
    if own is None and target is None:
        raise ValueError(f"{stage.title}: an adapter without a target was planned")
    return target if own is None else dataclasses.replace(own, beside=target)  # pyright: ignore[reportReturnType]


def whole_sets_of(training_set: TrainingSet) -> dict[str, ImageSplit]:
    """What `context.full_pass` may go over, by name."""
    if training_set.withheld:
        return {"target": training_set.frames}
    beside = {"target": training_set.beside.frames} if training_set.beside else {}
    return {"train": training_set.frames, **beside}


def _backbone(method: Method) -> Backbone:
    backbone = getattr(method, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise BenchError(f"Method '{method.registered_name}' must keep the backbone it is given as self.backbone.")
    return backbone


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


def teacher_maps(stage: TrainStage, ctx: StageContext, ids: Sequence[str], on: str = "train") -> dict[str, np.ndarray]:
    """The stored maps a training learns from, in the order of `ids`, by the name of the teacher.

    on: whose images they are of, `train` or `target`.
    """
    maps = {}
    for parent, need in stage.inputs.method.parents().items():
        if need.role == "maps" and need.on == on and parent in stage.parents:
            stored = read_npz(ctx.store.run_dir(stage.parents[parent]) / "maps.npz")
            row = {name: k for k, name in enumerate(stored["ids"].tolist())}
            maps[need.name] = stored["maps"][[row[i] for i in ids]].astype(np.float32)
    return maps


class ParentModels(Mapping[str, Method]):
    """The parent models of a training by role, each built when first asked for."""

    def __init__(self, stage: TrainStage, ctx: StageContext, states: Mapping[str, dict[str, torch.Tensor]]) -> None:
        self._inputs, self._ctx, self._states = stage.inputs.parents, ctx, states
        self._models: dict[str, Method] = {}

    def __getitem__(self, role: str) -> Method:
        """The model of a role, the same at every call."""
        if role not in self._models:
            inputs = self._inputs[role]
            self._models[role] = trained_model(inputs, inputs.method, self._ctx, self._states[role])
        return self._models[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)


def parent_states(stage: TrainStage, ctx: StageContext) -> dict[str, dict[str, torch.Tensor]]:
    """State dicts of the parents a training starts from."""
    roles = stage.identity["roles"]
    return {name: checkpoint(ctx, stage.parents[name], role)[0] for name, role in roles.items()}
