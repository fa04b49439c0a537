"""NEGEV: a decoder on a frozen classifier that also learns from images known to hold nothing (negative evidence)."""

from .base import register
from .parts.recipes import (
    CAMELYON16_SCHEDULE,
    FROZEN_ENCODER_QUICK,
    FROZEN_ENCODER_SMOKE,
    GLAS_SCHEDULE,
    SURVEY_SGD,
    TWO_STEP_CHOICES,
    TWO_STEP_OPTIONS,
    TWO_STEP_RENAMED,
)
from .twostep import TwoStep


@register(
    "negev",
    version=1,
    family="two-step",
    kind="prob",
    supervision="image",
    backbone=("pyramid",),
    needs=("init:{teacher}", "maps:{teacher}"),
    class_specific=False,
    options={
        **TWO_STEP_OPTIONS, "teacher": "cam", "sampler": "prob", "foreground": 10, "background": 10, "dilation": 1,
    },
    choices=TWO_STEP_CHOICES,
    renamed=TWO_STEP_RENAMED,
    variant="teacher",
    recipes={
        "smoke": FROZEN_ENCODER_SMOKE,
        "quick": FROZEN_ENCODER_QUICK,
        "paper": {
            "*": {
                **SURVEY_SGD,
                "source": "common to all published commands",
            },
            "glas": {
                **GLAS_SCHEDULE, "lr": 0.1,
                "source": "published command for ResNet50 and CAM, which asks for 1+1 pseudo-labels of 3x3 px and by a "
                "slip of the code draws 10+10 single pixels, our default; our choice: background weights 1 - m as "
                "described (flat_background=true draws them as that code does), and the same lr on other backbones",
            },
            "camelyon16": {
                **CAMELYON16_SCHEDULE, "lr": 0.01,
                "source": "published schedule; our choice: lr, the highest of the published search {1e-4, 1e-3, 1e-2}",
            },
        }
    },
    citation="Belharbi et al., Negative Evidence Matters in Interpretable Histology Image Classification, MIDL 2022",
    published={
        "glas/vgg16": 81.3, "glas/inception_v3": 70.1, "glas/resnet50": 82.0,
        "camelyon16/vgg16": 70.3, "camelyon16/inception_v3": 53.8, "camelyon16/resnet50": 52.6,
    },
)  # fmt: skip
class Negev(TwoStep):
    """NEGEV: `twostep` with pixels drawn in proportion to the map, and images without region as all background.

    The background of those images is a term of its own with weight lambda_negative, averaged over all their pixels.
    Where every class has a region (GlaS) it is off. CRF, joint CRF and size barrier are there, and off as published.
    """
