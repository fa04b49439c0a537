"""Every quality of one scored set, from its per-image histograms and logits alone; undefined is NaN."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..benchmark.intervals import accuracy_interval, pxap_interval
from ..benchmark.metrics import (
    BINS,
    Histograms,
    accuracy,
    at_tau,
    best_tau,
    chance_level,
    pxap,
    pxap_rows,
)
from ..benchmark.store import read_npz

NAN = float("nan")
_PART = 1024  # images at a time where each needs float64 curves of its own


class DamageError(Exception):
    """A file a row needs is missing or unusable."""


class Scores(NamedTuple):
    """The arrays of a score stage: labels and groups (N,), logits (N, classes), histograms of N rows or of none."""

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


class Evidence(NamedTuple):
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
    names = ("labels", "groups", "logits", "foreground", "background")
    try:
        arrays = read_npz(path, names)
    except Exception as problem:  # noqa: BLE001 - on damaged files zipfile and numpy raise whatever comes to pass
        raise DamageError(f"{path} is missing or damaged ({problem}); remove {folder}.") from None
    labels, groups, logits, fg, bg = (arrays[name] for name in names)
    if fg.shape != bg.shape or fg.shape not in ((len(labels), BINS), (len(labels), 0), (0, 0)):
        raise DamageError(f"{path} has histograms of shape {fg.shape} and {bg.shape} for {len(labels)} images.")
    if not len(labels) == len(groups) == len(logits) or logits.ndim != 2:
        raise DamageError(f"{path} has labels, groups and logits of different lengths.")
    if not labels.ndim == groups.ndim == 1 or any(a.dtype.kind not in kinds for a, kinds in (
        (labels, "iu"), (logits, "f"), (fg, "iuf"), (bg, "iuf"),
    )):  # fmt: skip
        raise DamageError(f"{path} has arrays of an unknown type or shape; remove {folder}.")
    maps = Histograms(fg, bg) if fg.shape[1] else Histograms(np.zeros((0, BINS)), np.zeros((0, BINS)))
    return Scores(labels, groups, logits, maps)


def map_quality(scores: Scores, positive: np.ndarray, tau: float, where: str) -> dict[str, Any]:
    """Everything told by the histograms; all NaN for a method without maps.

    positive: (N,) bool, whether the image's class has a region. tau: tau_val. where: names the random draws.
    `skill` is 100 (PxAP - chance) / (100 - chance): 0 for a constant map and 100 for a perfect one on any set.
    """
    maps = scores.maps
    if not len(maps.foreground):
        maps, positive = Histograms(np.zeros((1, BINS)), np.zeros((1, BINS))), np.array([True])
        interval = (NAN, NAN)
    else:
        interval = pxap_interval(maps, scores.groups)
    maps, some = maps.pooled(), maps.select(positive)
    tau_oracle = best_tau(maps)
    val, half, oracle = (at_tau(maps, t) for t in (tau, 0.5, tau_oracle))
    found, chance = pxap(maps), chance_level(maps)
    return {
        "pxap": found, "pxap_low": interval[0], "pxap_high": interval[1], "chance": chance,
        "skill": 100 * (found - chance) / (100 - chance) if chance < 100 else NAN,
        "pxap_positives": pxap(some), "chance_positives": chance_level(some), "tau_oracle": tau_oracle,
        "dice_half": half["dice"], **{f"{k}_tau_val": val[k] for k in ("dice", "iou", "miou")},
        **{f"{k}_oracle": oracle[k] for k in ("dice", "iou", "miou")},
    }  # fmt: skip


def class_quality(scores: Scores, where: str) -> dict[str, Any]:
    """Accuracy of all images with its interval."""
    low, high = accuracy_interval(scores.logits, scores.labels, scores.groups)
    return {"accuracy": accuracy(scores.logits, scores.labels), "accuracy_low": low, "accuracy_high": high}


def by_class(scores: Scores, classes: Sequence[str]) -> tuple[ClassResult, ...]:
    """One result a class in the order of `classes`; a class without images has 0 images and NaN."""
    found = []
    for index, name in enumerate(classes):
        own = scores.labels == index
        maps = scores.maps.select(own) if len(scores.maps.foreground) else scores.maps
        right = accuracy(scores.logits[own], scores.labels[own])
        found.append(ClassResult(name, int(own.sum()), right, pxap(maps), chance_level(maps)))
    return tuple(found)


def evidence_of(maps: Histograms, labels: np.ndarray) -> Evidence:
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
    pooled = Histograms(*(h.sum(0, dtype=np.float64) for h in maps))
    every = np.arange(len(labels))
    parts = [pxap_rows(maps.select(every[k : k + _PART])) for k in range(0, len(labels), _PART)]
    return Evidence(pooled, Histograms(*typical), np.concatenate([np.empty(0), *parts]), labels)
