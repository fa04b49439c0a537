"""Active learning of masks as a method file of one's own: in rounds, the images its classifier is least sure of.

Settles, Active learning literature survey, 2009, section 3.1: entropy sampling.
"""

import torch
from torch.nn import functional

from wsolbench.methods.base import Prediction, register
from wsolbench.methods.classifier import Classifier


@register(
    "active-learner", family="test", kind="prob", supervision="partial", class_specific=False, rounds="rounds",
    variant="rounds", options={"dropout": 0.0, "labelled": 4, "acquire": 4, "rounds": 2},
)  # fmt: skip
class ActiveLearner(Classifier):
    """A classifier with a pixel head on its last grid, which learns from the masks that are known."""

    def __init__(self, backbone, num_classes, options):
        super().__init__(backbone, num_classes, options)
        self.pixel_head = torch.nn.Conv2d(self.backbone.dims[-1], 1, 1)

    def setup(self, context):
        if context.round > 1:
            self.load_state_dict(context.parent("previous").state_dict())

    def _pixels(self, grid):
        return self.pixel_head(grid)[:, 0]

    def loss(self, batch, context):
        grid = self.features(batch.images)
        image = functional.cross_entropy(self.classify(grid), batch.labels)
        pixels = self._pixels(grid)
        wanted = functional.adaptive_avg_pool2d(batch.masks[:, None].to(pixels.dtype), pixels.shape[1:])[:, 0]
        each = functional.binary_cross_entropy_with_logits(pixels, wanted, reduction="none").mean((1, 2))
        known = batch.has_mask.to(each.dtype)
        pixel = (each * known).sum() / context.denominator(known.sum())
        return {"total": image + pixel, "image": image, "pixel": pixel}

    def predict(self, images, classes=None):
        grid = self.features(images)
        return Prediction(self.classify(grid), self._pixels(grid).sigmoid())

    def select(self, context):
        log = context.full_pass("train").logits.log_softmax(1)
        entropy = -(log.exp() * log).sum(1)
        return (
            entropy.masked_fill(~context.candidates, -1.0)
            .argsort(descending=True, stable=True)[: context.acquire]
            .tolist()
        )
