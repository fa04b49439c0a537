"""Registry of the figures of a table, of other sets and of shifts; one without data is left out with its reason."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..statistics.quality import DamageError
from .base import Drawn, NoFigureError, OodScene, Scene, ShiftScene, house_style

FIGURES = {
    "qualitative": "Maps",
    "curves": "Precision and recall",
    "threshold": "Quality against threshold",
    "score_histograms": "Score values",
    "per_image": "Image by image",
    "classes": "Class by class",
    "selection": "Checkpoint selection",
    "convergence": "Training curves",
    "cost": "Cost and quality",
}
OOD_FIGURES = {"ood": "In domain and out", "ood_classes": "Class by class", "ood_maps": "Maps"}
SHIFT_FIGURES = {"ladder": "Performance by shift"}


@dataclass
class Drawings:
    """The figures of a table, and `title: reason` for each that was left out. damaged: whether for an unusable file."""

    drawn: list[Drawn] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    damaged: bool = False


@dataclass(frozen=True)
class DrawingJob:
    """The figures of one module for one scene."""

    scene: Scene | OodScene | ShiftScene
    module: str
    title: str

    def draw(self) -> Drawings:
        """The figures, or the reason why there are none."""
        return _draw(self.scene, {self.module: self.title})


def jobs_of(scene: Scene | OodScene | ShiftScene) -> list[DrawingJob]:
    """The figure modules of a scene, in the order of the page."""
    kinds = {Scene: FIGURES, OodScene: OOD_FIGURES, ShiftScene: SHIFT_FIGURES}
    return [DrawingJob(scene, module, title) for module, title in kinds[type(scene)].items()]


def draw_figures(scene: Scene) -> Drawings:
    """The figures of a table that its data allow; a new one is a new file with `draw(scene)` and a name in FIGURES."""
    return _draw(scene, FIGURES)


def draw_ood(scene: OodScene) -> Drawings:
    """The out-of-domain figures; a new one is a new file with `draw(scene)` and a name in OOD_FIGURES."""
    return _draw(scene, OOD_FIGURES)


def draw_shifted(scene: ShiftScene) -> Drawings:
    """The figures of shifted sets; a new one is a new file with `draw(scene)` and a name in SHIFT_FIGURES."""
    return _draw(scene, SHIFT_FIGURES)


def _draw(scene: Scene | OodScene | ShiftScene, figures: Mapping[str, str]) -> Drawings:
    drawings = Drawings()
    with house_style():
        for module, title in figures.items():
            try:
                drawings.drawn += importlib.import_module(f"..figures.{module}", __package__).draw(scene)
            except NoFigureError as reason:
                drawings.missing.append(f"{title}: {reason}.")
            except DamageError as reason:  # of a row whose numbers were kept from before
                drawings.missing.append(f"{title}: {reason}")
                drawings.damaged = True
    return drawings
