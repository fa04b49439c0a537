"""Entropy minimisation on a target as a method file of one's own: the scales and shifts of norm layers learn.

Wang et al., Tent: fully test-time adaptation by entropy minimization, ICLR 2021. Here it is trained over epochs.
"""

import torch
from torch import nn

from wsolbench.methods.adapter import Adapter
from wsolbench.methods.base import register

NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Mean entropy in nats of softmax predictions, from logits (B, K)."""
    log = logits.log_softmax(1)
    return -(log.exp() * log).sum(1).mean()


@register("entropy-adapter", family="test", adapts=True, needs=("source:classifier",))
class EntropyAdapter(Adapter):
    """The source model, sure of what it says of the target; everything but the norm layers stays."""

    def setup(self, context):
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, NORMS):
                module.requires_grad_(True)

    def loss(self, batch, context):
        return {"total": entropy(self.logits(batch.target.images))}


@register(
    "aligned-adapter", family="test", adapts=True, source_images=True, needs=("source:classifier",), views=2,
    options={"weight": 0.1},
)  # fmt: skip
class AlignedAdapter(Adapter):
    """Source labels, entropy on the target, and a bank of the target's predictions from a full pass an epoch."""

    def setup(self, context):
        found = context.full_pass("target")
        self.register_buffer("bank", found.logits.softmax(1))

    def on_epoch_start(self, context):
        self.bank.copy_(context.full_pass("target").logits.softmax(1))

    def loss(self, batch, context):
        target = batch.target
        source = nn.functional.cross_entropy(self.logits(batch.images), batch.labels)
        log = [self.logits(view).log_softmax(1) for view in target.views]
        wanted = self.bank[target.indices]
        agreement = -sum((wanted * one).sum(1).mean() for one in log) / len(log)
        return {"total": source + self.options.weight * agreement, "source": source, "agreement": agreement}


@register(
    "taught-adapter", family="test", adapts=True, needs=("source:classifier", "maps(pred,target):layercam"),
)  # fmt: skip
class TaughtAdapter(Adapter):
    """Its CAM of the target's images goes towards what LayerCAM said of the predicted class before it adapted."""

    def loss(self, batch, context):
        target = batch.target
        grid = self.features(target.images)
        asked = self.classify(grid).argmax(1)
        maps = torch.einsum("bdhw,bd->bhw", grid, self.source.head.weight[asked]).sigmoid()
        size = (maps.shape[-2], maps.shape[-1])
        wanted = nn.functional.interpolate(target.maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return {"total": (maps - wanted).square().mean()}
