"""The score stages: every method read off one checkpoint is scored in one pass over the images."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...datasets.base import Item
from ...datasets.shifts.shift import Shift
from ..core.environment import forget_peak, peak_memory_mb
from ..core.metrics import BINS
from ..core.results_store import key_of, read_npz, write_npz
from ..core.timing import Stopwatch
from ..data.shifted_images import change_of, shift_facts
from ..planning.eval_sets import EvalSet, mapping_text
from ..planning.planner import Stage
from ..scoring.disk_buffer import let_go
from ..scoring.inference import Scored, Target, Task, evaluation_pass, validation_pass
from ..scoring.map_extractor import Reader, View
from ..scoring.map_scaling import MapScale
from ..scoring.method_sandbox import guarded
from ..scoring.pixel_sample import sample_facts
from .context import Desk, common_facts, example_rows, load_model, pixel_masks, scoring_form
from .costs import cost_of, ms_per_image, own_times, pass_times


@guarded
def run_scores(stages: Sequence[Stage], desk: Desk) -> None:
    """Scores stages that share a checkpoint file and an evaluation split; roles that mean one epoch share one pass."""
    loaded: dict[Any, list[Stage]] = {}
    for stage in stages:
        alike = (_epoch(stage, desk), scoring_form(stage), stage.work["config"].image_size)
        loaded.setdefault(alike, []).append(stage)
    for group in loaded.values():
        _score_checkpoint(group, desk)


def _epoch(stage: Stage, desk: Desk) -> Any:
    """The epoch a stage's role means; stages without one are told apart by nothing."""
    if "checkpoint" not in stage.parents:
        return None
    roles = desk.store.record(stage.parents["checkpoint"])["roles"]
    return roles.get(stage.work["role"], {}).get("epoch", stage.work["role"])


def _score_checkpoint(stages: Sequence[Stage], desk: Desk) -> None:
    first = stages[0]
    forget_peak(desk.device)
    cell, on, split = first.work["cell"], first.work["on"], first.labels["split"]
    model, entry = load_model(first, desk, first.work["role"])
    tasks = {s.key: Task(View(s.work["method"], s.labels["map_class"]), s.work["protocol"]) for s in stages}
    distinct = tuple(dict.fromkeys(tasks.values()))
    card = desk.manifest(cell).card  # of the set the model knows; the classes of the other are mapped to it
    views = tuple(dict.fromkeys(t.view for t in distinct))
    watch = Stopwatch(desk.device)
    # what a region is depends on the set scored: in GlaS every image has one, in Camelyon those with tumour
    regions = tuple(sorted({first.work["label_map"][c] for c in desk.manifest(on).card.regions}))
    reader = Reader(model, views, regions, len(card.classes), cell.seed, watch)
    items = desk.manifest(on).split(split)
    about = {"stage": first, "methods": len(reader.views), "what": _what(stages)}
    desk.report({"kind": "score", "images": len(items), **about})
    began = time.monotonic()
    if split == "val":
        rows = [k for k, i in enumerate(items) if i.pixel_val]
        logits, scored = _validate(reader, distinct, items, desk, first)
        shown, change = list[int](), None
    else:
        rows, shown = list(range(len(items))), example_rows(items)
        scales = {tasks[s.key].name: _scale(s, desk) for s in stages}
        target = _target(first, desk, items, shown)
        logits, scored = evaluation_pass(reader, distinct, target, scales, desk.device, desk.run.score_batch)
        change = target.change
    seconds, parts = (time.monotonic() - began) / len(distinct), watch.seconds()
    parameters = sum(p.numel() for p in model.parameters()) if model is not None else 0
    facts = {
        "parameters": parameters,
        "epoch": entry["epoch"],
        "weights_sha256": entry["sha256"],
        "left_unshifted": sorted(change.unchanged) if change else [],
        "evaluation": _evaluation_facts(first, desk, change),
    }
    for stage in stages:
        task = tasks[stage.key]
        own = own_times(parts, reader.used.get(task.view.name, set()), task.view.name, task.name)
        alone = {"ms_per_image": ms_per_image(own, len(items)), "peak_memory_mb": peak_memory_mb(desk.device)}
        extra = {**cost_of(seconds, len(items), own), **alone, "facts": facts}
        _write(stage, desk, [items[r] for r in rows], logits[rows], scored[task.name], shown, extra)
        for counts in scored[task.name].histograms:
            let_go(counts)
    whole = cost_of(time.monotonic() - began, len(items), pass_times(parts))
    keys = [s.key for s in stages]
    desk.report({"kind": "done", "stages": keys, **about, **whole})


def _what(stages: Sequence[Stage]) -> str:
    """Which checkpoints and maps a pass scores, e.g. `checkpoints cl+last, maps pred+positive, val images`."""
    labels = [s.labels for s in stages]
    roles = "+".join(dict.fromkeys(str(w["selection"]) for w in labels if w["selection"] != "-"))
    maps = "+".join(dict.fromkeys(str(w["map_class"]) for w in labels if w["map_class"] != "-"))
    parts = [f"checkpoint{'s' * ('+' in roles)} {roles}"] if roles else []
    return ", ".join([*parts, *([f"map{'s' * ('+' in maps)} {maps}"] if maps else []), f"{labels[0]['split']} images"])


def _target(stage: Stage, desk: Desk, items: Sequence[Item], shown: Sequence[int]) -> Target:
    """The images a test score looks at, and what is done to them."""
    on, size = stage.work["on"], stage.work["config"].image_size
    images = desk.images(on)
    frames = images.frames(items, size, scoring_form(stage))
    change = change_of(on, desk.pool(on, size))
    return Target(frames, stage.work["label_map"], shown, change, desk.store.cache_dir / "spill")


def _validate(
    reader: Reader, tasks: Sequence[Task], items: Sequence[Item], desk: Desk, stage: Stage
) -> tuple[np.ndarray, dict[str, Scored]]:
    cell, config = stage.work["cell"], stage.work["config"]
    frames = desk.images(cell).frames(items, config.image_size)
    masks = pixel_masks(items, desk, cell, [scoring_form(stage)])
    found = validation_pass(reader, tasks, frames, masks, desk.device, desk.run.score_batch)
    if found is None:
        raise RuntimeError("a process alone got no result of its pass")
    return found


def _scale(stage: Stage, desk: Desk) -> MapScale:
    """The constants its validation pass found, and its levels if there are any."""
    low, high, *levels = read_npz(desk.store.run_dir(stage.parents["val"]) / "scores.npz")["scale"].tolist()
    return MapScale(low, high, tuple(levels))


def _predicted_background(logits: np.ndarray, regions: Sequence[bool]) -> np.ndarray | None:
    """Which images (N,) are predicted as a class without a region; None where there is no such class or prediction."""
    if all(regions) or np.isnan(logits).any():
        return None
    return ~np.asarray(regions, bool)[logits.argmax(1)]


def _write(
    stage: Stage,
    desk: Desk,
    items: Sequence[Item],
    logits: np.ndarray,
    scored: Scored,
    shown: Sequence[int],
    extra: dict[str, Any],
) -> None:
    began = time.monotonic()
    manifest, spec = desk.manifest(stage.work["on"]), stage.work["method"].spec
    folder, card = desk.store.run_dir(stage.key), manifest.card
    histograms = {n: _packed(getattr(scored.histograms, n), len(items)) for n in ("foreground", "background")}
    write_npz(
        folder / "scores.npz",
        {
            "ids": np.array([i.id for i in items]),
            "labels": np.array([i.label for i in items], np.int64),
            "groups": np.array([i.group for i in items]),
            "logits": logits.astype(np.float32),
            "scale": np.array([scored.scale.low, scored.scale.high, *scored.scale.levels], np.float64),
            **histograms,
        },
    )
    stem = ""
    if shown:
        stem = _write_pictures(stage, desk, [items[r] for r in shown])
        if scored.examples is not None:
            write_npz(folder / "examples.npz", {"ids": np.array([items[r].id for r in shown]), "maps": scored.examples})
    common = common_facts(stage, desk, manifest)
    facts = {
        **common["facts"],
        **extra["facts"],
        "notes": [*common["facts"]["notes"], *_mask_notes(stage, desk, items)],
        "kind": spec.kind,
        "classes": list(card.classes),
        "region_classes": list(card.region_classes),
        "positive_class": card.positive_class,
        "sample": sample_facts(scored.sample, _predicted_background(logits, card.region_classes)),
        "foreground": card.foreground,
        "group": card.group,
        "licence": card.licence,
        "images": len(items),
        "synthetic": _synthetic(stage, desk),
        "degenerate": scored.degenerate,
        "family": spec.family,
        "examples": stem,
    }
    times = {**extra["times"], "write": time.monotonic() - began}
    desk.store.finish(stage.key, {**common, **extra, "times": times, "facts": facts})


def _mask_notes(stage: Stage, desk: Desk, items: Sequence[Item]) -> list[str]:
    """What a reader of the row must know about its test masks."""
    if stage.labels["split"] == "val":  # behind tau_val: told when the run began
        return []
    return desk.mask_notes(stage.work["on"], scoring_form(stage), items)


def _evaluation_facts(stage: Stage, desk: Desk, change: Shift | None) -> dict[str, Any]:
    """What the images of a score are: which set, how (and how much) they were changed, how classes were matched."""
    on, cell = stage.work["on"], stage.work["cell"]
    card, home = (desk.manifest(place).card for place in (on, cell))
    return {
        "dataset": card.name,
        **shift_facts(on, desk.pool(on, stage.work["config"].image_size), change),
        "label_map": mapping_text(home, card, stage.work["label_map"]) if on.dataset != cell.dataset else "",
        "train_foreground": home.foreground,
    }


def _synthetic(stage: Stage, desk: Desk) -> bool:
    """Whether any of the sets behind a score is synthetic: the one trained on, the one scored, the one that lends."""
    on: EvalSet = stage.work["on"]
    lender = [EvalSet(on.lender, on.lender_fold)] if on.lender else []
    return any(desk.manifest(place).synthetic for place in (stage.work["cell"], on, *lender))


def _packed(histogram: np.ndarray, rows: int) -> np.ndarray:
    """Counts in the smallest unsigned type that holds them."""
    if not histogram.size:
        return np.zeros((rows, 0), np.uint16)
    if histogram.shape != (rows, BINS):
        raise RuntimeError(f"{histogram.shape} histograms for {rows} images")
    return histogram.astype(np.min_scalar_type(int(histogram.max())))


def _write_pictures(stage: Stage, desk: Desk, items: Sequence[Item]) -> str:
    """Images and masks of the examples, once per evaluation set and size; returns the name of their file."""
    size, on = stage.work["protocol"].size, stage.work["on"]
    # the stains are those of the scores, measured at the size the model sees, also where the picture is larger
    side = stage.work["config"].image_size
    pool = desk.pool(on, side)
    form = scoring_form(stage)
    stem = key_of([stage.identity["eval"], *form, [i.id for i in items], *([side] if pool else [])])
    path = desk.store.root / "examples" / f"{stem}.npz"
    if not path.is_file():
        images = desk.images(on)
        frames = images.frames(items, size, form)
        change = change_of(on, pool)
        pixels = np.asarray(frames.images)
        write_npz(
            path,
            {
                "ids": np.array([i.id for i in items]),
                "masks": np.asarray(frames.masks),
                "images": pixels if change is None else change(pixels, frames.ids),
                "labels": np.array([i.label for i in items], np.int64),
            },
        )
    return stem
