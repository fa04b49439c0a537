"""Class by class on other sets: a drop may be all in one class."""

from ..drawing.base import AwayScene, Drawn, NoFigureError, slug
from .classes import ALT, HOW, class_figure, panels_of

MAX_PANELS = 12  # rows of panels; more make a figure nobody looks at


def draw(scene: AwayScene) -> list[Drawn]:
    """One row of panels a pair of sets and backbone. Raises NoFigureError without trained methods."""
    panels = [panel for pair in scene.pairs for panel in panels_of(pair.table, several=True)]
    if not panels:
        raise NoFigureError("no trained method was scored on other sets")
    how = HOW
    if len(panels) > MAX_PANELS:
        how += f" Shown: the first {MAX_PANELS} of {len(panels)} pairs of sets and backbones; the table has them all."
    title = f"Class by class out of domain · protocol {scene.away.protocol}"
    figure = class_figure(scene, title, panels[:MAX_PANELS])
    return [Drawn(slug("ood-classes", *scene.stem), "Class by class", how, ALT, figure)]
