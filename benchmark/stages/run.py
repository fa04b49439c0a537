"""Doing stages, whatever their kind: the way from the scheduler into a training or a pass of scoring."""

from collections.abc import Sequence

from ..core import shutdown
from ..planning.stage import AnyStage, TrainStage
from .context import StageContext
from .maps_stage import run_maps
from .rank_process import train_together
from .sandbox import sandboxed
from .score_stage import run_scores
from .train_stage import fit, retry_of


def run_stages(stages: Sequence[AnyStage], ctx: StageContext) -> None:
    """Does stages of one kind: trainings one by one, maps and scores of one checkpoint together.

    Raises Stopped with a snapshot on disk, DivergedError, and BenchError for what a method or the data do wrong.
    """
    kind = stages[0].kind
    if kind == "train":
        for stage in stages:
            run_train(stage, ctx)
    else:
        {"maps": run_maps, "score": run_scores}[kind](stages, ctx)


@sandboxed
def run_train(stage: TrainStage, ctx: StageContext) -> None:
    """Trains a method, with `--devices` in several processes; once more with half batches if memory runs out.

    Raises Stopped with a snapshot on disk, DivergedError, and BenchError where memory does not suffice at all.
    """
    shutdown.check()
    train = train_together if ctx.run.devices > 1 else fit
    retry_of(stage, ctx).attempt(lambda: train(stage, ctx), stage.title, ctx.device)
