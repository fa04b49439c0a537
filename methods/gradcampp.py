"""GradCAM++ with an exact division."""

from torch import Tensor

from .base import Evidence, Options, register


@register(
    "gradcampp",
    version=1,
    family="gradient",
    kind="score",
    needs=("checkpoint:classifier",),
    citation="Chattopadhay et al., Grad-CAM++, WACV 2018",
    published={
        "glas/vgg16": 76.1, "glas/inception_v3": 65.7, "glas/resnet50": 70.7,
        "camelyon16/vgg16": 41.3, "camelyon16/inception_v3": 43.9, "camelyon16/resnet50": 25.8,
    },
)  # fmt: skip
def gradcampp(evidence: Evidence, options: Options) -> Tensor:
    """GradCAM++: channels weighted by alpha times the positive gradient, divided exactly.

    alpha = g^2 / (2 g^2 + S g^3), S the sum of the channel's activations; M = ReLU(sum_k A_k sum_p alpha ReLU(g)).
    Gradients behind mean pooling are about 1e-5, so that their powers vanish beside the constant some codes add to the
    denominator (see the numbers in the tests). Here g^2 is cancelled first: alpha = 1 / (2 + S g) where g > 0, the only
    places that count. With the plain classifier the weights are ReLU(w) / (2 + w mean A). Where signed activations make
    the denominator exactly 0, alpha is set to 0. Returns (B, h, w), not negative.
    """
    activations, gradients = evidence.activations.float(), evidence.gradients.float()
    positive = gradients.relu()
    denominator = activations.sum((2, 3), keepdim=True).mul(positive).add_(2)
    shares = positive.div_(denominator).masked_fill_(denominator == 0, 0.0)
    return evidence.weigh(shares.sum((2, 3))).relu()
