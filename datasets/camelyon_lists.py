"""The published lists of Camelyon patches: what a file name says, and two list formats read strictly."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..benchmark.errors import BenchError

SIDE = 512  # px; side of a published patch, at level 0 of its slide
_SHARE = r"\d+(?:\.\d+)?(?:e-\d+)?"
_NAME = re.compile(
    r"(?P<kind>Patch|mask)_file_(?P<slide>[A-Za-z0-9_-]+)\.tif_"
    r"(?:reg_(?P<region>\d+)_row_(?P<row>\d+)_)?patch_(?P<patch>\d+)_x_(?P<x>\d+)_y_(?P<y>\d+)_"
    rf"tissue_(?P<tissue>{_SHARE})_(?:metastatic_(?P<metastatic>{_SHARE})_)?w_(?P<width>\d+)_h_(?P<height>\d+)\.png",
    re.ASCII,
)
_SLIDE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


@dataclass(frozen=True)
class PatchName:
    """What the file name of a published patch says.

    slide: path of the slide with `-` for `/` and without `.tif`, as in `training-tumor-tumor_009`.
    patch: a number; of its row in a tumour region, else of its slide. x, y: upper left corner in px at level 0.
    tissue, metastatic: shares of the patch in [0, 1]; metastatic None for a patch of a slide without metastases.
    region, row: the annotated region and the row in it; None where metastatic is. width, height: px.
    Raises BenchError, when made, for a slide or numbers that a name cannot hold.
    """

    slide: str
    patch: int
    x: int
    y: int
    tissue: float
    metastatic: float | None = None
    region: int | None = None
    row: int | None = None
    width: int = SIDE
    height: int = SIDE

    def __post_init__(self) -> None:
        if not _SLIDE.fullmatch(self.slide):
            raise BenchError(f"'{self.slide}' cannot stand in a patch name: use letters, digits, '_' and '-' only.")
        if (self.region is None) != (self.row is None):
            raise BenchError(f"A patch of {self.slide} has a region or a row, not both. Give both or none.")
        shares = (self.tissue, 0.0 if self.metastatic is None else self.metastatic)
        if not all(0 <= s <= 1 for s in shares):
            raise BenchError(f"A patch of {self.slide} has the shares {shares}, which are not in [0, 1].")
        counts = (self.patch, self.x, self.y, self.region or 0, self.row or 0, self.width - 1, self.height - 1)
        if min(counts) < 0:
            raise BenchError(f"A patch of {self.slide} has a negative number or no extent: {self}.")

    @classmethod
    def parse(cls, name: str) -> "PatchName":
        """Reads the name of a patch (`Patch_file_…png`) or of its mask (`mask_file_…png`), folders before it ignored.

        Raises BenchError for any other name.
        """
        found = _NAME.fullmatch(name.rpartition("/")[2])
        if not found:
            raise BenchError(
                f"'{name}' is not the name of a Camelyon patch, which is Patch_file_SLIDE.tif_[reg_N_row_N_]patch_N_"
                "x_N_y_N_tissue_F_[metastatic_F_]w_N_h_N.png."
            )
        text = found.groupdict()
        numbers = {k: int(text[k]) for k in ("patch", "x", "y", "region", "row", "width", "height") if text[k]}
        metastatic = None if text["metastatic"] is None else float(text["metastatic"])
        return cls(slide=text["slide"], tissue=float(text["tissue"]), metastatic=metastatic, **numbers)

    @property
    def image_name(self) -> str:
        """The file name of the image; `parse` gives the same PatchName back."""
        return f"Patch_{self._tail()}"

    @property
    def mask_name(self) -> str:
        """The file name of the mask, beside the image."""
        return f"mask_{self._tail()}"

    @property
    def slide_id(self) -> str:
        """The slide without its folders: `tumor_009`."""
        return self.slide.rpartition("-")[2]

    @property
    def id(self) -> str:
        """A short unique name of the patch: slide, region, row, number and corner."""
        return f"{self.slide_id}_{self._place()}"

    def folder(self, test: bool) -> PurePosixPath:
        """Where the published layout keeps the patch, relative to `w-512xh-512`. `test`: of the official test set."""
        if self.metastatic:
            return PurePosixPath("metastatic-patches", *self.slide.split("-"))
        return PurePosixPath("normal-patches", "split_1/fold_0/test" if test else "split_0/fold_0/train")

    def _place(self) -> str:
        region = "" if self.region is None else f"reg_{self.region}_row_{self.row}_"
        return f"{region}patch_{self.patch}_x_{self.x}_y_{self.y}"

    def _tail(self) -> str:
        share = "" if self.metastatic is None else f"metastatic_{float(self.metastatic)!r}_"
        shares = f"tissue_{float(self.tissue)!r}_{share}"
        return f"file_{self.slide}.tif_{self._place()}_{shares}w_{self.width}_h_{self.height}.png"
