"""Dice and mean IoU against the threshold on the score map."""

from ..drawing.base import Drawn, Scene, by_backbone, label_axes, legend_beside, new_figure, run_of, slug
from .curves import pooled_curve

METRICS = (("dice", "Dice [%]"), ("miou", "mean IoU of foreground and background [%]"))


def draw(scene: Scene) -> list[Drawn]:
    """Two panels a backbone; the first run of every line. Raises NoFigureError without maps."""
    groups = by_backbone(scene.with_maps())
    title = f"Quality against threshold · {scene.table.sets}, protocol {scene.table.protocol}"
    figure = new_figure(scene, title, (10.4, 3.9 * len(groups)))
    panels = figure.subplots(len(groups), 2, squeeze=False, sharey=True)
    for pair, (backbone, lines) in zip(panels, groups.items(), strict=True):
        for line in lines:
            points, look, run = pooled_curve(scene.evidence[line.evidence]), scene.palette.look(line), line.first
            for axes, (name, _) in zip(pair, METRICS, strict=True):
                values = 100 * getattr(points, name)
                axes.plot(points.tau, values, label=line.label, **look.line)
                for tau, filled in ((run.tau_oracle, "white"), (run.tau_val, look.color)):
                    if tau == tau:  # NaN: no validation mask, so no dot
                        height = values[round(tau * 1000)]
                        axes.plot(tau, height, "o", color=look.color, markerfacecolor=filled, markersize=5, zorder=5)
        for axes, (_, label) in zip(pair, METRICS, strict=True):
            label_axes(axes, "threshold tau", label, backbone if backbone != "-" else "")
            axes.set(xlim=(-0.01, 1.01), ylim=(0, 101))
        legend_beside(pair[1])
    how = (
        "Full dot: tau_val, chosen on the validation masks. Hollow dot: tau_oracle, chosen on the test masks, which no "
        "fair number may use. A flat top means that the threshold hardly matters; dots far apart mean that validation "
        f"and test disagree. Shown: {run_of(scene.with_maps()[0])}."
    )
    alt = "Dice and mean IoU against the threshold for every method."
    return [Drawn(slug("threshold", *scene.stem), "Quality against threshold", how, alt, figure)]
