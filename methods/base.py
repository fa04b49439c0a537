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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from . import METHODS, register
from .backbones.normalisation import IMAGENET, Statistics

__all__ = [
    "METHODS", "Batch", "Evidence", "Explainable", "Method", "Options", "Prediction", "TrainContext", "is_explainable",
    "register",
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
        several.
    teachers: the maps of every teacher by its name: the method's, as in needs=("maps:cam", "maps:layercam"), or the one
        given to it, as in needs=("maps@first:cam", "maps@second:cam").
    masks: (B, H, W) bool ground truth of a method declared supervision="pixel"; for any other an object that raises
        MaskAccessError whatever is done with it.
    ignored: (B, H, W) bool, pixels that count nowhere and are False in `masks`; None where the dataset ignores none,
        and for methods that see no masks.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    maps: Tensor | None = None
    masks: Tensor | None = None
    ignored: Tensor | None = None
    teachers: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
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
        found = [whole[s.start * each : s.stop * each] for s in self.own]
        return found[0] if len(found) == 1 else torch.cat(found)


@dataclass
class TrainContext:
    """What training tells a method. `generator` is its own random source on the device, saved with checkpoints.

    region_classes: for every class, whether its images hold a region of interest (False for Camelyon's `normal`).
    parents: state dicts of the parents by role, e.g. parents["init"]; of several with one role by role and name, e.g.
    parents["init:cam"] and parents["init:layercam"]. share: what is here of a batch that several
    processes train on, None where this process has it all; `drawn` and `denominator` follow it.
    """

    epoch: int
    epochs: int
    num_classes: int
    region_classes: tuple[bool, ...]
    device: torch.device
    generator: torch.Generator
    parents: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    share: Share | None = None
    _regions: Tensor | None = None

    def drawn(self, draw: Callable[[int], Tensor], count: int) -> Tensor:
        """Random rows for the `count` images at hand, as `draw(count)` makes them.

        Of a shared batch every process draws all and takes its own, so that one process would have drawn the same.
        """
        return draw(count) if self.share is None else self.share.take(draw(self.share.total))

    def denominator(self, count: Tensor) -> Tensor:
        """What a sum over `count` things of the images at hand is divided by for their mean; 1 where there is none.

        Of a shared batch it is the count of all, scaled to the images here: the harness weighs the loss of every
        process by its images, and so arrives at the mean over the things of all.
        """
        if self.share is None:
            return count.clamp(min=1)
        return self.share.add(count).clamp(min=1) * (self.share.count / self.share.total)

    def weight_of(self, images: int) -> Tensor | None:
        """What the mean over some `images` of those at hand is multiplied by where a batch is shared, else None.

        The loss of the whole batch then is the mean over such images of all processes.
        """
        if self.share is None:
            return None
        count = torch.full((), images, device=self.device)
        return count / self.denominator(count)

    def has_region(self, labels: Tensor) -> Tensor:
        """(B,) bool: whether each image's class has a region of interest."""
        if self._regions is None or self._regions.device != labels.device:  # uploaded once: it makes the host wait
            self._regions = torch.tensor(self.region_classes, device=labels.device)
        return self._regions[labels]


class Method(nn.Module, ABC):
    """A trained method. Build all parameters in __init__; `setup` then loads or freezes some of them."""

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

    @abstractmethod
    def loss(self, batch: Batch, context: TrainContext) -> dict[str, Tensor]:
        """Scalar losses; "total" is minimised, all are logged. Must be finite for any mix of labels."""

    @abstractmethod
    def predict(self, images: Tensor, classes: Tensor | None = None) -> Prediction:
        """Logits and maps of normalised images (B, 3, H, W); `classes` (B,) asks for a class, None for its own argmax.

        Must be deterministic in eval mode and change nothing. A class-agnostic method ignores `classes`.
        """


class Explainable(Protocol):
    """A trained method whose evidence explainers can read: logits = classify(features(images)).

    Ask with `is_explainable`: from Python 3.12 on, isinstance of a Protocol does not see what a torch module keeps
    among its submodules, such as `backbone`.
    """

    backbone: Any

    def features(self, images: Tensor) -> Tensor:
        """The last grid of activations, (B, D, h, w)."""
        ...

    def classify(self, grid: Tensor) -> Tensor:
        """Logits (B, K) from the grid."""
        ...


def is_explainable(model: object) -> TypeGuard[Explainable]:
    """Whether explainers can read a model: it has a `backbone`, and methods `features` and `classify`."""
    steps = (getattr(model, name, None) for name in ("features", "classify"))
    return getattr(model, "backbone", None) is not None and all(callable(step) for step in steps)


class _Graph(NamedTuple):
    """Parts of one graph: activations by index of their pyramid level, and logits."""

    taps: Mapping[int, Tensor]
    logits: Tensor


@dataclass
class _Pass:
    """The forward pass that all Evidence of a batch share, whatever class they ask about.

    levels: indexes of the pyramid levels below the last grid whose gradients were announced; `graph` then begins at the
    shallowest of them. part and used: see Evidence.
    """

    levels: tuple[int, ...]
    activations: Tensor | None
    logits: Tensor | None
    part: Callable[[str], AbstractContextManager[Any]]
    graph: _Graph | None = None
    used: set[str] = field(default_factory=set)


class Evidence:
    """What an explainer may read about one batch. Everything is computed when first asked for and then shared.

    Shapes: images (B, 3, H, W) normalised; rgb (B, 3, H, W) in [0, 1]; classes (B,) the class to explain;
    logits (B, K); activations and gradients (B, D, h, w), the gradient of each image's own class logit with respect to
    the last grid, which needs a backward pass through the head alone.

    levels: pyramid levels announced for `taps`, those of all classes: the forward pass then keeps a graph from the
    shallowest on, and one backward pass a class gives the gradients of all. Levels not announced cost a forward and
    backward pass each. part: opens the block in which a named piece of work is done, so that
    it can be timed from outside: `forward`, then `gradient` (through the head) and `taps` (to announced levels), to
    which `about`, a word for the classes asked, is added. used: which of them has been read, perhaps from memory, since
    it was last cleared. statistics: what the images are normalised by.
    """

    def __init__(
        self,
        images: Tensor,
        classes: Tensor | None = None,
        model: Explainable | None = None,
        activations: Tensor | None = None,
        logits: Tensor | None = None,
        ids: Sequence[str] = (),
        seed: int = 0,
        levels: Sequence[int] = (),
        part: Callable[[str], AbstractContextManager[Any]] = nullcontext,
        about: str = "",
        statistics: Statistics = IMAGENET,
    ) -> None:
        self.statistics = statistics
        self.about = f":{about}" if about else ""
        self.images, self.model, self.ids, self.seed = images, model, ids, seed
        self._classes = classes
        self._levels = self._shallow(levels)
        self._pass = _Pass(self._levels, activations, logits, part)
        self._gradients: Tensor | None = None
        self._taps: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, classes: Tensor, levels: Sequence[int] = (), about: str = "") -> "Evidence":
        """The same batch, asked about other classes; forward results are shared.

        levels: the announced levels whose gradients these classes will be asked for.
        """
        other = Evidence(
            self.images, classes, self.model, ids=self.ids, seed=self.seed, about=about, statistics=self.statistics
        )
        other._pass, other._levels = self._pass, self._shallow(levels)
        return other

    def _shallow(self, levels: Sequence[int]) -> tuple[int, ...]:
        """Indexes of levels before the last grid, whose gradients are cheaper. Raises BenchError for unknown ones."""
        if not levels:
            return ()
        backbone = self.explained.backbone
        last = backbone.level_index(-1)
        return tuple(sorted({backbone.level_index(level) for level in levels} - {last}))

    @property
    def explained(self) -> Explainable:
        """The model. Raises RuntimeError for a baseline, which has none."""
        if self.model is None:
            raise RuntimeError("a method without needs=('checkpoint:…',) has no model to read")
        return self.model

    @property
    def used(self) -> set[str]:
        """Names of the shared pieces of work that have been read; the reader may clear it."""
        return self._pass.used

    @cached_property
    def rgb(self) -> Tensor:
        """Images in [0, 1]."""
        return self.statistics.restore(self.images).clamp(0, 1)

    @property
    def activations(self) -> Tensor:
        """The last grid (B, D, h, w), detached."""
        self.used.add("forward")
        if self._pass.activations is None:
            with self._pass.part("forward"):
                self._pass.activations = self._forward()
        return self._pass.activations

    @property
    def logits(self) -> Tensor:
        """(B, K), detached."""
        grid = self.activations
        if self._pass.logits is None:
            with self._pass.part("forward"), torch.no_grad():
                self._pass.logits = self.explained.classify(grid)
        return self._pass.logits

    def _forward(self) -> Tensor:
        """The grid; with announced levels also the graph from the shallowest of them to the logits."""
        levels = self._pass.levels
        if not levels:
            with torch.no_grad():
                return self.explained.features(self.images)
        with torch.enable_grad(), self.explained.backbone.tapped(*levels) as tap:
            grid = self.explained.features(self.images)
            logits = self.explained.classify(grid)
        self._pass.graph, self._pass.logits = _Graph(tap.values, logits), logits.detach()
        return grid.detach()

    @property
    def classes(self) -> Tensor:
        """(B,) the class each map is asked for; the predicted one by default."""
        if self._classes is None:
            self._classes = self.logits.argmax(1)
        return self._classes

    @property
    def gradients(self) -> Tensor:
        """d logit[class] / d activations, (B, D, h, w); parameters get no gradient."""
        self.used.update(("forward", f"gradient{self.about}"))
        if self._gradients is None:
            grid = self.activations.detach()
            with self._pass.part(f"gradient{self.about}"), torch.enable_grad():
                grid.requires_grad_()
                self._gradients = torch.autograd.grad(self._own_class(self.explained.classify(grid)).sum(), grid)[0]
        return self._gradients

    def taps(self, level: int) -> tuple[Tensor, Tensor]:
        """Activations and gradients (B, D, h, w) at level `level` of the backbone's pyramid (negative from the end).

        Shared by all explainers that ask for them.
        """
        self.used.update(("forward", f"taps{self.about}"))
        index = self.explained.backbone.level_index(level)
        if index in self._levels and index not in self._taps:
            _ = self.activations  # the forward pass that keeps the graph
            if self._pass.graph is not None:
                self._backward(self._pass.graph)
        if index not in self._taps:
            self._taps[index] = self._tap_alone(index)
        return self._taps[index]

    def _backward(self, graph: _Graph) -> None:
        """Gradients of all announced levels by one backward pass; the graph stays, for other classes to be asked."""
        with self._pass.part(f"taps{self.about}"):
            taps = {index: graph.taps[index] for index in self._levels}
            score = self._own_class(graph.logits).sum()
            found = torch.autograd.grad(score, list(taps.values()), retain_graph=True)
        self._taps |= {index: (taps[index].detach(), found[k]) for k, index in enumerate(taps)}

    def _tap_alone(self, index: int) -> tuple[Tensor, Tensor]:
        """Activations and gradients of a level nobody announced, by a forward and backward pass from that level on."""
        with self._pass.part(f"taps{self.about}"), torch.enable_grad():
            with self.explained.backbone.tapped(index) as tap:
                logits = self.explained.classify(self.explained.features(self.images))
            gradients = torch.autograd.grad(self._own_class(logits).sum(), tap.value)[0]
        return tap.value.detach(), gradients

    def weigh(self, weights: Tensor) -> Tensor:
        """sum_k w_k A_k, (B, h, w) float32, of the last grid and weights (B, D), without a temporary of its size."""
        grid = self.activations.float()
        return torch.bmm(weights.float()[:, None], grid.flatten(2)).view(len(grid), *grid.shape[2:])

    def _own_class(self, logits: Tensor) -> Tensor:
        return logits.gather(1, self.classes[:, None])[:, 0]


Explainer = Callable[[Evidence, Options], Tensor]
