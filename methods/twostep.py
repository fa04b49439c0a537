"""Two-step localisation: a decoder on a frozen classifier learns from pixels of a teacher's maps.

The configurable family of F-CAM, NEGEV and their relatives: teacher x pixel sampler x decoder x regularisers.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..benchmark.core.errors import BenchError
from .backbones.adapter import Backbone
from .base import Batch, Options, Prediction, TrainContext, register
from .classifier import Classifier
from .parts.barrier import check_barrier, size_barrier, temperature_at
from .parts.crf import PUBLISHED_PAIRS, dense_crf, draw_partners, joint_crf
from .parts.decoder import PyramidDecoder, linear_head, pixel_head, resize
from .parts.losses import pseudo_label_losses
from .parts.pseudo_labels import PseudoLabelRule
from .parts.recipes import (
    FROZEN_ENCODER_QUICK,
    FROZEN_ENCODER_SMOKE,
    SURVEY_SGD,
    TWO_STEP_CHOICES,
    TWO_STEP_OPTIONS,
    TWO_STEP_RENAMED,
)
from .parts.teachers import student_head, teacher_model, warm_start

DECODERS = ("unet", "linear")
TERMS = ("pseudo", "negative", "crf", "joint", "size")
REGULARISERS = TERMS[2:]
SCALES = {"crf": PUBLISHED_PAIRS, "joint": 4 * PUBLISHED_PAIRS}  # what turns a mean over pairs into the published sum


@register(
    "twostep",
    version=1,
    family="two-step",
    kind="prob",
    supervision="image",
    backbone=("pyramid",),
    needs=("init:{teacher}", "maps:{teacher}"),
    class_specific=False,
    options=TWO_STEP_OPTIONS,
    choices=TWO_STEP_CHOICES,
    renamed=TWO_STEP_RENAMED,
    variant="teacher",
    recipes={
        "smoke": FROZEN_ENCODER_SMOKE,
        "quick": FROZEN_ENCODER_QUICK,
        "paper": {
            "*": {
                **SURVEY_SGD,
                "source": "our choice throughout, after F-CAM and NEGEV: no paper trains this very mixture",
            },
            "glas": {"epochs": 1000, "lr": 1e-2, "step_epochs": 250, "gamma": 0.1},
            "camelyon16": {"epochs": 20, "lr": 1e-2, "step_epochs": 5, "gamma": 0.1},
        }
    },
    citation="Belharbi et al., F-CAM, WACV 2022; Belharbi et al., NEGEV, MIDL 2022",
)  # fmt: skip
class TwoStep(Classifier):
    """Two-step: a pixel decoder on the teacher's frozen classifier, trained on pixels drawn from its maps.

    loss = lambda_pseudo * partial CE(drawn pixels) + lambda_negative * CE(background, all pixels of images without
    region; `negatives=dense`) + lambda_crf * dense CRF + lambda_joint * joint CRF + lambda_size * size barrier, each
    the mean over its own pixels or images; a weight of 0 leaves the term out. Pixels are drawn anew at every step at
    image size. The regularisers see the images with a region of interest: what the others hold is known, and the size
    barrier would ask them for foreground. CRF weights are as published, for sums over pairs at 224 px. The barrier's t
    starts at elb_start and is multiplied by elb_mu after every epoch up to elb_max.

    `freeze` keeps encoder and image head of the teacher's classifier in eval mode, so its logits stay bit for bit; if
    false both train along on CE(image). decoder: a U-Net, or one 1x1 convolution on the grid, resized. The decoder's
    parameters learn at the plain learning rate, on every backbone. Maps are the probability of foreground, (B, H, W)
    at image size, for any class.
    """

    def __init__(self, backbone: Backbone | None, num_classes: int, options: Options) -> None:
        super().__init__(backbone, num_classes, options)
        self._check(options)
        self.weights = {name: getattr(options, f"lambda_{name}") for name in TERMS}
        unused = options.negatives == "dense" and not self.weights["negative"]
        self.rule = PseudoLabelRule(
            options.sampler, options.foreground, options.background, options.area, options.erosion, options.dilation,
            options.flat_background, "skip" if unused else options.negatives,
        )  # fmt: skip
        self.crf_size = options.crf_size
        self.schedule = (options.elb_start, options.elb_max, options.elb_mu)
        self.frozen = options.freeze
        self.decoder = PyramidDecoder(self.backbone) if options.decoder == "unet" else None
        self.pixel_head = pixel_head(self.decoder.width) if self.decoder else linear_head(self.backbone.dims[-1])

    def _check(self, options: Options) -> None:
        name = self.registered_name
        if teacher_model(options.teacher) is None:
            raise BenchError(
                f"{name} builds on a trained classifier, and its teacher '{options.teacher}' has none. "
                f"Choose another with --set {name}.teacher=layercam."
            )
        if options.decoder not in DECODERS:
            raise BenchError(f"{name}: option decoder='{options.decoder}' must be one of {', '.join(DECODERS)}.")
        for weight in (f"lambda_{term}" for term in TERMS):
            if not 0 <= getattr(options, weight) < math.inf:
                raise BenchError(f"{name}: option {weight}={getattr(options, weight)} must be a number of at least 0.")
        if not options.lambda_pseudo:
            raise BenchError(f"{name}: without pseudo-labels (lambda_pseudo=0) nothing tells where the foreground is.")
        if options.crf_size < 1:
            raise BenchError(f"{name}: option crf_size={options.crf_size} must be at least 1.")
        check_barrier(options.elb_start, options.elb_max, options.elb_mu)

    @classmethod
    def build_head(cls, depth: int, num_classes: int, options: Options) -> nn.Module:
        """The teacher's image head, unless the option `head` names one."""
        return student_head(options, depth, num_classes)

    def setup(self, context: TrainContext) -> None:
        """Takes encoder and image head of the parent `init`, and freezes them if so asked.

        Raises BenchError if the parent has another backbone or another form of image head.
        """
        if "init" in context.models:
            warm_start(self, context.parent("init"), head=True)
        if self.frozen:
            for part in (self.backbone, self.head):
                part.requires_grad_(False)

    def train(self, mode: bool = True) -> "TwoStep":
        """As usual, but the frozen classifier stays in eval mode, so that its batch statistics stay too."""
        super().train(mode)
        if self.frozen:
            for part in (self.backbone, self.head, self.dropout):
                part.eval()
        return self

    def param_groups(self, lr: float, head_scale: float) -> list[dict[str, Any]]:
        """The decoder at lr; what of the classifier is trained, as in the plain classifier.

        The published codes scale decoders by 10 on VGG and Inception and not on ResNet, a side effect of how they
        tell layers apart; here every backbone has the one of ResNet.
        """
        decoder = [*(self.decoder.parameters() if self.decoder else ()), *self.pixel_head.parameters()]
        own = {id(p) for p in decoder}
        groups = [
            {**g, "params": [p for p in g["params"] if id(p) not in own]} for g in super().param_groups(lr, head_scale)
        ]
        return [g for g in [*groups, {"params": decoder, "lr": lr}] if g["params"]]

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The last grid (B, D, h, w) and pixel logits (B, 2, H, W); no graph through a frozen encoder."""
        with torch.no_grad() if self.frozen else nullcontext():
            levels = self.backbone.pyramid(images) if self.decoder else [self.features(images)]
        if self.decoder:
            return levels[-1], self.pixel_head(self.decoder.decode(images, levels))
        return levels[-1], resize(self.pixel_head(levels[-1]), images.shape[-2:])

    def loss(self, batch: Batch, context: TrainContext) -> dict[str, Tensor]:
        """`total` and the unweighted terms that are on: pseudo, negative, crf, joint, size, image.

        Raises RuntimeError without teacher maps.
        """
        if batch.maps is None:
            raise RuntimeError(f"{self.registered_name} learns from teacher maps, and the batch has none")
        grid, logits = self._logits(batch.images)
        maps = batch.maps.float()
        if maps.shape[-2:] != logits.shape[-2:]:
            maps = resize(maps[:, None], logits.shape[-2:])[:, 0]
        pseudo, negative = pseudo_label_losses(logits, maps, self.rule, batch.labels, context)
        terms = {"pseudo": pseudo}
        if negative is not None:
            terms["negative"] = negative
        if on := [term for term in REGULARISERS if self.weights[term]]:
            terms.update(self._regularisers(on, logits, batch, context))
        total = torch.stack([self.weights[t] * SCALES.get(t, 1.0) * value for t, value in terms.items()]).sum()
        if not self.frozen:
            terms["image"] = F.cross_entropy(self.classify(grid), batch.labels)
            total = total + terms["image"]
        return {"total": total, **terms}

    def _regularisers(self, on: list[str], logits: Tensor, batch: Batch, context: TrainContext) -> dict[str, Tensor]:
        """The terms that are on, over the images with a region; 0 where there is no such image."""
        images, labels = batch.images, batch.labels
        if not all(context.region_classes):
            positive = context.has_region(labels)
            logits, images, labels = logits[positive], images[positive], labels[positive]
        weight = context.weight_of(len(labels))
        if not len(labels):
            return {name: logits.sum() * 0 for name in on}
        planes, known, terms = logits.float().softmax(1), self.backbone.statistics, {}
        if "crf" in on:
            terms["crf"] = dense_crf(planes, images, self.crf_size, statistics=known)
        if "joint" in on:
            partners = draw_partners(labels, context.generator)
            terms["joint"] = joint_crf(planes, images, partners, self.crf_size, statistics=known)
        if "size" in on:
            terms["size"] = size_barrier(planes, temperature_at(context.epoch, *self.schedule))
        return terms if weight is None else {name: value * weight for name, value in terms.items()}

    def predict(self, images: Tensor, classes: Tensor | None = None) -> Prediction:
        """Logits of the classifier, and the probability of foreground, (B, H, W), whatever class is asked for."""
        grid, pixels = self._logits(images)
        return Prediction(self.classify(grid), pixels.float().softmax(1)[:, 1])
