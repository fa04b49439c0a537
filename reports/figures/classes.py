"""PxAP and accuracy by class, which numbers pooled over all images hide."""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..drawing.base import (
    CLASS_COLOURS,
    Drawn,
    FigureData,
    NoFigureError,
    Scene,
    by_backbone,
    label_axes,
    new_figure,
    slug,
)
from ..tables.aggregate import Line, Table
from ..tables.detail import class_values

METRICS = (("pxap", "PxAP [%]"), ("accuracy", "accuracy of the class [%]"))
HOW = (
    "PxAP and accuracy of the images of each class alone; means over the runs. A black tick is what a constant map "
    "reaches on that class. Classes without foreground have no PxAP."
)
ALT = "Bars of PxAP and accuracy by method and class."


class Panel(NamedTuple):
    """One row of panels: a table's lines with one backbone."""

    title: str
    table: Table
    lines: Sequence[Line]


def draw(scene: Scene) -> list[Drawn]:
    """Two panels a backbone, one group of bars a method. Raises NoFigureError without trained methods."""
    panels = panels_of(scene.table, several=False)
    if not panels:
        raise NoFigureError("no trained method is in this table")
    title = f"Class by class · {scene.table.sets}, protocol {scene.table.protocol}"
    return [Drawn(slug("classes", *scene.stem), "Class by class", HOW, ALT, class_figure(scene, title, panels))]


def panels_of(table: Table, several: bool) -> list[Panel]:
    """A row a backbone of the trained methods shown; several: whether other tables stand in the same figure."""
    lines = [line for line in table.shown if not line.first.baseline]
    groups = by_backbone(lines) if lines else {}
    names = {b: " · ".join(p for p in (table.sets if several else "", b) if p not in ("", "-")) for b in groups}
    return [Panel(names[b], table, group) for b, group in groups.items()]


def class_figure(scene: FigureData, title: str, panels: Sequence[Panel]) -> Any:
    """The figure of some rows of panels."""
    longest = max(len(p.lines) for p in panels)
    figure = new_figure(scene, title, (min(22.0, max(9.0, 2.5 + 1.1 * longest)), 0.7 + 2.9 * len(panels)))
    grid = figure.subplots(len(panels), len(METRICS), squeeze=False, sharey=True)
    for row, panel in zip(grid, panels, strict=True):
        for axes, (key, label) in zip(row, METRICS, strict=True):
            _bars(axes, panel, key)
            label_axes(axes, "", label, panel.title)
            axes.set_ylim(0, 104)
        row[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return figure


def _bars(axes: Any, panel: Panel, key: str) -> None:
    classes = panel.table.rows[0].classes
    width = 0.8 / len(classes)
    for index, (name, colour) in enumerate(zip(classes, itertools.cycle(CLASS_COLOURS), strict=False)):
        at = np.arange(len(panel.lines)) + (index - (len(classes) - 1) / 2) * width
        heights = [_mean(class_values(line, index, key)) for line in panel.lines]
        axes.bar(at, np.nan_to_num(heights), width * 0.92, color=colour, label=name)
        for x, height in zip(at, heights, strict=True):
            if math.isnan(height):
                axes.text(x, 1.5, "n/a", ha="center", va="bottom", fontsize=6, color="#666666", rotation=90)
        chance = _mean([v for line in panel.lines for v in class_values(line, index, "chance")])
        if key == "pxap" and not math.isnan(chance):
            axes.hlines([chance] * len(at), at - width / 2, at + width / 2, color="#000000", linewidth=1.2)
    slanted = len(panel.lines) > 5
    names = [line.label for line in panel.lines]
    axes.set_xticks(range(len(names)), names, rotation=25 if slanted else 0, ha="right" if slanted else "center")


def _mean(values: Sequence[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return statistics.fmean(defined) if defined else math.nan
