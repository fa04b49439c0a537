"""Constant maps: everything is foreground."""

from torch import Tensor

from .base import Evidence, Options, register


@register(
    "constant",
    version=1,
    family="baseline",
    kind="prob",
    supervision="none",
    backbone=(),
    class_specific=False,
)
def constant(evidence: Evidence, options: Options) -> Tensor:
    """Constant: every pixel is foreground with probability 1; its PxAP is the share of foreground, the chance level."""
    return evidence.images.new_ones(evidence.images[:, 0].shape)
