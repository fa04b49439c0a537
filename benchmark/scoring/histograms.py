"""Counting score maps: pixels per bin of metrics.THRESHOLDS, apart for foreground and background, exactly.

Every way of counting here gives the counts of numpy.histogram with float64 edges: the product of a float32 number (24
bits) and 1000 (10 bits) is exact in float64, and no float32 number lies between i / 1000 and the edge numpy has for it.
All return int64 (B, 2, BINS): background, then foreground.
"""

import logging
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..core.metrics import BINS
from .histogram_layout import BITS, CELLS, axis_table

STEPS = 1000.0  # bins per unit of score; BINS has one more, for the value 1 itself
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 25}  # pixels torch counts at once: what a cache holds; what bounds GPU memory
_IMAGES = (1 << 16) // CELLS  # images whose cells 16 bits tell apart
_BLOCK = 1 << 18  # pixels OpenCV counts at once: their indices stay in the cache; it counts in float32, exact to 2^24
_STRIP = 1 << 17  # pixels whose float64 products are in memory at once: 1 MB; in less, calls outweigh the cache
_log = logging.getLogger(__name__)


def count_on_cpu(maps: Tensor, masks: Tensor) -> Tensor:
    """Counts of maps (B, H, W) float32 in [0, 1], finite, under masks (B, H, W) bool, both in main memory.

    Products in strips that stay in the cache, then one pass of OpenCV over 16-bit indices: it is quicker than any
    bincount, because it neither looks for the largest index first nor widens the indices, and starts no threads.
    """
    import cv2  # half a second of import that nothing but scoring needs

    values = maps.detach().float().flatten(1).contiguous().numpy()
    inside = masks.detach().bool().flatten(1).contiguous().numpy().view(np.uint8)
    images, pixels = values.shape
    counts = np.zeros((images, CELLS), np.int64)
    rows, columns = min(_IMAGES, max(1, _BLOCK // max(1, pixels))), max(1, min(pixels, _BLOCK))
    buffer, strip = np.empty(rows * columns, np.uint16), min(_STRIP, rows * columns)
    scratch = np.empty(strip), np.empty(strip, np.uint16)
    for top in range(0, images, rows):
        for left in range(0, pixels, columns):
            part = slice(top, top + rows), slice(left, left + columns)  # whole rows or a part of one: contiguous
            shape = values[part].shape
            index = buffer[: values[part].size]
            _fill(index, values[part].ravel(), inside[part].ravel(), scratch)
            if shape[0] > 1:
                index.reshape(shape)[...] += np.arange(0, shape[0] * CELLS, CELLS, dtype=np.uint16)[:, None]
            cells = shape[0] * CELLS
            bins = cv2.calcHist([index.reshape(1, -1)], [0], None, [cells], [0, cells])
            counts[part[0]] += bins.reshape(shape[0], CELLS).astype(np.int64)
    return torch.from_numpy(counts).view(images, 2, CELLS // 2)[..., :BINS]


def _fill(index: np.ndarray, values: np.ndarray, inside: np.ndarray, scratch: tuple[np.ndarray, np.ndarray]) -> None:
    """Writes bin + 1024 * inside of flat arrays; scratch: float64 and uint16, a strip long."""
    for start in range(0, index.size, len(scratch[0])):
        strip = slice(start, min(start + len(scratch[0]), index.size))
        product, side = (s[: strip.stop - start] for s in scratch)
        np.copyto(product, values[strip])
        np.multiply(product, STEPS, out=product)
        np.copyto(index[strip], product, casting="unsafe")  # towards zero
        np.copyto(side, inside[strip])
        np.left_shift(side, BITS, out=side)
        np.bitwise_or(index[strip], side, out=index[strip])


def count_with_torch(maps: Tensor, masks: Tensor) -> Tensor:
    """The same counts on any device, with nothing but torch."""
    values, inside = maps.float().flatten(1), masks.bool().flatten(1)
    images, pixels = values.shape
    counts = torch.zeros(images, 2 * BINS, dtype=torch.int64, device=maps.device)
    chunk = _CHUNK.get(maps.device.type, 1 << 22)
    rows, columns = max(1, chunk // max(1, pixels)), min(pixels, chunk) or 1
    for top in range(0, images, rows):
        for left in range(0, pixels, columns):
            block = slice(top, top + rows), slice(left, left + columns)
            counts[block[0]] += _bincount(values[block], inside[block])
    return counts.view(images, 2, BINS)


def _bincount(values: Tensor, inside: Tensor) -> Tensor:
    """(n, pixels) -> (n, 2 * BINS): background bins, then foreground bins."""
    images = len(values)
    # of shape (1,), not a scalar, so that the product is float64
    steps = torch.full((1,), STEPS, dtype=torch.float64, device=values.device)
    index = torch.mul(values, steps).to(torch.int16 if images == 1 else torch.int32)
    index.add_(inside, alpha=BINS)
    if images > 1:
        index += torch.arange(images, dtype=torch.int32, device=values.device)[:, None] * (2 * BINS)
    return torch.bincount(index.flatten(), minlength=images * 2 * BINS).view(images, 2 * BINS)


@lru_cache(maxsize=64)
def resize_by_steps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resized maps as of resize_maps, one operation at a time: each product and sum is a float32, on every device.

    torch's own kernel rounds in an order of its own, up to one unit in the last place apart. This is the definition of
    what the GPU counts, and the oracle of the kernel that does it.
    """
    (h, w), device = maps.shape[1:], maps.device
    (top, down), (left, right) = axis_table(h, size[0], device), axis_table(w, size[1], device)
    top, left, down = top.long(), left.long(), down[:, None]
    upper, lower = maps[:, top], maps[:, (top + 1).clamp(max=h - 1)]
    beside = (left + 1).clamp(max=w - 1)
    above = (1 - right) * upper[..., left] + right * upper[..., beside]
    below = (1 - right) * lower[..., left] + right * lower[..., beside]
    low, high = torch.aminmax(maps.flatten(1), dim=1)
    return ((1 - down) * above + down * below).clamp(low[:, None, None], high[:, None, None])


class GpuCounter:
    """Counts on CUDA with the kernels of counting_gpu once they have proved themselves, with torch otherwise.

    The first batch of each kernel in a process is counted by torch too. Where a kernel counts otherwise, or ever fails
    to compile or run, a warning says so and torch counts for the rest of the process.
    """

    def __init__(self) -> None:
        self._trusted: dict[str, bool] = {}

    def count(self, maps: Tensor, masks: Tensor) -> Tensor:
        """Counts of maps (B, H, W) float32 in [0, 1] under masks (B, H, W) bool on the same GPU."""

        def kernel() -> Tensor:
            from . import histograms_gpu

            return histograms_gpu.count(maps, masks)

        return self._run("count", kernel, lambda: count_with_torch(maps, masks))

    def count_resized(self, maps: Tensor, masks: Tensor) -> Tensor:
        """Counts of maps (B, h, w) resized to masks (B, H, W) as resize_by_steps does."""

        def kernel() -> Tensor:
            from . import histograms_gpu

            if masks.shape[2] > histograms_gpu.WIDEST:
                return histograms_gpu.count(resize_by_steps(maps, (masks.shape[1], masks.shape[2])), masks)
            return histograms_gpu.count_resized(maps, masks)

        size = masks.shape[1], masks.shape[2]
        return self._run("count_resized", kernel, lambda: count_with_torch(resize_by_steps(maps, size), masks))

    def _run(self, name: str, kernel: Callable[[], Tensor], reference: Callable[[], Tensor]) -> Tensor:
        trusted = self._trusted.get(name)
        if trusted is False:
            return reference()
        expected = reference() if trusted is None else None
        try:
            result = kernel()
            if expected is None or torch.equal(result, expected):
                self._trusted[name] = True
                return result
            reason = "its counts differ from those of torch"
        except Exception as problem:  # noqa: BLE001 - whatever an import, a compiler or a driver raises: it is reported
            reason = f"{type(problem).__name__}: {problem}"
        self._trusted[name] = False
        _log.warning("The GPU kernel '%s' is not used, torch counts instead, slower: %s", name, reason)
        return reference() if expected is None else expected


GPU = GpuCounter()
