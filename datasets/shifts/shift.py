"""The shift ladder: controlled changes of evaluation images, `DATASET:SHIFT-LEVEL`, made on the fly.

A shift acts on the decoded uint8 image at the size the network sees, so that one definition holds for all sets whatever
their native size. It is a pure function of pixels and level. Every shift is systematic: all images of a set are changed
in the same direction, as another laboratory or scanner would, and nothing is drawn at random. Level 0 is the identity.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from ...benchmark.core.errors import BenchError, did_you_mean
from .stain import ALPHA, BETA, LIGHT, TOP, StainPool, mix_hed, restain, stain_pool

__all__ = [
    "LADDER",
    "SHIFTS",
    "Shift",
    "ShiftCard",
    "StainPool",
    "expand_shift",
    "is_shift",
    "make_shift",
    "parse_shift",
    "shift_identity",
    "stain_pool",
]

LADDER = "ladder"  # stands for every level of every shift
RESTAIN_TARGETS = 10
TARGET = "target stain"


@dataclass(frozen=True)
class ShiftCard:
    """What a shift declares about itself.

    severity: what its axis measures, with the unit. axis: one number a level, level 0 first. Both are empty for a
    pooled shift, whose levels are target stains in a fixed order and no degrees of anything. steps: the parameters of
    levels 1, 2, … (of all levels alike if pooled). version: bumped when the pixels it gives change. pooled: needs
    target stains estimated from a pool of images.
    """

    name: str
    about: str
    severity: str
    axis: tuple[float, ...]
    steps: tuple[Mapping[str, Any], ...]
    version: int = 1
    pooled: bool = False

    @property
    def levels(self) -> tuple[int, ...]:
        """0, the identity, to the most severe or to the last target stain."""
        return tuple(range(len(self.steps) + 1))

    @property
    def graded(self) -> bool:
        """Whether every level changes the images more than the one before, so that it may be called a severity."""
        return not self.pooled

    @property
    def step(self) -> str:
        """What one of its levels is called."""
        return "level" if self.graded else TARGET


def _card(name: str, about: str, severity: str, axis: Sequence[float], **steps: Sequence[Any]) -> ShiftCard:
    """A card from one row of numbers per parameter, levels 1 to 5."""
    rows = tuple(dict(zip(steps, row, strict=True)) for row in zip(*steps.values(), strict=True))
    return ShiftCard(name, about, severity, tuple(axis), rows)


_HAEMATOXYLIN, _EOSIN = (1.12, 1.25, 1.40, 1.57, 1.75), (0.90, 0.80, 0.70, 0.60, 0.50)
_SIGMA = (0.5, 0.8, 1.15, 1.55, 2.0)
_QUALITY = (75, 40, 22, 14, 10)
_LIGHT = (0.88, 0.77, 0.67, 0.58, 0.50)
_CONTRAST = (0.82, 0.67, 0.54, 0.42, 0.32)
_FACTOR = (1.25, 1.75, 2.5, 3.25, 4.0)

_CARDS = (
    _card(
        "stain",
        "A laboratory that stains more haematoxylin and less eosin, with some haematoxylin left on the glass.",
        "haematoxylin to eosin, relative to the original",
        (1.0, *(round(h / e, 3) for h, e in zip(_HAEMATOXYLIN, _EOSIN, strict=True))),
        scale=tuple(zip(_HAEMATOXYLIN, _EOSIN, strict=True)),
        offset=((0.01, 0.0), (0.02, 0.0), (0.03, 0.0), (0.04, 0.0), (0.05, 0.0)),
    ),
    ShiftCard(
        "restain",
        f"Macenko re-staining to {TARGET} 1, 2, … of another set, in the published order, which is none of severity.",
        "",
        (),
        ({"light": LIGHT, "alpha": ALPHA, "beta": BETA, "top": TOP, "clusters": RESTAIN_TARGETS},) * RESTAIN_TARGETS,
        pooled=True,
    ),
    _card(
        "blur", "A slide out of focus: Gaussian blur.", "sigma in px of the scored image", (0.0, *_SIGMA), sigma=_SIGMA
    ),
    _card(
        "jpeg",
        "Scans kept small: JPEG compression, colours at half resolution.",
        "JPEG quality (100 for the original)",
        (100, *_QUALITY),
        quality=_QUALITY,
    ),
    _card(
        "brightness",
        "An under-exposed scan: all light multiplied by a factor.",
        "share of light",
        (1.0, *_LIGHT),
        light=_LIGHT,
    ),
    _card(
        "contrast",
        "A flat scan: differences from the image's mean colour shrink.",
        "share of contrast",
        (1.0, *_CONTRAST),
        share=_CONTRAST,
    ),
    _card(
        "resample",
        "A scan at lower magnification: made smaller and enlarged again.",
        "down-sampling factor",
        (1.0, *_FACTOR),
        factor=_FACTOR,
    ),
)
SHIFTS: Mapping[str, ShiftCard] = MappingProxyType({card.name: card for card in _CARDS})


def is_shift(text: str) -> bool:
    """Whether a variant means a shift: `ladder`, `stain`, `stain-3`; also with a level that does not exist.

    `parse_shift` then says what is wrong with the level.
    """
    return text == LADDER or _split(text)[0] in SHIFTS


def parse_shift(text: str) -> tuple[str, int]:
    """Name and level of `stain-3`. Raises BenchError for an unknown name, a missing level and one that is not there."""
    name, level = _split(text)
    card = SHIFTS.get(name)
    if card is None:
        raise BenchError(f"There is no shift '{name}'.{did_you_mean(name, [*SHIFTS, LADDER])}")
    if level not in {str(n) for n in card.levels}:
        what = f"The shift {name} has no {card.step} '{level}'" if level else f"The shift '{text}' names no {card.step}"
        last = f"{name}-{card.levels[-1]}"
        known = f"{name}-0 (unchanged) to {last} (most severe)"
        known = known if card.graded else f"{name}-1 to {last}, in no order of severity; {name}-0 is unchanged"
        raise BenchError(f"{what}. {card.step.capitalize()}s: {known}.")
    return name, int(level)


def expand_shift(text: str) -> list[str]:
    """What a user typed, as shifts with levels: `stain` is levels 1 to 5, `ladder` those of all shifts.

    Level 0 comes only if asked for by its number. Raises BenchError as `parse_shift` does.
    """
    if text == LADDER:
        return [f"{card.name}-{level}" for card in SHIFTS.values() for level in card.levels[1:]]
    if text in SHIFTS:
        return [f"{text}-{level}" for level in SHIFTS[text].levels[1:]]
    name, level = parse_shift(text)
    return [f"{name}-{level}"]


def shift_identity(name: str, level: int) -> dict[str, Any]:
    """What the pixels of a shifted set depend on, for the key of a stage; a pooled shift also depends on its pool.

    Raises BenchError for a name or level that does not exist.
    """
    parse_shift(f"{name}-{level}")
    card = SHIFTS[name]
    step = card.steps[level - 1] if level else {}
    parameters = {key: list(value) if isinstance(value, tuple) else value for key, value in step.items()}
    return {"shift": name, "level": level, "version": card.version, "parameters": parameters}


@dataclass
class Shift:
    """A shift at a level, to be called with images (B, H, W, 3) uint8 and their ids; gives the same shape and type.

    An image's pixels depend on that image alone, not on the batch it comes in. unchanged: ids of images that were left
    as they are, since they hold too little tissue to know their stain (`restain` only). squares: id -> mean over the
    pixels and colours of an image it was called with of the squared difference it made, in grey levels squared.
    """

    name: str
    level: int
    change: Callable[[np.ndarray], np.ndarray | None] | None
    unchanged: set[str] = field(default_factory=set)
    squares: dict[str, float] = field(default_factory=dict)

    @property
    def pixel_change(self) -> float:
        """RMS difference from the images as they are, in grey levels 0 to 255, over all images it was called with.

        Images count alike (those of one evaluation are of one size), each once. 0 at level 0, NaN before any image.
        """
        if self.change is None:
            return 0.0
        return math.sqrt(math.fsum(self.squares.values()) / len(self.squares)) if self.squares else math.nan

    def __call__(self, images: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """The shifted images; the very same array at level 0. Raises ValueError for another shape or type."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(ids) != len(images):
            raise ValueError(
                f"expected (B, H, W, 3) uint8 and B ids, got {images.dtype} {images.shape}, {len(ids)} ids"
            )
        if self.change is None:
            return images
        shifted = np.empty(images.shape, np.uint8)
        for k, image in enumerate(images):
            changed = self.change(np.ascontiguousarray(image))
            if changed is None:
                self.unchanged.add(ids[k])
            shifted[k] = image if changed is None else changed
            self.squares[ids[k]] = _mean_square(shifted[k], image)
        return shifted


def _mean_square(one: np.ndarray, other: np.ndarray) -> float:
    """Mean squared difference of two uint8 images; sums of integers, so exact in any order."""
    difference = np.subtract(one, other, dtype=np.int16).ravel()
    # a sixth of the time of a product and a sum, which make arrays of their own
    return int(np.einsum("i,i->", difference, difference, dtype=np.int64)) / difference.size


def make_shift(name: str, level: int, pool: StainPool | None = None) -> Shift:
    """The shift as a function. `pool`: the target stains of a pooled shift; others ignore it.

    Raises BenchError for a name or level that does not exist, and for a pooled shift whose pool is missing or small.
    """
    parse_shift(f"{name}-{level}")
    card = SHIFTS[name]
    if level == 0:
        return Shift(name, level, None)
    if card.pooled:
        if pool is None or len(pool.targets) < level:
            held = 0 if pool is None else len(pool.targets)
            raise BenchError(f"{name}-{level} needs a pool of at least {level} target stains; there are {held}.")
        target = pool.targets[level - 1]
        return Shift(name, level, partial(restain, target=target))
    return Shift(name, level, partial(_ACTS[name], **card.steps[level - 1]))


def _split(text: str) -> tuple[str, str]:
    """`stain-3` -> ("stain", "3"); without a dash the level is empty."""
    name, dash, level = text.rpartition("-")
    return (name, level) if dash else (text, "")


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, mirrored at the borders."""
    from scipy import ndimage  # late: names and levels are listed and planned without it

    smooth = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), mode="reflect")
    return np.rint(smooth).astype(np.uint8)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Through JPEG and back, baseline, 4:2:0."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=2)
    with Image.open(buffer) as decoded:
        return np.array(decoded.convert("RGB"))


def _brightness(image: np.ndarray, light: float) -> np.ndarray:
    """Less light. Never more: what over-exposure loses depends on how white a set's background is."""
    return np.rint(np.arange(256) * light).astype(np.uint8)[image]


def _contrast(image: np.ndarray, share: float) -> np.ndarray:
    """Towards the mean colour of the image."""
    mean = image.mean((0, 1))
    table = np.rint(mean + share * (np.arange(256)[:, None] - mean)).clip(0, 255).astype(np.uint8)
    return np.stack([table[image[..., c], c] for c in range(3)], -1)


def _resample(image: np.ndarray, factor: float) -> np.ndarray:
    """To 1/factor of the size and back, bilinear with antialiasing both ways."""
    height, width = image.shape[:2]
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    picture = Image.fromarray(image).resize(small, Image.Resampling.BILINEAR)
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))


_ACTS: dict[str, Callable[..., np.ndarray]] = {
    "stain": mix_hed,
    "blur": _blur,
    "jpeg": _jpeg,
    "brightness": _brightness,
    "contrast": _contrast,
    "resample": _resample,
}
