"""Darkness of the nuclear stain: how far colour alone goes."""

import torch
from torch import Tensor

from .base import Evidence, Options, register

# Optical densities (red, green, blue) of haematoxylin, eosin and diaminobenzidine, a row each; Ruifrok & Johnston 2001.
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
FLOOR = 1e-6


@register(
    "darkness",
    version=1,
    family="baseline",
    kind="score",
    supervision="none",
    backbone=(),
    class_specific=False,
    citation="Ruifrok and Johnston, Quantification of histochemical staining by color deconvolution, 2001",
)
def darkness(evidence: Evidence, options: Options) -> Tensor:
    """Darkness: amount of haematoxylin (the blue of nuclei) by colour deconvolution, at image size.

    Optical densities -ln(rgb) are split into the three stains; negative amounts become 0. Returns (B, H, W).
    """
    unmix = torch.linalg.inv(torch.tensor(STAINS, dtype=torch.float64)).to(evidence.images)
    density = -evidence.rgb.float().clamp(min=FLOOR).log()
    return torch.einsum("bchw,c->bhw", density, unmix[:, 0].float()).clamp(min=0)
