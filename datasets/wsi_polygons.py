"""Polygons to masks, exactly: a pixel belongs to a polygon if its centre lies inside."""

from collections.abc import Iterable, Sequence

import numpy as np


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) bool mask of a polygon with vertices (n, 2) as x, y in px; the outline closes by itself.

    The centre of pixel (row, column) is at x = column + 0.5, y = row + 0.5. A pixel is inside where the outline winds
    around its centre (non-zero winding): what a hand drew over twice is inside, not a hole. Polygons that share an edge
    share no pixel: left and upper edges belong to a polygon, right and lower ones do not.
    """
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
    return np.cumsum(winding, axis=1)[:, :width] != 0


def draw_mask(
    tumor: Iterable[np.ndarray],
    excluded: Iterable[np.ndarray],
    corner: tuple[float, float],
    scale: float,
    shape: tuple[int, int],
) -> np.ndarray:
    """(H, W) bool mask of a part of a slide: the union of the tumour polygons without that of the excluded ones.

    Polygons are in level-0 px; `corner` is the (x, y) of the part's upper left corner there, `scale` the level-0 px per
    px of the mask, `shape` its (H, W).
    """
    mask = _union(tumor, corner, scale, shape)
    if mask.any():
        mask &= ~_union(excluded, corner, scale, shape)
    return mask


def _union(polygons: Iterable[np.ndarray], corner: Sequence[float], scale: float, shape: tuple[int, int]) -> np.ndarray:
    height, width = shape
    mask = np.zeros(shape, bool)
    for polygon in polygons:
        points = (polygon - np.asarray(corner, float)) / scale
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        if right > 0 and bottom > 0 and left < width and top < height:
            mask |= fill_polygon(points, height, width)
    return mask
