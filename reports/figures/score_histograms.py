"""Histograms of score values in foreground and background."""

import numpy as np

from ..drawing.base import BACKGROUND, FOREGROUND, Drawn, Scene, label_axes, new_figure, run_of, slug

BARS = 50
FLOOR = 0.01  # percent: the lowest share shown on the logarithmic axis


def draw(scene: Scene) -> list[Drawn]:
    """One small panel a method; the first run of every line. Raises NoFigureError without maps."""
    lines = scene.with_maps()
    several = len({line.first.backbone for line in lines} - {"-"}) > 1
    columns = min(4, len(lines))
    rows = -(-len(lines) // columns)
    title = f"Score values · {scene.table.sets}, protocol {scene.table.protocol}"
    figure = new_figure(scene, title, (max(2.6 * columns, 6.4), 0.9 + 1.7 * rows))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    edges = np.linspace(0, 1, BARS + 1)
    for index, line in enumerate(lines):
        axes = panels.flat[index]
        foreground, background = (rebin(h) for h in scene.evidence[line.evidence].typical)
        axes.stairs(np.maximum(background, FLOOR), edges, color=BACKGROUND, fill=True, alpha=0.35, baseline=FLOOR)
        axes.stairs(
            np.maximum(background, FLOOR), edges, color=BACKGROUND, linewidth=1.0, label="background", baseline=FLOOR
        )
        axes.stairs(
            np.maximum(foreground, FLOOR), edges, color=FOREGROUND, linewidth=1.6, label="foreground", baseline=FLOOR
        )
        if line.first.tau_val == line.first.tau_val:
            axes.axvline(line.first.tau_val, color="#000000", linewidth=0.9, linestyle=":", label="tau_val")
        name = f"{line.label} · {line.first.backbone}" if several and line.first.backbone != "-" else line.label
        label_axes(axes, "", "", name)
        axes.set(xlim=(0, 1), yscale="log", ylim=(FLOOR, 130))
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
    for axes in list(panels.flat)[len(lines) :]:
        axes.set_axis_off()
    figure.supxlabel("score value", fontsize=9)
    figure.supylabel("share of pixels [%]", fontsize=9)
    handles, labels = next(a for a in panels.flat if a.get_legend_handles_labels()[0]).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=3, frameon=False)
    how = (
        "Mean over images of each image's own histogram, shown separately for pixels inside and outside the mask; the "
        "axis is logarithmic. Foreground far to the right of background makes a good map. Two peaks at 0 and 1 leave "
        f"the threshold little to decide; one peak leaves it everything. Shown: {run_of(lines[0])}."
    )
    alt = "Histograms of score values in foreground and background, one panel a method."
    return [Drawn(slug("histograms", *scene.stem), "Score values", how, alt, figure)]


def rebin(shares: np.ndarray) -> np.ndarray:
    """Shares per threshold bin summed to BARS equal bars; the bin of the value 1 joins the last. NaN becomes 0."""
    shares = np.nan_to_num(shares)
    bars = shares[:-1].reshape(BARS, -1).sum(1)
    bars[-1] += shares[-1]
    return bars
