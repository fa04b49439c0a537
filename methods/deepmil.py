"""Deep MIL: attention over positions pools the grid, one attention map a class, and the attention is the map."""

import torch
from torch import Tensor

from ..benchmark.core.errors import BenchError
from .backbones.adapter import Backbone
from .base import Options, Prediction, register
from .classifier import Classifier
from .parts.heads import AttentionHead
from .parts.recipes import CAMELYON16_SCHEDULE, DEIT_ONE_RATE, GLAS_SCHEDULE, SURVEY_HEADS


@register(
    "deepmil",
    version=1,
    family="pooling",
    kind="score",
    supervision="image",
    backbone=("grid",),
    options={"gated": False, "width": 128, "map": "attention", "dropout": 0.1},
    choices={"map": ("attention", "evidence")},
    recipes={
        "paper": {
            "*": {
                **SURVEY_HEADS,
                "source": "the surveys' common recipe; our choice: lr, which was searched per method and not "
                "published, is the classifier's",
            },
            "glas": {**GLAS_SCHEDULE, "lr": 3e-3},
            "camelyon16": {**CAMELYON16_SCHEDULE, "lr": 1e-3},
            **DEIT_ONE_RATE,
        }
    },
    citation="Ilse et al., Attention-based Deep Multiple Instance Learning, ICML 2018",
    published={
        "glas/vgg16": 66.6, "glas/inception_v3": 61.8, "glas/resnet50": 64.7,
        "camelyon16/vgg16": 53.8, "camelyon16/inception_v3": 51.1, "camelyon16/resnet50": 57.9,
    },
)  # fmt: skip
class DeepMil(Classifier):
    """Deep MIL: attention pooling over the grid; the map is the attention of the class asked for.

    logit_c = u_c^T sum_p a_c(p) A_p + b_c with a_c the softmax over positions of w_c^T tanh(V A_p) (`gated`: times a
    sigmoid gate), V of `width` rows; loss = CE(image). map=attention gives a_c, (B, h, w), which sums to 1 on every
    image, so it can neither say "nothing here" nor tell evidence for from evidence against. map=evidence gives the
    signed a_c(p) u_c^T A_p, whose sum and b_c make the logit.
    """

    image_head = "attention"
    head: AttentionHead

    def __init__(self, backbone: Backbone | None, num_classes: int, options: Options) -> None:
        super().__init__(backbone, num_classes, options)
        if options.map not in ("attention", "evidence"):
            raise BenchError(f"deepmil: option map='{options.map}' must be attention or evidence.")
        self.map = options.map

    def predict(self, images: Tensor, classes: Tensor | None = None) -> Prediction:
        """Logits, and the map (B, h, w) of the class asked for, the predicted one by default."""
        grid = self.features(images)
        logits = self.classify(grid)
        planes = self.head.attention(grid) if self.map == "attention" else self.head.evidence(grid)
        class_of = logits.argmax(1) if classes is None else classes
        return Prediction(logits, planes[torch.arange(len(planes), device=planes.device), class_of])
