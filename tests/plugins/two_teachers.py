"""A student of two teachers as a method file of one's own: it learns where both agree."""

import torch
from torch import nn
from torch.nn import functional

from wsolbench.methods.base import Method, Need, Prediction, register


@register(
    "two-teachers", family="test", kind="prob", class_specific=False,
    needs=(Need("maps", "cam", name="first"), Need("maps", "layercam", classes="pred", name="second")),
)  # fmt: skip
class TwoTeachers(Method):
    """A pixel head that learns the product of two maps, beside an image head."""

    def __init__(self, backbone, num_classes, options):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dims[-1], num_classes)
        self.pixel_head = nn.Conv2d(backbone.dims[-1], 1, 1)

    def _pixels(self, grid):
        return self.pixel_head(grid)[:, 0]

    def loss(self, batch, context):
        grid = self.backbone.grid(batch.images)
        agreed = batch.teachers["first"] * batch.teachers["second"]
        wanted = functional.adaptive_avg_pool2d(agreed[:, None], grid.shape[2:])[:, 0]
        image = functional.cross_entropy(self.head(grid.mean((2, 3))), batch.labels)
        pixel = functional.binary_cross_entropy_with_logits(self._pixels(grid), wanted)
        return {"total": image + pixel, "image": image, "pixel": pixel}

    def predict(self, images, classes=None):
        grid = self.backbone.grid(images)
        return Prediction(self.head(grid.mean((2, 3))), torch.sigmoid(self._pixels(grid)))
