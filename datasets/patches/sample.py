"""Candidate places for patches on one slide: tumour patches over its polygons, normal ones anywhere in its tissue."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...benchmark.core.errors import BenchError
from ...benchmark.core.seeds import seed_for
from ..wsi.annotations import Annotations, Reading, is_geojson, read_annotations
from ..wsi.polygons import Outline, draw_mask
from ..wsi.slide import Slide
from ..wsi.tissue import TissueRule, tissue_rule
from .settings import PatchSettings
from .slides import NORMAL, TUMOR, SlideJob

MAX_TRIALS = 1000  # places tried in vain before a normal slide counts as exhausted
_MARGIN_SIDE = 512  # px a side of the picture in which the surroundings of a patch are searched for marks
_CHUNK = 4096  # columns that are read at once while a row is approached px by px


@dataclass(frozen=True)
class PatchPlace:
    """A patch that may be cut: upper left corner in level-0 px, shares of tissue and tumour in [0, 1].

    tumor is None for a normal patch. region: the number of the first polygon of a region in its file (tumour polygons
    only), row: in the box around the region, patch: column of that row, or a count over the normal patches of a slide.
    """

    x: int
    y: int
    tissue: float
    tumor: float | None
    patch: int
    region: int | None = None
    row: int | None = None


@dataclass(frozen=True)
class SearchResult:
    """What a slide offers. exhausted: there are no more places. trials: cells looked at so far for normal patches."""

    places: tuple[PatchPlace, ...]
    exhausted: bool
    trials: int = 0


class SlideScan:
    """A slide with its polygons and tissue thresholds, ready to be searched. Use it in a `with` statement.

    Raises BenchError for a slide or XML file that cannot be used, and for a slide smaller than a patch.
    """

    def __init__(self, job: SlideJob, settings: PatchSettings, rule: TissueRule | None = None) -> None:
        self.job, self.settings = job, settings
        self.slide = Slide(job.path, settings.mpp, settings.assume_mpp)
        self.size = (self.slide.width, self.slide.height)
        self._overview: tuple[np.ndarray, np.ndarray, float] | None = None
        self.span = settings.size * self.slide.scale.scale  # level-0 px a side
        try:
            if min(self.size) < self.span:
                raise BenchError(f"{job.path} is {self.size[0]} x {self.size[1]} px, smaller than one patch.")
            if job.label == TUMOR and settings.normal_from_tumor and not self.slide.level0_mpp:
                raise BenchError(
                    f"{job.path}: its resolution is not known, so that --normal-from-tumor-slides cannot keep a "
                    "distance in µm. Give --assume-mpp."
                )
            self.marks = Annotations((), ())
            if job.annotation:
                self.marks = read_annotations(job.annotation, self.size, self._reading(job.annotation))
            self._tumor_bounds = _bounds(self.marks.tumor)
            self.rule = rule or tissue_rule(*self._low()[:2], settings.rgb_floor)
        except BenchError:
            self.slide.__exit__()
            raise

    def __enter__(self) -> "SlideScan":
        return self

    def __exit__(self, *_: object) -> None:
        self.slide.__exit__()

    def facts(self) -> dict[str, Any]:
        """What a reader may want to know of the slide, as a JSON value."""
        return {
            "size": list(self.size),
            "level": self.slide.scale.level,
            "level0_mpp": self.slide.level0_mpp,
            "mpp": self.slide.scale.mpp,
            "thresholds": asdict(self.rule),
            "quickhash": self.slide.quickhash,
            "polygons": len(self.marks.tumor),
            "excluded_polygons": len(self.marks.excluded),
            "notes": [list(n) for n in (*self.slide.notes, *self.marks.notes)],
        }

    def patch(self, place: PatchPlace) -> tuple[np.ndarray, np.ndarray]:
        """Image (size, size, 3) uint8 and tumour mask (size, size) bool of a patch."""
        side = self.settings.size
        return self.slide.read(place.x, place.y, side, side), self.mask(place.x, place.y, side)

    def mask(self, x: int, y: int, width: int) -> np.ndarray:
        """Tumour mask (size, width) bool of a part of the slide whose upper left corner is at (x, y)."""
        scale = self.slide.scale.scale
        end = (x + width * scale, y + self.settings.size * scale)
        near = (self._tumor_bounds[1] > (x, y)).all(axis=1) & (self._tumor_bounds[0] < end).all(axis=1)
        tumor = [self.marks.tumor[k] for k in np.flatnonzero(near)]
        excluded = self.marks.excluded if self.settings.subtract else ()
        innermost = self.settings.overlaps == "innermost"
        return draw_mask(tumor, excluded, (x, y), scale, (self.settings.size, width), innermost)

    def tissue(self, x: int, y: int) -> float:
        """Share of tissue in a patch."""
        side = self.settings.size
        return float(self.rule.mask(self.slide.read(x, y, side, side)).mean())

    def search(self, label: str, wanted: int = 0, so_far: SearchResult | None = None) -> SearchResult:
        """Places of one class: all of tumour, up to `wanted` normal ones, going on from `so_far`."""
        if label == NORMAL:
            return self._search_normal(wanted, so_far or SearchResult((), exhausted=False))
        rows = self._creep() if self.settings.creep else self._tile()
        return SearchResult(tuple(rows), exhausted=True)

    def _reading(self, path: Path) -> Reading:
        """How the annotations of this slide are read. Raises BenchError where GeoJSON could mean two places."""
        settings, origin = self.settings, (0.0, 0.0)
        if is_geojson(path) and self.slide.origin != origin:
            if not settings.geojson_origin:
                x, y = self.slide.origin
                raise BenchError(
                    f"{self.job.path} states that its scanned part begins at ({x:g}, {y:g}), and {path.name} does not "
                    "say whether it counts from there. QuPath does unless it opened the slide with --no-crop: give "
                    "--geojson-origin scanned, or slide for coordinates of the whole slide."
                )
            origin = self.slide.origin if settings.geojson_origin == "scanned" else origin
        return Reading(
            dict(settings.groups), not settings.creep, settings.overlaps == "innermost", settings.subtract, origin
        )

    def _low(self) -> tuple[np.ndarray, np.ndarray, float]:
        if self._overview is None:
            self._overview = self.slide.overview()
        return self._overview

    def _tile(self) -> Iterator[PatchPlace]:
        """A grid over each region of tumour, centred on it so that a small metastasis is not parted.

        Grids do not overlap. At the edge of the slide cells are moved inwards; where one would then lie over a place
        taken before, it is left out, so that no tissue is cut twice.
        """
        side, limit = self.settings.size, [s - self.span for s in self.size]
        taken = np.empty((0, 2))
        for region, low, high in self._regions():
            cells = np.round((high - low) / self.span).astype(int)
            for row in range(cells[1]):
                for column in range(cells[0]):
                    x = self.slide.snap(low[0] + column * self.span, limit[0])
                    y = self.slide.snap(low[1] + row * self.span, limit[1])
                    if (np.abs(taken - (x, y)) < self.span - self.slide.scale.downsample - 1).all(axis=1).any():
                        continue
                    place = self._accept(x, y, float(self.mask(x, y, side).mean()), column, region, row)
                    if place:
                        taken = np.vstack([taken, (x, y)])
                        yield place

    def _regions(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Boxes of whole patches around the polygons, as (first polygon, upper left, lower right) in level-0 px.

        Polygons whose boxes would overlap share one, so that no two boxes overlap.
        """
        regions: list[tuple[int, np.ndarray, np.ndarray]] = []
        for number, (low, high) in enumerate(zip(*self._tumor_bounds, strict=True)):
            region, (tight_low, tight_high) = number, (low, high)
            while True:
                cells = np.maximum(1, np.ceil((tight_high - tight_low) / self.span - 1e-9))
                low = (tight_low + tight_high - cells * self.span) / 2
                high = low + cells * self.span
                other = next((f for f in regions if (f[1] < high - 1e-6).all() and (low < f[2] - 1e-6).all()), None)
                if other is None:
                    break
                regions = [f for f in regions if f is not other]
                region = min(region, other[0])
                tight_low, tight_high = np.minimum(tight_low, other[1]), np.maximum(tight_high, other[2])
            regions.append((region, low, high))
        return sorted(regions, key=lambda f: f[0])

    def _accept(self, x: int, y: int, tumor: float, column: int, region: int, row: int) -> PatchPlace | None:
        """The place, if it shows enough tumour and tissue; the slide is read only where there is enough tumour."""
        if tumor < self.settings.tumor_share:
            return None
        tissue = self.tissue(x, y)
        return PatchPlace(x, y, tissue, tumor, column, region, row) if tissue >= self.settings.tissue_share else None

    def _creep(self) -> Iterator[PatchPlace]:
        """The published search: rows of the bounding box of each polygon from its top, each row approached px by px.

        The first place of a row that shows enough tumour and tissue is taken, so that many show just enough; from there
        on, steps are one patch wide. Rows of different polygons may overlap.
        """
        side = self.settings.size
        for region, polygon in enumerate(self.marks.tumor):
            low = np.maximum(np.floor(polygon.box[0]), 0).astype(int)
            high = np.minimum(np.ceil(polygon.box[1]), np.array(self.size)).astype(int)
            for row, y in enumerate(range(int(low[1]), int(min(high[1], self.size[1] - side + 1)), side)):
                strip = _Strip(self, y)
                end = min(int(high[0]), self.size[0] - side + 1)
                first = next((x for x in range(int(low[0]), end) if strip.accepts(x)), end)
                for column, x in enumerate(range(first, end, side)):
                    if strip.accepts(x):
                        yield PatchPlace(x, y, strip.share(x, "tissue"), strip.share(x, "tumor"), column, region, row)

    def _search_normal(self, wanted: int, so_far: SearchResult) -> SearchResult:
        """Cells of a grid over the slide in random order: those with tissue in the overview, checked in full."""
        places, trials, failures = list(so_far.places), so_far.trials, 0
        if len(places) >= wanted or so_far.exhausted:
            return so_far
        cells = self._cells()
        order = np.random.default_rng(seed_for("patches", "normal", self.settings.seed, self.job.name))
        for x, y in order.permutation(cells)[trials:].tolist():
            trials += 1
            tissue = self.tissue(x, y) if self._far_from_marks(x, y) else -1.0
            if tissue >= self.settings.tissue_share:
                places.append(PatchPlace(x, y, tissue, None, len(places)))
                failures = 0
            else:
                failures += 1
            if len(places) == wanted or failures == MAX_TRIALS:
                break
        return SearchResult(tuple(places), len(places) < wanted or trials == len(cells), trials)

    def _far_from_marks(self, x: int, y: int) -> bool:
        """Whether a patch keeps its distance from tumour, and from whatever else was marked but not understood.

        It is at least one patch, so that no tumour patch lies over a normal one.
        """
        if self.job.label != TUMOR:
            return True
        distance = self.settings.normal_from_tumor or 0.0
        margin = max(self.span, distance / self.slide.level0_mpp if self.slide.level0_mpp else 0.0)
        low, side = np.array((x - margin, y - margin)), self.span + 2 * margin
        marks = [o for o in (*self.marks.tumor, *self.marks.unknown)
                 if (o.box[1] > low).all() and (o.box[0] < low + side).all()]  # fmt: skip
        if any(((o.points > low) & (o.points < low + side)).all(axis=1).any() for o in marks):
            return False
        pixel = max(1.0, side / _MARGIN_SIDE)
        shape = (math.ceil(side / pixel), math.ceil(side / pixel))
        return not draw_mask(marks, (), (float(low[0]), float(low[1])), pixel, shape).any()

    def _cells(self) -> np.ndarray:
        """(n, 2) corners, level-0 px, of the grid cells with enough tissue in the overview."""
        image, scanned, factor = self._low()
        tissue = self.rule.mask(image) & scanned
        summed = np.zeros(np.add(tissue.shape, 1), np.int64)
        summed[1:, 1:] = tissue.cumsum(axis=0).cumsum(axis=1)
        corners = [
            [self.slide.snap(k * self.span, s - self.span) for k in range(math.floor(s / self.span))] for s in self.size
        ]
        cells = []
        for y in corners[1]:
            for x in corners[0]:
                left, top, right, bottom = (round(v / factor) for v in (x, y, x + self.span, y + self.span))
                right, bottom = min(max(right, left + 1), tissue.shape[1]), min(max(bottom, top + 1), tissue.shape[0])
                area = max(1, (right - left) * (bottom - top))
                inside = summed[bottom, right] - summed[top, right] - summed[bottom, left] + summed[top, left]
                if inside / area >= self.settings.tissue_share:
                    cells.append((x, y))
        return np.array(cells, np.int64).reshape(-1, 2)


def _bounds(polygons: Sequence[Outline]) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) upper left and (n, 2) lower right corners of the polygons' boxes, level-0 px."""
    low = [p.box[0] for p in polygons]
    high = [p.box[1] for p in polygons]
    return np.array(low).reshape(-1, 2), np.array(high).reshape(-1, 2)


class _Strip:
    """One row of patches at level 0: the shares of a patch at every column, read in chunks when first asked for."""

    def __init__(self, scan: SlideScan, y: int) -> None:
        self.scan, self.y = scan, y
        self._counts: dict[tuple[str, int], np.ndarray] = {}

    def accepts(self, x: int) -> bool:
        """Whether the patch at column x shows enough tumour, and then enough tissue."""
        settings = self.scan.settings
        if self.share(x, "tumor") < settings.tumor_share:
            return False
        return self.share(x, "tissue") >= settings.tissue_share

    def share(self, x: int, what: str) -> float:
        """Share of `tumor` or `tissue` in the patch whose left column is x."""
        side = self.scan.settings.size
        chunk, start = divmod(x, _CHUNK)
        sums = self._counts.get((what, chunk))
        if sums is None:
            sums = self._counts[what, chunk] = self._load(what, chunk * _CHUNK)
        return float((sums[start + side] - sums[start]) / side**2)

    def _load(self, what: str, left: int) -> np.ndarray:
        """Cumulated pixels by column from `left`, enough of them for every patch that begins in the chunk."""
        side = self.scan.settings.size
        width = min(_CHUNK + side, self.scan.size[0] - left)
        if what == "tumor":
            mask = self.scan.mask(left, self.y, width)
        else:
            mask = self.scan.rule.mask(self.scan.slide.read(left, self.y, width, side))
        return np.concatenate([[0], np.cumsum(mask.sum(axis=0))])


def places_from_json(rows: Sequence[dict[str, Any]]) -> tuple[PatchPlace, ...]:
    """Places as `asdict` wrote them."""
    return tuple(PatchPlace(**row) for row in rows)
