"""How sure a number is: intervals over patients or slides, of one run or of the mean of several, and their spread.

Two sources of chance are told apart. Which patients are in the test set: the interval, over groups. How training went:
the standard deviation over the runs (seeds, published folds), which the interval does not hold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...benchmark.core.intervals import effective_groups, jackknife_interval, wilson_interval

NAN = math.nan
JACKKNIFED = ("pxap", "dice_tau_val", "pxap_image", "dice_image")


@dataclass(frozen=True)
class Clusters:
    """What intervals need to know of the groups (patients, slides) of a scored set.

    names: the groups, sorted. images: images of each. regions: those with foreground, 0 without maps. right: images
    classified right, None without predictions. without: for names of JACKKNIFED, the value without each group, in
    percent, NaN where the group takes no part.
    """

    names: tuple[str, ...]
    images: tuple[float, ...]
    regions: tuple[float, ...]
    right: tuple[float, ...] | None = None
    without: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, groups: np.ndarray, regions: np.ndarray | None = None, without: Mapping[str, np.ndarray] | None = None
    ) -> "Clusters":
        """From the groups of images (N,), and arrays (G,) in their sorted order."""
        names, images = np.unique(groups, return_counts=True)
        weights = np.zeros(len(names)) if regions is None else regions
        left = {name: tuple(values.tolist()) for name, values in (without or {}).items()}
        return cls(tuple(map(str, names)), tuple(images.astype(float)), tuple(weights.tolist()), None, left)

    def to_json(self) -> list[Any]:
        """As a list that JSON gives back to `from_json`."""
        return [self.names, self.images, self.regions, self.right, dict(self.without)]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> "Clusters":
        """What `to_json` made of it, with None for NaN."""
        names, images, regions, right, without = value
        left = {k: tuple(NAN if v is None else v for v in values) for k, values in without.items()}
        return cls(tuple(names), tuple(images), tuple(regions), None if right is None else tuple(right), left)

    @property
    def effective(self) -> float:
        """How many groups of equal size its groups are worth (Kish), by images with foreground; by all without maps."""
        weights = self.regions if any(self.regions) else self.images
        return float(effective_groups(np.array(weights))) if weights else 0.0


class Spread(NamedTuple):
    """The ends of a 95% interval in percent, NaN where none is claimed."""

    low: float
    high: float


class Measured(Protocol):
    """A row, as far as its spread is concerned."""

    @property
    def clusters(self) -> Clusters:
        """Its groups."""
        ...


def spread_over_groups(rows: Sequence[Measured], key: str) -> Spread:
    """95% interval over groups of the mean of `key` over some runs; `accuracy`, or a name of JACKKNIFED.

    Runs on the same test images share their groups: what is left without a patient is the mean over runs of what is
    left in each. A run whose images hold no image of that patient is left as it is. NaN where a run has no value.
    """
    values = [float(getattr(row, key)) for row in rows]
    if not rows or any(math.isnan(v) for v in values):
        return Spread(NAN, NAN)
    names = sorted(set().union(*(row.clusters.names for row in rows)))
    places = {name: k for k, name in enumerate(names)}
    spread = _accuracy(rows, places) if key == "accuracy" else _jackknife(rows, key, values, places)
    return Spread(float(spread[0]), float(spread[1]))


def _jackknife(
    rows: Sequence[Measured], key: str, values: Sequence[float], places: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    without = np.tile(np.array(values)[:, None], len(places))
    sizes, there = np.zeros((len(rows), len(places))), np.zeros(len(places), bool)
    for k, row in enumerate(rows):
        at = [places[name] for name in row.clusters.names]
        left = np.array(row.clusters.without.get(key, [NAN] * len(at)))
        there[at] |= ~np.isnan(left)
        without[k, at] = np.where(np.isnan(left), values[k], left)
        sizes[k, at] = row.clusters.regions
    mean = np.where(there, without.mean(0), NAN)
    return jackknife_interval(np.array(np.mean(values)), mean, sizes.max(0))


def _accuracy(rows: Sequence[Measured], places: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    right, total, seen = np.zeros(len(places)), np.zeros(len(places)), np.zeros(len(places))
    for row in rows:
        if row.clusters.right is None:
            return np.array(NAN), np.array(NAN)
        at = [places[name] for name in row.clusters.names]
        right[at] += row.clusters.right
        total[at] += row.clusters.images
        seen[at] += 1
    return wilson_interval(right / np.maximum(seen, 1), total / np.maximum(seen, 1))
