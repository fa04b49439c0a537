"""Pseudo-labels: a few pixels picked from a teacher's map, drawn anew whenever asked for. Batched, on the device."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...benchmark.core.errors import BenchError

BACKGROUND, FOREGROUND, IGNORE = 0, 1, -100
SAMPLERS = ("otsu", "prob", "prob_area")
NEGATIVES = ("skip", "background", "dense")
LEVELS = 256


@dataclass(frozen=True)
class PseudoLabelRule:
    """How pixels are drawn from a map in [0, 1].

    sampler: `otsu`: foreground uniform in the eroded region above Otsu's threshold, background uniform in the lowest
        share `area` of the map; `prob`: foreground with weights m, background with weights 1 - m, everywhere;
        `prob_area`: as `prob`, the background only in the lowest share `area`.
    foreground, background: pixels per image. area: share of the pixels in (0, 1].
    erosion, dilation: odd sides in px of the squares that shrink Otsu's region and widen the drawn pixels (1: none).
    flat_background: published codes draw the background with weights 1 - m / sum(m), which are the same everywhere to
        a few parts in 100,000; True draws it so, uniformly. False uses 1 - m as the papers describe.
    negatives: what an image without region of interest gives: `skip` nothing, `background` background pixels drawn
        uniformly from the whole image, `dense` nothing here, as the loss takes all its pixels as background.
    """

    sampler: str = "prob_area"
    foreground: int = 5
    background: int = 5
    area: float = 0.2
    erosion: int = 11
    dilation: int = 1
    flat_background: bool = False
    negatives: str = "background"

    def __post_init__(self) -> None:
        for name, value, allowed in (("sampler", self.sampler, SAMPLERS), ("negatives", self.negatives, NEGATIVES)):
            if value not in allowed:
                raise BenchError(f"Pseudo-labels: {name}='{value}' is not one of {', '.join(allowed)}.")
        if not 0 < self.area <= 1:
            raise BenchError(f"Pseudo-labels: area={self.area} must be in (0, 1].")
        if min(self.foreground, self.background) < 0:
            raise BenchError("Pseudo-labels: numbers of pixels cannot be negative.")
        if any(side < 1 or side % 2 == 0 for side in (self.erosion, self.dilation)):
            raise BenchError("Pseudo-labels: erosion and dilation are odd numbers of pixels, 1 for none.")


Rows = Callable[[Callable[[int], Tensor], int], Tensor]  # as TrainContext.drawn


def sample_pseudo_labels(
    maps: Tensor,
    rule: PseudoLabelRule,
    generator: torch.Generator,
    positive: Tensor | None = None,
    drawn: Rows = lambda draw, count: draw(count),
) -> Tensor:
    """Draws labels (B, h, w) int64, 1 foreground, 0 background, -100 elsewhere, from maps (B, h, w) in [0, 1].

    positive: (B,) bool, images with a region of interest; all by default. drawn: `TrainContext.drawn` in training.
    Pixels claimed by both labels are ignored. A constant map tells nothing and gives no pixels. The generator lives on
    the device of the maps.
    """
    flat = maps.detach().float().clamp(0, 1).flatten(1)
    batch, shape = flat.shape[0], maps.shape
    if positive is None:
        positive = torch.ones(batch, dtype=torch.bool, device=maps.device)
    telling = positive[:, None] & (flat.amax(1, keepdim=True) > flat.amin(1, keepdim=True))
    front_weights, back_weights = _weights(flat, shape, rule)
    back_weights = back_weights * telling
    if rule.negatives == "background":
        back_weights = torch.where(positive[:, None], back_weights, 1.0)

    def race() -> Tensor:
        return drawn(lambda count: flat.new_empty(count, flat.shape[1]).exponential_(generator=generator), batch)

    front = _widen(_draw(front_weights * telling, rule.foreground, race).view(shape), rule.dilation)
    back = _widen(_draw(back_weights, rule.background, race).view(shape), rule.dilation)
    labels = torch.full(shape, IGNORE, dtype=torch.int64, device=maps.device)
    return labels.masked_fill(front & ~back, FOREGROUND).masked_fill(back & ~front, BACKGROUND)


def _weights(flat: Tensor, shape: torch.Size, rule: PseudoLabelRule) -> tuple[Tensor, Tensor]:
    """Weights (B, h*w) to draw foreground and background with."""
    back = torch.ones_like(flat) if rule.flat_background or rule.sampler == "otsu" else 1 - flat
    if rule.sampler != "prob":
        back = back * lowest(flat, rule.area)
    if rule.sampler != "otsu":
        return flat, back
    region = (flat * (LEVELS - 1)).floor()
    region = region > otsu(region.long()).clamp(1, LEVELS - 2)[:, None]
    eroded = ~_widen(~region.view(shape), rule.erosion).flatten(1)
    return torch.where(eroded.any(1, keepdim=True), eroded, region).float(), back  # a thin region is used as it is


def lowest(flat: Tensor, share: float) -> Tensor:
    """(B, N) bool: the `share` of positions with the lowest values, all ties with the last of them included."""
    count = max(1, round(share * flat.shape[1]))
    # torch's selection is the quicker one on a CPU, and on a GPU refuses to run where only deterministic code may
    edge = flat.kthvalue(count, 1, keepdim=True).values if flat.is_cpu else flat.sort(1).values[:, count - 1 : count]
    return flat <= edge


def otsu(levels: Tensor) -> Tensor:
    """Otsu's threshold (B,) int64 of each row of levels (B, N) int64 in 0..255; the upper part is what lies above it.

    The first maximum of the between-class variance over all 256 levels. A constant row gives its own level.
    Otsu, IEEE Trans. Systems, Man, and Cybernetics 1979.
    """
    batch = levels.shape[0]
    shifted = levels + LEVELS * torch.arange(batch, device=levels.device)[:, None]
    counts = torch.bincount(shifted.flatten(), minlength=LEVELS * batch).view(batch, LEVELS)
    value = torch.arange(LEVELS, device=levels.device)
    below, sums = counts.cumsum(1), (counts * value).cumsum(1)  # whole numbers: exact, and the same on any device
    above = below[:, -1:] - below
    usable = (below > 0) & (above > 0)
    means = sums.double() / below.clamp(min=1), (sums[:, -1:] - sums).double() / above.clamp(min=1)
    variance = below.double() * above.double() * (means[0] - means[1]).square()
    return torch.where(usable.any(1), torch.where(usable, variance, -1.0).argmax(1), levels[:, 0])


def _draw(weights: Tensor, count: int, exponential: Callable[[], Tensor]) -> Tensor:
    """(B, N) bool: `count` positions a row drawn without replacement, fewer where fewer have a weight above 0.

    Weight over an exponential random number, the largest win: the same law as drawing one after the other.
    """
    count = min(count, weights.shape[1])
    race = weights / exponential()
    winners = race.topk(count, 1).indices
    drawn = torch.zeros_like(weights, dtype=torch.bool).scatter(1, winners, True)
    return drawn & (weights > 0)


def _widen(mask: Tensor, side: int) -> Tensor:
    """Dilates bool masks (B, h, w) by a square; what lies outside the image adds nothing."""
    if side == 1:
        return mask
    return F.max_pool2d(mask.float()[:, None], side, stride=1, padding=side // 2)[:, 0] > 0
