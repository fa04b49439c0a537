"""Element-wise GradCAM: only channels that speak for the class, position by position."""

from torch import Tensor

from .base import Evidence, Options, register


@register(
    "gradcam_elementwise",
    version=1,
    family="gradient",
    kind="score",
    needs=("checkpoint:classifier",),
    citation="Gildenblat et al., PyTorch library for CAM methods (package grad-cam), 2021",
)
def gradcam_elementwise(evidence: Evidence, options: Options) -> Tensor:
    """Element-wise GradCAM: only channels that speak for the class, position by position.

    M = sum_k ReLU(g_k A_k), rectified before the channels are summed: evidence against the class is left out instead
    of being balanced. Where activations are not negative, the same map as LayerCAM. Returns (B, h, w), not negative.
    """
    return (evidence.gradients.float() * evidence.activations.float()).relu_().sum(1)
