"""Doing one stage: what each kind reads, runs and leaves on disk."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...datasets.base import Item, Manifest
from ...datasets.shifts.stain import StainPool
from ...methods import METHODS
from ...methods.base import Method
from ..core import shutdown
from ..core.environment import compute, environment
from ..core.errors import BenchError
from ..core.protocols import PROTOCOLS
from ..core.results_store import Store, read_npz, write_npz
from ..core.timing import Stopwatch
from ..data.eval_loader import Seen, batches
from ..data.image_cache import ImageCache, MaskForm, Need, mask_need
from ..data.mask_notes import notes_of_rows
from ..data.prefetch import Landing
from ..data.shifted_images import make_pool, pool_items, pooled
from ..execution.terminal import title
from ..planning.config import RunConfig, TrainConfig
from ..planning.eval_sets import EvalSet
from ..planning.method_refs import MethodRef, Resolver
from ..planning.open_datasets import Source
from ..planning.planner import Cell, Stage, selecting_maps
from ..scoring.adaptive_batch import Room
from ..scoring.build import build_method, choose_device
from ..scoring.inference import PixelMasks, Task, evaluation_mode
from ..scoring.map_extractor import Reader, View
from ..scoring.map_scaling import Refusals, scale_later
from ..scoring.method_sandbox import guarded, model_unchanged
from ..training.checkpoints import load_tensors
from ..training.trainer import Validation
from .costs import cost_of, own_times

EXAMPLES_PER_CLASS = 4
MAPS_SIDE = 56  # px; stored teacher maps are at most so large
SELECTION_SIZE = max(p.size for p in PROTOCOLS.values())
SELECTION_FORMS = [MaskForm(SELECTION_SIZE, r) for r in dict.fromkeys(p.mask_reduction for p in PROTOCOLS.values())]


@dataclass
class Desk:
    """What every stage needs at hand: settings, opened datasets, the store, and where to report progress."""

    run: RunConfig
    sources: dict[str, Source]
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

    def manifest(self, place: Cell | EvalSet) -> Manifest:
        """The manifest of the fold a cell trains on, or an evaluation set belongs to."""
        return self.sources[place.dataset].manifest(place.fold)

    def images(self, place: Cell | EvalSet) -> ImageCache:
        """Decoded arrays of that dataset."""
        key = (place.dataset, place.fold)
        if key not in self._caches:
            source = self.sources[place.dataset]
            self._caches[key] = ImageCache(self.store, source.dataset, source.hashes(place.fold))
        return self._caches[key]

    def mask_notes(self, place: Cell | EvalSet, form: MaskForm, items: Sequence[Item]) -> list[str]:
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
            lender = EvalSet(on.lender, on.lender_fold)
            own = pool_items(self.manifest(on).split("train"))
            lent = pool_items(self.manifest(lender).split("test"))
            self._pools[key] = make_pool((self.images(on), own), (self.images(lender), lent), size)
        return self._pools[key]


def place_of(stage: Stage) -> Cell | EvalSet:
    """The dataset and fold whose files a stage reads."""
    return stage.work["on"] if stage.kind == "score" else stage.work["cell"]


def needs_of(stage: Stage, desk: Desk) -> list[Need]:
    """The decoded arrays a stage will read, all of `place_of(stage)`."""
    manifest, config = desk.manifest(place_of(stage)), stage.work["config"]
    if stage.kind == "maps":
        return [Need(tuple(manifest.split("train")), config.load_size)]
    if stage.kind == "score":
        items, (size, reduction) = manifest.split(stage.labels["split"]), scoring_form(stage)
        if stage.labels["split"] == "val":
            return [Need(tuple(items), config.image_size), mask_need(manifest.split("valpx"), size, reduction)]
        shown = tuple(items[row] for row in example_rows(items))
        return [Need(tuple(items), config.image_size), mask_need(items, size, reduction), Need(shown, size)]
    needs = [
        Need(tuple(manifest.split("train")), config.load_size),
        Need(tuple(manifest.split("val")), config.image_size),
        *(mask_need(manifest.split("valpx"), *form) for form in SELECTION_FORMS),
    ]
    if stage.work["method"].spec.supervision == "pixel":
        needs.append(mask_need(manifest.split("train"), config.load_size))
    return needs


def pool_needs(stage: Stage, desk: Desk) -> list[tuple[EvalSet, Need]]:
    """What a stage reads beside `needs_of`: images whose stains make a pool, with the set each belongs to."""
    on: EvalSet | None = stage.work.get("on")
    if on is None or not pooled(on.shift):
        return []
    lender = EvalSet(on.lender, on.lender_fold)
    own = tuple(pool_items(desk.manifest(on).split("train")))
    lent = tuple(pool_items(desk.manifest(lender).split("test")))
    side = stage.work["config"].image_size  # the pictures take the stains of the scores
    return [(place, Need(items, side)) for place, items in ((on, own), (lender, lent))]


def know_files(stages: Sequence[Stage]) -> None:
    """Makes methods of users' own files known in this process."""
    for stage in stages:
        for ref in (stage.work["method"], stage.work.get("carrier")):
            if ref is not None and ref.spec.origin == "file":
                METHODS.load_file(Path(ref.spec.module))


# -- train -----------------------------------------------------------------------------------------------------------
@guarded
def run_train(stage: Stage, desk: Desk) -> None:
    """Trains a method, with `--devices` in several processes; once more with half batches if memory runs out.

    Raises Stopped with a snapshot on disk, DivergedError, and BenchError where memory does not suffice at all.
    """
    from .train_stage import retry_of, train_stage

    shutdown.check()
    work = train_stage
    if desk.run.devices > 1:
        from .rank_process import train_together

        work = train_together
    retry_of(stage, desk).attempt(lambda: work(stage, desk), title(stage), desk.device)


def example_rows(items: Sequence[Item]) -> list[int]:
    """A few images of every class, evenly spread over the ids: the same for every method."""
    rows: list[int] = []
    for label in sorted({i.label for i in items}):
        of_class = sorted((k for k, i in enumerate(items) if i.label == label), key=lambda k: items[k].id)
        picks = np.linspace(0, len(of_class) - 1, min(EXAMPLES_PER_CLASS, len(of_class))).round().astype(int)
        rows += [of_class[p] for p in picks]
    return sorted(rows)


def validation(ref: MethodRef, desk: Desk, cell: Cell, config: TrainConfig) -> Validation:
    """What the training of a method evaluates after every epoch."""
    manifest, images = desk.manifest(cell), desk.images(cell)
    items = manifest.split("val")
    return Validation(
        images.frames(items, config.image_size),
        pixel_masks(items, desk, cell, SELECTION_FORMS),
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
            tasks.append(Task(View(reader, map_class), protocol))
    return tuple(tasks)


def pixel_masks(items: Sequence[Item], desk: Desk, cell: Cell, forms: Sequence[MaskForm]) -> PixelMasks:
    """The masks of the validation images whose masks may be read, in each form."""
    rows = [k for k, item in enumerate(items) if item.pixel_val]
    asked = [items[k] for k in rows]
    return PixelMasks(tuple(rows), {f.reduction: np.asarray(desk.images(cell).masks(asked, f)) for f in forms})


def scoring_form(stage: Stage) -> MaskForm:
    """How a score stage wants its masks."""
    return MaskForm(stage.work["protocol"].size, stage.work["protocol"].mask_reduction)


def teacher_maps(stage: Stage, desk: Desk, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """The stored maps a training learns from, in the order of `ids`, by the name of the teacher."""
    found = {}
    for parent, need in stage.work["method"].parents().items():
        if need.role == "maps" and parent in stage.parents:
            stored = read_npz(desk.store.run_dir(stage.parents[parent]) / "maps.npz")
            row = {name: k for k, name in enumerate(stored["ids"].tolist())}
            found[need.name] = stored["maps"][[row[i] for i in ids]].astype(np.float32)
    return found


def parent_states(stage: Stage, desk: Desk) -> dict[str, dict[str, torch.Tensor]]:
    """State dicts of the parents a training starts from."""
    roles = stage.identity["roles"]
    return {name: checkpoint(desk, stage.parents[name], role)[0] for name, role in roles.items()}


def checkpoint(desk: Desk, key: str, role: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights a training kept for a role, and that role's entry. Raises BenchError if no epoch took the role."""
    record = desk.store.record(key)
    if role not in record["roles"]:
        raise BenchError(
            f"Training {key} ({record['labels']['method']}) kept no checkpoint for '{role}': the value that picks it "
            f"was never defined. It kept: {', '.join(record['roles'])}."
        )
    entry = record["roles"][role]
    return load_tensors(desk.store.run_dir(key) / entry["weights"], entry["sha256"]), entry


def load_model(stage: Stage, desk: Desk, role: str) -> tuple[Method | None, dict[str, Any]]:
    """The trained model a stage reads, in eval mode on the device; None for a baseline."""
    carrier, cell = stage.work["carrier"], stage.work["cell"]
    if carrier is None:
        return None, {"epoch": None, "sha256": ""}
    weights, entry = checkpoint(desk, stage.parents["checkpoint"], role)
    classes = len(desk.manifest(cell).card.classes)
    work = stage.work
    model = build_method(carrier, cell.backbone, work["config"], classes, cell.seed, work["statistics"])
    model.load_state_dict(weights)
    evaluation_mode(model)
    return model.to(desk.device).requires_grad_(False), entry


# -- teacher maps ----------------------------------------------------------------------------------------------------
@guarded
def run_maps(stages: Sequence[Stage], desk: Desk) -> None:
    """Maps of the training images for their own label, at native resolution, scaled to [0, 1] per image, as float16."""
    alike: dict[tuple[str, int, int], list[Stage]] = {}
    for stage in stages:
        config = stage.work["config"]
        alike.setdefault((stage.work["role"], config.image_size, config.load_size), []).append(stage)
    for (role, *_), todo in alike.items():
        first = todo[0]
        cell, config = first.work["cell"], first.work["config"]
        manifest = desk.manifest(cell)
        model, entry = load_model(first, desk, role)
        views = tuple(View(s.work["method"], "true" if s.work["method"].spec.class_specific else "any") for s in todo)
        watch, card = Stopwatch(desk.device), manifest.card
        reader = Reader(model, views, card.regions, len(card.classes), cell.seed, watch)
        # the copy that trainings read, squashed to the network's size on the device: no second decoded copy
        frames = desk.images(cell).frames(manifest.split("train"), config.load_size)
        began, parts, refusals = time.monotonic(), {v.name: [] for v in views}, Refusals()
        room = Room("teacher maps", desk.device)

        def read(seen: Seen, reader: Reader = reader, refusals: Refusals = refusals) -> dict[str, Landing]:
            found = {}
            _, maps = reader.read(seen.images, seen.labels, seen.ids)
            for view in reader.views:
                with reader.part(f"score:{view.name}"):
                    scaled = scale_later(maps[view.name], view.method.spec.kind, "image")
                    refusals.add(scaled, seen.ids)
                    found[view.name] = Landing({"maps": _shrunk(scaled.maps).half()})
            return found

        with model_unchanged(model):
            for seen in batches(
                frames,
                desk.run.score_batch,
                desk.device,
                statistics=reader.statistics,
                side=config.image_size,
                watch=watch,
            ):
                for found in room.each(seen, read):
                    for name, landing in found.items():
                        parts[name].append(landing)
        refusals.check()
        seconds, measured = (time.monotonic() - began) / len(todo), watch.seconds()
        for stage, view in zip(todo, views, strict=True):
            arrays = {
                "ids": np.array(frames.ids),
                "maps": torch.cat([p.get()["maps"] for p in parts[view.name]]).numpy(),
            }
            write_npz(desk.store.run_dir(stage.key) / "maps.npz", arrays)
            own = own_times(measured, reader.used.get(view.name, set()), view.name, view.name)
            cost = cost_of(seconds, len(frames.items), own)
            record = {**common_facts(stage, desk, manifest), **cost, "epoch": entry["epoch"]}
            desk.store.finish(stage.key, record)
            desk.report({"stage": stage, "kind": "done", **cost})


def _shrunk(maps: torch.Tensor) -> torch.Tensor:
    """Maps of decoders, as large as the image, cut down: seeds are drawn from smooth maps, and 26,000 must fit."""
    if max(maps.shape[-2:]) <= MAPS_SIDE:
        return maps
    small = F.interpolate(maps[:, None], (MAPS_SIDE, MAPS_SIDE), mode="bilinear", align_corners=False, antialias=True)
    return small[:, 0].clamp(0, 1)


def _notes_of(stage: Stage, manifest: Manifest) -> list[str]:
    """What a table must say of the images; how the splits of another set are made says nothing about this model."""
    on: EvalSet | None = stage.work.get("on")
    away = on is not None and on.dataset != stage.work["cell"].dataset
    return [note for note in manifest.notes if not (away and note in manifest.split_notes)]


def _has_backbone(stage: Stage) -> bool:
    ref = stage.work["method"] if stage.kind == "train" else stage.work["carrier"]
    return ref is not None and bool(ref.spec.backbone)


def common_facts(stage: Stage, desk: Desk, manifest: Manifest) -> dict[str, Any]:
    """What every record holds."""
    return {
        "kind": stage.kind,
        "identity": stage.identity,
        "parents": stage.parents,
        "labels": stage.labels,
        "facts": {
            "synthetic": manifest.synthetic,
            "supervision": stage.work["supervision"],
            "notes": _notes_of(stage, manifest),
            "images": len(manifest.split("train")),
            "normalisation": stage.work["statistics"].to_json() if _has_backbone(stage) else None,
        },
        "environment": {**environment(), **compute(desk.device)},
        "config": dataclasses.asdict(stage.work["config"]),
    }
