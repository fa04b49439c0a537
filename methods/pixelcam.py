"""PixelCAM: a pixel classifier on the encoder's last grid, trained on pixels of a teacher's maps."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones.adapter import Backbone
from .base import Batch, Options, Prediction, TrainContext, register
from .classifier import Classifier
from .parts.decoder import linear_head, resize
from .parts.losses import pseudo_label_losses
from .parts.pseudo_labels import PseudoLabelRule
from .parts.recipes import CAMELYON16_SCHEDULE, DEIT_ONE_RATE, GLAS_SCHEDULE, SURVEY_HEADS
from .parts.teachers import has_head, student_head, warm_start


@register(
    "pixelcam",
    version=2,
    family="pixel head",
    kind="prob",
    supervision="image",
    backbone=("grid",),
    needs=("init:{teacher}", "maps:{teacher}"),
    class_specific=False,
    options={
        "teacher": "layercam", "sampler": "prob_area", "foreground": 5, "background": 5, "area": 0.2, "erosion": 11,
        "dilation": 1, "flat_background": False, "negatives": "background", "lambda_pixel": 1.0, "low_res": True,
        "freeze": False, "head": "teacher", "gated": False, "width": 128, "dropout": 0.1,
    },
    choices={
        "sampler": ("otsu", "prob", "prob_area"), "negatives": ("skip", "background", "dense"),
        "head": ("teacher", "gap", "attention"),
    },
    variant="teacher",
    recipes={
        "smoke": {
            "*": {
                "epochs": 10, "step_epochs": 8, "lr": 0.005,
                "source": "our choice: it starts as its teacher's model, which a higher rate would shake",
            }
        },
        "paper": {
            "glas": {
                **GLAS_SCHEDULE, **SURVEY_HEADS, "lr": 1e-3,
                "source": "released scripts: schedule, batch, 5+5 pixels on the grid of a LayerCAM teacher; our "
                "choice: lr, of the searched {1e-5, 1e-4, 1e-3, 1e-2}, and background weights 1 - m as described",
            },
            "camelyon16": {
                **CAMELYON16_SCHEDULE, **SURVEY_HEADS, "lr": 1e-3,
                "source": "released scripts: 20 epochs, batch, 5+5 pixels on the grid, normal patches give background "
                "pixels; our choice: lr of the searched {1e-5, 1e-4, 1e-3, 1e-2}, steps of the searched {2, 5, 8}",
            },
            **DEIT_ONE_RATE,
        }
    },
    citation="Guichemerre et al., PixelCAM, MIDL 2025 (arXiv:2503.24135)",
)  # fmt: skip
class PixelCam(Classifier):
    """PixelCAM: an image head and a pixel head (one 1x1 convolution, background and foreground) on one encoder.

    loss = CE(image) + lambda_pixel * partial CE(pixels), the pixels drawn anew at every step from the teacher's maps,
    resized to the grid (low_res) or, with the pixel logits resized instead, at image size. Images without region of
    interest give no pixels (negatives=skip), background pixels from anywhere (background, as in the published Camelyon
    runs), or all their pixels as background, a mean of its own beside that of the drawn pixels (dense). Encoder and
    image head start as the teacher's model, in its form (`head`); where the teacher has none, as any other model.
    `freeze` keeps both as they were. Maps are the pixel head's probability of foreground, (B, h, w) on the grid, for
    any class.
    """

    def __init__(self, backbone: Backbone | None, num_classes: int, options: Options) -> None:
        super().__init__(backbone, num_classes, options)
        self.pixel_head = linear_head(self.backbone.dims[-1])
        self.keeps_head = options.head == "teacher"
        self.lambda_pixel, self.low_res, self.frozen = options.lambda_pixel, options.low_res, options.freeze
        self.rule = PseudoLabelRule(
            options.sampler, options.foreground, options.background, options.area, options.erosion, options.dilation,
            options.flat_background, options.negatives,
        )  # fmt: skip

    @classmethod
    def build_head(cls, depth: int, num_classes: int, options: Options) -> nn.Module:
        """The teacher's image head, unless the option `head` names one."""
        return student_head(options, depth, num_classes)

    def setup(self, context: TrainContext) -> None:
        """Takes encoder and image head of the parent `init`, if there is one, and freezes them if so asked."""
        if "init" in context.models:
            parent = context.parent("init")
            warm_start(self, parent, head=self.keeps_head and has_head(parent))
        if self.frozen:
            for part in (self.backbone, self.head):
                part.requires_grad_(False)

    def train(self, mode: bool = True) -> "PixelCam":
        """As usual, but a frozen encoder stays in eval mode, so that its batch statistics stay too."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def loss(self, batch: Batch, context: TrainContext) -> dict[str, Tensor]:
        """Losses `image`, `pixel`, `negative` where it is on, and the weighted sum `total`.

        Raises RuntimeError without teacher maps.
        """
        if batch.maps is None:
            raise RuntimeError("pixelcam learns from teacher maps, and the batch has none")
        with torch.no_grad() if self.frozen else nullcontext():
            grid = self.features(batch.images)
        image = F.cross_entropy(self.classify(grid), batch.labels)
        logits, maps = self.pixel_head(grid), batch.maps
        if self.low_res:
            maps = resize(maps[:, None].float(), logits.shape[-2:])[:, 0]
        else:
            logits = resize(logits, maps.shape[-2:])
        pixel, negative = pseudo_label_losses(logits, maps, self.rule, batch.labels, context)
        terms = {"image": image, "pixel": pixel}
        if negative is not None:
            terms["negative"] = negative
            pixel = pixel + negative
        return {"total": image + self.lambda_pixel * pixel, **terms}

    def predict(self, images: Tensor, classes: Tensor | None = None) -> Prediction:
        """Logits of the image head, and the probability of foreground, whatever class is asked for."""
        grid = self.features(images)
        return Prediction(self.classify(grid), self.pixel_head(grid).float().softmax(1)[:, 1])
