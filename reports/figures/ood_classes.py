"""Out-of-domain quality by class: a drop of the pooled number may come from one class alone."""

from ..drawing.base import Drawn, NoFigureError, OodScene, slug
from .classes import ALT, HOW, class_figure, panels_of

MAX_PANELS = 12  # rows of panels; with more the figure is too tall to read


def draw(scene: OodScene) -> list[Drawn]:
    """One row of panels a pair of sets and backbone. Raises NoFigureError without trained methods."""
    panels = [panel for pair in scene.pairs for panel in panels_of(pair.table, several=True)]
    if not panels:
        raise NoFigureError("no trained method was scored on other sets")
    how = HOW
    if len(panels) > MAX_PANELS:
        how += f" Shown: the first {MAX_PANELS} of {len(panels)} pairs of sets and backbones; the table has them all."
    title = f"Class by class out of domain · protocol {scene.ood.protocol}"
    figure = class_figure(scene, title, panels[:MAX_PANELS])
    return [Drawn(slug("ood-classes", *scene.stem), "Class by class", how, ALT, figure)]
