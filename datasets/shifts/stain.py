"""Stains as optical densities: the HED colour space, Macenko's stain matrix of an image, and re-staining to another.

Images are (H, W, 3) uint8 RGB throughout. By the Beer-Lambert law the optical density of a pixel, -ln(I / light), is
the sum of its stains' densities, each an amount (>= 0, no unit) times a direction in (R, G, B).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ...benchmark.core.errors import BenchError

# Rows: haematoxylin, eosin, DAB, as densities in (R, G, B). Ruifrok & Johnston, Anal Quant Cytol Histol 23 (2001).
RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED_FROM_RGB = np.linalg.inv(RGB_FROM_HED)

# Macenko et al., ISBI 2009, with the settings that the field's stain studies share.
LIGHT = 240.0  # Io: light through empty glass, in grey levels + 1
ALPHA = 1.0  # percent of the tissue pixels beyond each of the two stain directions
BETA = 0.15  # a pixel is tissue if its density, the mean of its channels, reaches this
TOP = 99.0  # the percentile of the amounts that is matched
# Below these an image has no stain matrix. The 165 GlaS images at 224 px lie between 16.9 and 40.6
# degrees; with nearly parallel stains the amounts of both become huge and cancel.
LEAST_SHARE, LEAST_PIXELS, LEAST_ANGLE, LEAST_TOP = 0.02, 100, 5.0, 0.02

_DENSITY = -np.log((np.arange(256) + 1) / LIGHT).astype(np.float32)
_HED_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)  # 0 counts as 1: black is not infinite


def mix_hed(image: np.ndarray, scale: tuple[float, float], offset: tuple[float, float]) -> np.ndarray:
    """Multiplies and raises the amounts of haematoxylin and eosin; (H, W, 3) uint8 -> the same.

    scale: factors of both amounts. offset: amounts then added everywhere, empty glass too (stain left on the slide).
    """
    factors = np.diag([*scale, 1.0])
    turn = (HED_FROM_RGB @ factors @ RGB_FROM_HED).astype(np.float32)
    haze = (np.array([*offset, 0.0]) @ RGB_FROM_HED).astype(np.float32)
    density = _HED_DENSITY[image].reshape(-1, 3) @ turn + haze
    return _grey(255 * np.exp(-density)).reshape(image.shape)


@dataclass(frozen=True, eq=False)
class StainMatrix:
    """The stain of one image. matrix: (3, 2) unit columns, haematoxylin and eosin, densities in (R, G, B).

    top: (2,) amounts of both at the 99th percentile of its tissue.
    """

    matrix: np.ndarray
    top: np.ndarray


def macenko(image: np.ndarray) -> StainMatrix | None:
    """Macenko's stain matrix of an image (H, W, 3) uint8: the extreme directions in the plane of its tissue's colours.

    None where it is undefined: less than 2 % tissue (or 100 px), directions less than 5 or more than 90 degrees apart
    (a single colour, grey), or hardly an amount of one stain. The column with more red density is haematoxylin.

    As the paper says and unlike the code that circulates: the plane is that of the singular vectors of the densities,
    through the origin, not of their covariance, whose plane may miss all tissue; a pixel's density is one number, where
    a floor for every channel drops the eosin that lets red light pass. Re-staining the GlaS images to their own stain
    changes them by 3.0 grey levels in the worst case instead of 15.7. The 99th percentile is taken over tissue: over
    all pixels it depends on how much empty glass there is, and scales thin tissue to black.
    """
    density = _tissue_density(image)
    if len(density) < max(LEAST_PIXELS, LEAST_SHARE * image.shape[0] * image.shape[1]):
        return None
    _, axes = np.linalg.eigh(density.T.astype(float) @ density.astype(float))
    plane = axes[:, 1:]  # of the two largest eigenvalues
    flat = density @ plane.astype(np.float32)
    # Angles are taken from the mean colour, so that they never wrap around; their percentiles do not depend on it.
    middle = np.arctan2(*flat.mean(0)[::-1])
    turned = flat @ np.array([[np.cos(middle), -np.sin(middle)], [np.sin(middle), np.cos(middle)]], np.float32)
    low, high = np.percentile(np.arctan2(turned[:, 1], turned[:, 0]), [ALPHA, 100 - ALPHA])
    if not np.deg2rad(LEAST_ANGLE) <= high - low < np.pi / 2:
        return None
    ends = np.array([[np.cos(middle + a), np.sin(middle + a)] for a in (low, high)])
    pair = (plane @ ends.T)[:, np.argsort(-(plane @ ends.T)[0], kind="stable")]
    top = np.percentile(density @ np.linalg.pinv(pair).T.astype(np.float32), TOP, axis=0)
    return StainMatrix(pair, top) if top.min() >= LEAST_TOP else None


def restain(image: np.ndarray, target: StainMatrix) -> np.ndarray | None:
    """The image in the target's stain, (H, W, 3) uint8; None where the image's own stain matrix is undefined.

    Amounts by least squares, scaled so that their 99th percentile over the tissue is the target's, recombined.
    """
    own = macenko(image)
    if own is None:
        return None
    turn = target.matrix @ np.diag(target.top / own.top) @ np.linalg.pinv(own.matrix)
    density = _DENSITY[image].reshape(-1, 3) @ turn.T.astype(np.float32)
    density = np.maximum(density, -1)  # white already; below, the exponential could overflow
    return _grey(np.float32(LIGHT) * np.exp(-density) - 1).reshape(image.shape)


@dataclass(frozen=True, eq=False)
class StainPool:
    """The target stains of the shift `restain`: target stain k is targets[k - 1].

    distances: of each target's stain matrix to those of the own set, rising. They say in which order the targets stand,
    not how much the pixels change, for which the amounts of the stains matter as well. images: usable images of the own
    and of the other set. skipped: images of both without a stain matrix.
    """

    targets: tuple[StainMatrix, ...]
    distances: tuple[float, ...]
    images: tuple[int, int]
    skipped: tuple[int, int]

    def as_json(self) -> dict[str, Any]:
        """Plain lists and numbers; `from_json` gives the same pool back, bit for bit."""
        return {
            "matrices": [t.matrix.tolist() for t in self.targets],
            "tops": [t.top.tolist() for t in self.targets],
            "distances": list(self.distances),
            "images": list(self.images),
            "skipped": list(self.skipped),
        }

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Self:
        """The pool that `as_json` wrote down."""
        targets = tuple(
            StainMatrix(np.array(m), np.array(t)) for m, t in zip(facts["matrices"], facts["tops"], strict=True)
        )
        return cls(targets, tuple(facts["distances"]), tuple(facts["images"]), tuple(facts["skipped"]))


def stain_pool(own: Iterable[np.ndarray], other: Iterable[np.ndarray], clusters: int = 10) -> StainPool:
    """Target stains of rising distance, found among the images of another set.

    own: images of the set that models are trained on; other: images of the stain source; both (H, W, 3) uint8. Each
    image of `other` gets the mean Frobenius distance of its stain matrix to those of `own`; the distances are cut into
    `clusters` groups by 1-D k-means; the image nearest to the mean of its group gives the target.
    Raises BenchError if a set has too few images with a stain matrix.
    """
    (mine, bare), (theirs, their_bare) = (_matrices(images) for images in (own, other))
    if not mine:
        raise BenchError(f"No stain can be measured in the own set: none of its {bare} images holds enough tissue.")
    distance = _mean_distances([t.matrix for t in theirs], [t.matrix for t in mine])
    if len(np.unique(distance)) < clusters:
        raise BenchError(
            f"{clusters} target stains need as many images of different stain; of {len(theirs) + their_bare} images "
            f"of the stain source, {len(theirs)} have a measurable one and {len(np.unique(distance))} of these "
            "differ. Give a set with more images."
        )
    group = kmeans_1d(distance, clusters)
    near = []
    for k in range(clusters):
        members = np.flatnonzero(group == k)
        near.append(members[np.argmin(np.abs(distance[members] - distance[members].mean()))])
    return StainPool(
        tuple(theirs[i] for i in near),
        tuple(float(distance[i]) for i in near),
        (len(mine), len(theirs)),
        (bare, their_bare),
    )


def kmeans_1d(values: np.ndarray, clusters: int) -> np.ndarray:
    """(n,) group of each value, 0 the lowest: the division of least squared deviation from the group means.

    In one dimension the best groups are intervals, so dynamic programming finds the optimum itself, where random
    starts may stop short of it. O(clusters n log n). Raises BenchError for fewer different values than clusters.
    """
    points, which, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    n = len(points)
    if not 1 <= clusters <= n:
        raise BenchError(f"{n} different values cannot be divided into {clusters} groups.")
    points = points - points.mean()  # the squares below then keep their digits
    number, total, square = (np.concatenate([[0.0], np.cumsum(counts * points**k)]) for k in range(3))

    def spread(first: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Squared deviation of points[first:end] from their mean."""
        return square[end] - square[first] - (total[end] - total[first]) ** 2 / (number[end] - number[first])

    ends = np.arange(1, n + 1)
    best = np.concatenate([[np.inf], spread(np.zeros(n, int), ends)])
    cuts = []
    for groups in range(2, clusters + 1):
        best, cut = _one_group_more(best, groups, spread)
        cuts.append(cut)
    bounds = [n]
    for cut in reversed(cuts):
        bounds.append(int(cut[bounds[-1]]))
    return np.searchsorted(np.array(bounds[:0:-1], int), which, side="right")


def _one_group_more(
    best: np.ndarray, groups: int, spread: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Least cost of `groups` groups for every prefix, and where the last begins; `best`: the costs of one group less.

    The best cut never moves left as the prefix grows, so each half of the prefixes searches its part of the cuts only.
    """
    n = len(best) - 1
    cost, cut = np.full(n + 1, np.inf), np.zeros(n + 1, int)
    todo = [(groups, n, groups - 1, n - 1)]
    while todo:
        low, high, left, right = todo.pop()
        if low > high:
            continue
        end = (low + high) // 2
        first = np.arange(left, min(end - 1, right) + 1)
        costs = best[first] + spread(first, np.full(len(first), end))
        where = int(np.argmin(costs))
        cost[end], cut[end] = costs[where], first[where]
        todo += [(low, end - 1, left, int(cut[end])), (end + 1, high, int(cut[end]), right)]
    return cost, cut


def _tissue_density(image: np.ndarray) -> np.ndarray:
    """(n, 3) float32 optical densities of the pixels that are dark enough."""
    density = _DENSITY[image.reshape(-1, 3)]
    return density[density[:, 0] + density[:, 1] + density[:, 2] >= 3 * BETA]


def _matrices(images: Iterable[np.ndarray]) -> tuple[list[StainMatrix], int]:
    """The stains of a set, and how many of its images have none."""
    matrices = [macenko(np.asarray(image)) for image in images]
    usable = [stain for stain in matrices if stain is not None]
    return usable, len(matrices) - len(usable)


def _mean_distances(matrices: list[np.ndarray], references: list[np.ndarray]) -> np.ndarray:
    """(n,) mean Frobenius distance of each matrix to all references; one by one, so that memory stays small."""
    from scipy.spatial.distance import cdist  # late, as shifts are listed and planned without it

    reference = np.stack(references).reshape(len(references), -1)
    return np.array([cdist(m.reshape(1, -1), reference).mean() for m in matrices], float)


def _grey(values: np.ndarray) -> np.ndarray:
    """Rounds to uint8, values outside of its range to its ends."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
