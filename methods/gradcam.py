"""GradCAM: channels weighted by their mean gradient."""

from torch import Tensor

from .base import Evidence, Options, register


@register(
    "gradcam",
    version=1,
    family="gradient",
    kind="score",
    needs=("checkpoint:classifier",),
    citation="Selvaraju et al., Grad-CAM, ICCV 2017",
    published={
        "glas/vgg16": 75.7, "glas/inception_v3": 56.9, "glas/resnet50": 70.0,
        "camelyon16/vgg16": 40.2, "camelyon16/inception_v3": 34.4, "camelyon16/resnet50": 29.1,
    },
)  # fmt: skip
def gradcam(evidence: Evidence, options: Options) -> Tensor:
    """GradCAM: channels weighted by their mean gradient.

    M = ReLU(sum_k mean_p(g_k) A_k). With the plain classifier, at the last grid of n positions, ReLU(CAM) / n.
    Returns (B, h, w), not negative.
    """
    return evidence.weigh(evidence.gradients.float().mean((2, 3))).relu()
