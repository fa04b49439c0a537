"""Maximum classifier discrepancy as a method file of one's own: three optimizer steps a batch.

Saito et al., Maximum Classifier Discrepancy for Unsupervised Domain Adaptation, CVPR 2018; here both domains are the
training images.
"""

import torch
import torch.nn.functional as F
from torch import nn

from wsolbench.methods.base import Method, Prediction, Update, register


@register(
    "discrepancy", family="test", kind="score", supervision="image", backbone=("grid",), class_specific=True,
    sampling="group",
)  # fmt: skip
class Discrepancy(Method):
    """Two heads learn the labels, then to differ where they can, and the backbone leaves them no room to."""

    def __init__(self, backbone, num_classes, options):
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(nn.Conv2d(backbone.dims[-1], num_classes, 1) for _ in range(2))

    def updates(self, batch, context):
        yield Update(self.loss)
        yield Update(self.apart, self.heads.parameters())
        yield Update(self.together, self.backbone.parameters())

    def both(self, grid):
        return [head(grid).mean((2, 3)) for head in self.heads]

    def loss(self, batch, context):
        one, other = self.both(self.backbone.grid(batch.images))
        total = F.cross_entropy(one, batch.labels) + F.cross_entropy(other, batch.labels)
        return {"total": total, "image": total}

    def apart(self, batch, context):
        with torch.no_grad():
            grid = self.backbone.grid(batch.images)
        one, other = self.both(grid)
        gap = (one.softmax(1) - other.softmax(1)).abs().mean()
        return {"total": F.cross_entropy(one, batch.labels) + F.cross_entropy(other, batch.labels) - gap}

    def together(self, batch, context):
        one, other = self.both(self.backbone.grid(batch.images))
        gap = (one.softmax(1) - other.softmax(1)).abs().mean()
        return {"total": gap, "gap": gap}

    def predict(self, images, classes=None):
        grid = self.backbone.grid(images)
        maps = sum(head(grid) for head in self.heads) / 2
        logits = maps.mean((2, 3))
        asked = logits.argmax(1) if classes is None else classes
        return Prediction(logits, maps[torch.arange(len(maps), device=maps.device), asked])
