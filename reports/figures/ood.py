"""Out-of-domain quality: PxAP and accuracy of every method on its training set and on the other evaluation sets."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..drawing.base import (
    Drawn,
    NoFigureError,
    OodScene,
    Palette,
    by_backbone,
    label_axes,
    legend_beside,
    legend_entries,
    new_figure,
    slug,
    spread_of,
)
from ..tables.aggregate import Line, Table
from ..tables.grid import Place, place_of

FEW_SETS, FEW_METHODS = 4, 8
METRICS = (("pxap", "PxAP [%]"), ("accuracy", "accuracy [%]"))


def draw(scene: OodScene) -> list[Drawn]:
    """Two panels a training set and backbone: its evaluation sets by method. Raises NoFigureError without methods."""
    rows: list[tuple[str, list[Table], list[Place]]] = []
    for train in dict.fromkeys(pair.table.train for pair in scene.pairs):
        tables = [s.table for s in (*scene.home, *scene.pairs) if s.table.train == train]
        shown = {place_of(line): line for table in tables for line in table.shown if not line.first.baseline}
        for backbone, lines in by_backbone(shown.values()).items():
            places = [place_of(line) for line in lines]
            if places:
                rows.append((f"trained on {train}" + (f" · {backbone}" if backbone != "-" else ""), tables, places))
    if not rows:
        raise NoFigureError("no trained method was scored on other sets")
    widest = max(len(tables) for _, tables, _ in rows)
    columns = 2 if widest <= FEW_SETS else 1  # side by side, or one above the other where there are many sets
    title = f"In domain and out · protocol {scene.ood.protocol}"
    size = (1.6 + columns * max(3.6, 1.15 * widest), 0.6 + 3.3 * len(rows) * len(METRICS) / columns)
    figure = new_figure(scene, title, size)
    panels = figure.subplots(len(rows) * len(METRICS) // columns, columns, squeeze=False)
    for row, (name, tables, places) in zip(panels.reshape(len(rows), len(METRICS)), rows, strict=True):
        for axes, (key, label) in zip(row, METRICS, strict=True):
            _panel(axes, tables, places, key, scene.palette)
            label_axes(axes, "", label, name)
            axes.set_ylim(0, 104)
        legend_beside(row[columns - 1], entries=legend_entries(row))
    how = (
        "The first set is the one trained on (in domain); the others were never seen. Bars: 95% interval over "
        "patients or slides. Black ticks: what a constant map reaches; where they differ between "
        "sets, PxAP does not compare from set to set, only from method to method."
    )
    alt = "PxAP and accuracy of every method in domain and on other sets."
    return [Drawn(slug("ood", *scene.stem), "In domain and out", how, alt, figure)]


def _panel(axes: Any, tables: Sequence[Table], places: Sequence[Place], key: str, palette: Palette) -> None:
    lines_by_set: list[Mapping[Place, Line]] = [{place_of(line): line for line in table.lines} for table in tables]
    step = 0.72 / max(1, len(places))
    for index, place in enumerate(places):
        points = []
        for x, lines in enumerate(lines_by_set):
            if place in lines:
                mean, low, high = spread_of(lines[place], key)
                points.append((x + (index - (len(places) - 1) / 2) * step, mean, mean - low, high - mean))
        points = [p for p in points if not math.isnan(p[1])]
        if not points:
            continue
        line = next(lines[place] for lines in lines_by_set if place in lines)
        x, y, below, above = zip(*points, strict=True)
        look, crowded = palette.look(line), len(places) > FEW_METHODS
        if not crowded:
            axes.plot(x, y, color=look.color, linestyle=look.linestyle, linewidth=0.8, alpha=0.45)
        bars = {"markersize": 3 if crowded else 4, "linewidth": 0.7 if crowded else 1.1, "label": place.label}
        axes.errorbar(x, y, (below, above), fmt=look.marker, color=look.color, **bars)
    for x, table in enumerate(tables):
        levels = [r.chance for r in table.estimates if not math.isnan(r.chance)]
        if key == "pxap" and levels:
            axes.hlines(sum(levels) / len(levels), x - 0.42, x + 0.42, color="#000000", linewidth=1.2)
    names = [table.eval for table in tables]
    slanted = len(names) > 3
    axes.set_xticks(range(len(names)), names, rotation=20 if slanted else 0, ha="right" if slanted else "center")
    axes.set_xlim(-0.5, len(names) - 0.5)
