"""All figures of one table, each in its own file; what cannot be drawn is left out with its reason."""

import importlib
from dataclasses import dataclass, field

from .base import STYLE, Drawn, NoFigureError, Scene

FIGURES = {
    "qualitative": "Maps",
    "curves": "Precision and recall",
    "threshold": "Quality against threshold",
    "score_histograms": "Score values",
    "per_image": "Image by image",
    "selection": "Checkpoint selection",
    "convergence": "Training curves",
}


@dataclass
class Drawings:
    """The figures of a table, and `title: reason` for each that was left out."""

    drawn: list[Drawn] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def draw_figures(scene: Scene) -> Drawings:
    """Draws what the data allow. A new figure is a new file with `draw(scene)` and a name in FIGURES."""
    import matplotlib

    found = Drawings()
    with matplotlib.rc_context(STYLE):
        for module, title in FIGURES.items():
            try:
                found.drawn += importlib.import_module(f".{module}", __package__).draw(scene)
            except NoFigureError as reason:
                found.missing.append(f"{title}: {reason}.")
    return found
