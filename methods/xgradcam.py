"""XGradCAM: gradients averaged with the activations as weights."""

import torch
from torch import Tensor

from .base import Evidence, Options, register


@register(
    "xgradcam",
    version=1,
    family="gradient",
    kind="score",
    needs=("checkpoint:classifier",),
    citation="Fu et al., Axiom-based Grad-CAM, BMVC 2020",
    published={
        "glas/vgg16": 73.7, "glas/inception_v3": 66.4, "glas/resnet50": 62.6,
        "camelyon16/vgg16": 40.2, "camelyon16/inception_v3": 33.0, "camelyon16/resnet50": 24.4,
    },
)  # fmt: skip
def xgradcam(evidence: Evidence, options: Options) -> Tensor:
    """XGradCAM: channels weighted by their gradient, averaged with the activations as weights.

    M = ReLU(sum_k A_k sum_p(g_k A_k) / sum_p A_k); a channel that sums to 0 has no weight. With the plain classifier,
    at the last grid, the same map as GradCAM. Returns (B, h, w), not negative.
    """
    activations, gradients = evidence.activations.float(), evidence.gradients.float()
    total = activations.sum((2, 3))
    alive = total != 0
    weights = torch.where(alive, (gradients * activations).sum((2, 3)) / torch.where(alive, total, 1.0), 0.0)
    return evidence.weigh(weights).relu()
