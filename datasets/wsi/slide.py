"""Whole-slide images through openslide: patches at a resolution in microns per pixel, and an overview of the slide.

openslide is an optional extra; nothing here imports it before a slide is opened.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...benchmark.core.errors import BenchError
from .notes import Note
from .resolution import Resolution, background_note, bounds_origin, level0_resolution, sound_levels

SUFFIXES = (".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide")
MPP_TOLERANCE = 0.05  # a level this near to the resolution asked for is read as it is, without resampling
_OVERVIEW_DOWNSAMPLE = 64  # level 6 of a slide whose levels halve
_OVERVIEW_SIDE = 1024  # small slides are reduced less, so that an overview keeps about this many px a side
_BAND_PIXELS = 16_000_000  # px of a level that are held at once while an overview is made


@dataclass(frozen=True)
class Scale:
    """How patches are read from one slide.

    level: the level they are read from. downsample: level-0 px per px of that level. scale: level-0 px per patch px.
    mpp: microns per patch px, None where the slide does not state its resolution and level 0 is read as it is.
    """

    level: int
    downsample: float
    scale: float
    mpp: float | None

    @property
    def native(self) -> bool:
        """Whether the pixels of the level are taken as they are."""
        return self.scale == self.downsample


def import_openslide() -> Any:
    """The openslide module. Raises BenchError saying how to install it."""
    try:
        import openslide
    except (ImportError, OSError) as problem:  # OSError: the Python package is there, its library is not
        raise BenchError(
            f"Reading whole-slide images needs openslide ({problem}). Install it: pip install 'wsolbench[wsi]'"
        ) from None
    return openslide


def versions() -> dict[str, str]:
    """Versions of what decides the pixels of a patch."""
    import PIL

    openslide = import_openslide()
    return {
        "openslide": openslide.__library_version__,
        "openslide-python": openslide.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
    }


class Slide:
    """One open slide. Use it in a `with` statement.

    mpp: resolution asked for in µm per px, or None for level 0 as it is. assume_mpp: resolution of level 0 where the
    slide states none that can be. Raises BenchError for a file that openslide cannot open, and for a slide whose
    resolution is not known or that is coarser than the resolution asked for.
    """

    def __init__(self, path: Path, mpp: float | None = None, assume_mpp: float | None = None) -> None:
        self.path = path
        openslide = import_openslide()
        self._errors = (openslide.OpenSlideError, OSError)
        with self._named_errors():
            self._slide = openslide.OpenSlide(path)
        self.width, self.height = self._slide.dimensions
        self._levels = sound_levels(self._slide.level_dimensions)
        resolution = level0_resolution(self._slide.properties, assume_mpp)
        self.level0_mpp = resolution.mpp
        self.notes = (*resolution.notes, *self._more_notes())
        try:
            if not resolution.square:
                raise BenchError(f"{path} {resolution.reason}")
            downsamples = {k: self._slide.level_downsamples[k] for k in self._levels}
            self.scale = _choose_scale(path, downsamples, resolution, mpp)
        except BenchError:
            self._slide.close()
            raise

    @property
    def origin(self) -> tuple[float, float]:
        """The upper left corner of the part that was scanned, level-0 px, as the slide states it."""
        return bounds_origin(self._slide.properties)

    def _more_notes(self) -> list[Note]:
        odd = self._slide.level_count - len(self._levels)
        notes = [Note(odd, "levels that are not the slide made smaller, not read")] * bool(odd)
        return notes + background_note(self._slide.properties)

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self._slide.close()

    @property
    def quickhash(self) -> str:
        """What openslide computes from the slide's directory and lowest level to tell slides apart."""
        return self._slide.properties.get("openslide.quickhash-1", "")

    def snap(self, position: float, limit: float) -> int:
        """A level-0 coordinate moved into [0, limit] and onto a pixel of the level that is read.

        Reading between two pixels of a level would make openslide interpolate.
        """
        step = self.scale.downsample
        inside = min(max(position, 0.0), limit)
        snapped = round(round(inside / step) * step)
        return snapped if snapped <= limit else max(0, math.floor(math.floor(limit / step) * step))

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """(height, width, 3) uint8 RGB in patch px, its upper left corner at the level-0 px (x, y).

        Resampled, where need be, bilinearly with Pillow's antialiasing. What was never scanned is white.
        """
        factor = self.scale.scale / self.scale.downsample
        wide, high = width * factor, height * factor
        region = self._region(x, y, self.scale.level, math.ceil(wide - 1e-9), math.ceil(high - 1e-9))
        image = _on_white(region)
        if not self.scale.native:
            image = image.resize(
                (width, height),
                Image.Resampling.BILINEAR,
                box=(0, 0, min(wide, region.width), min(high, region.height)),
            )
        return np.asarray(image)

    def overview(self) -> tuple[np.ndarray, np.ndarray, float]:
        """The slide made small: (h, w, 3) uint8 RGB, (h, w) bool where it was scanned, level-0 px per px of it.

        About 64 times smaller, less for small slides. Read in bands, so that a slide without a pyramid fits as well.
        """
        wanted = min(_OVERVIEW_DOWNSAMPLE, max(1.0, max(self.width, self.height) / _OVERVIEW_SIDE))
        fine = [k for k in self._levels if self._slide.level_downsamples[k] <= wanted + 0.01]
        level = max(fine, key=lambda k: self._slide.level_downsamples[k])
        downsample = self._slide.level_downsamples[level]
        factor = max(1, round(wanted / downsample))
        wide, high = self._slide.level_dimensions[level]
        rows = max(1, _BAND_PIXELS // wide // factor) * factor
        images, scanned = [], []
        for top in range(0, high, rows):
            region = self._region(0, round(top * downsample), level, wide, min(rows, high - top))
            images.append(np.asarray(_on_white(region).reduce(factor)))
            scanned.append(np.asarray(region.getchannel("A").reduce(factor)) > 127)
        return np.concatenate(images), np.concatenate(scanned), downsample * factor

    def _region(self, x: int, y: int, level: int, width: int, height: int) -> Image.Image:
        with self._named_errors():
            return self._slide.read_region((x, y), level, (width, height))

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except self._errors as problem:
            raise BenchError(f"{self.path} cannot be read by openslide ({problem}). Download it again.") from None


def _on_white(region: Image.Image) -> Image.Image:
    image = Image.new("RGB", region.size, (255, 255, 255))
    image.paste(region, mask=region.getchannel("A"))
    return image


def _choose_scale(path: Path, downsamples: dict[int, float], resolution: Resolution, mpp: float | None) -> Scale:
    """The nearest level that is as fine as asked, and how much it must be reduced. downsamples: by level."""
    stated = resolution.mpp
    if mpp is None:
        return Scale(0, 1.0, 1.0, stated)
    if stated is None:
        raise BenchError(
            f"{path} {resolution.reason} Give it with --assume-mpp, or read level 0 as it is with --mpp level-0."
        )
    fine = [k for k, d in downsamples.items() if d * stated <= mpp * (1 + MPP_TOLERANCE)]
    if not fine:
        raise BenchError(
            f"{path} has {stated:.4g} µm per px at its finest; patches of {mpp:g} µm per px cannot be made from it. "
            f"Ask for --mpp {stated:.3g} or more, or leave the slide out."
        )
    level = max(fine, key=lambda k: downsamples[k])
    if downsamples[level] * stated >= mpp * (1 - MPP_TOLERANCE):
        return Scale(level, downsamples[level], downsamples[level], downsamples[level] * stated)
    return Scale(level, downsamples[level], mpp / stated, mpp)
