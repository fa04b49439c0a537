"""U-Net trained on the masks: the fully supervised upper bound."""

import torch.nn.functional as F
from torch import Tensor

from .backbones.adapter import Backbone
from .base import Batch, Options, Prediction, TrainContext, register
from .classifier import Classifier
from .parts.decoder import PyramidDecoder, pixel_head
from .parts.losses import by_pixel, partial_cross_entropy
from .parts.pseudo_labels import IGNORE
from .parts.recipes import CAMELYON16_SCHEDULE, DEIT_ONE_RATE, GLAS_SCHEDULE, SURVEY_HEADS


@register(
    "unet",
    version=1,
    family="upper bound",
    kind="prob",
    supervision="pixel",
    backbone=("pyramid",),
    class_specific=False,
    options={"dropout": 0.1, "lambda_pixel": 1.0},
    recipes={
        "paper": {
            "glas": {
                **GLAS_SCHEDULE, **SURVEY_HEADS, "lr": 3e-3,
                "source": "our choice: the classifier's, as the papers train it on the same images and name no lr or "
                "schedule of its own",
            },
            "camelyon16": {
                **CAMELYON16_SCHEDULE, **SURVEY_HEADS, "lr": 1e-3,
                "source": "our choice: the classifier's, as the papers train it on the same images and name no lr or "
                "schedule of its own",
            },
            **DEIT_ONE_RATE,
        }
    },
    citation="Ronneberger et al., U-Net, MICCAI 2015",
    published={
        "glas/vgg16": 96.8, "glas/inception_v3": 95.4, "glas/resnet50": 96.4,
        "camelyon16/vgg16": 83.0, "camelyon16/inception_v3": 82.2, "camelyon16/resnet50": 83.6,
    },
)  # fmt: skip
class Unet(Classifier):
    """U-Net on the backbone's pyramid, trained with the masks; an upper bound, not a weakly supervised method.

    loss = CE(image) + lambda_pixel * CE(all annotated pixels). Maps are the probability of foreground at image size.
    """

    def __init__(self, backbone: Backbone | None, num_classes: int, options: Options) -> None:
        super().__init__(backbone, num_classes, options)
        self.decoder = PyramidDecoder(self.backbone)
        self.pixel_head = pixel_head(self.decoder.width)
        self.lambda_pixel = options.lambda_pixel

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Image logits (B, K) and pixel logits (B, 2, H, W)."""
        levels = self.backbone.pyramid(images)
        return self.classify(levels[-1]), self.pixel_head(self.decoder.decode(images, levels))

    def loss(self, batch: Batch, context: TrainContext) -> dict[str, Tensor]:
        """Losses `image`, `pixel` and their weighted sum `total`. Raises RuntimeError without masks."""
        if batch.masks is None:
            raise RuntimeError("unet learns from masks, and the batch has none")
        logits, pixels = self._logits(batch.images)
        image = F.cross_entropy(logits, batch.labels)
        if batch.ignored is None:
            pixel = F.cross_entropy(*by_pixel(pixels, batch.masks))
        else:
            pixel = partial_cross_entropy(pixels, batch.masks.long().masked_fill(batch.ignored, IGNORE), context)
        return {"total": image + self.lambda_pixel * pixel, "image": image, "pixel": pixel}

    def predict(self, images: Tensor, classes: Tensor | None = None) -> Prediction:
        """Logits of the image head, and the probability of foreground, (B, H, W), whatever class is asked for."""
        logits, pixels = self._logits(images)
        return Prediction(logits, pixels.float().softmax(1)[:, 1])
