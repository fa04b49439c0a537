"""The function that does the stages of each kind: the way from a worker into a training or a pass of scoring."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core import shutdown
from ..planning.stage import TrainStage
from .context import StageContext
from .maps_stage import run_maps
from .rank_process import train_together
from .sandbox import sandbox
from .score_stage import run_scores
from .train_stage import fit, retry_of


def run_trainings(stages: Sequence[TrainStage], ctx: StageContext) -> None:
    """Trains methods one by one, with `--devices` in several processes; again with half batches if memory runs out.

    Raises Stopped with a snapshot on disk, DivergedError, and BenchError where memory does not suffice at all.
    """
    for stage in stages:
        shutdown.check()
        train = train_together if ctx.run.devices > 1 else fit
        with sandbox([stage], ctx):
            for attempt in retry_of(stage, ctx).attempts(stage.title, ctx.device):
                with attempt:
                    train(stage, ctx)


RUNNERS: Mapping[str, Callable[[Sequence[Any], StageContext], None]] = {
    "train": run_trainings,
    "maps": run_maps,
    "score": run_scores,
}
