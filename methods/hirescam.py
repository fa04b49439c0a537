"""HiResCAM: gradients times activations, position by position."""

from torch import Tensor

from .base import Evidence, Options, register


@register(
    "hirescam",
    version=1,
    family="gradient",
    kind="score",
    needs=("checkpoint:classifier",),
    citation="Draelos & Carin, Use HiResCAM instead of Grad-CAM for faithful explanations, 2020",
)
def hirescam(evidence: Evidence, options: Options) -> Tensor:
    """HiResCAM: gradients times activations, position by position.

    M = ReLU(sum_k g_k A_k): no gradient is averaged, so that a position is credited with its own effect on the logit.
    With the plain classifier, at the last grid of n positions, ReLU(CAM) / n. Returns (B, h, w), not negative.
    """
    return (evidence.gradients.float() * evidence.activations.float()).sum(1).relu()
