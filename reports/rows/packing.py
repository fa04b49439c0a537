"""Maps, masks and images as text, as small as the browser can still unpack them without loss (images apart)."""

import base64
import functools
import io
import zlib

import numpy as np

from ...benchmark.core.metrics import BINS

QUALITY = 85  # of the WebP or JPEG images; the overlays on them lose nothing
STEPS = BINS - 1
FOREGROUND, IGNORED = 1, 2  # codes of pixels in the masks of stored pictures, as in datasets.masks


def pack_map(scores: np.ndarray) -> str:
    """A map (H, W) in [0, 1] as text: its bins, predicted from three neighbours, deflated, base64.

    Residuals of left + above - above left are folded to 0, 1, 2, … for 0, -1, 1, …; all low bytes stand before all
    high bytes. `floor(1000 * score)` in float64 is the bin that the scorer counts.
    """
    bins = _half_bins()[scores.view(np.uint16)] if scores.dtype == np.float16 else _bins(scores)
    padded = np.zeros((bins.shape[0] + 1, bins.shape[1] + 1), np.int16)
    padded[1:, 1:] = bins
    residual = bins - (padded[1:, :-1] + padded[:-1, 1:] - padded[:-1, :-1])
    folded = np.where(residual >= 0, 2 * residual, -2 * residual - 1)
    planes = np.stack([folded & 255, folded >> 8]).astype(np.uint8)
    return base64.b64encode(zlib.compress(planes.tobytes(), 4)).decode()


def pack_mask(mask: np.ndarray) -> str:
    """A mask (H, W) as text: one bit a pixel, row by row, highest bit first; deflated, base64."""
    return base64.b64encode(zlib.compress(np.packbits(mask.astype(bool)).tobytes(), 9)).decode()


def pack_image(pixels: np.ndarray) -> str:
    """An image (H, W, 3) uint8 as a data URI: WebP, or JPEG where this Pillow writes no WebP."""
    from PIL import Image, features

    form = "webp" if features.check("webp") else "jpeg"
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, form, quality=QUALITY)
    return f"data:image/{form};base64,{base64.b64encode(out.getvalue()).decode()}"


def within_0_and_1(maps: np.ndarray) -> bool:
    """Whether all values are; NaN is not."""
    if maps.dtype != np.float16:
        return bool(((maps >= 0) & (maps <= 1)).all())
    bits = maps.view(np.uint16)  # ordered as the numbers are up to 0x3C00, which is 1; many times faster
    return bool(((bits <= 0x3C00) | (bits == 0x8000)).all())  # 0x8000 is -0


def _bins(scores: np.ndarray) -> np.ndarray:
    return (scores.astype(np.float64) * STEPS).astype(np.int16)


@functools.cache
def _half_bins() -> np.ndarray:
    """The bin of every float16 by its bits, for those in [0, 1]; a look-up takes a fifth of the arithmetic."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    return _bins(np.where((every >= 0) & (every <= 1), every, np.float16(0)))
