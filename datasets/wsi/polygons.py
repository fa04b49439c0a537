"""Polygons rasterised exactly: a pixel belongs to an outline if its centre lies inside."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_GRID = 256  # px a side of the picture in which an outline is looked at as a whole
_CHUNK = 256  # points that are compared with a whole outline at once


@dataclass(frozen=True)
class Outline:
    """An area: (n, 2) float points x, y of its outline in level-0 px, and the outlines of its holes likewise."""

    points: np.ndarray
    holes: tuple[np.ndarray, ...] = ()

    @cached_property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Upper left and lower right corner."""
        return self.points.min(axis=0), self.points.max(axis=0)

    @cached_property
    def area(self) -> float:
        """Area in px² without the holes, by the shoelace formula (parts drawn over twice count twice)."""
        return _area(self.points) - sum(_area(h) for h in self.holes)


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) bool mask of a polygon with vertices (n, 2) as x, y in px; the outline closes by itself.

    The centre of pixel (row, column) is at x = column + 0.5, y = row + 0.5. A pixel is inside where the outline winds
    around its centre (non-zero winding): what a hand drew over twice is inside, not a hole. Polygons that share an edge
    share no pixel: left and upper edges belong to a polygon, right and lower ones do not.
    """
    return winding_numbers(points, height, width) != 0


def winding_numbers(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) int: how often a polygon (see `fill_polygon`) winds around each centre, with its direction."""
    x0, y0 = points[:, 0], points[:, 1]
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    # The rows whose centres an edge crosses: from the first centre at or below its upper end.
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    cross = x0[edge] + (row + 0.5 - y0[edge]) * slope
    column = np.clip(np.ceil(cross - 0.5), 0, width).astype(np.int64)
    winding = np.zeros((height, width + 1), np.int32)
    np.add.at(winding, (row, column), np.where(y1 > y0, 1, -1)[edge])
    return np.cumsum(winding, axis=1)[:, :width]


def draw_mask(
    tumor: Iterable[Outline],
    excluded: Iterable[Outline],
    corner: tuple[float, float],
    scale: float,
    shape: tuple[int, int],
    innermost: bool = False,
) -> np.ndarray:
    """(H, W) bool mask of a part of a slide: the union of the tumour outlines without that of the excluded ones.

    Outlines are in level-0 px; `corner` is the (x, y) of the part's upper left corner there, `scale` the level-0 px per
    px of the mask, `shape` its (H, W). innermost: where outlines lie over each other the smallest by area decides, so
    that a tumour island within an exclusion is tumour.
    """
    mask = np.zeros(shape, bool)
    rows = [(o, True) for o in tumor] + [(o, False) for o in excluded]
    if innermost:
        rows.sort(key=lambda r: -r[0].area)  # stable: of two as large the excluded one decides
    for outline, inside in rows:
        low, high = outline.box
        if (high <= corner).any() or (low >= np.add(corner, np.multiply(shape[::-1], scale))).any():
            continue
        mask[_fill(outline, corner, scale, shape)] = inside
    return mask


def _fill(outline: Outline, corner: Sequence[float], scale: float, shape: tuple[int, int]) -> np.ndarray:
    mask, *holes = (fill_polygon((p - np.asarray(corner, float)) / scale, *shape) for p in _rings(outline))
    for hole in holes:
        mask &= ~hole
    return mask


def covers_itself(outline: Outline) -> bool:
    """Whether a part of the slide is drawn over twice or in both directions; parts under 1/256 of it are not seen."""
    inside = [_in_small(points) for points in _rings(outline)]
    return any(w.max() > 1 or w.min() < -1 or w.max() > 0 > w.min() for w in inside)


def is_flat(points: np.ndarray) -> bool:
    """Whether a polygon covers less than 1 px², to the precision of a picture of it where it crosses itself."""
    return _area(points) < 1 and (_in_small(points) != 0).mean() * np.ptp(points, axis=0).prod() < 1


def lies_within(inner: Outline, outer: Outline) -> bool:
    """Whether every point of an outline lies inside another one (its holes left aside), or both are the same."""
    (low, high), (outer_low, outer_high) = inner.box, outer.box
    if (low < outer_low).any() or (high > outer_high).any():
        return False
    if np.array_equal(inner.points, outer.points):
        return True
    x0, y0 = outer.points.T
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    for start in range(0, len(inner.points), _CHUNK):
        x, y = (v[:, None] for v in inner.points[start : start + _CHUNK].T)
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        winding = ((y0 <= y) & (y < y1) & (side > 0)).sum(axis=1) - ((y1 <= y) & (y < y0) & (side < 0)).sum(axis=1)
        if (winding == 0).any():
            return False
    return True


def _rings(outline: Outline) -> tuple[np.ndarray, ...]:
    return (outline.points, *outline.holes)


def _in_small(points: np.ndarray) -> np.ndarray:
    """Winding numbers in a picture that the polygon fills in both directions."""
    low, high = points.min(axis=0), points.max(axis=0)
    return winding_numbers((points - low) / np.maximum(high - low, 1e-9) * _GRID, _GRID, _GRID)


def _area(points: np.ndarray) -> float:
    x, y = (points - points[0]).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
