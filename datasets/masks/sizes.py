"""Resizing of masks to the scoring size: three reductions, exact in whole numbers, and the one of OpenCV."""

import numpy as np
from PIL import Image

from .reader import FOREGROUND, IGNORED

NEAREST = Image.Resampling.NEAREST


def reduce_mask(mask: np.ndarray, size: int, reduction: str) -> np.ndarray:
    """Squashes a mask to (size, size), of the type it has: (H, W) bool, or uint8 codes with ignored pixels.

    reduction: `nearest`: Pillow's, the pixel that holds the centre of the new one. `nearest-opencv`: source index
    floor(x * W / size), as cv2.resize(INTER_NEAREST) takes it; up to half a new pixel off to the upper left. `area`:
    foreground where at least half of the annotated area is foreground. `any`: foreground where any part of it is.
    Under the last two a new pixel is ignored where more than half of its area is (for `any`: and none is foreground).
    Raises ValueError for another name.
    """
    height, width = mask.shape
    if reduction == "nearest":
        return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((size, size), NEAREST)).astype(mask.dtype)
    if reduction == "nearest-opencv":
        return mask[_corners(height, size)[:, None], _corners(width, size)]
    if reduction not in ("area", "any"):
        raise ValueError(f"{reduction!r} is no way to squash a mask")
    foreground = _areas(mask == FOREGROUND, size)
    if mask.dtype == np.bool_:
        return foreground > 0 if reduction == "any" else 2 * foreground >= height * width
    ignored = _areas(mask == IGNORED, size)
    annotated = height * width - ignored
    inside = foreground > 0 if reduction == "any" else (2 * foreground >= annotated) & (annotated > 0)
    out = 2 * ignored > height * width
    if reduction == "any":
        out &= ~inside
    return np.where(out, IGNORED, inside * FOREGROUND).astype(mask.dtype)


def _corners(source: int, size: int) -> np.ndarray:
    """floor(x * source / size), with the roundings of OpenCV, whose factor is the inverse of an inverse."""
    return np.minimum(np.floor(np.arange(size) * (1 / (size / source))).astype(np.int64), source - 1)


def _areas(inside: np.ndarray, size: int) -> np.ndarray:
    """How much of every new pixel lies inside, (size, size) int64; a whole new pixel has the area H * W.

    The unit of length is 1 / size of an old pixel, so that the borders of both kinds of pixels are whole numbers.
    """
    return _sums(_sums(inside, size).T, size).T


def _sums(values: np.ndarray, size: int) -> np.ndarray:
    """Sums over the rows (H, W) that each of `size` new rows covers, in units of 1 / size of an old row."""
    height = len(values)
    upto = np.zeros((height + 1, values.shape[1]), np.int64)
    np.cumsum(values, axis=0, out=upto[1:])
    borders = np.arange(size + 1) * height
    whole, part = borders // size, borders % size
    at = upto[whole] * size + part[:, None] * values[np.minimum(whole, height - 1)].astype(np.int64)
    return np.diff(at, axis=0)
