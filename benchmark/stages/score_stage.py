"""The score stages: every method read off one checkpoint is scored in one pass over the images."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...datasets.base import Item
from ...datasets.shifts.shift import Shift
from ..core.device import forget_peak, peak_memory_mb
from ..core.files import key_of, read_npz, write_npz
from ..core.metrics import BINS
from ..core.timing import Stopwatch, cost_of, ms_per_image, own_times, pass_times
from ..data.image_cache import ImageSplit
from ..data.shifted_images import change_of, shift_facts
from ..planning.eval_sets import EvalSet, mapping_text
from ..planning.stage import ScoreStage
from ..scoring.disk_buffer import release_pages
from ..scoring.inference import EvalTarget, PassSettings, PixelMasks, Scored, Task, evaluation_pass, validation_pass
from ..scoring.map_extractor import MapExtractor, MapRequest
from ..scoring.map_scaling import MapScale
from ..scoring.pixel_sample import sample_facts
from .context import StageContext, common_facts, example_rows, load_model, mask_form, pixel_masks
from .sandbox import sandbox

PassResult = tuple[np.ndarray, dict[str, Scored]]  # logits (N, K), and scores by the name of the task


def run_scores(stages: Sequence[ScoreStage], ctx: StageContext) -> None:
    """Scores stages that share a checkpoint file and an evaluation split; roles that mean one epoch share one pass."""
    loaded: dict[Any, list[ScoreStage]] = {}
    with sandbox(stages, ctx):
        for stage in stages:
            alike = (_epoch(stage, ctx), mask_form(stage.inputs), stage.inputs.config.image_size)
            loaded.setdefault(alike, []).append(stage)
        for group in loaded.values():
            _score_checkpoint(group, ctx)


def _epoch(stage: ScoreStage, ctx: StageContext) -> Any:
    """The epoch a stage's role means; stages without one are told apart by nothing."""
    if "checkpoint" not in stage.parents:
        return None
    roles = ctx.store.record(stage.parents["checkpoint"])["roles"]
    return roles.get(stage.inputs.checkpoint_slot, {}).get("epoch", stage.inputs.checkpoint_slot)


def _score_checkpoint(stages: Sequence[ScoreStage], ctx: StageContext) -> None:
    first = stages[0]
    forget_peak(ctx.device)
    inputs, on, split = first.inputs, first.inputs.on, first.labels["split"]
    model, entry = load_model(first, ctx)
    tasks = {s.key: Task(MapRequest(s.inputs.method, s.labels["map_class"]), s.inputs.protocol) for s in stages}
    distinct = tuple(dict.fromkeys(tasks.values()))
    card = ctx.manifest(inputs.experiment).card  # of the set the model knows; the classes of the other are mapped to it
    views = tuple(dict.fromkeys(t.view for t in distinct))
    watch = Stopwatch(ctx.device)
    # what a region is depends on the set scored: in GlaS every image has one, in Camelyon those with tumour
    regions = tuple(sorted({inputs.label_map[c] for c in ctx.manifest(on).card.regions}))
    reader = MapExtractor(model, views, regions, len(card.classes), inputs.experiment.seed, watch)
    items = ctx.manifest(on).split(split)
    about = {"stage": first, "methods": len(reader.views), "what": _what(stages)}
    ctx.report({"kind": "score", "images": len(items), **about})
    began, settings = time.monotonic(), PassSettings(ctx.device, ctx.run.score_batch)
    if split == "val":
        rows = [k for k, i in enumerate(items) if i.pixel_val]
        logits, scored = _known(validation_pass(reader, distinct, *_validation_set(first, ctx, items), settings))
        shown, change = list[int](), None
    else:
        rows, shown = list(range(len(items))), example_rows(items)
        scales = {tasks[s.key].name: _scale(s, ctx) for s in stages}
        target = _target(first, ctx, items, shown)
        logits, scored = evaluation_pass(reader, distinct, target, scales, settings)
        change = target.change
    seconds, parts = (time.monotonic() - began) / len(distinct), watch.seconds()
    parameters = sum(p.numel() for p in model.parameters()) if model is not None else 0
    facts = {
        "parameters": parameters,
        "epoch": entry["epoch"],
        "weights_sha256": entry["sha256"],
        "left_unshifted": sorted(change.unchanged) if change else [],
        "evaluation": _evaluation_facts(first, ctx, change),
    }
    for stage in stages:
        task = tasks[stage.key]
        own = own_times(parts, reader.used.get(task.view.name, set()), task.view.name, task.name)
        alone = {"ms_per_image": ms_per_image(own, len(items)), "peak_memory_mb": peak_memory_mb(ctx.device)}
        extra = {**cost_of(seconds, len(items), own), **alone, "facts": facts}
        result = _Result([items[r] for r in rows], logits[rows], scored[task.name], shown)
        _write(stage, ctx, result, extra)
        for counts in scored[task.name].histograms:
            release_pages(counts)
    whole = cost_of(time.monotonic() - began, len(items), pass_times(parts))
    keys = [s.key for s in stages]
    ctx.report({"kind": "done", "stages": keys, **about, **whole})


def _what(stages: Sequence[ScoreStage]) -> str:
    """Which checkpoints and maps a pass scores, e.g. `checkpoints cl+last, maps pred+positive, val images`."""
    labels = [s.labels for s in stages]
    roles = "+".join(dict.fromkeys(str(w["selection"]) for w in labels if w["selection"] != "-"))
    maps = "+".join(dict.fromkeys(str(w["map_class"]) for w in labels if w["map_class"] != "-"))
    parts = [f"checkpoint{'s' * ('+' in roles)} {roles}"] if roles else []
    return ", ".join([*parts, *([f"map{'s' * ('+' in maps)} {maps}"] if maps else []), f"{labels[0]['split']} images"])


def _target(stage: ScoreStage, ctx: StageContext, items: Sequence[Item], shown: Sequence[int]) -> EvalTarget:
    """The images a test score looks at, and what is done to them."""
    on, size = stage.inputs.on, stage.inputs.config.image_size
    images = ctx.images(on)
    frames = images.frames(items, size, mask_form(stage.inputs))
    change = change_of(on, ctx.pool(on, size))
    return EvalTarget(frames, stage.inputs.label_map, shown, change, ctx.store.cache_dir / "spill")


def _validation_set(stage: ScoreStage, ctx: StageContext, items: Sequence[Item]) -> tuple[ImageSplit, PixelMasks]:
    """The validation images, and the masks of the few that have one."""
    experiment, side = stage.inputs.experiment, stage.inputs.config.image_size
    return ctx.images(experiment).frames(items, side), pixel_masks(items, ctx, experiment, [mask_form(stage.inputs)])


def _known(result: PassResult | None) -> PassResult:
    if result is None:
        raise RuntimeError("a process alone got no result of its pass")
    return result


def _scale(stage: ScoreStage, ctx: StageContext) -> MapScale:
    """The constants its validation pass found, and its levels if there are any."""
    low, high, *levels = read_npz(ctx.store.run_dir(stage.parents["val"]) / "scores.npz")["scale"].tolist()
    return MapScale(low, high, tuple(levels))


def _predicted_background(logits: np.ndarray, regions: Sequence[bool]) -> np.ndarray | None:
    """Which images (N,) are predicted as a class without a region; None where there is no such class or prediction."""
    if all(regions) or np.isnan(logits).any():
        return None
    return ~np.asarray(regions, bool)[logits.argmax(1)]


class _Result(NamedTuple):
    """What a pass found of one stage: images, logits (N, K) and scores; rows of the images whose maps are shown."""

    items: Sequence[Item]
    logits: np.ndarray
    scored: Scored
    shown: Sequence[int]


def _write(stage: ScoreStage, ctx: StageContext, result: _Result, extra: dict[str, Any]) -> None:
    items, logits, scored, shown = result
    began = time.monotonic()
    manifest, spec = ctx.manifest(stage.inputs.on), stage.inputs.method.spec
    folder, card = ctx.store.run_dir(stage.key), manifest.card
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
        stem = _write_pictures(stage, ctx, [items[r] for r in shown])
        if scored.examples is not None:
            write_npz(folder / "examples.npz", {"ids": np.array([items[r].id for r in shown]), "maps": scored.examples})
    common = common_facts(stage, ctx, manifest)
    facts = {
        **common["facts"],
        **extra["facts"],
        "notes": [*common["facts"]["notes"], *_mask_notes(stage, ctx, items)],
        "kind": spec.kind,
        "classes": list(card.classes),
        "region_classes": list(card.region_classes),
        "positive_class": card.positive_class,
        "sample": sample_facts(scored.sample, _predicted_background(logits, card.region_classes)),
        "foreground": card.foreground,
        "group": card.group,
        "licence": card.licence,
        "images": len(items),
        "synthetic": _synthetic(stage, ctx),
        "degenerate": scored.degenerate,
        "family": spec.family,
        "examples": stem,
    }
    times = {**extra["times"], "write": time.monotonic() - began}
    ctx.store.finish(stage.key, {**common, **extra, "times": times, "facts": facts})


def _mask_notes(stage: ScoreStage, ctx: StageContext, items: Sequence[Item]) -> list[str]:
    """What a reader of the row must know about its test masks."""
    if stage.labels["split"] == "val":  # behind tau_val: told when the run began
        return []
    return ctx.mask_notes(stage.inputs.on, mask_form(stage.inputs), items)


def _evaluation_facts(stage: ScoreStage, ctx: StageContext, change: Shift | None) -> dict[str, Any]:
    """What the images of a score are: which set, how (and how much) they were changed, how classes were matched."""
    on, experiment = stage.inputs.on, stage.inputs.experiment
    card, home = (ctx.manifest(place).card for place in (on, experiment))
    return {
        "dataset": card.name,
        **shift_facts(on, ctx.pool(on, stage.inputs.config.image_size), change),
        "label_map": mapping_text(home, card, stage.inputs.label_map) if on.dataset != experiment.dataset else "",
        "train_foreground": home.foreground,
    }


def _synthetic(stage: ScoreStage, ctx: StageContext) -> bool:
    """Whether any set behind a score is synthetic: trained on, adapted to, scored, or lending its stains."""
    on = stage.inputs.on
    stains = [EvalSet(on.stain_source, on.stain_fold)] if on.stain_source else []
    target = [stage.inputs.experiment.target] if stage.inputs.experiment.target else []
    return any(ctx.manifest(place).synthetic for place in (stage.inputs.experiment, on, *stains, *target))


def _packed(histogram: np.ndarray, rows: int) -> np.ndarray:
    """Counts in the smallest unsigned type that holds them."""
    if not histogram.size:
        return np.zeros((rows, 0), np.uint16)
    if histogram.shape != (rows, BINS):
        raise RuntimeError(f"{histogram.shape} histograms for {rows} images")
    return histogram.astype(np.min_scalar_type(int(histogram.max())))


def _write_pictures(stage: ScoreStage, ctx: StageContext, items: Sequence[Item]) -> str:
    """Images and masks of the examples, once per evaluation set and size; returns the name of their file."""
    size, on = stage.inputs.protocol.size, stage.inputs.on
    # the stains are those of the scores, measured at the size the model sees, also where the picture is larger
    side = stage.inputs.config.image_size
    pool = ctx.pool(on, side)
    form = mask_form(stage.inputs)
    stem = key_of([stage.identity["eval"], *form, [i.id for i in items], *([side] if pool else [])])
    path = ctx.store.root / "examples" / f"{stem}.npz"
    if not path.is_file():
        images = ctx.images(on)
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
