"""Context of stages: what every stage has at hand, and inputs that more than one kind of stage reads."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...datasets.base import Item, Manifest
from ...datasets.shifts.stain import StainPool
from ...methods import METHODS
from ...methods.base import Method
from ..core.device import choose_device, compute
from ..core.environment import environment
from ..core.errors import BenchError
from ..core.protocols import PROTOCOLS
from ..core.results_store import Store
from ..data.image_cache import DecodeRequest, ImageCache, MaskForm, mask_request
from ..data.mask_notes import notes_of_rows
from ..data.shifted_images import make_pool, pool_items, pooled
from ..planning.config import RunConfig
from ..planning.eval_sets import EvalSet
from ..planning.method_refs import MethodRef
from ..planning.open_datasets import OpenDataset
from ..planning.stage import AnyStage, Experiment, MapsInputs, MapsStage, ScoreInputs, StageInputs, TrainInputs
from ..scoring.build import build_method
from ..scoring.inference import PixelMasks, evaluation_mode
from ..training.checkpoints import load_tensors

EXAMPLES_PER_CLASS = 4
SELECTION_SIZE = max(p.size for p in PROTOCOLS.values())
SELECTION_FORMS = [MaskForm(SELECTION_SIZE, r) for r in dict.fromkeys(p.mask_reduction for p in PROTOCOLS.values())]


@dataclass
class StageContext:
    """What every stage has at hand: settings, opened datasets, the results store, and where to report progress."""

    run: RunConfig
    open_datasets: dict[str, OpenDataset]
    report: Callable[[dict[str, Any]], None] = lambda event: None
    _caches: dict[tuple[str, str], ImageCache] = field(default_factory=dict)
    _notes: dict[tuple[Any, ...], list[str]] = field(default_factory=dict)
    _pools: dict[tuple[Any, ...], StainPool] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        """The results folder."""
        return Store(self.run.results)

    @property
    def device(self) -> torch.device:
        """The device asked for."""
        return choose_device(self.run.device)

    def manifest(self, place: Experiment | EvalSet) -> Manifest:
        """The manifest of the fold an experiment trains on, or an evaluation set belongs to."""
        return self.open_datasets[place.dataset].manifest(place.fold)

    def images(self, place: Experiment | EvalSet) -> ImageCache:
        """Decoded arrays of that dataset."""
        key = (place.dataset, place.fold)
        if key not in self._caches:
            opened = self.open_datasets[place.dataset]
            self._caches[key] = ImageCache(self.store, opened.dataset, opened.hashes(place.fold))
        return self._caches[key]

    def mask_notes(self, place: Experiment | EvalSet, form: MaskForm, items: Sequence[Item]) -> list[str]:
        """What a reader of the table must know about the masks of these rows, at the size they are scored at."""
        key = (place.dataset, place.fold, form, items[0].split if items else "")
        if key not in self._notes:
            self._notes[key] = notes_of_rows(self.manifest(place), self.images(place), items, form)
        return self._notes[key]

    def pool(self, on: EvalSet, size: int) -> StainPool | None:
        """The target stains of a shifted set whose shift needs them, for images of `size` px."""
        if not pooled(on.shift):
            return None
        key = (*on._replace(shift="", level=0), size)
        if key not in self._pools:
            stains = EvalSet(on.stain_source, on.stain_fold)
            own = pool_items(self.manifest(on).split("train"))
            target = pool_items(self.manifest(stains).split("test"))
            self._pools[key] = make_pool((self.images(on), own), (self.images(stains), target), size)
        return self._pools[key]


def place_of(stage: AnyStage) -> Experiment | EvalSet:
    """The dataset and fold whose files a stage reads."""
    inputs = stage.inputs
    if isinstance(inputs, ScoreInputs):
        return inputs.on
    on_target = isinstance(inputs, MapsInputs) and inputs.on_target
    return inputs.experiment.target or inputs.experiment if on_target else inputs.experiment


def needs_of(stage: AnyStage, ctx: StageContext) -> list[DecodeRequest]:
    """The decoded arrays of `place_of(stage)` that a stage will read; `needs_elsewhere` has the others."""
    manifest, inputs = ctx.manifest(place_of(stage)), stage.inputs
    train, config = tuple(manifest.split("train")), inputs.config
    if isinstance(inputs, ScoreInputs):
        return _needs_of_score(manifest, stage.labels["split"], inputs)
    if isinstance(inputs, MapsInputs):
        return [DecodeRequest(train, config.load_size)]
    spec = inputs.method.spec
    requests = [
        DecodeRequest(train if spec.source_images or not spec.adapts else (), config.load_size),
        DecodeRequest(tuple(manifest.split("val")), config.image_size),
        *(mask_request(manifest.split("valpx"), *form) for form in SELECTION_FORMS),
    ]
    if spec.supervision == "pixel":  # those of `partial` are decoded as a round begins, when it is known which
        requests.append(mask_request(list(train), config.load_size))
    return requests


def _needs_of_score(manifest: Manifest, split: str, inputs: ScoreInputs) -> list[DecodeRequest]:
    items, side, (size, reduction) = manifest.split(split), inputs.config.image_size, mask_form(inputs)
    images = DecodeRequest(tuple(items), side)
    if split == "val":
        return [images, mask_request(manifest.split("valpx"), size, reduction)]
    shown = tuple(items[row] for row in example_rows(items))
    return [images, mask_request(items, size, reduction), DecodeRequest(shown, size)]


def needs_elsewhere(stage: AnyStage, ctx: StageContext) -> list[tuple[EvalSet, DecodeRequest]]:
    """What a stage reads beside `needs_of`: images of a target, or whose stains make a pool, with the set of each."""
    inputs = stage.inputs
    if isinstance(inputs, TrainInputs) and inputs.method.spec.adapts and inputs.experiment.target:
        items = tuple(target_items(inputs, ctx))
        return [(inputs.experiment.target, DecodeRequest(items, inputs.config.load_size))]
    if not isinstance(inputs, ScoreInputs) or not pooled(inputs.on.shift):
        return []
    on, side = inputs.on, inputs.config.image_size  # the pictures take the stains of the scores
    stains = EvalSet(on.stain_source, on.stain_fold)
    own = tuple(pool_items(ctx.manifest(on).split("train")))
    target = tuple(pool_items(ctx.manifest(stains).split("test")))
    return [(place, DecodeRequest(items, side)) for place, items in ((on, own), (stains, target))]


def target_items(inputs: StageInputs, ctx: StageContext) -> list[Item]:
    """The training images of the target, in the order of their names, stripped of label, mask and group."""
    target = inputs.experiment.target
    if target is None:
        raise BenchError(f"'{inputs.method.label}' adapts to a target, and none is planned.")
    items = sorted(ctx.manifest(target).split("train"), key=lambda item: item.id)
    return [dataclasses.replace(i, label=-1, mask=None, mask_rule=None, group="", meta=()) for i in items]


def epoch_items(inputs: StageInputs, ctx: StageContext) -> list[Item]:
    """The images that an epoch of a training goes over: the training set, or of a source-free adapter the target."""
    spec = inputs.method.spec
    if spec.adapts and not spec.source_images:
        return target_items(inputs, ctx)
    return ctx.manifest(inputs.experiment).split("train")


def load_method_files(stages: Sequence[AnyStage]) -> None:
    """Registers the methods of users' own files in this process."""
    for stage in stages:
        named = [ref for ref in (stage.inputs.method, stage.inputs.model) if ref is not None]
        for ref in (one for name in named for one in name.chain):
            if ref.spec.origin == "file":
                METHODS.load_file(Path(ref.spec.module))


def example_rows(items: Sequence[Item]) -> list[int]:
    """A few images of every class, evenly spread over the ids: the same for every method."""
    rows: list[int] = []
    for label in sorted({i.label for i in items}):
        of_class = sorted((k for k, i in enumerate(items) if i.label == label), key=lambda k: items[k].id)
        picks = np.linspace(0, len(of_class) - 1, min(EXAMPLES_PER_CLASS, len(of_class))).round().astype(int)
        rows += [of_class[p] for p in picks]
    return sorted(rows)


def pixel_masks(
    items: Sequence[Item], ctx: StageContext, experiment: Experiment, forms: Sequence[MaskForm]
) -> PixelMasks:
    """The masks of the validation images whose masks may be read, in each form."""
    rows = [k for k, item in enumerate(items) if item.pixel_val]
    masked = [items[k] for k in rows]
    return PixelMasks(tuple(rows), {f.reduction: np.asarray(ctx.images(experiment).masks(masked, f)) for f in forms})


def mask_form(inputs: ScoreInputs) -> MaskForm:
    """The size of the masks a score counts against, and how they are reduced to it."""
    return MaskForm(inputs.protocol.size, inputs.protocol.mask_reduction)


def checkpoint(ctx: StageContext, key: str, slot: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights a training kept in a slot, and that slot's entry. Raises BenchError if no epoch took it."""
    record = ctx.store.record(key)
    if slot not in record["roles"]:
        raise BenchError(
            f"Training {key} ({record['labels']['method']}) kept no checkpoint for '{slot}': the value that picks it "
            f"was never defined. It kept: {', '.join(record['roles'])}."
        )
    entry = record["roles"][slot]
    return load_tensors(ctx.store.run_dir(key) / entry["weights"], entry["sha256"]), entry


def load_model(stage: MapsStage, ctx: StageContext, slot: str = "") -> tuple[Method | None, dict[str, Any]]:
    """The trained model a stage reads, in eval mode on the device, and its checkpoint's entry; None for a baseline.

    slot: the checkpoint slot to read instead of the stage's own.
    """
    inputs = stage.inputs
    if inputs.source_model is None:
        return None, {"epoch": None, "sha256": ""}
    weights, entry = checkpoint(ctx, stage.parents["checkpoint"], slot or inputs.checkpoint_slot)
    return trained_model(inputs, inputs.source_model, ctx, weights), entry


def trained_model(inputs: StageInputs, ref: MethodRef, ctx: StageContext, weights: dict[str, torch.Tensor]) -> Method:
    """A method with trained weights: frozen, in eval mode, on the device. inputs: with its settings and experiment."""
    experiment = inputs.experiment
    classes = len(ctx.manifest(experiment).card.classes)
    model = build_method(ref, experiment.backbone, inputs.config, classes, experiment.seed, inputs.statistics)
    _fill(model, ref, weights)
    evaluation_mode(model)
    return model.to(ctx.device).requires_grad_(False)


def _fill(model: Method, ref: MethodRef, weights: dict[str, torch.Tensor]) -> None:
    """Loads weights. What an adapter registered in `setup`, such as a memory bank, is of use to its training alone."""
    if ref.spec.adapts:
        known = model.state_dict()
        weights = {name: value for name, value in weights.items() if name in known}
    model.load_state_dict(weights)


def _notes_of(inputs: StageInputs, manifest: Manifest) -> list[str]:
    """What a table must say of the images; how the splits of another set are made says nothing about this model."""
    away = isinstance(inputs, ScoreInputs) and inputs.on.dataset != inputs.experiment.dataset
    return [note for note in manifest.notes if not (away and note in manifest.split_notes)]


def common_facts(stage: AnyStage, ctx: StageContext, manifest: Manifest) -> dict[str, Any]:
    """What every record holds."""
    inputs = stage.inputs
    has_backbone = inputs.model is not None and bool(inputs.model.spec.backbone)
    return {
        "kind": stage.kind,
        "identity": stage.identity,
        "parents": stage.parents,
        "labels": stage.labels,
        "facts": {
            "synthetic": manifest.synthetic,
            "supervision": inputs.supervision,
            "notes": _notes_of(inputs, manifest),
            "images": len(manifest.split("train")),
            "normalisation": inputs.statistics.to_json() if has_backbone else None,
        },
        "environment": {**environment(), **compute(ctx.device)},
        "config": dataclasses.asdict(inputs.config),
    }
