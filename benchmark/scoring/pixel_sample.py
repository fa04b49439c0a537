"""Exact average precision of a seeded sample of pixels: what 1,001 linear bins cannot tell.

The same pixels are taken of an image whatever the method, the batch and the device. Their values are those of the
method's own map, interpolated but neither clipped nor binned, so that a saturated map keeps the order it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.masks.reader import FOREGROUND, IGNORED
from ..core.metrics import BINS, THRESHOLDS, Histograms, pxap
from ..core.seeds import seed_for
from ..data.prefetch import upload

PIXELS = 262_144  # of a whole set, about
LEAST, MOST = 32, 4096  # of an image


@dataclass(frozen=True)
class Sample:
    """Sampled pixels of a set. values: (N, S) float32, higher = more foreground; clipped: the same in [0, 1], as they
    are binned; codes: (N, S) uint8 mask codes."""

    values: np.ndarray
    clipped: np.ndarray
    codes: np.ndarray


def pixels_of_each(images: int) -> int:
    """Pixels that are taken of each of so many images."""
    return min(max(-(-PIXELS // max(images, 1)), LEAST), MOST)


def positions(ids: Sequence[str], count: int, size: int) -> np.ndarray:
    """Which pixels of the images are taken: (B, count) int64, row * size + column, with replacement."""
    return np.stack([_positions(name, count, size) for name in ids])


@lru_cache(20_000)  # several passes look at the same images
def _positions(name: str, count: int, size: int) -> np.ndarray:
    drawn = np.random.default_rng(seed_for("pixels", name, size)).integers(0, size * size, count)
    drawn.setflags(write=False)
    return drawn


def on_device(ids: Sequence[str], count: int, size: int, device: torch.device) -> Tensor:
    """`positions` on a device, (B, count) int64."""
    return upload(torch.from_numpy(positions(ids, count, size)), device)


def interpolated(maps: Tensor, places: Tensor, size: int) -> Tensor:
    """Values (B, S) float32 of maps (B, h, w) at pixels (B, S) of the maps resized to size x size.

    The bilinear interpolation of `maps.resize_maps` (pixel centres), worked out at these pixels alone.
    """
    height, width = maps.shape[1:]
    flat = maps.flatten(1).float()
    if (height, width) == (size, size):
        return flat.gather(1, places)
    top, below, down = _between(places // size, size, height)
    left, beside, right = _between(places % size, size, width)
    corners = [flat.gather(1, row * width + column) for row in (top, below) for column in (left, beside)]
    upper, lower = (a + (b - a) * right for a, b in (corners[:2], corners[2:]))
    return upper + (lower - upper) * down


def _between(at: Tensor, size: int, native: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two native rows (or columns) a pixel lies between, and how far it is from the first, in [0, 1)."""
    source = ((at.float() + 0.5) * (native / size) - 0.5).clamp(min=0)
    first = source.long().clamp(max=native - 1)
    return first, (first + 1).clamp(max=native - 1), source - first


def codes_at(masks: Tensor, places: Tensor) -> Tensor:
    """Mask codes (B, S) uint8 at pixels of masks (B, size, size), bool or codes."""
    return masks.flatten(1).gather(1, places).byte()


def exact_ap(values: np.ndarray, truth: np.ndarray) -> float:
    """Average precision in percent of pixels (n,) with their truth (n,) bool: the sum over distinct values, from the
    highest on, of precision times gain of recall. Equal values are one threshold. NaN without foreground.

    The limit of PxAP for ever finer bins; a constant map gives the share of foreground.
    """
    if not truth.any():
        return float("nan")
    order = np.argsort(-values, kind="stable")
    ranked, hits = values[order], np.cumsum(truth[order], dtype=np.float64)
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    tp = hits[last]
    return float(100 * (tp / (last + 1) * np.diff(tp, prepend=0)).sum() / tp[-1])


def binned_pxap(clipped: np.ndarray, truth: np.ndarray) -> float:
    """PxAP in percent that the bins of the histograms give to pixels (n,) in [0, 1]; NaN without foreground."""
    bins = np.searchsorted(THRESHOLDS, clipped.astype(np.float64), side="right") - 1
    counts = (np.bincount(bins[of], minlength=BINS)[None] for of in (truth, ~truth))
    return pxap(Histograms(*counts))


def sample_facts(sample: Sample | None, background: np.ndarray | None) -> dict[str, Any] | None:
    """Facts of a sample for a record: `pixels`, `ap` (exact), `pxap` (of the bins), percent, None where undefined.

    background: (N,) bool, images predicted as a class without a region; `gated` then holds the same with their pixels
    below all others, else None.
    """
    if sample is None:
        return None
    known = sample.codes != IGNORED
    truth = (sample.codes == FOREGROUND)[known]
    facts: dict[str, Any] = {"pixels": int(known.sum()), **_both(sample.values[known], sample.clipped[known], truth)}
    facts["gated"] = None
    if background is not None:
        off = np.broadcast_to(background[:, None], known.shape)[known]
        lowest = np.where(off, -np.inf, sample.values[known].astype(np.float64))
        facts["gated"] = _both(lowest, np.where(off, 0, sample.clipped[known]), truth)
    return facts


def _both(values: np.ndarray, clipped: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    numbers = {"ap": exact_ap(values, truth), "pxap": binned_pxap(clipped, truth)}
    return {name: None if value != value else value for name, value in numbers.items()}
