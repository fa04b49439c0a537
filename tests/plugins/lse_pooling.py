"""A user's own pooling: log-sum-exp over the positions of the grid, between mean (r near 0) and maximum (r large).

Pinheiro and Collobert, From Image-level to Pixel-level Labeling with Convolutional Networks, CVPR 2015, equation 2.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from wsolbench.methods.base import Options, Prediction, register
from wsolbench.methods.classifier import Classifier


class LseHead(nn.Linear):
    """Logits (B, K) = log(mean_p exp(r * v_p)) / r of the votes v = W A_p + b of a grid A (B, D, h, w)."""

    def __init__(self, depth: int, num_classes: int, r: float) -> None:
        super().__init__(depth, num_classes)
        self.r = r

    def votes(self, grid: Tensor) -> Tensor:
        """Votes (B, K, h, w)."""
        return torch.einsum("kd,bdhw->bkhw", self.weight, grid) + self.bias[:, None, None]

    def forward(self, grid: Tensor) -> Tensor:
        """Logits (B, K)."""
        votes = self.votes(grid).flatten(2)
        return (torch.logsumexp(self.r * votes, 2) - math.log(votes.shape[2])) / self.r


@register(
    "lse_pooling", version=1, family="pooling", kind="score", supervision="image", backbone=("grid",),
    options={"dropout": 0.1, "r": 4.0},
)  # fmt: skip
class LsePooling(Classifier):
    """Log-sum-exp pooling; maps are the votes of the class asked for."""

    @classmethod
    def build_head(cls, depth: int, num_classes: int, options: Options) -> nn.Module:
        """The head, which students of this method build as well."""
        return LseHead(depth, num_classes, options.r)

    def predict(self, images: Tensor, classes: Tensor | None = None) -> Prediction:
        """Logits, and the votes (B, h, w) of the classes asked for, by default the predicted ones."""
        grid = self.features(images)
        logits, head = self.classify(grid), self.head
        asked = logits.argmax(1) if classes is None else classes
        votes: Any = head.votes(grid)
        return Prediction(logits, votes[torch.arange(len(votes), device=votes.device), asked])
