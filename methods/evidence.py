"""What an explainer may read of a trained classifier: activations, gradients and logits of a batch, computed once."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor

from .backbones.normalisation import IMAGENET, Statistics


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


@dataclass(frozen=True)
class EvidenceSettings:
    """What all Evidence of a batch share beside its images.

    ids: names of the images, or digests of them. seed: of the run, for methods that draw. levels: pyramid levels
    announced for `taps`, those of all classes: the forward pass then keeps a graph from the shallowest on, and one
    backward pass a class gives the gradients of all. Levels not announced cost a forward and backward pass each. part:
    opens the block in which a named piece of work is done, so that it can be timed from outside. statistics: what the
    images are normalised by.
    """

    ids: Sequence[str] = ()
    seed: int = 0
    levels: Sequence[int] = ()
    part: Callable[[str], AbstractContextManager[Any]] = nullcontext
    statistics: Statistics = IMAGENET


NO_SETTINGS = EvidenceSettings()


class Evidence:
    """What an explainer may read about one batch. Everything is computed when first asked for and then shared.

    Shapes: images (B, 3, H, W) normalised; rgb (B, 3, H, W) in [0, 1]; classes (B,) the class to explain;
    logits (B, K); activations and gradients (B, D, h, w), the gradient of each image's own class logit with respect to
    the last grid, which needs a backward pass through the head alone.

    Pieces of work that can be timed (`settings.part`): `forward`, then `gradient` (through the head) and `taps` (to
    announced levels), to which `about`, a word for the classes asked, is added. used: which of them has been read,
    perhaps from memory, since it was last cleared.
    """

    def __init__(
        self,
        images: Tensor,
        classes: Tensor | None = None,
        model: Explainable | None = None,
        activations: Tensor | None = None,
        settings: EvidenceSettings = NO_SETTINGS,
    ) -> None:
        self.images, self.model, self.settings = images, model, settings
        self.ids, self.seed, self.statistics, self.about = settings.ids, settings.seed, settings.statistics, ""
        self._classes = classes
        self._levels = self._shallow(settings.levels)
        self._pass = _Pass(self._levels, activations, None, settings.part)
        self._gradients: Tensor | None = None
        self._taps: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, classes: Tensor, levels: Sequence[int] = (), about: str = "") -> "Evidence":
        """The same batch, asked about other classes; forward results are shared.

        levels: the announced levels whose gradients these classes will be asked for.
        """
        other = Evidence(self.images, classes, self.model, settings=replace(self.settings, levels=levels))
        other._pass, other.about = self._pass, f":{about}" if about else ""
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
            gradients = torch.autograd.grad(score, list(taps.values()), retain_graph=True)
        self._taps |= {index: (taps[index].detach(), gradients[k]) for k, index in enumerate(taps)}

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
