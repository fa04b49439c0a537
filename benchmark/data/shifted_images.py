"""Shifted evaluation sets: the images of a test set changed on the fly, never stored."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...datasets.base import Item
from ...datasets.shifts.shift import SHIFTS, Shift, StainPool, make_shift, stain_pool
from ..planning.eval_sets import EvalSet
from .image_cache import ImageCache

POOL_IMAGES = 256  # of each of the two sets whose stains make the pool, evenly spread over the ids


def pooled(shift: str) -> bool:
    """Whether a shift needs the stains of a pool of images."""
    return bool(shift) and SHIFTS[shift].pooled


def pool_items(items: Sequence[Item]) -> list[Item]:
    """The images of a split that speak for its stains."""
    ordered = sorted(items, key=lambda i: i.id)
    picks = np.linspace(0, len(ordered) - 1, min(POOL_IMAGES, len(ordered))).round().astype(int) if ordered else []
    return [ordered[k] for k in picks]


def make_pool(
    own: tuple[ImageCache, Sequence[Item]], stain_source: tuple[ImageCache, Sequence[Item]], size: int
) -> StainPool:
    """The target stains: those of the stain_source's images, ordered by their distance to the own training images."""
    clusters = max(max(card.levels) for card in SHIFTS.values() if card.pooled)
    return stain_pool(_pixels(*own, size), _pixels(*stain_source, size), clusters)


def _pixels(images: ImageCache, items: Sequence[Item], size: int) -> Iterator[np.ndarray]:
    frames = images.frames(items, size)
    return (frames.images[k] for k in range(len(items)))


def severity(on: EvalSet) -> float | None:
    """The number of a shifted set on the axis of its shift; None for a set as it is and for a target stain."""
    if not on.shift or not on.level or not SHIFTS[on.shift].graded:
        return None
    return float(SHIFTS[on.shift].axis[on.level])


def shift_facts(on: EvalSet, pool: StainPool | None, change: Shift | None) -> dict[str, Any]:
    """Record of how the images of an evaluation set were changed.

    severity: the level on the axis of the shift; None for a set as it is, and for target stains, whose order is no
    severity. stain_distance: mean Frobenius distance of the target's stain matrix to those of the own set; None without
    a target. pixel_change: what was measured while scoring (`Shift.pixel_change`); None for a set as it is.
    """
    card = SHIFTS.get(on.shift)
    return {
        "shift": on.shift,
        "level": on.level,
        "severity": severity(on),
        "axis": "" if card is None else card.severity if card.graded else card.step,
        "stain_distance": pool.distances[on.level - 1] if pool and on.level else None,
        "pixel_change": change.pixel_change if change else None,
    }


def change_of(on: EvalSet, pool: StainPool | None) -> Shift | None:
    """Change of the images of an evaluation set; None where they stay as they are."""
    return make_shift(on.shift, on.level, pool) if on.shift else None
