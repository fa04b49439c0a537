"""The plain classifier that all post-hoc explainers share: grid, mean over positions, linear layer."""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..benchmark.core.errors import BenchError
from .backbones.adapter import Backbone, param_groups
from .base import Batch, Method, Options, Prediction, TrainContext, register
from .parts.heads import make_head
from .parts.recipes import CAMELYON16_SCHEDULE, DEIT_ONE_RATE, GLAS_SCHEDULE, SURVEY_HEADS


@register(
    "classifier",
    version=1,
    family="classifier",
    kind="none",
    supervision="image",
    backbone=("grid",),
    options={"dropout": 0.1},
    selects=("cam", "gradcam", "gradcampp", "xgradcam", "layercam"),
    recipes={
        "paper": {
            "glas": {
                **GLAS_SCHEDULE, **SURVEY_HEADS, "lr": 3e-3,
                "source": "published command of CAM on ResNet50; our choice: the same lr on other backbones",
            },
            "camelyon16": {
                **CAMELYON16_SCHEDULE, **SURVEY_HEADS, "lr": 1e-3,
                "source": "published command of the surveys' source models (ResNet50); our choice: the same lr on "
                "other backbones",
            },
            **DEIT_ONE_RATE,
        }
    },
    citation="Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016",
)  # fmt: skip
class Classifier(Method):
    """Plain image classifier: global average pooling and a linear layer; no maps of its own.

    Logits are W mean_p(A_p) + b over the grid A (B, D, h, w). `dropout` drops whole channels of A in training. Methods
    that add to it inherit features, classify and the learning rates of its parameters; a method with
    another image head overrides `build_head`, and may then be the teacher of students with that head.
    """

    image_head: ClassVar[str] = "gap"

    def __init__(self, backbone: Backbone | None, num_classes: int, options: Options) -> None:
        super().__init__()
        if backbone is None:
            raise BenchError(f"Method '{self.registered_name}' needs a backbone.")
        if not 0 <= options.dropout < 1:
            raise BenchError(f"{self.registered_name}: option dropout={options.dropout} must be in [0, 1).")
        self.backbone = backbone
        self.dropout = nn.Dropout2d(options.dropout)
        self.head = self.build_head(backbone.dims[-1], num_classes, options)

    @classmethod
    def build_head(cls, depth: int, num_classes: int, options: Options) -> nn.Module:
        """A new image head, logits (B, K) from a grid (B, depth, h, w). Students of a method build theirs with it."""
        shape = {k: getattr(options, k) for k in ("width", "gated") if hasattr(options, k)}
        return make_head(cls.image_head, depth, num_classes, **shape)

    def features(self, images: Tensor) -> Tensor:
        """The last grid, (B, D, h, w)."""
        return self.backbone.grid(images)

    def classify(self, grid: Tensor) -> Tensor:
        """Logits (B, K) of a grid."""
        return self.head(self.dropout(grid))

    def param_groups(self, lr: float, head_scale: float) -> list[dict[str, Any]]:
        """The published split: heads and the backbone's fast layers at lr * head_scale."""
        return param_groups(self, self.backbone, lr, head_scale)

    def loss(self, batch: Batch, context: TrainContext) -> dict[str, Tensor]:
        """Cross-entropy of the image labels."""
        return {"total": F.cross_entropy(self.classify(self.features(batch.images)), batch.labels)}

    def predict(self, images: Tensor, classes: Tensor | None = None) -> Prediction:
        """Logits; no maps."""
        return Prediction(self.classify(self.features(images)), None)
