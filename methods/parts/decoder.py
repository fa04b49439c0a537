"""Pixel decoders: from the features of a backbone to two logits a pixel, background and foreground."""

from collections.abc import Sequence

import torch.nn.functional as F
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from ..backbones.adapter import Backbone

CHANNELS = (256, 128, 64, 32, 16)


class PyramidDecoder(UnetDecoder):
    """The decoder of a U-Net on a backbone's pyramid, up to the size of the image.

    Each step enlarges by nearest neighbours to the size of the next finer level (which may be the same size, where
    strides were removed), joins it, and applies two 3x3 convolutions with BatchNorm and ReLU. The published decoders
    do the same, and end on half of the image's size, which they enlarge bilinearly. Ronneberger et al., MICCAI 2015.

    width: channels of the result.
    """

    def __init__(self, backbone: Backbone) -> None:
        dims = list(backbone.dims)
        own = backbone.strides[0] == 1  # then the image itself is not needed for its size
        channels = dims if own else [3, *dims]
        steps = len(channels) - 1
        widths = (*CHANNELS, *CHANNELS[-1:] * steps)[:steps]
        super().__init__(channels, widths, n_blocks=steps)
        self.full_size_level, self.width = own, widths[-1]

    def decode(self, images: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """Features (B, width, H, W) of images (B, 3, H, W) and their pyramid, fine to coarse."""
        return self([*levels] if self.full_size_level else [images, *levels])


def pixel_head(width: int) -> nn.Conv2d:
    """The published last layer of a U-Net decoder: a 3x3 convolution to background and foreground."""
    return nn.Conv2d(width, 2, kernel_size=3, padding=1)


def linear_head(depth: int) -> nn.Conv2d:
    """A pixel classifier on a grid of `depth` channels: one 1x1 convolution to background and foreground."""
    return nn.Conv2d(depth, 2, kernel_size=1)


def resize(logits: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear."""
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
