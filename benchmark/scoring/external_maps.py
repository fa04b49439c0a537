"""`bench score` without its command line: maps and masks on disk to the numbers of a table, with no model."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...datasets.base import Dataset, Item
from ...datasets.masks.decode import image_size
from ...datasets.masks.reader import FOREGROUND, IGNORED, MaskFacts, MaskPixels, MaskRule
from ...datasets.masks.sets import SizedMask, Surveyed, check_masks, sized_mask, survey, vanished
from ...datasets.masks.sizes import reduce_mask
from ...datasets.open import open_dataset
from ..core import metrics
from ..core.errors import BenchError, many
from ..core.intervals import effective_groups, foreground_images, pxap_interval
from ..core.metrics import BINS, Histograms
from .map_files import DARKEST, LabelRow, are_grey_levels, read_labels, read_map, read_mask
from .map_pairs import MapPair, pair_files, pair_items
from .map_scaling import PROB_TOLERANCE, histogram, resize_maps, scale_maps

FAR_BELOW = 0.8  # PxAP as a share of chance below which the direction of the maps is doubted
NAMED = 5


@dataclass(frozen=True)
class ScoreRequest:
    """Request of `bench score`: maps against a folder of masks, or against a split of a dataset (name or CSV file).

    kind: `prob` or `score`; size: side in px, None for each mask's own; reduction: how masks get there; tau: threshold
    in [0, 1]; rule: what the numbers of the masks of a folder mean. reduction, fold and split may be empty: nearest,
    the first fold, test.
    """

    maps: Path
    masks: Path | None = None
    labels: Path | None = None
    kind: str = "prob"
    size: int | None = None
    tau: float = 0.5
    reduction: str = ""
    rule: MaskRule = MaskRule()
    dataset: str = ""
    fold: str = ""
    split: str = ""
    data_root: Path = Path("data")


@dataclass
class Work:
    """The images to score, how they were found, and what is seen while they are counted."""

    pairs: list[MapPair]
    labels: dict[str, LabelRow] | None
    notes: list[str]
    items: dict[str, Item] = field(default_factory=dict)
    dataset: Dataset | None = None
    degenerate: int = 0
    two_valued: list[str] = field(default_factory=list)
    dark: list[str] = field(default_factory=list)
    squashed: list[str] = field(default_factory=list)
    masks: dict[str, SizedMask] = field(default_factory=dict)


def score_folders(request: ScoreRequest) -> dict[str, Any]:
    """All numbers of a folder of maps, percentages except tau; undefined ones are NaN.

    Raises BenchError for whatever is wrong with the folders, a file in them, or the labels.
    """
    if request.reduction and request.size is None:
        raise BenchError("--mask-reduction says how masks get to --size: give --size, or leave it out.")
    if (request.fold or request.split) and not request.dataset:
        raise BenchError("--fold and --split belong to --dataset: without it, all masks of the folder are scored.")
    request = replace(request, reduction=request.reduction or "nearest", split=request.split or "test")
    work = _of_dataset(request) if request.dataset else _of_folders(request)
    histograms = count_pairs(work, request)
    rows = work.labels
    groups = np.array([rows[p.id].group if rows else p.id for p in work.pairs])
    oracle = metrics.best_tau(histograms)
    fixed, best = metrics.at_tau(histograms, request.tau), metrics.at_tau(histograms, oracle)
    positives = np.array([work.masks[p.id].facts.foreground > 0 for p in work.pairs])
    result: dict[str, Any] = {
        "pxap": metrics.pxap(histograms),
        "interval": list(pxap_interval(histograms, groups)),
        "chance": metrics.chance_level(histograms),
        "images": len(work.pairs),
        "degenerate": work.degenerate,
        "groups": len(np.unique(groups)),
        "groups_effective": float(effective_groups(foreground_images(histograms, groups))),
        "kind": request.kind,
        "size": request.size,
        "reduction": request.reduction,
        "tau": request.tau,
        "dice": fixed["dice"],
        "iou": fixed["iou"],
        "chance_dice": metrics.chance_dice(histograms),
        "end_bins": list(metrics.end_bins(histograms)),
        "tau_oracle": oracle,
        "dice_oracle": best["dice"],
        "iou_oracle": best["iou"],
        "positives": _part(histograms, positives),
        "per_image": _per_image(histograms, request.tau),
    }
    if rows:
        result |= _by_label(histograms, [rows[p.id] for p in work.pairs])
    return {**result, "notes": [*work.notes, *_notes(work, request, result)]}


def _of_folders(request: ScoreRequest) -> Work:
    if request.masks is None:
        raise BenchError("Say what the maps are compared with: --masks FOLDER, or --dataset NAME or FILE.csv.")
    rows, notes = read_labels(request.labels) if request.labels else (None, [])
    return Work(pair_files(request.maps, request.masks, None if rows is None else list(rows)), rows, notes)


def _of_dataset(request: ScoreRequest) -> Work:
    """The images of a split, with their masks, classes and groups; the mask of a background image is all background."""
    if request.masks or request.labels or request.rule != MaskRule():
        raise BenchError(
            "--dataset brings its own masks, labels and meaning of mask values: leave out --masks, --labels and "
            "--mask-foreground and the like (a CSV manifest declares them in its own lines)."
        )
    dataset = open_dataset(request.dataset, request.data_root)
    fold = request.fold or dataset.folds[0]
    if fold not in dataset.folds:
        raise BenchError(f"{request.dataset} has no fold '{fold}'. Known: {', '.join(dataset.folds)}.")
    manifest = dataset.manifest(fold)
    card, items = manifest.card, manifest.split(request.split)
    if not items:
        raise BenchError(f"{card.name}, fold {fold}: the split '{request.split}' has no images.")
    if bare := [i.id for i in items if i.mask is None and card.region_classes[i.label]]:
        some = ", ".join(bare[:NAMED])
        raise BenchError(f"{card.name}: {many(len(bare), 'image')} of {request.split} without a mask: {some}.")
    pairs, notes = pair_items(request.maps, items, f"{card.name}, fold {fold}, {request.split}")
    labels = {i.id: LabelRow(card.classes[i.label], None, i.group) for i in items}
    return Work(pairs, labels, [*notes, *manifest.notes], {i.id: i for i in items}, dataset)


def count_pairs(work: Work, request: ScoreRequest) -> Histograms:
    """Histograms of all images, int32 (N, BINS) each; what is seen on the way is left in `work`.

    Maps are scaled on their own grid, then resized to the mask, or map and mask both to size x size. Ignored pixels
    are counted nowhere. Raises BenchError naming the file.
    """
    foreground, background = (np.zeros((len(work.pairs), BINS), np.int32) for _ in range(2))
    for i, pair in enumerate(work.pairs):
        values, mask = read_map(pair.map), _mask(work, pair, request)
        _look_at(work, pair, values, request.kind)
        codes = mask.codes
        if request.size is None:
            _check_shape(pair, values.shape, codes.shape)
        else:
            _check_squashed(work, pair, values.shape, codes.shape)
            codes = reduce_mask(codes, request.size, request.reduction)
        work.masks[pair.id] = _sized(mask, codes, request)
        scaled, constant = scale_maps(torch.from_numpy(values)[None], request.kind, "image", ids=(pair.id,))
        resized = resize_maps(scaled, (codes.shape[0], codes.shape[1]))
        inside, outside = histogram(resized, torch.from_numpy(codes == FOREGROUND)[None])
        if (codes == IGNORED).any():
            outside = outside - histogram(resized, torch.from_numpy(codes == IGNORED)[None])[0]
        foreground[i], background[i] = inside[0].numpy(), outside[0].numpy()
        work.degenerate += int(bool(constant))
    return Histograms(foreground, background)


def _mask(work: Work, pair: MapPair, request: ScoreRequest) -> MaskPixels:
    if pair.mask is not None:
        return work.dataset.read_mask(work.items[pair.id]) if work.dataset else read_mask(pair.mask, request.rule)
    height, width = image_size(work.items[pair.id].image)
    facts = MaskFacts((0.0,), 1, 0.0, 0.0, height * width, 0, 0)
    return MaskPixels(np.zeros((height, width), bool), None, facts)


def _sized(mask: MaskPixels, codes: np.ndarray, request: ScoreRequest) -> SizedMask:
    if request.size is not None:
        return sized_mask(mask, request.size, request.reduction)
    return SizedMask(mask.facts, mask.facts.foreground, mask.facts.ignored, codes.size)


def _look_at(work: Work, pair: MapPair, values: np.ndarray, kind: str) -> None:
    """Doubts that a map's values raise about how it was saved."""
    low, high = float(values.min()), float(values.max())
    if kind == "prob" and (low < -PROB_TOLERANCE or high > 1 + PROB_TOLERANCE):
        raise BenchError(
            f"{pair.map} has values from {low:.6g} to {high:.6g}, outside [0, 1]. If they are unbounded scores, add "
            "--kind score (min-max per image); if they are probabilities in other units, divide them first."
        )
    if 0 < high <= DARKEST and pair.map.suffix.lower() not in (".npz", ".npy") and are_grey_levels(values):
        work.dark.append(pair.id)
    if low < high and np.isin(values, (low, high)).all():
        work.two_valued.append(pair.id)


def _notes(work: Work, request: ScoreRequest, result: dict[str, Any]) -> list[str]:
    """Notes for a reader of the numbers. Raises BenchError where all maps or masks are plainly meant otherwise."""
    notes = _mask_notes(work, request)
    if request.kind == "prob" and work.dark:
        some = ", ".join(work.dark[:NAMED])
        what = (
            f"{many(len(work.dark), 'map')} of {len(work.pairs)} ({some}) with no value above 1 of 255 grey levels, or "
            "above 255 of 65535, as 0 and 1 saved with 8 bits, or 8 bits saved with 16"
        )
        if len(work.dark) == len(work.pairs):
            raise BenchError(f"{what}. Save values times 255 or 65535, or as npz, or add --kind score.")
        notes.append(what)
    if work.squashed:
        some = ", ".join(work.squashed[:NAMED])
        notes.append(
            f"{many(len(work.squashed), 'map')} of another aspect than the mask, and not square ({some}): taken to "
            f"cover the whole image, like the others, and squashed to {request.size} px"
        )
    if work.two_valued:
        some = ", ".join(work.two_valued[:NAMED])
        notes.append(
            f"{many(len(work.two_valued), 'map')} of {len(work.pairs)} with two values only ({some}): thresholded "
            "already, so that PxAP is that of a single threshold"
        )
    if result["pxap"] < FAR_BELOW * result["chance"]:
        below = result["chance"] - result["pxap"]
        notes.append(
            f"PxAP is {below:.1f} points below chance: are high values background in these maps? Nothing was inverted"
        )
    return notes


def _mask_notes(work: Work, request: ScoreRequest) -> list[str]:
    if work.dataset:
        card = work.dataset.card
        rules = {k: i.mask_rule or card.mask_rule for k, i in work.items.items()}
        expected = {k: card.region_classes[i.label] for k, i in work.items.items()}
        read = {k: m for k, m in work.masks.items() if work.items[k].mask is not None}
    else:
        read = work.masks
        rules, expected = dict.fromkeys(read, request.rule), dict.fromkeys(read, False)
    seen = [Surveyed(k, rules[k], m.facts, expected[k]) for k, m in read.items()]
    if any(m.facts.foreground for m in read.values()):
        check_masks(str(request.masks or request.dataset), seen)
    notes = survey(seen)
    if request.size is not None and (gone := vanished(read, request.size, request.reduction)):
        notes.append(
            gone.replace("protocol.mask_reduction=any", "--mask-reduction any").replace("protocol.size", "--size")
        )
    return notes


def _check_shape(pair: MapPair, map_shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> None:
    """A map may be coarser or finer than its mask if both show the same frame: equal aspect within a pixel."""
    if _same_aspect(map_shape, mask_shape):
        return
    _refuse_transposed(pair, map_shape, mask_shape)
    raise BenchError(
        f"{_sizes(pair, map_shape, mask_shape)}: the aspects differ, so where the map lies on the image is unknown. "
        "Resize the map to the image, or, if it covers the whole image squashed to a square, give --size (224 in the "
        "published evaluation)."
    )


def _check_squashed(work: Work, pair: MapPair, map_shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> None:
    """With --size a map is taken to cover the whole image, as a square one does; another aspect is told."""
    if map_shape[0] == map_shape[1] or _same_aspect(map_shape, mask_shape):
        return
    _refuse_transposed(pair, map_shape, mask_shape)
    work.squashed.append(pair.id)


def _same_aspect(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return abs(one[0] * other[1] - one[1] * other[0]) < max(*one, *other)


def _refuse_transposed(pair: MapPair, map_shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> None:
    if _same_aspect(map_shape[::-1], mask_shape):
        raise BenchError(
            f"{_sizes(pair, map_shape, mask_shape)}: the map looks transposed, as an array of (width, height). Save it "
            "as (height, width)."
        )


def _sizes(pair: MapPair, map_shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> str:
    name = f"mask {pair.mask.name}" if pair.mask else "image"
    (h, w), (height, width) = map_shape, mask_shape
    return f"{pair.map} is {w} x {h} px and its {name} {width} x {height} px"


def _has_foreground(histograms: Histograms) -> np.ndarray:
    return histograms.foreground.sum(1, dtype=np.int64) > 0


def _part(histograms: Histograms, rows: np.ndarray) -> dict[str, Any]:
    """The pooled numbers of some images."""
    part = histograms.select(rows)
    return {"images": int(rows.sum()), "pxap": metrics.pxap(part), "chance": metrics.chance_level(part)}


def _per_image(histograms: Histograms, tau: float) -> dict[str, Any]:
    """Mean and median over images with foreground; one image, one voice, unlike the pooled numbers."""
    rows = histograms.select(_has_foreground(histograms))
    if not len(rows.foreground):
        return {"images": 0} | dict.fromkeys(("pxap_mean", "pxap_median", "dice_mean", "dice_median"), float("nan"))
    pxap, dice = metrics.pxap_rows(rows), metrics.dice_rows(rows, tau)
    return {
        "images": len(pxap),
        "pxap_mean": float(pxap.mean()),
        "pxap_median": float(np.median(pxap)),
        "dice_mean": float(dice.mean()),
        "dice_median": float(np.median(dice)),
    }


def _by_label(histograms: Histograms, rows: Sequence[LabelRow]) -> dict[str, Any]:
    labels = np.array([row.label for row in rows])
    results: dict[str, Any] = {"classes": {str(c): _part(histograms, labels == c) for c in np.unique(labels)}}
    if all(row.prediction is not None for row in rows):
        predictions = np.array([row.prediction for row in rows])
        if not set(predictions) & set(labels):
            raise BenchError(
                f"The labels CSV predicts '{predictions[0]}' and the like, but none of that is a label in it."
            )
        results["accuracy"] = 100 * float((predictions == labels).mean())
    return results
