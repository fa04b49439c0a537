"""The contract of a method: a trained `Method`, or a function of an `Evidence` (an explainer or a baseline).

A trained method is a class, registered with `@register("name", …)`:

    @register("mine", family="pooling", kind="score")
    class Mine(Method):
        def __init__(self, backbone, num_classes, options): …
        def loss(self, batch, context): return {"total": …}
        def predict(self, images, classes=None): return Prediction(logits, maps)

An explainer is a function, registered the same way, that reads one trained classifier:

    @register("mine", family="gradient", needs=("checkpoint:classifier",))
    def mine(evidence, options): return (evidence.gradients * evidence.activations).sum(1)

Only the harness loads data, trains, scales, thresholds, scores and writes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..benchmark.core.errors import BenchError
from . import METHODS, register
from .evidence import Evidence, EvidenceSettings, Explainable, is_explainable
from .needs import Need

__all__ = [
    "METHODS", "Batch", "BatchShard", "Evidence", "EvidenceSettings", "Explainable", "FullPass", "LossFunction",
    "Method", "Need", "Options", "Prediction", "TrainContext", "Update", "is_explainable", "register",
]  # fmt: skip


class Options(SimpleNamespace):
    """A method's settings as attributes, as declared by its `options=` fact."""


class Prediction(NamedTuple):
    """logits (B, K) or None; maps (B, h, w) at their native resolution, higher = more foreground, or None."""

    logits: Tensor | None
    maps: Tensor | None


@dataclass
class Batch:
    """One training batch on the device.

    images: (B, 3, H, W) float, normalised by the statistics of the backbone's weights (`backbone.statistics`).
    labels: (B,) int64 class indices. indices: (B,) int64 rows of the training set.
    maps: (B, H, W) float in [0, 1], teacher maps cropped and flipped like the images; None without a teacher, and with
        several an object that raises BenchError, saying so, whatever is done with it.
    teachers: the maps of every teacher by its name: the method's, as in needs=("maps:cam", "maps:layercam"), or the one
        given to it, as in needs=("maps@first:cam", "maps@second:cam").
    masks: (B, H, W) bool ground truth of a method declared supervision="pixel" or "partial"; for any other an object
        that raises MaskAccessError whatever is done with it.
    has_mask: (B,) bool, whose masks are known; the others are False everywhere. All of them under "pixel"; None without
        masks.
    ignored: (B, H, W) bool, pixels that count nowhere and are False in `masks`; None where the dataset ignores none,
        and for methods that see no masks.
    views: of a method declared views=N its N augmentations of every image, each like `images`, which is the first; maps
        and masks are those of the first. Else empty.
    groups: (B,) int64 of a method declared groups=True, else None: which images are of one patient or slide. Numbers
        are those of the training set, in no order.
    target: of a method declared adapts=True as many images of the target, a batch of its own with views and indices
        (rows of the target's training set); labels and masks are objects that raise whatever is done with them. A
        source-free adapter finds the target's images in the batch itself, too, likewise without labels.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    maps: Tensor | None = None
    masks: Tensor | None = None
    ignored: Tensor | None = None
    teachers: Mapping[str, Tensor] = field(default_factory=dict)
    views: tuple[Tensor, ...] = ()
    groups: Tensor | None = None
    target: "Batch | None" = None
    has_mask: Tensor | None = None


class FullPass(NamedTuple):
    """What a model says of all images of a set, in the order of its rows (those of `indices` in a batch).

    logits (N, K) and features (N, D), the mean of the last grid over positions, float32 on the device; ids: digests of
    the names of the images, for they may tell a class.
    """

    logits: Tensor
    features: Tensor
    ids: list[str]


@dataclass(frozen=True)
class BatchShard:
    """What a process holds of a batch that several processes train on together.

    total: images of the whole batch. own: which of them are here, in order, as slices. add: the sum of a tensor over
    all processes, without gradient; every process must call it equally often.
    """

    total: int
    own: tuple[slice, ...]
    add: Callable[[Tensor], Tensor]

    @property
    def count(self) -> int:
        """How many images are here."""
        return sum(s.stop - s.start for s in self.own)

    def take(self, whole: Tensor) -> Tensor:
        """The rows of these images, from rows of the whole batch (one or equally many an image, in order)."""
        each = len(whole) // self.total
        pieces = [whole[s.start * each : s.stop * each] for s in self.own]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def whole(self, rows: Tensor) -> Tensor:
        """Rows of the whole batch (one or equally many an image, in order), of which `rows` are here; no gradient."""
        each, taken = len(rows) // self.count, 0
        complete = rows.new_zeros((self.total * each, *rows.shape[1:]))
        for place in self.own:
            count = (place.stop - place.start) * each
            complete[place.start * each : place.stop * each] = rows[taken : taken + count]
            taken += count
        return self.add(complete)


@dataclass
class TrainContext:
    """What training tells a method. `generator` is its own random source on the device, saved with checkpoints.

    epoch: 1, 2, …, `epochs`; 0 in `setup`. step: training steps (batches) before this one, over all epochs: 0, 1, …; in
    `on_epoch_end` those that were done. steps_per_epoch: batches of an epoch. region_classes: for every class, whether
    its images hold a region of interest (False for Camelyon's `normal`).
    parents: state dicts of the parents by role, e.g. parents["init"]; of several with one role by role and name, e.g.
    parents["init:cam"] and parents["init:layercam"]; `parent` gives the models themselves. shard: what is here of a
    batch that several processes train on, None where this process has it all; `drawn` and `denominator` follow it.
    whole_set: what `full_pass` asks.
    round: of a method that learns in rounds, from 1 on, else 0; from 2 on parent("previous") is the model of the one
    before. labelled, candidates: (N,) bool on the device, rows whose masks this training has, and rows whose masks
    `select` may ask for; None unless the method is declared supervision="partial". acquire: how many it asks for.
    """

    epoch: int
    epochs: int
    num_classes: int
    region_classes: tuple[bool, ...]
    device: torch.device
    generator: torch.Generator
    parents: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    shard: BatchShard | None = None
    step: int = 0
    steps_per_epoch: int = 0
    whole_set: Callable[[str], FullPass] | None = field(default=None, repr=False)
    models: Mapping[str, "Method"] = field(default_factory=dict, repr=False)
    round: int = 0
    labelled: Tensor | None = None
    candidates: Tensor | None = None
    acquire: int = 0
    _regions: Tensor | None = None

    @property
    def progress(self) -> float:
        """The part of the training that is done, in [0, 1]: `step` of all steps."""
        total = self.epochs * self.steps_per_epoch
        return min(self.step / total, 1.0) if total else 0.0

    def parent(self, role: str = "init") -> "Method":
        """A parent model as it was trained, whatever its form: frozen, in eval mode, on the device.

        role: as for `parents`. The same object at every call; what should be trained is copied from it. Raises
        BenchError for a role that the method's needs do not name.
        """
        if role not in self.models:
            known = ", ".join(f"'{name}'" for name in self.models) or "none"
            raise BenchError(f"There is no parent '{role}' here (there is: {known}). Name it in needs=(\"{role}:…\",).")
        return self.models[role]

    def full_pass(self, which: Literal["train", "target"]) -> FullPass:
        """The model as it is now, over all images of the training set or the target, without gradients.

        In eval mode, which is put back afterwards, with the transforms of evaluation and in full precision; the same in
        all processes, which must all ask. It costs a scoring pass over the set: ask once an epoch, not once a step, and
        keep what must survive a stopped training in buffers. Raises BenchError for a set that training does not have.
        """
        if self.whole_set is None:
            raise BenchError("context.full_pass works in a training, which has data; here there is none.")
        return self.whole_set(which)

    def drawn(self, draw: Callable[[int], Tensor], count: int) -> Tensor:
        """Random rows for the `count` images at hand, as `draw(count)` makes them.

        Of a shared batch every process draws all and takes its own, so that one process would have drawn the same.
        """
        return draw(count) if self.shard is None else self.shard.take(draw(self.shard.total))

    def gathered(self, rows: Tensor) -> Tensor:
        """Rows of the images at hand, without gradient; of a shared batch those of all its images, in every process.

        For what a method keeps by image (a memory bank), which must be the same in all processes.
        """
        return rows.detach() if self.shard is None else self.shard.whole(rows.detach())

    def denominator(self, count: Tensor) -> Tensor:
        """What a sum over `count` things of the images at hand is divided by for their mean; 1 where there is none.

        Of a shared batch it is the count of all, scaled to the images here: the harness weighs the loss of every
        process by its images, and so arrives at the mean over the things of all.
        """
        if self.shard is None:
            return count.clamp(min=1)
        return self.shard.add(count).clamp(min=1) * (self.shard.count / self.shard.total)

    def weight_of(self, images: int) -> Tensor | None:
        """What the mean over some `images` of those at hand is multiplied by where a batch is shared, else None.

        The loss of the whole batch then is the mean over such images of all processes.
        """
        if self.shard is None:
            return None
        count = torch.full((), images, device=self.device)
        return count / self.denominator(count)

    def has_region(self, labels: Tensor) -> Tensor:
        """(B,) bool: whether each image's class has a region of interest."""
        if self._regions is None or self._regions.device != labels.device:  # uploaded once: it makes the host wait
            self._regions = torch.tensor(self.region_classes, device=labels.device)
        return self._regions[labels]


LossFunction = Callable[[Batch, TrainContext], dict[str, Tensor]]


class Update(NamedTuple):
    """One optimizer step of those that a method makes of a batch.

    losses: a function like `Method.loss`, from a batch, or a part of it, to scalar losses: "total" is minimised, all
        are logged. params: the parameters this step changes, of those given to the optimizer; None for all.
    """

    losses: LossFunction
    params: Iterable[nn.Parameter] | None = None


class Method(nn.Module, ABC):
    """A trained method. Build all parameters in __init__; `setup` then loads or freezes some of them.

    Whatever changes while it trains (an EMA copy, a memory bank) is a submodule, a parameter or a registered buffer:
    then it is in every checkpoint, and a training that was stopped goes on bit for bit.
    """

    registered_name: str = ""

    def setup(self, context: TrainContext) -> None:
        """Called once before training: warm start from `context.parents`, freezing."""

    def augment(self, batch: Batch, context: TrainContext) -> Batch:
        """Called on every training batch after the harness's own augmentation."""
        return batch

    def param_groups(self, lr: float, head_scale: float) -> list[dict[str, Any]]:
        """Optimizer groups: by default `backbone.*` at lr and everything else at lr * head_scale."""
        body = [p for n, p in self.named_parameters() if n.startswith("backbone.") and p.requires_grad]
        head = [p for n, p in self.named_parameters() if not n.startswith("backbone.") and p.requires_grad]
        groups = [{"params": body, "lr": lr}, {"params": head, "lr": lr * head_scale}]
        return [g for g in groups if g["params"]]

    def on_epoch_start(self, context: TrainContext) -> None:
        """Called before the first batch of every epoch."""

    def on_epoch_end(self, context: TrainContext) -> None:
        """Called after the last batch of every epoch."""

    def on_step_end(self, context: TrainContext) -> None:
        """Called without gradients after every training step, that is after all updates of a batch.

        `context.step` is the number of the step just done, as in its loss. For EMA teachers and memory banks; under
        `--devices` every process calls it, and must arrive at the same.
        """

    def lr_scale(self, context: TrainContext) -> float:
        """What all learning rates of this step are multiplied by, beside the schedule of the settings."""
        return 1.0

    def updates(self, batch: Batch, context: TrainContext) -> Iterator[Update]:
        """The optimizer steps of a batch, in order; by default one, of `loss`. Called once a training step.

        After each `yield` the harness computes the losses at the present weights, steps the optimizer on `params` alone
        (gradients, momentum and weight decay of others stay out), and goes on here. An update's losses are a function,
        not numbers, since a batch may be cut: for every part in turn (`train.micro_batch`, memory that ran out,
        `--devices`) the harness calls it with that part and adds up the gradients, then steps once. So the result is
        that of the whole batch where losses are means over images. What is computed between yields sees the whole batch
        of this process at once, in full precision; what it sets on the batch is cut along with it. No graph may reach
        from one update into another. Losses of one name add up over the updates of a step.
        """
        yield Update(self.loss)

    def select(self, context: TrainContext) -> Sequence[int]:
        """Rows of the training set whose masks the next round shall have: `context.acquire` of `context.candidates`.

        Asked after the last epoch of every round, the last one too, with the weights of that epoch, in eval mode and
        without gradients; every process asks, and all must say the same. By default drawn at random, the baseline of
        active learning.
        """
        if context.candidates is None:
            raise BenchError(f"Method '{self.registered_name}' is not declared to learn in rounds.")
        rows = context.candidates.nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=context.generator, device=context.generator.device)
        return rows[order[: context.acquire].to(rows.device)].tolist()

    @abstractmethod
    def loss(self, batch: Batch, context: TrainContext) -> dict[str, Tensor]:
        """Scalar losses; "total" is minimised, all are logged. Must be finite for any mix of labels."""

    @abstractmethod
    def predict(self, images: Tensor, classes: Tensor | None = None) -> Prediction:
        """Logits and maps of normalised images (B, 3, H, W); `classes` (B,) asks for a class, None for its own argmax.

        Must be deterministic in eval mode and change nothing. A class-agnostic method ignores `classes`.
        """


Explainer = Callable[[Evidence, Options], Tensor]
