"""Image and mask files to arrays, one rule for all datasets; whatever could be read in two ways is refused."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ...benchmark.core.errors import BenchError

IMAGE_FORMATS = ("BMP", "PNG", "JPEG", "TIFF", "WEBP")
MAX_PIXELS = 80_000_000  # larger headers are refused before any memory is taken; Pillow itself warns at 89 million
_ORIENTATION_TAG, _BITS_TAG = 0x0112, 258
_PNG_FLAGS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp")  # where programs keep the flag in a PNG
_GREY_STEPS = {"1": 1, "L": 255, "I;16": 65535, "I;16B": 65535, "I;16L": 65535, "I": 65535}
_SIGNS = {  # first bytes, so that nothing but the formats asked for is ever opened
    "JPEG": b"\xff\xd8\xff",
    "GIF": b"GIF8",
    "PNG": b"\x89PNG",
    "BMP": b"BM",
    "TIFF": b"II*\0",
    "big-endian TIFF": b"MM\0*",
    "BigTIFF": b"II+\0",
    "JPEG 2000": b"\0\0\0\x0cjP  ",
    "PDF": b"%PDF",
}
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def decode_image(path: Path) -> np.ndarray:
    """Reads an image as (H, W, 3) uint8 RGB.

    Grey and palette images become RGB, an opaque alpha channel is dropped. Raises BenchError naming the file if it is
    missing, empty, truncated, too large, has several pages, 16 bits a channel, CMYK, transparency, or an EXIF flag
    that asks viewers to rotate it: masks carry no such flag, so turning the image alone would part the two.
    """
    return np.array(_rgb(path))


def decode_squashed(path: Path, sizes: Sequence[int]) -> list[np.ndarray]:
    """Reads an image once and squashes it to each size: what `decode_image` and `resize_image` give, in fewer copies.

    Returns arrays (size, size, 3) uint8 in the order of `sizes`. Raises BenchError as `decode_image` does.
    """
    image = _rgb(path)
    return [np.array(image.resize((s, s), Image.Resampling.BILINEAR)) for s in sizes]


def _rgb(path: Path) -> Image.Image:
    """A whole image in memory, in RGB; see `decode_image` for what is refused."""
    with opened(path, IMAGE_FORMATS) as image:
        _check_image_mode(path, image)
        image.load()
        check_upright(path, image)
        if image.mode in ("RGBA", "LA") or "transparency" in image.info:
            image = image.convert("RGBA")
            if np.asarray(image)[..., 3].min() < 255:
                raise BenchError(f"{path}: parts of the image are transparent. Save it without an alpha channel.")
        return image.convert("RGB")


def decode_grey(path: Path) -> np.ndarray:
    """Reads a grey PNG of 1, 8 or 16 bits as (h, w) float64 in [0, 1], its highest value being 1.

    Raises BenchError for any other format or mode and for everything `decode_image` refuses about files.
    """
    with opened(path, ("PNG",)) as image:
        if image.mode not in _GREY_STEPS:
            raise BenchError(
                f"{path} is not grey (mode {image.mode}): it must have one channel of 8 or 16 bits. Colours "
                "cannot be turned back into values; save the values themselves."
            )
        image.load()
        check_upright(path, image)
        return np.asarray(image, np.float64) / _GREY_STEPS[image.mode]


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of an image from its header; raises BenchError for what the header alone shows to be unusable."""
    with opened(path, IMAGE_FORMATS) as image:
        _check_image_mode(path, image)
        return image.height, image.width


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Squashes (H, W, 3) uint8 to (size, size, 3), bilinear with Pillow's antialiasing."""
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


@contextmanager
def opened(path: Path, formats: tuple[str, ...], why: str = "") -> Iterator[Image.Image]:
    """Opens a file and turns whatever is wrong with it, then or while it is read, into a BenchError.

    `why`: what is to be said of a file that is sound but in a format that is not among `formats`.
    """
    try:
        if path.stat().st_size == 0:
            raise BenchError(f"{path} is empty (0 bytes). Download it again.")
        with Image.open(path, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BenchError(
                    f"{path} claims {image.width} x {image.height} px, too many. Cut it into patches first."
                )
            if getattr(image, "n_frames", 1) > 1:
                raise BenchError(
                    f"{path} holds several pages or frames. Save the one that is meant as a file of its own."
                )
            check_upright(path, image)
            yield image
    except _BOMB as problem:
        raise BenchError(f"{path} is too large to be a plain image ({problem}). Cut it into patches first.") from None
    except Image.UnidentifiedImageError:
        raise BenchError(_not_read(path, formats, why)) from None
    except FileNotFoundError:
        raise BenchError(f"{path} does not exist.") from None
    except BenchError:
        raise
    except Exception as problem:  # on damaged files Pillow's plug-ins raise whatever comes to pass
        raise BenchError(f"{path} cannot be read ({_reason(problem)}). Download it again.") from problem


def _not_read(path: Path, formats: tuple[str, ...], why: str) -> str:
    """Why none of the formats fits: another format, known by its first bytes, or damage."""
    with path.open("rb") as handle:
        start = handle.read(12)
    other = next((name for name, sign in _SIGNS.items() if start.startswith(sign)), None)
    if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        other = "WEBP"
    known = ", ".join(formats)
    if other is None or other in formats:
        return f"{path} is damaged or none of {known}. Download or convert it again."
    return f"{path} is a {other} file; {why or f'the suite reads {known} here. Convert it.'}"


def _reason(problem: Exception) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__


def _check_image_mode(path: Path, image: Image.Image) -> None:
    if image.mode not in ("RGB", "L", "P", "RGBA", "LA") or _depth(path, image) > 8:
        what = "16 bits a channel" if image.mode.startswith("I") or image.mode == "RGB" else f"mode {image.mode}"
        raise BenchError(
            f"{path} has {what}; the suite reads 8-bit RGB or grey. Convert it, choosing the range yourself."
        )


def _depth(path: Path, image: Image.Image) -> int:
    """Bits a channel, 8 where the format has no more. Pillow cuts 16-bit colour to 8 without saying so."""
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_TAG, 8)  # pyright: ignore[reportAttributeAccessIssue]
        return max(bits) if isinstance(bits, tuple) else int(bits)
    if image.format != "PNG":
        return 8
    with path.open("rb") as handle:
        return handle.read(25)[24]


def check_upright(path: Path, image: Image.Image) -> None:
    """Raises BenchError for an image with an EXIF flag to be shown rotated; call it again once the file is loaded."""
    if image.format == "PNG" and not any(key in image.info for key in _PNG_FLAGS):
        return  # asking Pillow would decode the whole file; a late flag is found after loading
    if image.getexif().get(_ORIENTATION_TAG, 1) not in (0, 1):
        raise BenchError(
            f"{path} carries an EXIF flag to be shown rotated. Save it upright, its mask alongside, both turned alike."
        )
