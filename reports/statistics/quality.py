"""Every quality of one scored set, from its per-image histograms and logits alone; undefined is NaN."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...benchmark.core.files import read_npz
from ...benchmark.core.intervals import foreground_images, pxap_without_each, without_each
from ...benchmark.core.metrics import (
    BINS,
    Confusion,
    Histograms,
    accuracy,
    best_tau,
    chance_dice,
    chance_level,
    confusion,
    end_bins,
    group_sums,
    pxap,
    pxap_rows,
)
from .spreads import Clusters

NAN = float("nan")
_PART = 1024  # images at a time where each needs float64 curves of its own


class DamageError(Exception):
    """A file a row needs is missing or unusable."""


class Scores(NamedTuple):
    """The arrays of a score stage: ids, labels, groups (N,), logits (N, classes), histograms of N rows or of none."""

    ids: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    logits: np.ndarray
    maps: Histograms  # no rows for a method without maps, or a split without masks


@dataclass(frozen=True)
class ClassResult:
    """The images of one class alone, in percent. accuracy: the recall of the class. pxap, chance: NaN without masks."""

    name: str
    images: int
    accuracy: float
    pxap: float
    chance: float


class StoredMaps(NamedTuple):
    """What figures need of a row, float64 arrays of shape (BINS,).

    pooled: pixel counts of all images, foreground and background. typical: mean over images of each image's own
    histogram in percent of its pixels of that kind; NaN where no image has such pixels. by_image: PxAP in percent of
    every image on its own, (N,), NaN without foreground. labels: (N,) class indices.
    """

    pooled: Histograms
    typical: Histograms
    by_image: np.ndarray
    labels: np.ndarray


def read_scores(folder: Path) -> Scores:
    """The arrays of a score stage's folder. Raises DamageError for a file that is missing, damaged or of odd shape."""
    path = folder / "scores.npz"
    names = ("ids", "labels", "groups", "logits", "foreground", "background")
    try:
        arrays = read_npz(path, names)
    except Exception as problem:  # noqa: BLE001 - on damaged files zipfile and numpy raise whatever comes to pass
        raise DamageError(f"{path} is missing or damaged ({problem}); remove {folder}.") from None
    ids, labels, groups, logits, fg, bg = (arrays[name] for name in names)
    if fg.shape != bg.shape or fg.shape not in ((len(labels), BINS), (len(labels), 0), (0, 0)):
        raise DamageError(f"{path} has histograms of shape {fg.shape} and {bg.shape} for {len(labels)} images.")
    if not len(ids) == len(labels) == len(groups) == len(logits) or logits.ndim != 2:
        raise DamageError(f"{path} has ids, labels, groups and logits of different lengths.")
    if not labels.ndim == groups.ndim == 1 or any(a.dtype.kind not in kinds for a, kinds in (
        (labels, "iu"), (logits, "f"), (fg, "iuf"), (bg, "iuf"),
    )):  # fmt: skip
        raise DamageError(f"{path} has arrays of an unknown type or shape; remove {folder}.")
    maps = Histograms(fg, bg) if fg.shape[1] else Histograms(np.zeros((0, BINS)), np.zeros((0, BINS)))
    return Scores(ids, labels, groups, logits, maps)


def gated(scores: Scores, regions: Sequence[bool]) -> Scores:
    """The scores with nothing as foreground in images predicted as a class without a region: their maps are all 0.

    regions: per class, whether its images hold a region.
    """
    if not len(scores.maps.foreground):
        return scores
    off = ~np.asarray(regions, bool)[scores.logits.argmax(1)]
    maps = []
    for counts in scores.maps:
        counts = counts.copy() if counts.dtype.itemsize > 2 else counts.astype(np.uint32)
        counts[off, 0] = counts[off].sum(1, dtype=np.int64)
        counts[off, 1:] = 0
        maps.append(counts)
    return scores._replace(maps=Histograms(*maps))


def can_be_gated(scores: Scores, regions: Sequence[bool]) -> bool:
    """Whether there are maps to gate, a class that is all background, and predictions for every image."""
    return bool(len(scores.maps.foreground)) and not all(regions) and not np.isnan(scores.logits).any()


def pooled(parts: Sequence[Scores]) -> Scores:
    """The images of several folds as those of one set. Raises ValueError where two folds share an image."""
    ids = np.concatenate([p.ids for p in parts])
    if len(np.unique(ids)) < len(ids):
        raise ValueError("the folds share test images")
    names = ("ids", "labels", "groups", "logits")
    arrays = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
    return Scores(**arrays, maps=Histograms(*(np.concatenate(h) for h in zip(*(p.maps for p in parts), strict=True))))


def map_quality(scores: Scores, positive: np.ndarray, taus: np.ndarray) -> tuple[dict[str, float], Clusters]:
    """Everything told by the histograms, and what intervals need; all NaN for a method without maps.

    positive: (N,) bool, whether the image's class has a region. taus: (N,) tau_val, of each image's own fold.
    `skill` is 100 (PxAP - chance) / (100 - chance): 0 for a constant map and 100 for a perfect one on any set.
    `*_image`: mean over patients of the mean over their images of the image's own value.
    """
    maps, groups = scores.maps, scores.groups
    if not len(maps.foreground):
        return dict.fromkeys(MAP_VALUES, NAN), Clusters.of(groups)
    whole = maps.pooled()
    tau_oracle = best_tau(whole)
    counts = {"tau_val": confusion(maps, taus), "half": confusion(maps, 0.5), "oracle": confusion(maps, tau_oracle)}
    val, half, oracle = (summed(c) for c in counts.values())
    pooled, chance = pxap(whole), chance_level(whole)
    each = {"pxap_image": _image_pxap(maps), "dice_image": counts["tau_val"].dice}
    outside = np.where(positive, NAN, counts["tau_val"].called)
    low, high = end_bins(whole)
    all_pixels, wanted = counts["half"].positives + counts["half"].negatives, counts["half"].positives
    share = np.where(wanted > 0, wanted / np.maximum(all_pixels, 1), NAN)  # of the foreground in each image
    values = {
        "pxap": pooled, "chance": chance, "skill": 100 * (pooled - chance) / (100 - chance) if chance < 100 else NAN,
        "pxap_positives": pxap(maps.select(positive)), "chance_positives": chance_level(maps.select(positive)),
        "chance_dice": chance_dice(whole), "end_low": low, "end_high": high, "tau_oracle": tau_oracle,
        "dice_half": half["dice"], **{f"{k}_tau_val": val[k] for k in ("dice", "iou", "miou")},
        **{f"{k}_oracle": oracle[k] for k in ("dice", "iou", "miou")},
        **{name: mean_over_groups(of, groups) for name, of in each.items()},
        "false_area": mean_over_groups(outside, groups),
        "chance_image": mean_over_groups(100 * share, groups),
        "chance_dice_image": mean_over_groups(200 * share / (1 + share), groups),
    }  # fmt: skip
    without = {
        "pxap": pxap_without_each(maps, groups),
        "dice_tau_val": Confusion(*(without_each(group_sums(c, groups)) for c in counts["tau_val"])).dice,
        **{name: _mean_without_each(of, groups) for name, of in each.items()},
    }
    return values, Clusters.of(groups, foreground_images(maps, groups), without)


MAP_VALUES = (
    "pxap", "chance", "skill", "pxap_positives", "chance_positives", "chance_dice", "end_low", "end_high", "tau_oracle",
    "dice_half", "dice_tau_val", "iou_tau_val", "miou_tau_val", "dice_oracle", "iou_oracle", "miou_oracle",
    "pxap_image", "dice_image", "false_area", "chance_image", "chance_dice_image",
)  # fmt: skip


def summed(counts: Confusion) -> dict[str, float]:
    """Pooled `dice`, `iou` and `miou` in percent of counts (N,); NaN where undefined."""
    pooled_counts = Confusion(*(c.sum() for c in counts))
    return {name: float(getattr(pooled_counts, name)) for name in ("dice", "iou", "miou")}


def mean_over_groups(values: np.ndarray, groups: np.ndarray) -> float:
    """Mean over groups of the mean over their defined values (N,); NaN where none is defined."""
    means = group_means(values, groups)
    means = means[~np.isnan(means)]
    return float(means.mean()) if len(means) else NAN


def group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean of the defined values (N,) of every group, (G,); NaN for a group without one."""
    defined = ~np.isnan(values)
    total, count = (group_sums(np.where(defined, v, 0), groups) for v in (values, np.ones(len(values))))
    return np.divide(total, count, out=np.full(len(total), NAN), where=count > 0)


def _mean_without_each(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The mean over groups without each of them, (G,); NaN for a group that takes no part in it."""
    means = group_means(values, groups)
    count = (~np.isnan(means)).sum()
    return (np.nansum(means) - means) / (count - 1) if count > 1 else np.full(len(means), NAN)


def class_quality(scores: Scores, positive_class: int) -> tuple[dict[str, float], np.ndarray | None]:
    """What is told by the logits, in percent, and the right images of each group (G,); NaN and None without logits.

    balanced_accuracy: mean recall of the classes there are. predicted_positive: share of images predicted as
    positive_class. majority: share of the largest class, the accuracy of always saying it.
    """
    shares = np.bincount(scores.labels) / len(scores.labels)
    values = {"majority": 100 * float(shares.max())}
    if np.isnan(scores.logits).any():
        names = ("accuracy", "balanced_accuracy", "predicted_positive")
        return {**dict.fromkeys(names, NAN), **values}, None
    guess = scores.logits.argmax(1)
    right = guess == scores.labels
    recalls = [right[scores.labels == c].mean() for c in np.unique(scores.labels)]
    values["accuracy"] = 100 * float(right.mean())
    values["balanced_accuracy"] = 100 * float(np.mean(recalls))
    values["predicted_positive"] = 100 * float((guess == positive_class).mean())
    return values, group_sums(right.astype(np.float64), scores.groups)


def _image_pxap(maps: Histograms) -> np.ndarray:
    """PxAP of every image on its own, (N,)."""
    every = np.arange(len(maps.foreground))
    parts = [pxap_rows(maps.select(every[k : k + _PART])) for k in range(0, len(every), _PART)]
    return np.concatenate(parts)


def by_class(scores: Scores, classes: Sequence[str]) -> tuple[ClassResult, ...]:
    """One result a class in the order of `classes`; a class without images has 0 images and NaN."""
    results = []
    for index, name in enumerate(classes):
        own = scores.labels == index
        maps = scores.maps.select(own) if len(scores.maps.foreground) else scores.maps
        right = accuracy(scores.logits[own], scores.labels[own])
        results.append(ClassResult(name, int(own.sum()), right, pxap(maps), chance_level(maps)))
    return tuple(results)


def evidence_of(maps: Histograms, labels: np.ndarray) -> StoredMaps:
    """What figures need of histograms of N rows and labels (N,)."""
    typical = []
    for counts in maps:
        total = counts.sum(1, dtype=np.float64)
        weight = np.divide(100, total, out=np.zeros_like(total), where=total > 0)
        some = (total > 0).sum()
        # in parts: numpy turns the counts of a product into float64, which of a large set is the largest array here
        sums = sum(
            (weight[k : k + _PART] @ counts[k : k + _PART] for k in range(0, len(counts), _PART)), np.zeros(BINS)
        )
        typical.append(sums / some if some else np.full(BINS, NAN))
    whole = Histograms(*(h.sum(0, dtype=np.float64) for h in maps))
    return StoredMaps(whole, Histograms(*typical), _image_pxap(maps), labels)
