"""From score maps to histograms: scaling to [0, 1], resizing and counting, in batches, on the maps' own device.

The scoring loop of the harness and `bench score` both go through these functions and no others.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import BenchError
from .metrics import BINS

STEPS = 1000.0  # bins per unit of score; BINS has one more, for the value 1 itself
PROB_TOLERANCE = 1e-4  # how far outside [0, 1] a probability may lie and still pass for rounding
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 25}  # pixels counted at once: what a core's cache holds; what bounds GPU memory


def scale_maps(
    maps: Tensor, kind: str, scale: str, constants: tuple[float, float] | None = None, ids: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Brings maps (B, h, w) of any float type to [0, 1]; returns them as float32, and which images are degenerate.

    kind `prob`: used as they are. kind `score` with scale `image`: (m - min) / (max - min) of each image on its native
    grid, before any resizing, as in the published evaluation; with scale `validation`: (m - lo) / (hi - lo) clipped,
    `constants` = (lo, hi).

    A map of one value is degenerate: (B,) bool. It says nothing, so that per-image scaling makes it 0 everywhere; the
    other two keep its value. If lo >= hi, the method's validation maps were constant: there is no scale, so every map
    becomes 0 and counts as degenerate.

    Raises BenchError, naming the image by `ids` (or its index), for NaN or infinite values and for a `prob` map outside
    [0, 1] by more than PROB_TOLERANCE.
    """
    # float64 on the small native grid: the range of two finite float32 numbers can overflow float32
    maps = maps.double()
    low, high = torch.aminmax(maps.flatten(1), dim=1)  # NaN propagates, so these two tell all
    _refuse(~(low.isfinite() & high.isfinite()), ids, "is not finite (NaN or infinite values)")
    degenerate = low == high
    if kind == "prob":
        outside = (low < -PROB_TOLERANCE) | (high > 1 + PROB_TOLERANCE)
        _refuse(outside, ids, "leaves [0, 1] though its kind is `prob`; unbounded maps have the kind `score`")
    elif kind != "score":
        raise BenchError(f"Maps of kind '{kind}' cannot be scaled; the kinds are score and prob.")
    elif scale == "image":
        span = torch.where(degenerate, 1.0, high - low)
        maps = (maps - low[:, None, None]) / span[:, None, None]
    elif scale == "validation":
        if constants is None:
            raise BenchError("Maps of kind `score` need two constants (lo, hi) under scale `validation`.")
        lo, hi = constants
        if not lo < hi:
            return torch.zeros_like(maps, dtype=torch.float32), torch.ones_like(degenerate)
        maps = (maps - lo) / (hi - lo)
    else:
        raise BenchError(f"Score maps cannot be scaled by '{scale}'; the scales are image and validation.")
    return maps.clamp(0, 1).float(), degenerate


def _refuse(bad: Tensor, ids: Sequence[str], what: str) -> None:
    if bad.any():
        first = int(bad.nonzero()[0, 0])
        name = f"'{ids[first]}'" if ids else f"number {first} of the batch"
        more = f" ({int(bad.sum())} such maps in this batch)" if bad.sum() > 1 else ""
        raise BenchError(f"The score map of image {name} {what}{more}.")


def scale_constants(values: Iterable[Tensor | np.ndarray], quantiles: tuple[float, float]) -> tuple[float, float]:
    """The two values that become 0 and 1 under scale `validation`: exact quantiles of all map values together.

    values: maps of any shape and number; their order does not matter. lo == hi means that the values are constant;
    `scale_maps` then turns every map into zeros. Raises BenchError without values or for values that are not finite.
    """
    parts = [v.detach().double().cpu().numpy() if isinstance(v, Tensor) else np.asarray(v, np.float64) for v in values]
    flat = np.concatenate([p.ravel() for p in parts]) if parts else np.empty(0)
    if not flat.size:
        raise BenchError("The scale of the maps cannot be taken from the validation images: there are none.")
    if not np.isfinite(flat).all():
        raise BenchError("The scale of the maps cannot be taken from the validation images: a map is not finite.")
    low, high = np.quantile(flat, quantiles)
    return float(low), float(high)


def resize_maps(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bilinear resize of maps (B, h, w) in [0, 1] to (B, size, size) or (B, *size); pixel centres as in PIL and torch.

    Interpolation weights add up to 1 only within rounding, which would spread a constant map over two bins; therefore
    each result is clamped to the range of its own map.
    """
    target = (size, size) if isinstance(size, int) else tuple(size)
    if maps.shape[1:] == target:
        return maps
    low, high = torch.aminmax(maps.flatten(1), dim=1)
    resized = F.interpolate(maps[:, None], size=target, mode="bilinear", align_corners=False)[:, 0]
    return resized.clamp(low[:, None, None], high[:, None, None])


def histogram(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels per bin of metrics.THRESHOLDS, apart for foreground and background: two int64 tensors (B, BINS).

    maps: (B, H, W) float32 in [0, 1], finite (as scale_maps and resize_maps leave them). masks: (B, H, W) bool.

    The counts are exactly those of numpy.histogram with float64 edges: the product of a float32 number (24 bits) and
    1000 (10 bits) is exact in float64, and no float32 number lies between i / 1000 and the edge numpy has for it.
    """
    if maps.shape != masks.shape:
        raise ValueError(f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} differ in shape")
    values, inside = maps.float().flatten(1), masks.bool().flatten(1)
    images, pixels = values.shape
    counts = torch.zeros(images, 2 * BINS, dtype=torch.int64, device=maps.device)
    chunk = _CHUNK.get(maps.device.type, 1 << 22)
    rows, columns = max(1, chunk // max(1, pixels)), min(pixels, chunk) or 1
    for top in range(0, images, rows):
        for left in range(0, pixels, columns):
            block = slice(top, top + rows), slice(left, left + columns)
            counts[block[0]] += _count(values[block], inside[block])
    background, foreground = counts.view(images, 2, BINS).unbind(1)
    return foreground, background


def _count(values: Tensor, inside: Tensor) -> Tensor:
    """(n, pixels) -> (n, 2 * BINS): background bins, then foreground bins."""
    images = len(values)
    # of shape (1,), not a scalar, so that the product is float64
    steps = torch.full((1,), STEPS, dtype=torch.float64, device=values.device)
    index = torch.mul(values, steps).to(torch.int16 if images == 1 else torch.int32)
    index.add_(inside, alpha=BINS)
    if images > 1:
        index += torch.arange(images, dtype=torch.int32, device=values.device)[:, None] * (2 * BINS)
    return torch.bincount(index.flatten(), minlength=images * 2 * BINS).view(images, 2 * BINS)
