"""The sandbox of a stage: methods may not read masks, and may not change the process."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..core import mask_guard
from ..planning.eval_sets import EvalSet
from ..planning.stage import AnyStage, ScoreInputs
from ..scoring.method_sandbox import method_code
from .context import StageContext


@contextlib.contextmanager
def sandbox(stages: Sequence[AnyStage], ctx: StageContext) -> Iterator[None]:
    """The block in which stages are done.

    Inside, masks of the stages' datasets are refused (core/mask_guard.py), and whatever a method does wrong becomes a
    BenchError that names it, so that its runs fail and no others.
    """
    label = ", ".join(dict.fromkeys(s.inputs.method.label for s in stages))
    manifests = [ctx.manifest(place) for place in _places(stages)]

    def masks() -> Iterable[Path]:
        items = (i for m in manifests for i in m.items)
        return (i.mask for i in items if i.mask is not None)

    with method_code(label, [s.inputs.method for s in stages]), mask_guard.watching(label, masks, ctx.store.root):
        yield


def _places(stages: Sequence[AnyStage]) -> list[EvalSet]:
    """Datasets and folds that the stages read."""
    places: dict[EvalSet, None] = {}
    for stage in stages:
        inputs = stage.inputs
        places[EvalSet(inputs.experiment.dataset, inputs.experiment.fold)] = None
        if inputs.experiment.target is not None:
            places[inputs.experiment.target] = None
        if isinstance(inputs, ScoreInputs):
            places[EvalSet(inputs.on.dataset, inputs.on.fold)] = None
            if inputs.on.stain_source:
                places[EvalSet(inputs.on.stain_source, inputs.on.stain_fold)] = None
    return list(places)
