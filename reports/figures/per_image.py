"""PxAP of each image: pooled PxAP hides how images differ and weighs those with much foreground more."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..drawing.base import Drawn, NoFigureError, Scene, by_backbone, label_axes, new_figure, slug
from ..tables.aggregate import Line


def draw(scene: Scene) -> list[Drawn]:
    """One panel a backbone: each image's own PxAP, by method and class. Raises NoFigureError without foreground."""
    lines = [line for line in scene.with_maps() if not np.isnan(scene.evidence[line.evidence].by_image).all()]
    if not lines:
        raise NoFigureError("no image of this set has foreground")
    panels = by_backbone(lines)
    longest = max(len(group) for group in panels.values())
    title = f"Image by image · {scene.table.sets}, protocol {scene.table.protocol}"
    figure = new_figure(scene, title, (max(6.9, 1.2 + 0.85 * longest), 0.8 + 3.0 * len(panels)))
    all_axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (backbone, group) in zip(all_axes, panels.items(), strict=True):
        _panel(axes, scene, group)
        label_axes(axes, "", "PxAP of an image [%]", backbone)
        axes.tick_params(axis="x", rotation=20 if longest > 6 else 0)
    how = (
        "Each dot is one image's own PxAP, the bar is the median of its class. The table pools all pixels instead, so "
        "that an image full of foreground counts for more. A long tail below means images on which the method fails."
    )
    alt = "PxAP of every image by method and class, with medians."
    return [Drawn(slug("images", *scene.stem), "Image by image", how, alt, figure)]


def _panel(axes: Any, scene: Scene, lines: Sequence[Line]) -> None:
    import pandas as pd
    import seaborn as sns

    parts = []
    for line in lines:
        maps, row = scene.evidence[line.evidence], line.first
        classes = scene.records[row.stage]["facts"]["classes"]
        names = [classes[k] for k in maps.labels]
        parts.append(pd.DataFrame({"method": line.label, "PxAP": maps.by_image, "class": names}))
    frame = pd.concat(parts, ignore_index=True).dropna()
    order = [c for c in scene.records[lines[0].first.stage]["facts"]["classes"] if c in set(frame["class"])]
    look: dict[str, Any] = {"data": frame, "x": "method", "y": "PxAP", "hue": "class", "hue_order": order, "ax": axes}
    colours = dict(zip(order, sns.color_palette("colorblind", len(order)), strict=True))
    # The jitter of seaborn's dots is drawn from numpy's global generator: keep the picture the same every time.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    sns.stripplot(**look, palette=colours, dodge=True, size=2.6, alpha=0.55, jitter=0.18)
    np.random.set_state(state)  # noqa: NPY002
    bars: dict[str, Any] = {
        "dodge": 0.4 if len(order) > 1 else False,
        "linestyle": "none",
        "marker": "_",
        "markersize": 16,
        "markeredgewidth": 2.2,
        "legend": False,
    }
    sns.pointplot(**look, palette=colours, estimator="median", errorbar=None, **bars)
    axes.set_ylim(0, 102)
    sns.move_legend(axes, "upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, title=None)
