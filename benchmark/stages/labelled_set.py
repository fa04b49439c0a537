"""Methods that see some masks: which training images have theirs in a round, and which the method asks for next."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...datasets.base import Item
from ...methods.base import Method, TrainContext
from ..core.errors import BenchError
from ..core.seeds import seed_for
from ..data.image_cache import DecodeRequest, mask_request
from ..distributed.process_group import ProcessGroup
from ..planning.rounds import PREVIOUS, start_set, with_masks
from ..planning.stage import AnyStage, TrainStage
from .context import StageContext


@dataclass(frozen=True)
class LabelledSet:
    """The training images of a round, in the order of the manifest, without the masks that it may not see.

    labelled: (N,) bool, whose mask it sees. candidates: (N,) bool, whose mask it may ask for. acquire: how many it asks
    for when it is done, 0 for a method without rounds.
    """

    items: tuple[Item, ...]
    labelled: np.ndarray
    candidates: np.ndarray
    acquire: int

    def request(self, size: int) -> DecodeRequest:
        """The masks to have at hand."""
        return mask_request([i for i, seen in zip(self.items, self.labelled, strict=True) if seen], size)

    def tell(self, context: TrainContext, number: int) -> None:
        """Gives a context what methods know of their round."""
        context.round, context.acquire = number, self.acquire
        context.labelled = torch.from_numpy(self.labelled).to(context.device)
        context.candidates = torch.from_numpy(self.candidates).to(context.device)


def labelled_set(stage: AnyStage, ctx: StageContext) -> LabelledSet | None:
    """The set of a training declared supervision="partial", None for any other. Of a later round as the record of the
    round before says, which must be there."""
    inputs = stage.inputs
    method = inputs.method
    if stage.kind != "train" or method.spec.supervision != "partial":
        return None
    manifest = ctx.manifest(inputs.experiment)
    known = with_masks(manifest)
    if PREVIOUS in stage.parents:
        before = ctx.store.record(stage.parents[PREVIOUS])["round"]
        chosen = {*before["labelled"], *before["selected"]}
    else:
        chosen = set(start_set(known, int(method.options["labelled"]), inputs.experiment.seed))
    train, there = manifest.split("train"), {item.id for item in known}
    items = tuple(i if i.id in chosen else dataclasses.replace(i, mask=None, mask_rule=None) for i in train)
    labelled = np.array([i.id in chosen for i in train], bool)
    candidates = np.array([i.id in there for i in train], bool) & ~labelled
    acquire = min(int(method.options["acquire"]), int(candidates.sum())) if method.round else 0
    return LabelledSet(items, labelled, candidates, acquire)


def record_of_round(
    stage: TrainStage, ctx: StageContext, method: Method, context: TrainContext, group: ProcessGroup
) -> dict[str, Any]:
    """What a record says of a round: its number, the ids that had masks, and those the method asks for next.

    Every process asks its copy of the method, and all must say the same. Empty for methods that see all masks or none.
    """
    chosen = labelled_set(stage, ctx)
    if chosen is None:
        return {}
    rows: list[int] = []
    if chosen.acquire:
        # its own address: what training drew before, or on how many processes, makes no difference
        seed = seed_for("select", stage.inputs.experiment.seed, stage.inputs.method.round)
        torch.manual_seed(seed)
        context.generator.manual_seed(seed)
        context.epoch, context.step, context.shard = context.epochs, context.epochs * context.steps_per_epoch, None
        method.eval()
        with torch.no_grad():
            rows = _checked(method.select(context), chosen, stage)
        if any(other != rows for other in group.gather(rows)):
            raise BenchError(
                f"{stage.title}: select() gave each process other images. Draw from context.generator alone, and read "
                "images by context.full_pass."
            )
    labelled = [item.id for item, seen in zip(chosen.items, chosen.labelled, strict=True) if seen]
    selected = [chosen.items[row].id for row in rows]
    return {"round": {"number": stage.inputs.method.round, "labelled": labelled, "selected": selected}}


def _checked(answer: Any, chosen: LabelledSet, stage: TrainStage) -> list[int]:
    """The rows a method asks for. Raises BenchError where they are not as many different candidates as are due."""
    what = f"{stage.title}: select() gave"
    try:
        rows = [int(row) for row in answer]
    except (TypeError, ValueError):
        raise BenchError(f"{what} {answer!r}; rows of the training set, as whole numbers, are expected.") from None
    if len(rows) != chosen.acquire or len(set(rows)) != len(rows):
        raise BenchError(f"{what} {len(set(rows))} different rows of {len(rows)}; {chosen.acquire} are expected.")
    for row in rows:
        if not 0 <= row < len(chosen.items):
            raise BenchError(f"{what} row {row}; the training set has rows 0 to {len(chosen.items) - 1}.")
        if not chosen.candidates[row]:
            why = "it is labelled already" if chosen.labelled[row] else "its mask is not known"
            raise BenchError(f"{what} row {row}, but {why}. Choose among context.candidates.")
    return rows
