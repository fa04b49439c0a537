"""F-CAM: full-resolution maps from a decoder on a frozen classifier, with a dense CRF and a size barrier."""

from .base import register
from .parts.recipes import (
    FROZEN_ENCODER_QUICK,
    FROZEN_ENCODER_SMOKE,
    TWO_STEP_CHOICES,
    TWO_STEP_OPTIONS,
    TWO_STEP_RENAMED,
)
from .twostep import TwoStep


@register(
    "fcam",
    version=1,
    family="two-step",
    kind="prob",
    supervision="image",
    backbone=("pyramid",),
    needs=("init:{teacher}", "maps:{teacher}"),
    class_specific=False,
    options={**TWO_STEP_OPTIONS, "negatives": "skip", "lambda_crf": 2e-9, "lambda_size": 0.1},
    choices=TWO_STEP_CHOICES,
    renamed=TWO_STEP_RENAMED,
    variant="teacher",
    recipes={
        "smoke": FROZEN_ENCODER_SMOKE,
        "quick": FROZEN_ENCODER_QUICK,
        "paper": {
            "*": {
                "epochs": 50, "lr": 1e-2, "step_epochs": 15, "gamma": 0.1, "batch_size": 32, "weight_decay": 1e-4,
                "momentum": 0.9, "optimizer": "sgd", "lr_floor": 1e-6,
                "source": "published commands for natural images (SGD, lr, batch, 50 epochs, pseudo-labels, CRF, "
                "barrier); our choice: the steps of the schedule",
            },
            "glas": {
                "epochs": 1000, "step_epochs": 250,
                "source": "F-CAM's pseudo-labels, CRF, barrier and lr; our choice: NEGEV's schedule on "
                "GlaS, as F-CAM has none",
            },
            "camelyon16": {
                "epochs": 20, "step_epochs": 5,
                "source": "F-CAM's pseudo-labels, CRF, barrier and lr; our choice: the surveys' schedule, "
                "as F-CAM has none",
            },
        }
    },
    citation="Belharbi et al., F-CAM: Full Resolution Class Activation Maps, WACV 2022",
)  # fmt: skip
class FCam(TwoStep):
    """F-CAM: `twostep` with one pixel a side from Otsu's region and the darkest tenth, a dense CRF and a size barrier.

    It was published for images that all show an object; images without region of interest teach it nothing.
    """
