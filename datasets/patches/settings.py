"""Settings of the patch extraction: one frozen dataclass, its checks and its identity."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from ...benchmark.core.errors import BenchError
from ..wsi.annotations import ROLES

VERSION = 2  # raised whenever the same settings and slides give other patches
NATIVE = None  # as `mpp`: level 0 as it is
OVERLAPS = ("excluded", "innermost")
ORIGINS = ("", "slide", "scanned")  # of GeoJSON coordinates; empty: the slide must not leave a choice


@dataclass(frozen=True)
class PatchSettings:
    """Settings of `bench data patches`; every field decides what is written.

    size: side of a patch in px. mpp: microns per px, None for level 0 as it is. assume_mpp: resolution of level 0 where
    a slide does not state it. tumor_share, tissue_share: least shares of a patch of a tumour slide (tissue: of any).
    rgb_floor: grey level that red, green and blue of tissue exceed. dense_share: how many patches with a tumour share
    above 0.5 are kept, as a share of the number of those below. max_per_slide: most patches of one slide, 0 for all.
    val_share: share of the training patches that become the validation set, by slide. seed: of every random draw.
    subtract: cut the exclusion polygons out of the masks. one_of_each: one patch per draw above 0.5 (the break that the
    published sampler lacks). creep: approach the first patch of a row in steps of one px, as the published sampler.
    overlaps: what decides where tumour and exclusion lie over each other, the exclusion or the smaller outline. groups:
    (name, role) of annotation groups of other names. geojson_origin: corner that GeoJSON coordinates count from on
    slides that state where their scanned part begins. normal_from_tumor: least distance in µm from anything annotated
    of normal patches out of tumour slides, None for none of these.
    """

    size: int = 512
    mpp: float | None = 0.25
    assume_mpp: float | None = None
    tumor_share: float = 0.2
    tissue_share: float = 0.1
    rgb_floor: float = 10.0
    dense_share: float = 0.01
    max_per_slide: int = 0
    val_share: float = 0.2
    seed: int = 0
    name: str = "camelyon16"
    subtract: bool = True
    one_of_each: bool = True
    creep: bool = False
    overlaps: str = "excluded"
    groups: tuple[tuple[str, str], ...] = ()
    geojson_origin: str = ""
    normal_from_tumor: float | None = None

    def __post_init__(self) -> None:
        """Raises BenchError for a value out of range, naming its option."""
        wrong = [
            (not 32 <= self.size <= 4096, f"--size {self.size}: the side of a patch is 32 to 4096 px"),
            (_off(self.mpp), f"--mpp {self.mpp}: microns per px are between 0.05 and 20"),
            (_off(self.assume_mpp), f"--assume-mpp {self.assume_mpp}: microns per px are between 0.05 and 20"),
            (not 0 < self.tumor_share <= 0.5, f"--tumor-share {self.tumor_share}: it must be in (0, 0.5]"),
            (not 0 <= self.tissue_share <= 1, f"--tissue-share {self.tissue_share}: it must be in [0, 1]"),
            (not 0 <= self.rgb_floor < 255, f"--rgb-floor {self.rgb_floor}: it must be in [0, 255)"),
            (not self.dense_share >= 0, f"--dense-share {self.dense_share}: it must not be negative"),
            (self.max_per_slide < 0, f"--max-per-slide {self.max_per_slide}: it must not be negative"),
            (not 0 < self.val_share <= 0.5, f"--val-share {self.val_share}: it must be in (0, 0.5]"),
            (not _is_word(self.name), f"--name '{self.name}': use letters, digits, '_' and '-' only"),
            (self.overlaps not in OVERLAPS, f"--overlaps {self.overlaps}: it is one of {', '.join(OVERLAPS)}"),
            (self.geojson_origin not in ORIGINS, f"--geojson-origin {self.geojson_origin}: it is slide or scanned"),
            (any(r not in ROLES for _, r in self.groups), f"--group: a group is one of {', '.join(ROLES)}"),
            (
                _distance_off(self.normal_from_tumor),
                f"--normal-from-tumor-slides {self.normal_from_tumor}: a distance in µm, 0 to 100000",
            ),
            (self.creep and self.mpp is not None, "the published sampler reads level 0 as it is: --mpp level-0"),
        ]
        if problem := next((text for bad, text in wrong if bad), None):
            raise BenchError(f"{problem}.")

    def identity(self) -> dict[str, Any]:
        """What two runs must share to be one, as a JSON value."""
        return {"version": VERSION, **asdict(self), "groups": sorted(map(list, self.groups))}


def as_published(settings: PatchSettings) -> PatchSettings:
    """The same settings with what the published sampler does differently, its defects included.

    Level 0 of every slide whatever its resolution, rows approached in steps of one px, exclusion polygons left in the
    masks, no break in the draw of dense patches, an RGB floor of 0.1.
    """
    return replace(settings, mpp=NATIVE, assume_mpp=None, rgb_floor=0.1, subtract=False, one_of_each=False, creep=True)


def _off(mpp: float | None) -> bool:
    return mpp is not None and not 0.05 <= mpp <= 20


def _distance_off(microns: float | None) -> bool:
    return microns is not None and not 0 <= microns <= 100_000


def _is_word(text: str) -> bool:
    return bool(text) and text.isascii() and text.replace("_", "").replace("-", "").isalnum()
