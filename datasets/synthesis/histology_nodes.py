"""Procedural H&E-like lymph node, with or without metastasis, painted with the tools of `histology.py`.

A patch shows about 170 um of tissue: packed lymphocytes, follicles whose germinal centres hold larger and paler cells,
sinuses, trabeculae, vessels. Metastasis is islands of large uneven nuclei with nucleoli. What lies outside of the
islands is drawn by the same rules whatever the class. Lengths are in units, of which a patch is 150 wide.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .histology import OVERSAMPLING, Canvas, Shapes, Stain, edge_distance

UNITS = 150
LYMPHOCYTE = 2.7  # radius of the nucleus
CENTROCYTE = 3.7
THICKNESS = (0.9, 1.15)  # of the section
TISSUE_DENSITY = 0.12  # mean optical density from which a pixel counts as tissue


@dataclass(frozen=True)
class Metastasis:
    """How the tumour of one slide looks; drawn once a slide by `random_metastasis`.

    radius: of the nuclei. spread: deviation of the logarithm of their size. spacing: distance, in radii.
    chromatin: amount of haematoxylin. cytoplasm: amounts of haematoxylin and eosin. hollow: how much paler nuclei are
    inside than at their rim. nucleoli: share of nuclei that show one.
    """

    radius: float
    spread: float
    spacing: float
    chromatin: float
    cytoplasm: tuple[float, float]
    hollow: float
    nucleoli: float


@dataclass(frozen=True)
class _Zones:
    """Where things are, on the oversampled grid. `sinus` and `fibre` in [0, 1], lengths in units."""

    border: np.ndarray  # distance to the edge of the islands of metastasis, positive inside
    sinus: np.ndarray
    fibre: np.ndarray
    flow: np.ndarray  # the field whose level lines the fibres follow
    centre: np.ndarray  # depth inside the germinal centre, negative outside; the mantle lies around -7


def random_metastasis(rng: np.random.Generator) -> Metastasis:
    """A plausible tumour; tumours differ in grade, so that neither darkness nor colour alone marks one."""
    return Metastasis(
        radius=rng.uniform(4.8, 6.0),
        spread=rng.uniform(0.16, 0.28),
        spacing=rng.uniform(2.2, 2.6),
        chromatin=rng.uniform(0.52, 0.76),
        cytoplasm=(rng.uniform(0.20, 0.30), rng.uniform(0.36, 0.54)),
        hollow=rng.uniform(0.2, 0.45),
        nucleoli=rng.uniform(0.6, 0.95),
    )


def paint_node(
    rng: np.random.Generator, stain: Stain, size: int, share: float = 0.0, tumour: Metastasis | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One patch: (size, size, 3) uint8 RGB and its (size, size) bool mask, the union of the islands of metastasis.

    share: of the patch that is at least to be metastasis, in [0, 1]; the mask has little more. tumour: how it looks, a
    random one by default.
    """
    canvas = Canvas(rng, size, UNITS)
    mask = _place_islands(canvas, share)
    zones = _lay_out(canvas, mask)
    _paint_ground(canvas, zones)
    _paint_lymphocytes(canvas, zones)
    _paint_germinal_cells(canvas, zones)
    _paint_vessels(canvas, zones)
    if mask.any():
        _paint_metastasis(canvas, zones, tumour or random_metastasis(rng))
    return canvas.develop(stain, THICKNESS), mask


def tissue_share(image: np.ndarray) -> float:
    """Share of the pixels of an (H, W, 3) uint8 image that are stained: mean optical density over TISSUE_DENSITY."""
    density = -np.log10((image.astype(np.float64) + 1) / 256).mean(2)
    return float((density > TISSUE_DENSITY).mean())


def _place_islands(canvas: Canvas, share: float) -> np.ndarray:
    """(size, size) bool islands that cover at least `share`: level sets of waves with a few hills, so ragged."""
    side, rng = canvas.side // OVERSAMPLING, canvas.rng
    if share <= 0:
        return np.zeros((side, side), bool)
    height = 0.55 * canvas.noise(50) + 0.20 * canvas.noise(20) + 0.03 * canvas.noise(7)
    y, x = np.mgrid[: canvas.side, : canvas.side] / canvas.scale
    for cy, cx in rng.uniform(0, UNITS, (rng.integers(1, 4), 2)):
        apart = ((y - cy) ** 2 + (x - cx) ** 2) / (2 * rng.uniform(24, 44) ** 2)
        height = height + rng.uniform(1.0, 1.8) * np.exp(-apart)
    height = height[::OVERSAMPLING, ::OVERSAMPLING]
    least = 320 * (canvas.scale / OVERSAMPLING) ** 2  # smaller islands or holes could not hold two cells
    for level in np.arange(share, 1.0, 0.006):  # cleaning takes some away, so the level that does it is lower
        mask = _clean(height > np.quantile(height, 1 - level), least)
        if mask.mean() >= share:
            return mask
    return np.ones((side, side), bool)


def _clean(mask: np.ndarray, least: float) -> np.ndarray:
    """Without islands or holes of fewer than `least` px."""
    for value in (True, False):
        numbers = np.zeros(mask.shape, np.int32)
        ndimage.label(mask == value, output=numbers)
        small = np.bincount(numbers.ravel()) < least
        small[0] = False
        mask = np.where(small[numbers], not value, mask)
    return mask


def _lay_out(canvas: Canvas, mask: np.ndarray) -> _Zones:
    rng, unit = canvas.rng, canvas.scale / OVERSAMPLING
    nowhere = np.full((canvas.side, canvas.side), -1e3, np.float32)
    if mask.any() and not mask.all():
        border = canvas.enlarge((edge_distance(mask) - edge_distance(~mask)) / unit)
    else:  # no edge to be far from
        border = -nowhere if mask.any() else nowhere
    wet, tough = rng.beta(1.2, 2.2), rng.beta(1.2, 2.5)  # how much of the patch is sinus, is fibrous
    flow = 0.8 * canvas.noise(70) + 0.2 * canvas.noise(22)
    drain = 0.8 * canvas.noise(60) + 0.2 * canvas.noise(14)
    fibre = np.clip((0.02 + 0.30 * tough - np.abs(flow - rng.normal(0, 0.7))) * 14 + 0.5, 0, 1)
    sinus = np.clip((0.04 + 0.36 * wet - np.abs(drain - rng.normal(0, 0.7))) * 12 + 0.5, 0, 1) * (1 - fibre)
    centre = nowhere
    if rng.random() < 0.4:
        y, x = np.mgrid[: canvas.side, : canvas.side] / canvas.scale
        cy, cx = rng.uniform(-15, UNITS + 15, 2)
        centre = rng.uniform(36, 78) - np.hypot((y - cy) * rng.uniform(0.8, 1.25), x - cx) + 4 * canvas.noise(30)
        clear = np.clip(1 - (centre + 16) / 6, 0, 1)  # no sinus or trabecula crosses a follicle
        fibre, sinus = fibre * clear, sinus * clear
    return _Zones(border, sinus, fibre, flow, centre.astype(np.float32))


def _paint_ground(canvas: Canvas, zones: _Zones) -> None:
    """What lies between the nuclei: a faint reticulum, pale sinuses, eosinophilic bundles with spindle nuclei."""
    rng = canvas.rng
    pale = rng.uniform(0.5, 1.4)
    veil = np.clip(0.5 + 0.5 * canvas.noise(5), 0, 1.4)
    thin = rng.uniform(0.5, 1.0)
    canvas.pink[:] = thin * (0.18 + 0.13 * veil)
    canvas.blue[:] = thin * (0.15 + 0.08 * veil)
    gaps = np.clip((canvas.noise(9) - 1.9 + 0.45 * pale) * 1.6, 0, 1) * (zones.centre < -12)
    strands = np.clip(canvas.noise(4) - 1.1, 0, 1)
    pink, blue = 0.03 + 0.25 * strands, 0.02 + 0.08 * strands
    lumen = np.maximum(zones.sinus, gaps)
    canvas.pink[:] += lumen * (pink - canvas.pink)
    canvas.blue[:] += lumen * (blue - canvas.blue)
    bundles = 0.5 + 0.5 * np.sin(2 * np.pi * (5.5 * zones.flow + 0.15 * canvas.noise(7)))
    canvas.pink[:] += zones.fibre * (0.42 + 0.30 * bundles + 0.04 * canvas.noise(3) - canvas.pink)
    canvas.blue[:] += zones.fibre * (0.10 + 0.06 * bundles - canvas.blue)
    _paint_spindles(canvas, zones)
    _paint_histiocytes(canvas, zones)


def _paint_spindles(canvas: Canvas, zones: _Zones) -> None:
    rng = canvas.rng
    at = _keep(canvas, _lattice(canvas, 9.5, 0.5), zones.fibre > 0.6)
    at = at[rng.random(len(at)) < 0.55]
    along = canvas.direction(zones.flow, 1.0)[tuple(at.astype(int).T // OVERSAMPLING)] + np.pi / 2
    n = len(at)
    axes = np.stack([rng.uniform(3.4, 5.6, n), rng.uniform(0.8, 1.4, n)], 1)
    canvas.ellipses(at, Shapes(axes, along + rng.normal(0, 0.15, n), rng.uniform(0.75, 1.1, n), np.full(n, 0.3)))


def _paint_histiocytes(canvas: Canvas, zones: _Zones) -> None:
    """Macrophages in the sinuses: much pale pink cytoplasm around a bean of a nucleus."""
    rng = canvas.rng
    at = _keep(canvas, _lattice(canvas, 10.5, 0.4), zones.sinus > 0.7)
    at = at[rng.random(len(at)) < rng.uniform(0.2, 0.85)]
    n = len(at)
    angle = rng.uniform(0, np.pi, n)
    body = np.stack([rng.uniform(4.4, 6.6, n), rng.uniform(3.6, 5.0, n)], 1)
    canvas.ellipses(at, Shapes(body, angle, rng.uniform(0.10, 0.24, n), rng.uniform(0.28, 0.52, n)))
    nucleus = np.stack([rng.uniform(2.4, 3.3, n), rng.uniform(1.7, 2.4, n)], 1)
    shift = rng.normal(0, 0.9 * canvas.scale, (n, 2))
    canvas.ellipses(at + shift, Shapes(nucleus, angle, rng.uniform(0.6, 0.85, n), np.full(n, 0.25)))


def _paint_lymphocytes(canvas: Canvas, zones: _Zones) -> None:
    """Small round dark nuclei, everywhere but in sinuses, bundles and germinal centres; densest in the mantle."""
    rng = canvas.rng
    loose = rng.uniform(0.0, 0.3)
    at = _lattice(canvas, rng.uniform(5.7, 6.5), 0.28)
    where = tuple(at.astype(int).T)
    mantle = np.exp(-(((zones.centre + 7) / 6) ** 2))
    empty = np.clip(loose * (1 + 0.6 * canvas.noise(26)) * (1 - mantle) + 1.5 * (zones.centre > 0), 0, 1)
    empty = np.maximum(empty, np.maximum(0.93 * zones.sinus, 0.94 * zones.fibre))
    at = at[rng.random(len(at)) > empty[where]]
    at = at[zones.border[tuple(at.astype(int).T)] < -1.2]
    _lymphocytes(canvas, at)


def _lymphocytes(canvas: Canvas, at: np.ndarray) -> None:
    rng, n = canvas.rng, len(at)
    large = rng.random(n) < 0.06  # activated
    radius = LYMPHOCYTE * np.exp(rng.normal(0, 0.08, n)) * np.where(large, 1.3, 1)
    axes = np.stack([radius * rng.uniform(1, 1.15, n), radius * rng.uniform(0.88, 1, n)], 1)
    dark = rng.uniform(0.82, 1.08, n) * np.where(large, 0.75, 1)
    angle = rng.uniform(0, np.pi, n)
    canvas.ellipses(at, Shapes(axes, angle, dark, np.full(n, 0.26)))
    for _ in range(2):  # clumps of chromatin, the clock face of lymphocytes
        spot = at + rng.normal(0, 0.42 * LYMPHOCYTE * canvas.scale, (n, 2))
        canvas.ellipses(spot, Shapes(np.full((n, 2), 0.62), angle, dark + 0.2, np.full(n, 0.28)))


def _paint_germinal_cells(canvas: Canvas, zones: _Zones) -> None:
    """Germinal centre: larger, paler, even nuclei in more cytoplasm, and macrophages with dark debris."""
    inner = np.clip(zones.centre / 5 + 0.5, 0, 1) * (zones.border < -1.5)
    if not (inner > 0.5).any():
        return
    rng = canvas.rng
    texture = canvas.noise(4)
    canvas.pink[:] += inner * (0.28 + 0.06 * texture - canvas.pink)
    canvas.blue[:] += inner * (0.19 + 0.04 * texture - canvas.blue)
    at = _keep(canvas, _lattice(canvas, 2.25 * CENTROCYTE, 0.3), inner > 0.5)
    tingible = rng.random(len(at)) < rng.uniform(0.01, 0.05)
    n = len(at)
    radius = CENTROCYTE * np.exp(rng.normal(0, 0.11, n))
    axes = np.stack([radius * rng.uniform(1, 1.25, n), radius * rng.uniform(0.8, 1, n)], 1)
    nuclei = Shapes(axes, rng.uniform(0, np.pi, n), rng.uniform(0.55, 0.8, n), np.full(n, 0.28))
    _nuclei(canvas, at[~tingible], _pick(nuclei, ~tingible), 0.25)
    _tingible_bodies(canvas, at[tingible])


def _tingible_bodies(canvas: Canvas, at: np.ndarray) -> None:
    rng, n = canvas.rng, len(at)
    flat = np.zeros(n)
    canvas.ellipses(at, Shapes(np.full((n, 2), [6.2, 5.2]), flat, np.full(n, 0.09), np.full(n, 0.2)))
    for _ in range(3):
        spot = at + rng.normal(0, 2.0 * canvas.scale, (n, 2))
        canvas.ellipses(spot, Shapes(np.full((n, 2), 1.0), flat, rng.uniform(0.7, 1.1, n), np.full(n, 0.4)))


def _paint_vessels(canvas: Canvas, zones: _Zones) -> None:
    """Now and then a venule: a ring of plump nuclei around a lumen with red cells."""
    rng = canvas.rng
    for middle in rng.uniform(0, canvas.side, (rng.poisson(0.9), 2)):
        y, x = middle.astype(int)
        if zones.border[y, x] > -14 or zones.centre[y, x] > -20:
            continue
        radius, stretch, turn = rng.uniform(5, 8.5), rng.uniform(1, 1.6), rng.uniform(0, np.pi)
        for size, blue, pink in ((radius + 3.0, 0.22, 0.5), (radius - 0.6, 0.02, 0.05)):  # wall, lumen
            shape = Shapes(np.array([[size * stretch, size]]), np.array([turn]), np.array([blue]), np.array([pink]))
            canvas.ellipses(middle[None], shape)
        n = int(radius * 1.5)
        t = 2 * np.pi * (np.arange(n) + rng.uniform(0, 0.5, n)) / n
        ring = _turned((radius + 1.2) * np.sin(t), (radius + 1.2) * stretch * np.cos(t), turn)
        along = turn + np.arctan2(np.cos(t), -stretch * np.sin(t))
        plump = Shapes(np.full((n, 2), [2.9, 1.7]), along, rng.uniform(0.6, 0.85, n), np.full(n, 0.3))
        canvas.ellipses(middle + canvas.scale * ring, plump)
        n = rng.integers(0, 6)
        red = middle + rng.normal(0, 0.35 * radius * canvas.scale, (n, 2))
        canvas.ellipses(red, Shapes(np.full((n, 2), [2.4, 2.1]), np.zeros(n), np.zeros(n), np.full(n, 1.1)))


def _paint_metastasis(canvas: Canvas, zones: _Zones, tumour: Metastasis) -> None:
    """Sheets of large uneven nuclei in a cytoplasm without sharp cell borders, a few clefts and lymphocytes between."""
    rng = canvas.rng
    cells = np.clip(zones.border * 1.2 + 0.5, 0, 1)
    texture, patchy = canvas.noise(4), canvas.noise(34)
    canvas.blue[:] += cells * (tumour.cytoplasm[0] * (1 + 0.22 * texture + 0.12 * patchy) - canvas.blue)
    canvas.pink[:] += cells * (tumour.cytoplasm[1] * (1 + 0.16 * texture - 0.12 * patchy) - canvas.pink)
    _paint_septa(canvas, zones)
    _paint_tumour_cells(canvas, zones, tumour)
    guests = _keep(canvas, _lattice(canvas, 9, 0.6), zones.border > 3)
    _lymphocytes(canvas, guests[rng.random(len(guests)) < rng.uniform(0.0, 0.14)])


def _paint_tumour_cells(canvas: Canvas, zones: _Zones, tumour: Metastasis) -> None:
    rng = canvas.rng
    at = _lattice(canvas, tumour.spacing * tumour.radius, 0.27)
    at = _keep(canvas, at, zones.border > 0.25 * tumour.radius)
    at = at[rng.random(len(at)) > 0.06]
    n = len(at)
    radius = tumour.radius * np.exp(rng.normal(0, tumour.spread, n)).clip(0.55, 1.5)
    axes = np.stack([radius * rng.uniform(1, 1.3, n), radius * rng.uniform(0.72, 1, n)], 1)
    dark = tumour.chromatin * np.exp(rng.normal(0, 0.18, n))
    nuclei = Shapes(axes, rng.uniform(0, np.pi, n), dark, np.full(n, 0.28))
    _nuclei(canvas, at, nuclei, tumour.hollow)
    some = rng.random(n) < tumour.nucleoli
    spot = at[some] + rng.normal(0, 0.2 * tumour.radius * canvas.scale, (some.sum(), 2))
    k = len(spot)
    size = np.repeat(rng.uniform(0.9, 1.35, (k, 1)), 2, 1)
    canvas.ellipses(spot, Shapes(size, np.zeros(k), dark[some] * 0.7 + 0.62, np.full(k, 0.55)))


def _paint_septa(canvas: Canvas, zones: _Zones) -> None:
    """Thin strands of collagen and retraction clefts inside the islands."""
    rng = canvas.rng
    strand = np.clip((0.05 - np.abs(canvas.noise(30) - rng.normal(0, 0.8))) * 20, 0, 1) * (zones.border > 4)
    canvas.pink[:] += strand * (0.62 - canvas.pink)
    canvas.blue[:] += strand * (0.12 - canvas.blue)
    cleft = np.clip((canvas.noise(12) - rng.uniform(1.1, 2.3)) * 3, 0, 1) * (zones.border > 1)
    for plane in (canvas.blue, canvas.pink):
        plane *= 1 - 0.9 * cleft


def _nuclei(canvas: Canvas, at: np.ndarray, shapes: Shapes, hollow: float) -> None:
    """Vesicular nuclei: a dark rim around paler chromatin with a few clumps."""
    rng, n = canvas.rng, len(at)
    canvas.ellipses(at, shapes)
    canvas.ellipses(at, Shapes(shapes.axes * 0.74, shapes.angle, shapes.blue * (1 - hollow), shapes.pink * 0.95))
    for _ in range(3):
        spot = at + rng.normal(0, 1, (n, 2)) * (0.36 * canvas.scale * shapes.axes.min(1))[:, None]
        canvas.ellipses(spot, Shapes(np.full((n, 2), 0.75), shapes.angle, shapes.blue * 1.1, shapes.pink))


def _pick(shapes: Shapes, which: np.ndarray) -> Shapes:
    return Shapes(shapes.axes[which], shapes.angle[which], shapes.blue[which], shapes.pink[which])


def _lattice(canvas: Canvas, spacing: float, jitter: float) -> np.ndarray:
    """(n, 2) px: a hexagonal lattice over the canvas, turned and shaken; `jitter` is a share of `spacing`, in units."""
    rng, step = canvas.rng, spacing * canvas.scale
    reach = int(0.75 * canvas.side / (step * 0.86)) + 2
    i, j = (g.ravel() for g in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    at = _turned(i * step * 0.866, (j + 0.5 * (i % 2)) * step, rng.uniform(0, np.pi)) + canvas.side / 2
    at += rng.uniform(-0.5, 0.5, 2) * step + rng.uniform(-jitter, jitter, at.shape) * step
    at = at[((at >= 0) & (at < canvas.side)).all(1)]
    return at[rng.permutation(len(at))]


def _turned(y: np.ndarray, x: np.ndarray, angle: float) -> np.ndarray:
    """(n, 2) points as (y, x), turned around the origin."""
    return np.stack([x * np.sin(angle) + y * np.cos(angle), x * np.cos(angle) - y * np.sin(angle)], 1)


def _keep(canvas: Canvas, at: np.ndarray, area: np.ndarray) -> np.ndarray:
    return at[area[tuple(at.astype(int).T)]]
