"""Tissue mask: what is not bare glass."""

from torch import Tensor

from .base import Evidence, Options, register
from .parts.pseudo_labels import otsu

LUMA = (0.299, 0.587, 0.114)


@register(
    "tissue",
    version=1,
    family="baseline",
    kind="prob",
    supervision="none",
    backbone=(),
    class_specific=False,
    citation="Otsu, A threshold selection method from gray-level histograms, 1979",
)
def tissue(evidence: Evidence, options: Options) -> Tensor:
    """Tissue: 1 where the image is not brighter than Otsu's threshold of its 8-bit grey levels, else 0.

    An image of one grey level gives zeros. Returns (B, H, W).
    """
    weights = evidence.images.new_tensor(LUMA).view(3, 1, 1)
    grey = ((evidence.rgb * weights).sum(1) * 255).round().clamp(0, 255).long()
    levels = grey.flatten(1)
    varied = levels.amax(1) > levels.amin(1)
    return ((grey <= otsu(levels)[:, None, None]) & varied[:, None, None]).float()
