"""Checkpoint selection: test PxAP against the epoch that each selection chose."""

import math
from typing import Any

import numpy as np

from ..drawing.base import Drawn, NoFigureError, Scene, label_axes, new_figure, slug
from ..rows.load import Row

SELECTIONS = (
    ("loc", "#D55E00", "o", "loc: best PxAP on validation masks"),
    ("cl", "#0072B2", "s", "cl: best validation accuracy"),
    ("last", "#777777", "^", "last epoch"),
)


def draw(scene: Scene) -> list[Drawn]:
    """One panel a backbone, one dot a run. Raises NoFigureError without weakly supervised maps."""
    runs = [
        r for r in scene.table.rows if r.epoch is not None and not math.isnan(r.pxap) and not (r.upper_bound or r.gated)
    ]
    if not runs:
        raise NoFigureError("no weakly supervised method with maps is in this table")
    backbones = sorted({r.backbone for r in runs})
    columns = min(3, len(backbones))
    rows = -(-len(backbones) // columns)
    title = f"Checkpoint selection · {scene.table.sets}, protocol {scene.table.protocol}"
    figure = new_figure(scene, title, (max(4.4 * columns, 6.9), 0.7 + 3.4 * rows))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, backbone in zip(panels.flat, backbones, strict=False):
        _panel(axes, [r for r in runs if r.backbone == backbone])
        label_axes(axes, "epoch of the checkpoint", "test PxAP [%]", backbone)
    for axes in list(panels.flat)[len(backbones) :]:
        axes.set_axis_off()
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False)
    how = (
        "Each small dot is one run of one weakly supervised method; a thin line joins the checkpoints of one run. The "
        "large dot and the dashed line are means over all runs. Where loc lies far above cl, image labels alone do not "
        "find the best checkpoint."
    )
    alt = "Test PxAP against the epoch chosen, by selection."
    return [Drawn(slug("selection", *scene.stem), "Checkpoint selection", how, alt, figure)]


def _panel(axes: Any, runs: list[Row]) -> None:
    trails: dict[tuple[str, ...], list[tuple[int, float]]] = {}
    for r in runs:
        place = (r.method, r.options, r.settings, r.map_class, str(r.fold), str(r.seed))
        trails.setdefault(place, []).append((r.epoch or 0, r.pxap))
    for trail in trails.values():
        axes.plot(*zip(*sorted(trail), strict=True), color="#CCCCCC", linewidth=0.7, zorder=1)
    for name, color, marker, label in SELECTIONS:
        points = np.array([(r.epoch, r.pxap) for r in runs if r.selection == name], float).reshape(-1, 2)
        look = {"facecolors": "none" if name == "last" else color, "edgecolors": color}  # hollow: it may lie on others
        axes.scatter(points[:, 0], points[:, 1], s=30, marker=marker, alpha=0.8, linewidths=1.1, label=label, **look)
        if len(points):
            x, y = points.mean(0)
            axes.axhline(y, color=color, linewidth=0.9, linestyle="--", zorder=0)
            axes.scatter([x], [y], s=110, color=color, marker=marker, edgecolors="#000000", zorder=4)
    axes.locator_params(axis="x", integer=True)
