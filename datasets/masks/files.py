"""Mask files: the values stored in them. What a container says about their meaning is honoured or refused."""

from pathlib import Path

import numpy as np
from PIL import Image

from ...benchmark.core.errors import BenchError
from .arrays import array_shape, is_array_file, read_array
from .decode import check_upright, opened

MASK_FORMATS = ("BMP", "PNG", "TIFF")  # lossless, but for compressions that are refused by their number
_WHY = "masks are read from BMP, PNG, TIFF, NPY or NPZ. Save the annotation itself as one of them."
_LOSSY = (
    "its compression has changed the values: edges and surfaces hold greys that nobody drew. "
    "Export the annotation itself as PNG; converting this file does not bring its edges back."
)
_BITS, _COMPRESSION, _PHOTOMETRIC, _CHANNELS, _SAMPLE_FORMAT, _NODATA = 258, 259, 262, 277, 339, 42113
# none, CCITT (3), LZW, deflate (2), PackBits, LZMA, Zstandard: none of them changes a value
_LOSSLESS = (1, 2, 3, 4, 5, 8, 32771, 32773, 32946, 34925, 50000)
_LOSSY_NAMES = {6: "JPEG", 7: "JPEG", 33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34892: "JPEG"}
_LOSSY_NAMES |= {34887: "LERC", 50001: "WebP", 52546: "JPEG XL"}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE = 0, 1, 3
_SIGNED, _FLOAT = 2, 3
_SMALL_STEPS = {2: 85, 4: 17}  # Pillow spreads 2 and 4 bits over 0..255


def mask_size(path: Path) -> tuple[int, int]:
    """(H, W) of a mask from its header; raises BenchError for what the header alone shows to be unusable."""
    if is_array_file(path):
        return array_shape(path, "mask")
    with opened(path, MASK_FORMATS, _why(path)) as mask:
        _check_container(path, mask)
        return mask.height, mask.width


def stored_values(path: Path) -> np.ndarray:
    """The numbers in a mask file as (H, W), in the type that they are stored in (1-bit: bool).

    Raises BenchError for a file that is damaged, has several channels, or whose container gives the numbers a meaning
    that is not theirs: palettes whose entry 0 is not black, white as zero, transparency, lossy compression.
    """
    if is_array_file(path):
        return read_array(path, "mask")
    with opened(path, MASK_FORMATS, _why(path)) as mask:
        _check_container(path, mask)
        mask.load()
        check_upright(path, mask)
        values = _unscaled(path, mask)
        if mask.mode == "P":
            _check_palette(path, mask, np.flatnonzero(np.bincount(values.ravel())))
        _check_clear(path, mask, values)
        if mask.format == "TIFF":
            _check_nodata(path, mask, values)
        return values


def _why(path: Path) -> str:
    lossy = path.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".webp")
    return _LOSSY if lossy else _WHY


def _unscaled(path: Path, mask: Image.Image) -> np.ndarray:
    """The values as stored: Pillow spreads those of 2 and 4 bits over 0..255 and reads signed bytes as unsigned."""
    if mask.mode == "1":
        return np.asarray(mask)
    values = np.asarray(mask)
    bits = _bits(path, mask)
    if mask.mode == "L" and bits in _SMALL_STEPS:
        return values // _SMALL_STEPS[bits]
    if mask.format == "TIFF" and mask.mode == "L" and _tag(mask, _SAMPLE_FORMAT, 1) == _SIGNED:
        return values.view(np.int8)
    return values


def _bits(path: Path, mask: Image.Image) -> int:
    if mask.format == "TIFF":
        return _tag(mask, _BITS, 1)
    if mask.format != "PNG":
        return 8
    with path.open("rb") as handle:
        return handle.read(25)[24]


def _tag(mask: Image.Image, number: int, otherwise: int) -> int:
    value = mask.tag_v2.get(number, otherwise)  # pyright: ignore[reportAttributeAccessIssue]
    return int(value[0] if isinstance(value, tuple) else value)


def _check_container(path: Path, mask: Image.Image) -> None:
    """Raises BenchError for what the header says: several channels, lossy compression, white as zero."""
    if mask.format == "TIFF":
        compression = _tag(mask, _COMPRESSION, 1)
        if compression not in _LOSSLESS:
            name = _LOSSY_NAMES.get(compression, f"of number {compression}")
            raise BenchError(f"{path}: the TIFF mask has the compression {name}, and {_LOSSY}")
        meaning = _tag(mask, _PHOTOMETRIC, _BLACK_IS_ZERO)
        if _tag(mask, _CHANNELS, 1) == 1 and meaning == _WHITE_IS_ZERO:
            raise BenchError(
                f"{path}: the TIFF mask says that 0 is white (PhotometricInterpretation WhiteIsZero), so its numbers "
                "and its looks contradict each other. Save it with 0 as black, as PNG for example."
            )
        if _tag(mask, _CHANNELS, 1) == 1 and meaning not in (_BLACK_IS_ZERO, _PALETTE):
            raise BenchError(f"{path}: the TIFF mask has PhotometricInterpretation {meaning}. Save it as grey.")
    if mask.mode in ("1", "L", "I", "F", "P") or mask.mode.startswith("I;16"):
        return
    raise BenchError(
        f"{path}: the mask has colours or several channels (mode {mask.mode}). Save it as one grey channel with 0 for "
        "background."
    )


def _check_palette(path: Path, mask: Image.Image, used: np.ndarray) -> None:
    """A palette passes where its indices are the values: entry 0 is black and no other that occurs looks like it."""
    flat = mask.getpalette("RGB") or []
    colours = np.array(flat, np.uint8).reshape(-1, 3)
    advice = "Save the mask as one grey channel with 0 for background."
    if not len(colours) or used[-1] >= len(colours):
        raise BenchError(f"{path}: the mask has pixels without an entry in its palette. {advice}")
    if colours[0].any():
        raise BenchError(
            f"{path}: entry 0 of the mask's palette is not black but {tuple(colours[0].tolist())}, so its indices are "
            f"not the values that were drawn. {advice}"
        )
    shown = colours[used]
    if black := [int(i) for i, colour in zip(used, shown, strict=True) if i and not colour.any()]:
        raise BenchError(f"{path}: entry {black[0]} of the mask's palette is black as entry 0 is. {advice}")
    if len({tuple(c) for c in shown.tolist()}) < len(used):
        raise BenchError(f"{path}: two values of the mask have one colour in its palette. {advice}")
    grey = (shown == shown[:, :1]).all()
    if grey and len(used) > 2 and (shown[:, 0] != used).any() and (np.diff(shown[:, 0].astype(int)) <= 0).any():
        raise BenchError(f"{path}: the greys of the mask's palette do not rise with its indices. {advice}")


def _check_clear(path: Path, mask: Image.Image, values: np.ndarray) -> None:
    """Transparency may concern the value 0 alone, which is background either way."""
    clear = mask.info.get("transparency")
    if clear is None:
        return
    hidden = [i for i, a in enumerate(clear) if a == 0] if isinstance(clear, bytes) else [int(clear)]
    if seen := [i for i in hidden if i and (values == i).any()]:
        raise BenchError(f"{path}: value {seen[0]} of the mask is transparent. Save it without transparency.")


def _check_nodata(path: Path, mask: Image.Image, values: np.ndarray) -> None:
    """GIS programs name the value of pixels without data in a tag."""
    text = mask.tag_v2.get(_NODATA)  # pyright: ignore[reportAttributeAccessIssue]
    if text is None:
        return
    try:
        value = float(str(text).strip("\x00 "))
    except ValueError:
        value = float("nan")
    if np.isnan(value) or (values == value).any():
        raise BenchError(
            f"{path}: the TIFF mask says that {str(text).strip()} means 'no data' (tag GDAL_NODATA). Save it without "
            "the tag, and declare mask_ignore if those pixels are not annotated."
        )
