"""Layout of histograms, the same on CPU and GPU: cells of an image, and places of a resize."""

import numpy as np
import torch
from torch import Tensor

BITS = 10  # a bin fits in so many bits, so that the next one tells foreground
CELLS = 2 << BITS  # cells of an image: 1024 of background, of which BINS are used, and as many of foreground


def axis_table(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For every place of a bilinear resize along one axis: first source index int32, weight of the next one float32.

    Pixel centres as in resize_maps. Made on the host once, so that whoever resizes on the device uses the same bits.
    """
    scale = np.float32(source) / np.float32(target)
    place = np.maximum(scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    first = np.minimum(place.astype(np.int32), source - 1)
    return torch.from_numpy(first).to(device), torch.from_numpy((place - first).astype(np.float32)).to(device)
