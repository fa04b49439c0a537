"""Shifted evaluation sets: the images of a test set changed on the fly, never stored."""

from collections.abc import Iterator, Sequence

import numpy as np

from ..datasets.base import Item, Manifest
from ..datasets.shift import SHIFTS, StainPool, stain_pool
from .evalsets import EvalSet
from .images import ImageCache

POOL_IMAGES = 256  # of each of the two sets whose stains make the pool, evenly spread over the ids


def pooled(shift: str) -> bool:
    """Whether a shift needs the stains of a pool of images."""
    return bool(shift) and SHIFTS[shift].pooled


def pool_items(manifest: Manifest) -> list[Item]:
    """The images whose stains make the pool: some of the test set and some of the training set of the same dataset."""
    return [*_some(manifest.split("test")), *_some(manifest.split("train"))]


def _some(items: Sequence[Item]) -> list[Item]:
    ordered = sorted(items, key=lambda i: i.id)
    picks = np.linspace(0, len(ordered) - 1, min(POOL_IMAGES, len(ordered))).round().astype(int) if ordered else []
    return [ordered[k] for k in picks]


def make_pool(manifest: Manifest, images: ImageCache, size: int) -> StainPool:
    """The target stains of a dataset's fold, from images of its test set against images of its training set."""
    items = pool_items(manifest)
    own = [i for i in items if i.split == "test"]
    other = [i for i in items if i.split != "test"]
    clusters = max(max(card.levels) for card in SHIFTS.values() if card.pooled)
    return stain_pool(_pixels(images, own, size), _pixels(images, other, size), clusters)


def _pixels(images: ImageCache, items: Sequence[Item], size: int) -> Iterator[np.ndarray]:
    frames = images.frames(items, size)
    return (frames.images[k] for k in range(len(items)))


def severity(on: EvalSet, pool: StainPool | None) -> float | None:
    """The number of a shifted set on the severity axis; None for a set as it is."""
    if not on.shift:
        return None
    return float(SHIFTS[on.shift].axis[on.level] if pool is None else pool.distances[on.level - 1])
