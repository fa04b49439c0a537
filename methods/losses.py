"""Losses that several methods share."""

import torch.nn.functional as F
from torch import Tensor

from .pseudolabels import IGNORE


def partial_cross_entropy(logits: Tensor, seeds: Tensor) -> Tensor:
    """Cross-entropy averaged over the labelled pixels of the batch; logits (B, C, h, w), seeds (B, h, w), -100 ignored.

    Computed in float32. A batch without labelled pixels gives 0, with a gradient of 0, not NaN.
    """
    total = F.cross_entropy(logits.float(), seeds, ignore_index=IGNORE, reduction="sum")
    return total / (seeds != IGNORE).sum().clamp(min=1)
