"""The base of adapters: a method that starts as a trained source model and sees unlabelled images of a target.

    @register("mine", adapts=True, needs=("source:classifier",))
    class Mine(Adapter):
        def loss(self, batch, context): return {"total": entropy(self.logits(batch.target.images))}

`self.source` is the source model, built and, as training begins, with its trained weights: a classifier, or whatever a
user names behind an @ (`mine@deepmil`). Maps, features and logits are those of the source with the weights as adapted.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .backbones.adapter import Backbone
from .base import Method, Options, Prediction

__all__ = ["Adapter"]


class Adapter(Method):
    """A method around its source model, which makes its maps; explainers can read it where they could read that."""

    def __init__(self, source: Method, num_classes: int, options: Options) -> None:
        """source: the model to adapt, which here replaces the backbone that other methods are given."""
        super().__init__()
        self.source = source
        self.num_classes, self.options = num_classes, options

    @property
    def backbone(self) -> Backbone:
        """The source's network."""
        return self.source.backbone  # pyright: ignore[reportReturnType]

    @property
    def features(self) -> Callable[[Tensor], Tensor]:
        """The source's `features`: the last grid (B, D, h, w) of images. AttributeError where it has none."""
        return self.source.features  # pyright: ignore[reportReturnType]

    @property
    def classify(self) -> Callable[[Tensor], Tensor]:
        """The source's `classify`: logits (B, K) of a grid. AttributeError where it has none."""
        return self.source.classify  # pyright: ignore[reportReturnType]

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K) of normalised images (B, 3, H, W), with gradients."""
        logits = self.source.predict(images).logits
        if logits is None:
            raise TypeError(f"'{self.source.registered_name}' predicts no logits")
        return logits

    def param_groups(self, lr: float, head_scale: float) -> list[dict[str, Any]]:
        """The groups of the source, of what trains; parameters the adapter adds learn at lr * head_scale."""
        groups = [
            {**g, "params": [p for p in g["params"] if p.requires_grad]}
            for g in self.source.param_groups(lr, head_scale)
        ]
        held = {id(p) for p in self.source.parameters()}
        own = [p for p in self.parameters() if p.requires_grad and id(p) not in held]
        groups.append({"params": own, "lr": lr * head_scale})
        return [g for g in groups if g["params"]]

    def predict(self, images: Tensor, classes: Tensor | None = None) -> Prediction:
        """Logits and maps of the source model, as adapted."""
        return self.source.predict(images, classes)
