"""CAM: the class weights times the activations."""

from torch import Tensor

from .base import Evidence, Options, register


@register(
    "cam",
    version=1,
    family="gradient",
    kind="score",
    needs=("checkpoint:classifier",),
    citation="Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016",
    published={
        "glas/vgg16": 68.5, "glas/inception_v3": 50.5, "glas/resnet50": 64.4,
        "camelyon16/vgg16": 25.4, "camelyon16/inception_v3": 48.7, "camelyon16/resnet50": 27.5,
    },
)  # fmt: skip
def cam(evidence: Evidence, options: Options) -> Tensor:
    """CAM: class weights times activations, not rectified.

    M = sum_k w_k A_k with w_k = sum_p dlogit/dA_k(p), which behind pooling by the mean and a linear layer is that
    layer's own weight. Read off the gradient it holds for other heads as well; the bias, a constant, is left out.
    Returns (B, h, w), signed.
    """
    return evidence.weigh(evidence.gradients.float().sum((2, 3)))
