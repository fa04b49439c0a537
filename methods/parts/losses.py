"""Losses that several methods share."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import TrainContext
from .pseudo_labels import BACKGROUND, IGNORE, PseudoLabelRule, sample_pseudo_labels


class PseudoLabelLosses(NamedTuple):
    """What drawn pixels cost, and what images without region cost where all their pixels are background, else None."""

    pseudo: Tensor
    negative: Tensor | None


def pseudo_label_losses(
    logits: Tensor, maps: Tensor, rule: PseudoLabelRule, labels: Tensor, context: TrainContext
) -> PseudoLabelLosses:
    """Draws pixels from teacher maps (B, h, w) and scores pixel logits (B, 2, h, w) on them.

    Under `rule.negatives` "dense" the images without region have a mean of their own over all their pixels, as in that
    of the drawn pixels they would drown the few of the others; None where every class has a region.
    """
    positive = context.has_region(labels)
    drawn = sample_pseudo_labels(maps, rule, context.generator, positive, context.drawn)
    pseudo = partial_cross_entropy(logits, drawn, context)
    dense = rule.negatives == "dense" and not all(context.region_classes)
    return PseudoLabelLosses(pseudo, background_cross_entropy(logits, ~positive, context) if dense else None)


def partial_cross_entropy(logits: Tensor, labels: Tensor, context: TrainContext | None = None) -> Tensor:
    """Cross-entropy averaged over the labelled pixels of the batch; logits (B, C, h, w), labels (B, h, w), -100: none.

    Computed in float32. A batch without labelled pixels gives 0, with a gradient of 0, not NaN. context: in training,
    for a batch that several processes share.
    """
    total = F.cross_entropy(*by_pixel(logits, labels), ignore_index=IGNORE, reduction="sum")
    count = (labels != IGNORE).sum()
    return total / (count.clamp(min=1) if context is None else context.denominator(count))


def by_pixel(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, C, h, w) as float32 (B h w, C) and labels (B, h, w) as int64 (B h w,).

    The dense form of torch's cross-entropy has no deterministic sum on a GPU; the flat form has.
    """
    return logits.float().permute(0, 2, 3, 1).flatten(0, 2), labels.long().flatten()


def background_cross_entropy(logits: Tensor, chosen: Tensor, context: TrainContext | None = None) -> Tensor:
    """Cross-entropy to background averaged over all pixels of the images chosen; logits (B, C, h, w), chosen (B,) bool.

    0 if none is chosen. context: as for `partial_cross_entropy`.
    """
    labels = torch.where(chosen, BACKGROUND, IGNORE)[:, None, None].expand(-1, *logits.shape[2:])
    return partial_cross_entropy(logits, labels, context)
