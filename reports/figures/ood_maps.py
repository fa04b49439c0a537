"""Score maps of example images of the out-of-domain sets, drawn as those in domain are."""

from dataclasses import replace

from ..drawing.base import Drawn, NoFigureError, OodScene
from .qualitative import draw as draw_maps

IMAGES, MAX_PAIRS = 4, 5


def draw(scene: OodScene) -> list[Drawn]:
    """Figures of maps of the first pairs of sets, with the first backbone and dozen methods.

    Raises NoFigureError if no example images are stored. The gallery of the page holds the others.
    """
    drawn: list[Drawn] = []
    for pair in scene.pairs[:MAX_PAIRS]:
        try:
            drawn += [_named(d, pair.table.sets) for d in draw_maps(pair, IMAGES, first_only=True)]
        except NoFigureError:
            continue  # other pairs may have images; without any, the reason is raised below
    if not drawn:
        raise NoFigureError("no example images are stored with these results")
    return drawn


def _named(drawn: Drawn, sets: str) -> Drawn:
    return replace(drawn, title=f"{drawn.title} · {sets}")
