"""The evaluation protocols: the rules that turn score maps into numbers, as frozen, named, versioned values."""

import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .errors import BenchError, did_you_mean

# Raised when training or scoring itself gives other numbers, or a record holds more: stages of other versions are never
# mixed in. Methods, datasets, protocols and metrics have versions of their own.
HARNESS_VERSION = 3
MAP_CLASSES = ("true", "region")
SCALES = ("image", "validation")
TIES = ("last", "loss")
SELECTIONS = ("loc", "cl", "last")
BINNINGS = ("linear", "validation")
MASK_REDUCTIONS = ("nearest", "nearest-opencv", "area", "any")


@dataclass(frozen=True)
class Protocol:
    """One way to score. Every field is part of the identity of a score stage.

    name: `paper` or `fair`; the id shown in tables adds what differs from that name's defaults.
    size: side in px at which maps and masks are compared.
    mask_reduction: how masks get to that size: `nearest` (the pixel at the centre), `nearest-opencv` (the one that
        cv2.resize takes, up to half a pixel to the upper left), `area` (foreground where at least half of the area is)
        or `any` (where some part is).
    map_class: class whose map is scored: the image's `true` label, or the most probable class among those with a
        `region` of interest (GlaS: the predicted class; Camelyon: tumour). Under `region`, sets with a background class
        have a second line, `gated`: nothing is foreground in images predicted as background.
    scale: how `score` maps get to [0, 1]: by each `image`'s own minimum and maximum, or by constants taken from the
        maps of the `validation` images. `prob` maps are used as they are.
    binning: what the 1,001 bins of a score divide: its `linear` value, or its rank among the values of the `validation`
        maps, which no monotone change of a method's scores can alter (and which `prob` maps then follow as well).
    scale_quantiles: which quantiles of the validation map values become 0 and 1.
    scale_images: at most so many validation images are used for the constants.
    selection: the selection shown by default.
    ties: among epochs of equal validation accuracy take the `last`, or the one of lowest validation `loss`.
    teacher_selection: checkpoint of the teacher whose maps train a student. `loc` has seen the validation masks.
    first_epoch: first epoch that can be selected; 0 is the model before any update.
    """

    name: str
    version: int = 1
    size: int = 224
    map_class: str = "region"
    scale: str = "validation"
    scale_quantiles: tuple[float, float] = (0.001, 0.999)
    scale_images: int = 512
    selection: str = "cl"
    ties: str = "loss"
    teacher_selection: str = "cl"
    first_epoch: int = 1
    mask_reduction: str = "nearest"
    binning: str = "linear"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("map_class", MAP_CLASSES),
            ("scale", SCALES),
            ("ties", TIES),
            ("selection", SELECTIONS),
            ("teacher_selection", SELECTIONS),
            ("mask_reduction", MASK_REDUCTIONS),
            ("binning", BINNINGS),
        ):
            if getattr(self, name) not in allowed:
                raise BenchError(f"protocol.{name} = {getattr(self, name)!r} is not one of {', '.join(allowed)}.")
        if self.binning == "validation" and self.scale != "validation":
            raise BenchError(
                f"protocol.binning = validation takes ranks among validation maps, and protocol.scale is {self.scale}. "
                "Use it with --protocol fair."
            )
        if not 8 <= self.size <= 4096:
            raise BenchError(f"protocol.size = {self.size} is outside 8..4096 px.")
        if self.scale_images < 1:
            raise BenchError(f"protocol.scale_images = {self.scale_images} must be at least 1.")
        if len(self.scale_quantiles) != 2 or not 0 <= self.scale_quantiles[0] < self.scale_quantiles[1] <= 1:
            raise BenchError(f"protocol.scale_quantiles = {self.scale_quantiles} must be two rising values in [0, 1].")

    @property
    def id(self) -> str:
        """`paper` or `fair`, with every setting that differs from its default: tables never mix ids."""
        base = PROTOCOLS.get(self.name, self)
        pairs = [(f.name, getattr(self, f.name), getattr(base, f.name)) for f in fields(self)]
        changed = [f"{name}={value}" for name, value, default in pairs if value != default]
        return self.name + (f"({','.join(changed)})" if changed else "")

    def identity(self) -> dict[str, Any]:
        """All fields as a JSON value."""
        return {**asdict(self), "scale_quantiles": list(self.scale_quantiles)}


PAPER = Protocol(
    "paper",
    version=2,  # masks as cv2.resize squashes them; 1: by Pillow's nearest neighbour
    map_class="true",
    scale="image",
    selection="loc",
    ties="last",
    teacher_selection="loc",
    first_epoch=0,
    mask_reduction="nearest-opencv",
)
FAIR = Protocol("fair", version=2)  # 1: maps of the predicted class, and of the positive one beside it
PROTOCOLS = {"fair": FAIR, "paper": PAPER}


def named_protocol(protocol: str) -> str:
    """The name in a protocol's id, without its changes and versions: `fair` of `fair(size=112)`."""
    return re.split(r" ?[(\[]", protocol, maxsplit=1)[0]


def get_protocol(name: str, /, **changes: Any) -> Protocol:
    """A named protocol with some fields changed. Raises BenchError for an unknown name or field."""
    if name not in PROTOCOLS:
        raise BenchError(f"There is no protocol '{name}'.{did_you_mean(name, PROTOCOLS)}")
    known = {f.name for f in fields(Protocol)} - {"name", "version"}
    for key in changes:
        if key not in known:
            raise BenchError(f"There is no setting protocol.{key}.{did_you_mean(key, known)}")
    return replace(PROTOCOLS[name], **changes)
