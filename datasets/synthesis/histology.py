"""Procedural H&E-like tissue, painted as amounts of stain and turned into colour by the Beer-Lambert law.

Everything is drawn at twice the final size and then averaged. Lengths below are in px of a 192 px image ("units"), so
that the tissue keeps its proportions at other sizes. Only the glands differ between benign and malignant: the stroma,
its cells and the stains are drawn by the same rules for both.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

OVERSAMPLING = 2
UNIT_SIDE = 192
_MARGIN = 128  # px around the canvas, so that nothing drawn at its edge needs cutting
# Optical density of each stain in (R, G, B), near the values measured for haematoxylin and eosin (Ruifrok, 2001).
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.12, 0.95, 0.28])


@dataclass(frozen=True)
class Stain:
    """The stain of a patient's slides: optical densities, amounts of both stains, light of the empty background."""

    haematoxylin: np.ndarray
    eosin: np.ndarray
    amounts: tuple[float, float]
    light: np.ndarray


@dataclass(frozen=True)
class GlandStyle:
    """What makes glands benign or malignant. Lengths in units, `nucleus` as half axes (along, across the radius)."""

    radius: tuple[float, float]
    wobble: float  # depth of the outline's waves, share of the radius
    spacing: float  # distance of gland centres, in mean radii
    gap: float  # stroma kept between neighbours
    epithelium: tuple[float, float]  # thickness
    nucleus: tuple[float, float]
    pitch: float  # distance of nuclei along the outline
    rows: int  # layers of nuclei
    disorder: float  # 0: nuclei in line and upright, 1: scattered and turned
    cytoplasm: tuple[float, float]  # amounts of haematoxylin, eosin
    goblets: float  # share of places that hold a mucin vacuole
    holes: float  # cribriform: share of the epithelium opened by secondary lumina
    debris: float  # necrotic matter in the lumen


BENIGN = GlandStyle(
    radius=(20, 32), wobble=0.09, spacing=2.05, gap=6.5, epithelium=(13, 18), nucleus=(2.7, 1.6), pitch=3.7, rows=1,
    disorder=0.08, cytoplasm=(0.26, 0.53), goblets=0.8, holes=0.0, debris=0.1,
)  # fmt: skip
MALIGNANT = GlandStyle(
    radius=(12, 32), wobble=0.30, spacing=1.92, gap=4.0, epithelium=(10, 16), nucleus=(3.2, 1.8), pitch=5.0, rows=3,
    disorder=0.65, cytoplasm=(0.23, 0.32), goblets=0.03, holes=0.38, debris=0.5,
)  # fmt: skip
STYLES = (BENIGN, MALIGNANT)


def random_stain(rng: np.random.Generator) -> Stain:
    """A plausible stain: hue, strength of each stain and background light differ from patient to patient."""
    haematoxylin = HAEMATOXYLIN + rng.normal(0, 0.035, 3)
    eosin = EOSIN + rng.normal(0, [0.03, 0.04, 0.045])
    amounts = (float(rng.uniform(0.7, 1.4)), float(rng.uniform(0.6, 1.4)))
    return Stain(
        haematoxylin / np.linalg.norm(haematoxylin),
        eosin / np.linalg.norm(eosin),
        amounts,
        np.array([246, 243, 247]) + rng.uniform(-4, 4, 3),
    )


def blend_stains(one: Stain, other: Stain, share: float) -> Stain:
    """The first stain with `share`, in [0, 1], of the way to the other."""

    def mix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + share * (b - a)

    haematoxylin, eosin = mix(one.haematoxylin, other.haematoxylin), mix(one.eosin, other.eosin)
    blue, pink = mix(np.array(one.amounts), np.array(other.amounts))
    return Stain(
        haematoxylin / np.linalg.norm(haematoxylin),
        eosin / np.linalg.norm(eosin),
        (float(blue), float(pink)),
        mix(one.light, other.light),
    )


def paint_glands(rng: np.random.Generator, style: GlandStyle, stain: Stain, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One image: (size, size, 3) uint8 RGB and its (size, size) uint8 gland numbers, 0 for stroma."""
    canvas = Canvas(rng, size)
    mask = _place_glands(canvas, style)
    unit = canvas.scale / OVERSAMPLING  # final px per unit
    inside, outside = (canvas.enlarge(edge_distance(m) / unit) for m in (mask > 0, mask == 0))
    _paint_stroma(canvas, outside)
    _paint_epithelium(canvas, style, mask.repeat(OVERSAMPLING, 0).repeat(OVERSAMPLING, 1), inside)
    return canvas.develop(stain), np.searchsorted(np.unique(np.append(mask, 0)), mask).astype(np.uint8)


@dataclass(frozen=True)
class Shapes:
    """n ellipses: half axes (n, 2) in units, angle of the first axis from x (n,), amounts of both stains (n,)."""

    axes: np.ndarray
    angle: np.ndarray
    blue: np.ndarray
    pink: np.ndarray


class Canvas:
    """Amounts of haematoxylin and eosin on the oversampled grid, and the tools to paint them."""

    def __init__(self, rng: np.random.Generator, size: int, units: float = UNIT_SIDE) -> None:
        self.rng = rng
        self.side = size * OVERSAMPLING
        self.scale = self.side / units  # canvas px per unit
        self._blue, self._pink = (np.zeros([self.side + 2 * _MARGIN] * 2, np.float32) for _ in range(2))
        inner = (slice(_MARGIN, -_MARGIN), slice(_MARGIN, -_MARGIN))
        self.blue, self.pink = self._blue[inner], self._pink[inner]

    def noise(self, length: float) -> np.ndarray:
        """Smooth noise of mean 0 and deviation 1; `length` in units is about the size of its blobs."""
        step = max(1, int(length * self.scale / 3))
        n = self.side // step + 6
        coarse = ndimage.gaussian_filter(self.rng.standard_normal((n, n), np.float32), 1.1)
        coarse = (coarse - coarse.mean()) / (coarse.std() + 1e-6)
        if step > 1:
            coarse = np.asarray(Image.fromarray(coarse).resize((n * step, n * step), Image.Resampling.BICUBIC))
        return coarse[: self.side, : self.side]

    def enlarge(self, field: np.ndarray) -> np.ndarray:
        """A smooth field of the final size, on the oversampled grid."""
        big = Image.fromarray(field.astype(np.float32)).resize((self.side, self.side), Image.Resampling.BILINEAR)
        return np.asarray(big)

    def direction(self, field: np.ndarray, blur: float) -> np.ndarray:
        """Angle from x in which a field on the oversampled grid rises, after blurring by `blur` units; final size."""
        coarse = ndimage.gaussian_filter(field[::OVERSAMPLING, ::OVERSAMPLING], blur * self.scale / OVERSAMPLING)
        gy, gx = np.gradient(coarse)
        return np.arctan2(gy, gx)

    def ellipses(self, at: np.ndarray, shape: Shapes) -> None:
        """Soft-edged ellipses at `at` (n, 2), as (y, x) px; each replaces what is under it, the later ones on top."""
        if not len(at):
            return
        reach = int(shape.axes.max() * self.scale) + 2
        at = np.clip(at, 0, self.side - 1)
        corner = np.floor(at).astype(int) + _MARGIN - reach
        steps = np.arange(-reach, reach + 1, dtype=np.float32)
        y, x = ((steps - (at[:, k] % 1)[:, None].astype(np.float32)) / np.float32(self.scale) for k in (0, 1))
        y, x = y[:, :, None], x[:, None, :]
        c, s, long, short, thin, blue, pink = (
            v.astype(np.float32)[:, None, None]
            for v in (
                np.cos(shape.angle),
                np.sin(shape.angle),
                *shape.axes.T,
                shape.axes.min(1),
                shape.blue,
                shape.pink,
            )
        )
        distance = np.sqrt(((x * c + y * s) / long) ** 2 + ((y * c - x * s) / short) ** 2)
        cover = np.clip((1 - distance) * (1.6 * thin) + 0.5, 0, 1)
        add_blue, add_pink, keep = cover * blue * (0.86 + 0.2 * distance), cover * pink, 1 - cover
        for k, (top, left) in enumerate(corner.tolist()):
            window = (slice(top, top + 2 * reach + 1), slice(left, left + 2 * reach + 1))
            for plane, add in ((self._blue, add_blue), (self._pink, add_pink)):
                plane[window] *= keep[k]
                plane[window] += add[k]

    def develop(self, stain: Stain, thickness: tuple[float, float] = (0.75, 1.3)) -> np.ndarray:
        """The stains as light: RGB = background · exp(-OD), averaged down to the final size, with a little grain.

        thickness: range of that of the section; no two are cut alike, so that brightness tells no class.
        """
        grain = 1 + 0.10 * self.noise(1.2)
        thick = self.rng.uniform(*thickness)
        blue = self.blue * grain * (thick * stain.amounts[0])
        pink = self.pink * (2 - grain) * (thick * stain.amounts[1])
        density = blue[..., None] * stain.haematoxylin.astype(np.float32) + pink[..., None] * stain.eosin.astype(
            np.float32
        )
        light = np.exp(-1.35 * density) * stain.light.astype(np.float32)
        n = self.side // OVERSAMPLING
        light = light.reshape(n, OVERSAMPLING, n, OVERSAMPLING, 3).mean((1, 3))
        light += self.rng.normal(0, 1.6, light.shape)
        return np.clip(np.rint(light), 0, 255).astype(np.uint8)


def edge_distance(area: np.ndarray) -> np.ndarray:
    """Distance in px of every pixel of an area to the area's edge, 0 outside."""
    return np.maximum(np.asarray(ndimage.distance_transform_edt(area)) - 0.5, 0)


def _window(side: int, y: float, x: float, reach: float) -> tuple[slice, slice]:
    """The part of the canvas within `reach` px of (y, x)."""
    r = int(reach) + 1
    return (
        slice(max(0, int(y) - r), min(side, max(0, int(y) + r + 1))),
        slice(max(0, int(x) - r), min(side, max(0, int(x) + r + 1))),
    )


def _place_glands(canvas: Canvas, style: GlandStyle) -> np.ndarray:
    """(size, size) int gland numbers: wavy discs around spread centres, cut where neighbours meet."""
    rng, scale, side = canvas.rng, canvas.scale / OVERSAMPLING, canvas.side // OVERSAMPLING
    mean = sum(style.radius) / 2 * scale
    bend = 16 * scale * style.wobble
    shift_y, shift_x = (bend * canvas.noise(26)[::OVERSAMPLING, ::OVERSAMPLING] for _ in range(2))
    best = np.full((side, side), -1e9, np.float32)
    second, owner = best.copy(), np.zeros((side, side), np.int32)
    for number, (cy, cx) in enumerate(_spread_points(rng, side, style.spacing * mean, 0.6 * mean), start=1):
        radius = rng.uniform(*style.radius) * scale
        stretch, turn = rng.uniform(1.0, 1.35), rng.uniform(0, np.pi)
        window = _window(side, cy, cx, 1.5 * radius + 3 * bend)
        dy = np.arange(side, dtype=np.float32)[window[0], None] + shift_y[window] - cy
        dx = np.arange(side, dtype=np.float32)[None, window[1]] + shift_x[window] - cx
        u = (dx * np.cos(turn) + dy * np.sin(turn)) / stretch
        v = (dy * np.cos(turn) - dx * np.sin(turn)) * stretch**0.5
        depth = radius - np.hypot(u, v)
        second[window] = np.maximum(second[window], np.minimum(depth, best[window]))
        owner[window] = np.where(depth > best[window], number, owner[window])
        best[window] = np.maximum(best[window], depth)
    rough = style.wobble * 7 * scale * canvas.noise(9)[::OVERSAMPLING, ::OVERSAMPLING]
    inside = (best + rough > 0) & (best - second > style.gap * scale)
    inside = ndimage.binary_opening(inside, iterations=max(1, round(2 * scale)))
    labels = np.where(inside, owner, 0)
    sizes = np.bincount(labels.ravel())
    return np.where(sizes[labels] > (8 * scale) ** 2, labels, 0)


def _spread_points(rng: np.random.Generator, side: int, distance: float, margin: float) -> list[tuple[float, float]]:
    """Points at least `distance` px apart that fill the square, some just outside of it, so that glands are cut off."""
    points: list[tuple[float, float]] = []
    for y, x in rng.uniform(-margin, side + margin, (400, 2)):
        if all((y - a) ** 2 + (x - b) ** 2 > distance**2 for a, b in points):
            points.append((float(y), float(x)))
    return points


def _paint_stroma(canvas: Canvas, outside: np.ndarray) -> None:
    """Collagen in wavy bundles that flow around glands, spindle nuclei along them, round lymphocytes, red cells."""
    rng = canvas.rng
    flow = 0.22 * outside + 1.5 * canvas.noise(40) + 0.22 * canvas.noise(8)
    fibres = np.sin(2 * np.pi * flow) * 0.5 + 0.5
    loose = np.clip(0.55 + 0.35 * canvas.noise(30), 0.15, 1)
    canvas.pink[:] = 0.30 + 0.26 * loose * fibres + 0.10 * loose + 0.035 * canvas.noise(3)
    canvas.blue[:] = 0.10 + 0.03 * fibres
    across = canvas.direction(flow, 2.0)
    at = rng.uniform(0, canvas.side, (int(330 * rng.uniform(0.7, 1.3)), 2))
    where = tuple(at.astype(int).T)
    at = at[outside[where] > 2.2]
    angle = (
        across[tuple(at.astype(int).T // OVERSAMPLING)] + np.pi / 2 + rng.normal(0, 0.15, len(at))
    )  # along the bundles
    n, lymphocyte = len(at), rng.random(len(at)) < rng.uniform(0.05, 0.5)
    spindle = np.stack([rng.uniform(2.6, 4.2, n), rng.uniform(0.75, 1.1, n)], 1)
    axes = np.where(lymphocyte[:, None], [1.75, 1.65], spindle)
    dark = rng.uniform(0.75, 1.15, n) * np.where(lymphocyte, 1.1, 1.0)
    canvas.ellipses(at, Shapes(axes, angle, dark, np.full(n, 0.23)))
    _paint_vessel(canvas, outside)


def _paint_vessel(canvas: Canvas, outside: np.ndarray) -> None:
    """Now and then a capillary: red cells, which are eosin without haematoxylin."""
    rng = canvas.rng
    places = np.argwhere(outside > 5)
    if not len(places) or rng.random() > 0.5:
        return
    at = places[rng.integers(len(places))] + rng.normal(0, 2.5 * canvas.scale, (7, 2))
    at = np.clip(at, 0, canvas.side - 1)
    at = at[outside[tuple(at.astype(int).T)] > 2.5]
    n = len(at)
    canvas.ellipses(at, Shapes(np.full((n, 2), [1.7, 1.5]), np.zeros(n), np.zeros(n), np.full(n, 1.15)))


def _paint_epithelium(canvas: Canvas, style: GlandStyle, glands: np.ndarray, inside: np.ndarray) -> None:
    """Basement line, cytoplasm, goblet vacuoles, lumina and nuclei, from the outline inwards."""
    rng = canvas.rng
    thickness = rng.uniform(*style.epithelium, glands.max() + 1)[glands] * (1 + 0.10 * canvas.noise(14))
    gland, lumen = glands > 0, inside > thickness
    if style.holes:
        holes = canvas.noise(8) > 2.2 - 4 * style.holes
        lumen |= ndimage.binary_opening(holes, iterations=2) & (inside > 0.45 * thickness)
    cells = gland & ~lumen
    texture = canvas.noise(4)
    canvas.blue[cells] = (style.cytoplasm[0] * (1 + 0.25 * texture))[cells]
    canvas.pink[cells] = (style.cytoplasm[1] * (1 + 0.18 * texture))[cells]
    line = gland & (inside < 0.9)
    canvas.pink[line] += 0.18
    canvas.blue[line] += 0.12
    apical = cells & ndimage.binary_dilation(lumen, iterations=max(1, int(0.6 * canvas.scale)))
    canvas.pink[apical] += 0.14
    canvas.blue[apical] += 0.10
    _paint_lumen(canvas, style, lumen)
    inwards = canvas.direction(inside, 1.5)
    _paint_goblets(canvas, style, glands, inside / np.maximum(thickness, 1), inwards)
    _paint_nuclei(canvas, style, glands, (inside, thickness, cells), inwards)


def _paint_lumen(canvas: Canvas, style: GlandStyle, lumen: np.ndarray) -> None:
    wisps = np.clip(canvas.noise(9) - 0.9, 0, 1)
    debris = style.debris * np.clip(canvas.noise(12) - 0.2, 0, 1) * np.clip(0.7 + 0.4 * canvas.noise(2), 0, 1.5)
    canvas.pink[lumen] = (0.03 + 0.10 * wisps + 0.5 * debris)[lumen]
    canvas.blue[lumen] = (0.02 + 0.05 * wisps + 0.35 * debris)[lumen]


def _along_outline(
    rng: np.random.Generator, glands: np.ndarray, band: np.ndarray, pitch: float, order: np.ndarray
) -> np.ndarray:
    """(n, 2) px positions about `pitch` px apart within a thin band around each gland, found by angle."""
    points = []
    for number, window in enumerate(ndimage.find_objects(glands), start=1):
        if window is None:
            continue
        y, x = np.nonzero(band[window] & (glands[window] == number))
        if len(y) < 4:
            continue
        y, x = y + window[0].start, x + window[1].start
        angle = np.arctan2(y - y.mean(), x - x.mean())
        radius = np.hypot(y - y.mean(), x - x.mean()).mean()
        bins = ((angle + rng.uniform(0, 1)) * radius / pitch).astype(int)
        ranked = np.lexsort((order[y, x], bins))
        _, first = np.unique(bins[ranked], return_index=True)
        points.append(np.stack([y, x], 1)[ranked[first]])
    return np.concatenate(points) if points else np.zeros((0, 2), int)


def _paint_goblets(
    canvas: Canvas, style: GlandStyle, glands: np.ndarray, depth: np.ndarray, inwards: np.ndarray
) -> None:
    """Pale mucin vacuoles between the nuclei and the lumen; `depth` is 0 at the outline and 1 at the lumen."""
    rng = canvas.rng
    band = (depth > 0.62) & (depth < 0.74)
    at = _along_outline(rng, glands, band, 5.2 * canvas.scale, np.abs(depth - 0.68))
    at = at[rng.random(len(at)) < style.goblets]
    n = len(at)
    axes = np.stack([rng.uniform(2.9, 4.0, n), rng.uniform(1.9, 2.6, n)], 1)
    mucin = Shapes(axes, inwards[tuple(at.T // OVERSAMPLING)], rng.uniform(0.03, 0.14, n), rng.uniform(0.02, 0.08, n))
    canvas.ellipses(at, mucin)


def _paint_nuclei(
    canvas: Canvas,
    style: GlandStyle,
    glands: np.ndarray,
    layers: tuple[np.ndarray, np.ndarray, np.ndarray],
    inwards: np.ndarray,
) -> None:
    """Rows of nuclei: one basal row of even ovals if benign, several uneven ones of large dark nuclei if malignant."""
    rng, (inside, thickness, cells) = canvas.rng, layers
    scatter = rng.standard_normal(glands.shape, np.float32)
    for row in range(style.rows):
        depth = style.nucleus[0] + 0.8 + row * 0.8 * style.nucleus[0]
        band = (np.abs(inside - depth) < 0.5 + 1.5 * style.disorder) & cells & (inside < 0.92 * thickness)
        order = np.abs(inside - depth) + 3 * style.disorder * scatter
        at = _along_outline(rng, glands, band, style.pitch * canvas.scale, order)
        at = at[rng.random(len(at)) >= 0.15 * style.disorder]
        n = len(at)
        grow = np.exp(rng.normal(0, 0.07 + 0.28 * style.disorder, n)).clip(0.5, 1.8)
        slim = np.exp(rng.normal(0, 0.3 * style.disorder, n)).clip(0.6, 1.6)
        axes = np.stack([style.nucleus[0] * grow, style.nucleus[1] * grow * slim], 1)
        angle = inwards[tuple(at.T // OVERSAMPLING)] + rng.normal(0, 0.12 + 0.7 * style.disorder, n)
        dark = rng.uniform(0.80, 0.95, n) + style.disorder * rng.uniform(-0.15, 0.30, n)
        canvas.ellipses(at, Shapes(axes, angle, dark, np.full(n, 0.34)))
        if style.disorder > 0.3:
            some = rng.random(n) < 0.35
            spot = Shapes(np.full((n, 2), 0.6)[some], np.zeros(some.sum()), dark[some] + 0.45, np.full(some.sum(), 0.3))
            canvas.ellipses(at[some], spot)  # nucleoli
