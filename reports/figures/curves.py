"""Pooled precision-recall curves of pixels; the area under one is its PxAP."""

from typing import Any

import numpy as np

from ...benchmark.core.metrics import Curve, Histograms, curve
from ..drawing.base import Drawn, Scene, by_backbone, label_axes, legend_beside, new_figure, slug
from ..rows.load import StoredMaps
from ..tables.aggregate import Line


def draw(scene: Scene) -> list[Drawn]:
    """One panel a backbone, one line a run. Raises NoFigureError without maps."""
    groups = by_backbone(scene.with_maps())
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    title = f"Precision and recall of pixels · {scene.table.sets}, protocol {scene.table.protocol}"
    figure = new_figure(scene, title, (6.9 * columns, 4.1 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (backbone, lines) in zip(panels, groups.items(), strict=False):
        for line in sorted(lines, key=lambda one: -np.nan_to_num(one.cells["pxap"].number, nan=-1)):
            cell = line.cells["pxap"]
            label = f"{cell.text if '±' in cell.spread else cell.value}  {line.label}"
            for run in line.estimates:
                points = pooled_curve(scene.evidence[run.evidence])
                look = {**scene.palette.look(line).line, "alpha": 1.0 if len(line.estimates) == 1 else 0.65}
                lonely = int(np.isfinite(points.precision).sum()) == 1  # a constant map has one point, no line
                look["marker"] = "o" if lonely else ""
                axes.plot(100 * points.recall, 100 * points.precision, label=label, **look)
                label = "_"  # later runs of the line share its entry
        _chance(axes, lines)
        label_axes(axes, "recall [%]", "precision [%]", f"{backbone}" if backbone != "-" else "")
        axes.set(xlim=(0, 101), ylim=(0, 101))
        legend_beside(axes, "PxAP  method")
    for axes in list(panels):
        axes.set_axis_off()
    how = (
        "Every threshold on the map is a point; pixels of all images are pooled, one line a run, or a seed whose folds "
        "are pooled. A curve further up and to the right is better. PxAP is the area under it; the dotted line is what "
        "a constant map reaches."
    )
    alt = "Precision against recall of pixels for every method."
    return [Drawn(slug("pr", *scene.stem), "Precision and recall", how, alt, figure)]


def _chance(axes: Any, lines: list[Line]) -> None:
    levels = [run.chance for line in lines for run in line.estimates if run.chance == run.chance]
    if levels:
        chance = sum(levels) / len(levels)
        axes.axhline(chance, color="#000000", linewidth=0.8, linestyle=":")
        axes.annotate(f"chance {chance:.1f}", (1, chance), (0, -10), textcoords="offset points", fontsize=8)


def pooled_curve(evidence: StoredMaps) -> Curve:
    """The threshold curve of a run."""
    return curve(Histograms(*(h[None] for h in evidence.pooled)))
