"""Score maps of a few test images beside their masks, a column a method."""

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...benchmark.core.files import read_npz
from ..drawing.base import Drawn, NoFigureError, Scene, by_backbone, new_figure, slug
from ..rows.packing import FOREGROUND
from ..tables.aggregate import Line

TILE, GAP, SIDE, HEAD = 176, 10, 150, 50  # px; SIDE and HEAD hold the names of rows and columns
METHODS_PER_FIGURE, MAX_IMAGES, MAX_KINDS, MAX_FIGURES = 12, 6, 3, 4
RIGHT, WRONG = "#0072B2", "#D55E00"


class _Examples(NamedTuple):
    ids: list[str]
    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray


def _ungated(scene: Scene) -> list[Line]:
    """The lines whose maps are shown: a gated map is the same as the line's other one, or nothing."""
    return [line for line in scene.with_maps() if not line.first.gated]


def draw(scene: Scene, images: int = MAX_IMAGES, first_only: bool = False) -> list[Drawn]:
    """One figure a kind of image, backbone and dozen methods; the first backbone alone where those are too many.

    images: rows of a figure. first_only: the first backbone and its first dozen methods alone. Raises NoFigureError if
    no example images are stored.
    """
    drawn = []
    groups = list(by_backbone(_ungated(scene)).items())
    many = sum(-(-len(lines) // METHODS_PER_FIGURE) for _, lines in groups) * len(_kinds(scene)) > MAX_FIGURES
    for backbone, lines in groups[:1] if first_only or many else groups:
        line_maps = [(line, maps) for line in lines if (maps := _maps(scene, line)) is not None]
        for kind, classes in _kinds(scene).items():
            examples = next((e for x, _ in line_maps if (e := _examples(scene, x, classes, images)) is not None), None)
            if examples is None:
                continue
            width = -(-len(line_maps) // -(-len(line_maps) // METHODS_PER_FIGURE))
            parts = [line_maps[k : k + width] for k in range(0, len(line_maps), width)]
            for number, part in enumerate(parts[:1] if first_only else parts, 1):
                labels = [p for p in (kind, backbone, f"{number}" if len(parts) > 1 else "") if p not in ("", "-")]
                drawn.append(_grid(scene, labels, examples, part))
    if not drawn:
        raise NoFigureError("no example images are stored with these results")
    if many and not first_only and len(groups) > 1:
        others = ", ".join(name for name, _ in groups[1:])
        left = f" Maps of {others} are left out here; the gallery of the page holds them too, as far as there is room."
        drawn = [replace(one, how=one.how + left) for one in drawn]
    return drawn


def _kinds(scene: Scene) -> dict[str, list[int]]:
    """Figures by kind of image: those with and without a region, or one a class where every class has a region."""
    facts = scene.records[_ungated(scene)[0].first.stage]["facts"]
    names, regions = facts["classes"], facts["region_classes"]
    if not all(regions):
        with_region = [k for k, region in enumerate(regions) if region]
        rest = [k for k, region in enumerate(regions) if not region]
        return {"positives": with_region, "normals": rest} if with_region else {"": rest}
    if len(names) > MAX_KINDS:
        return {"": list(range(len(names)))}
    return {name: [k] for k, name in reversed(list(enumerate(names)))}


def _read(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    try:
        return read_npz(path, names)
    except Exception:  # noqa: BLE001 - on damaged files zipfile and numpy raise whatever comes to pass
        return None


def _maps(scene: Scene, line: Line) -> dict[str, np.ndarray] | None:
    """Image id -> map of a line's first run."""
    data = _read(scene.store.run_dir(line.first.stage) / "examples.npz", ("ids", "maps"))
    return None if data is None else dict(zip(data["ids"].tolist(), data["maps"].astype(np.float32), strict=True))


def _examples(scene: Scene, line: Line, classes: list[int], limit: int) -> _Examples | None:
    """The images of some classes a line's maps belong to, at most `limit`, evenly over the stored ones."""
    stem = scene.records[line.first.stage]["facts"].get("examples", "")
    names = ("ids", "images", "masks", "labels")
    data = _read(scene.store.root / "examples" / f"{stem}.npz", names) if stem else None
    if data is None or not np.isin(data["labels"], classes).any():
        return None
    order = np.argsort(data["labels"], kind="stable")
    order = order[np.isin(data["labels"][order], classes)]
    rows = order[np.linspace(0, len(order) - 1, min(limit, len(order))).round().astype(int)]
    return _Examples(
        data["ids"][rows].tolist(), data["images"][rows], data["masks"][rows] == FOREGROUND, data["labels"][rows]
    )


def _right(scene: Scene, line: Line) -> dict[str, bool]:
    """Image id -> whether the class was right; empty for methods that classify nothing."""
    data = _read(scene.store.run_dir(line.first.stage) / "scores.npz", ("ids", "logits", "labels"))
    if data is None or np.isnan(data["logits"]).any():
        return {}
    return dict(zip(data["ids"].tolist(), (data["logits"].argmax(1) == data["labels"]).tolist(), strict=True))


def _grid(
    scene: Scene, labels: list[str], examples: _Examples, part: list[tuple[Line, dict[str, np.ndarray]]]
) -> Drawn:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    rows, columns = len(examples.ids), 2 + len(part)
    cell = 1.12
    size = (0.2 + cell * columns + SIDE * cell / TILE + 0.85, 0.35 + cell * rows + HEAD * cell / TILE)
    title = ", ".join([f"Maps · {scene.table.sets}, protocol {scene.table.protocol}", *labels])
    figure = new_figure(scene, title, size)
    axes = figure.subplots()
    axes.imshow(_canvas(examples, part), interpolation="antialiased")
    axes.set_axis_off()
    axes.set(xlim=(-SIDE, columns * (TILE + GAP)), ylim=(rows * (TILE + GAP), -HEAD))
    step = TILE + GAP
    heads = ["input", "mask", *(line.label for line, _ in part)]
    for column, head in enumerate(heads):
        text = "\n".join(textwrap.wrap(head.replace(":", ": "), 15)[:3])
        axes.text(column * step + TILE / 2, -6, text, ha="center", va="bottom", fontsize=8)
    classes = part[0][0].first.classes
    for row, (name, label) in enumerate(zip(examples.ids, examples.labels, strict=True)):
        short = name if len(name) <= 16 else f"…{name[-15:]}"
        kind = classes[label] if label < len(classes) else str(label)
        axes.text(-8, row * step + TILE / 2, f"{short}\n{kind}", ha="right", va="center", fontsize=7.5)
    _marks(axes, scene, examples, part)
    scale = ScalarMappable(Normalize(0, 1), "viridis")
    figure.colorbar(scale, ax=axes, label="score (fixed range)", shrink=0.5, aspect=25, pad=0.01)
    how = (
        "Score maps as they are scored, on one fixed colour range from 0 to 1; the white line is the outline of the "
        "mask. A tick says that the checkpoint classified the image right, a cross that it did not; no mark: it "
        "does not classify. The images were chosen by name, not by result. "
        f"Shown: the lowest fold and seed, checkpoint {scene.table.blocks[0].key}."
    )
    alt = "Test images, their masks and the score map of every method."
    return Drawn(slug("maps", *scene.stem, *labels), " · ".join(["Maps", *labels]), how, alt, figure)


def _canvas(examples: _Examples, part: list[tuple[Line, dict[str, np.ndarray]]]) -> np.ndarray:
    """All tiles in one picture, which draws far faster than an axes each; uint8 (height, width, 3)."""
    from matplotlib import colormaps

    rows, columns, step = len(examples.ids), 2 + len(part), TILE + GAP
    canvas = np.full((rows * step - GAP, columns * step - GAP, 3), 255, np.uint8)
    for row, name in enumerate(examples.ids):
        image, mask = _resized(examples.images[row], True), _resized(examples.masks[row], False) > 0
        framed = np.where(outline(mask, 3)[..., None], np.uint8(0), image)
        framed = np.where(outline(mask, 2)[..., None], np.array([255, 214, 0], np.uint8), framed)
        tiles = [image, framed]
        for _, maps in part:
            if name not in maps:
                tiles.append(np.full((TILE, TILE, 3), 235, np.uint8))
                continue
            colours = colormaps["viridis"](np.nan_to_num(maps[name]).clip(0, 1), bytes=True)[..., :3]
            tiles.append(np.where(outline(mask, 1)[..., None], np.uint8(255), _resized(colours, True)))
        for column, tile in enumerate(tiles):
            canvas[row * step : row * step + TILE, column * step : column * step + TILE] = tile
    return canvas


def _resized(picture: np.ndarray, smooth: bool) -> np.ndarray:
    from PIL import Image

    raw = np.ascontiguousarray(picture.astype(np.uint8))
    method = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(raw).resize((TILE, TILE), method))


def outline(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a mask (H, W) within `width` px of its border; the border of the picture is none."""
    inside = mask.copy()
    for _ in range(width):
        padded = np.pad(inside, 1, mode="edge")
        inside = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _marks(axes: Any, scene: Scene, examples: _Examples, part: list[tuple[Line, dict[str, np.ndarray]]]) -> None:
    step = TILE + GAP
    for column, (line, _) in enumerate(part, 2):
        right = _right(scene, line)
        for row, name in enumerate(examples.ids):
            if name in right:
                color, sign = (RIGHT, "✓") if right[name] else (WRONG, "✗")
                box = {"boxstyle": "circle,pad=0.12", "facecolor": color, "edgecolor": "white", "linewidth": 0.6}
                place = (column * step + TILE - 17, row * step + 17)
                axes.text(*place, sign, ha="center", va="center", fontsize=6, color="white", bbox=box)
