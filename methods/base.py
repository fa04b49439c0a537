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
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from . import METHODS, register

__all__ = ["METHODS", "Batch", "Evidence", "Explainable", "Method", "Options", "Prediction", "TrainContext", "register"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Options(SimpleNamespace):
    """A method's settings as attributes, as declared by its `options=` fact."""


class Prediction(NamedTuple):
    """logits (B, K) or None; maps (B, h, w) at their native resolution, higher = more foreground, or None."""

    logits: Tensor | None
    maps: Tensor | None


@dataclass
class Batch:
    """One training batch on the device.

    images: (B, 3, H, W) float, normalised by ImageNet mean and deviation.
    labels: (B,) int64 class indices. indices: (B,) int64 rows of the training set.
    maps: (B, H, W) float in [0, 1], teacher maps cropped and flipped like the images; None without a teacher.
    masks: (B, H, W) bool ground truth; only for a method declared supervision="pixel".
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    maps: Tensor | None = None
    masks: Tensor | None = None


@dataclass
class TrainContext:
    """What training tells a method. `generator` is its own random source on the device, saved with checkpoints.

    region_classes: for every class, whether its images hold a region of interest (False for Camelyon's `normal`).
    parents: state dicts of the parents by role, e.g. parents["init"].
    """

    epoch: int
    epochs: int
    num_classes: int
    region_classes: tuple[bool, ...]
    device: torch.device
    generator: torch.Generator
    parents: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def has_region(self, labels: Tensor) -> Tensor:
        """(B,) bool: whether each image's class has a region of interest."""
        return torch.tensor(self.region_classes, device=labels.device)[labels]


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


@runtime_checkable
class Explainable(Protocol):
    """A trained method whose evidence explainers can read: logits = classify(features(images))."""

    backbone: Any

    def features(self, images: Tensor) -> Tensor:
        """The last grid of activations, (B, D, h, w)."""
        ...

    def classify(self, grid: Tensor) -> Tensor:
        """Logits (B, K) from the grid."""
        ...


class Evidence:
    """What an explainer may read about one batch. Everything is computed when first asked for and then shared.

    Shapes: images (B, 3, H, W) normalised; rgb (B, 3, H, W) in [0, 1]; classes (B,) the class to explain;
    logits (B, K); activations and gradients (B, D, h, w), the gradient of each image's own class logit with respect to
    the last grid, which needs a backward pass through the head alone.
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
    ) -> None:
        self.images, self.model, self.ids, self.seed = images, model, ids, seed
        self._activations, self._logits, self._classes = activations, logits, classes
        self._taps: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, classes: Tensor) -> "Evidence":
        """The same batch, asked about other classes; forward results are shared."""
        return Evidence(self.images, classes, self.model, self._activations, self._logits, self.ids, self.seed)

    @property
    def explained(self) -> Explainable:
        """The model. Raises RuntimeError for a baseline, which has none."""
        if self.model is None:
            raise RuntimeError("a method without needs=('checkpoint:…',) has no model to read")
        return self.model

    @cached_property
    def rgb(self) -> Tensor:
        """Images in [0, 1]."""
        mean, std = (self.images.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return (self.images * std + mean).clamp(0, 1)

    @property
    def activations(self) -> Tensor:
        """The last grid (B, D, h, w), detached."""
        if self._activations is None:
            with torch.no_grad():
                self._activations = self.explained.features(self.images)
        return self._activations

    @property
    def logits(self) -> Tensor:
        """(B, K), detached."""
        if self._logits is None:
            with torch.no_grad():
                self._logits = self.explained.classify(self.activations)
        return self._logits

    @property
    def classes(self) -> Tensor:
        """(B,) the class each map is asked for; the predicted one by default."""
        if self._classes is None:
            self._classes = self.logits.argmax(1)
        return self._classes

    @cached_property
    def gradients(self) -> Tensor:
        """d logit[class] / d activations, (B, D, h, w); parameters get no gradient."""
        with torch.enable_grad():
            grid = self.activations.detach().requires_grad_()
            return torch.autograd.grad(self._own_class(self.explained.classify(grid)).sum(), grid)[0]

    def _own_class(self, logits: Tensor) -> Tensor:
        return logits.gather(1, self.classes[:, None])[:, 0]

    def taps(self, level: int) -> tuple[Tensor, Tensor]:
        """Activations and gradients (B, D, h, w) at level `level` of the backbone's pyramid (negative from the end).

        Runs one forward and backward pass from that level on, shared by all explainers that ask for it.
        """
        if level not in self._taps:
            with torch.enable_grad():
                with self.explained.backbone.tapped(level) as tap:
                    logits = self.explained.classify(self.explained.features(self.images))
                gradients = torch.autograd.grad(self._own_class(logits).sum(), tap.value)[0]
            self._taps[level] = (tap.value.detach(), gradients)
        return self._taps[level]


Explainer = Callable[[Evidence, Options], Tensor]
