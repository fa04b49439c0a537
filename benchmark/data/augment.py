"""Training augmentation in batches on the device: random crop, flips, colour jitter, as the published pipelines do.

Random numbers are drawn on the CPU from an address (seed, epoch, step), so a GPU run sees the same crops and a resumed
run the same as an uninterrupted one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.backbones.normalisation import Statistics
from ..planning.config import TrainConfig
from .prefetch import constant, upload

_LUMA = (0.299, 0.587, 0.114)


class Draw(NamedTuple):
    """Random draws of a batch: crop corners and flips (B,), jitter (B, 4), the order of the colour operations.

    It must be on the device of what it is applied to.
    """

    top: Tensor
    left: Tensor
    flip_x: Tensor
    flip_y: Tensor
    colour: Tensor
    order: tuple[int, ...]

    def to(self, device: torch.device) -> "Draw":
        """The same on a device, without making the host wait."""
        top, left, flip_x, flip_y, colour = (upload(t, device) for t in self[:5])
        return Draw(top, left, flip_x, flip_y, colour, self.order)

    def of(self, own: Sequence[slice]) -> "Draw":
        """Draws of some images of the batch, given as slices of it."""
        if len(own) == 1 and own[0] == slice(0, len(self.top)):
            return self
        top, left, flip_x, flip_y, colour = (torch.cat([t[s] for s in own]) for t in self[:5])
        return Draw(top, left, flip_x, flip_y, colour, self.order)


def draw(count: int, config: TrainConfig, generator: torch.Generator) -> Draw:
    """Draws the augmentation of `count` images on the CPU."""
    slack = config.load_size - config.image_size + 1
    top, left = (torch.randint(slack, (count,), generator=generator) for _ in range(2))
    flips = torch.rand(2, count, generator=generator) < (0.5 if config.flip else 0.0)
    spread = constant(config.jitter, torch.device("cpu"))
    colour = torch.rand(count, 4, generator=generator) * 2 * spread - spread
    colour[:, :3] = (colour[:, :3] + 1).clamp_min(0)
    order = tuple(torch.randperm(4, generator=generator).tolist())
    return Draw(top, left, flips[0], flips[1], colour, order)


def crop(pixels: Tensor, drawn: Draw, size: int) -> Tensor:
    """Crops and flips (B, L, L, …) to (B, size, size, …) with one gather; exact for masks and uint8 images."""
    rows, columns = (_positions(c, f, size) for c, f in ((drawn.top, drawn.flip_y), (drawn.left, drawn.flip_x)))
    batch = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    return pixels[batch, rows[:, :, None], columns[:, None, :]]


def _positions(corner: Tensor, flipped: Tensor, size: int) -> Tensor:
    steps = torch.arange(size, device=corner.device)
    return corner[:, None] + torch.where(flipped[:, None], steps.flip(0), steps)


def crop_maps(maps: Tensor, drawn: Draw, config: TrainConfig) -> Tensor:
    """Samples teacher maps (B, h, w) of whole images at the pixels of the crops, bilinear: (B, size, size)."""
    size, whole = config.image_size, config.load_size
    height, width = maps.shape[-2:]
    # Pixel centres of the crop in the whole image, in [-1, 1] as align_corners=False has them.
    y, x = (
        (_positions(c, f, size).float() + 0.5) / whole * 2 - 1
        for c, f in ((drawn.top, drawn.flip_y), (drawn.left, drawn.flip_x))
    )
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1)
    sampled = F.grid_sample(maps.reshape(-1, 1, height, width), grid, "bilinear", "border", align_corners=False)
    return sampled[:, 0]


def normalise(pixels: Tensor, statistics: Statistics) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W), normalised by the mean and deviation of what reads them."""
    return statistics.normalise(pixels.permute(0, 3, 1, 2).float().div_(255))


def augment(pixels: Tensor, drawn: Draw, config: TrainConfig, statistics: Statistics) -> Tensor:
    """uint8 (B, L, L, 3) -> normalised float crops (B, 3, size, size) with flips and colour jitter."""
    images = crop(pixels, drawn, config.image_size).permute(0, 3, 1, 2).float().div_(255)
    if any(config.jitter):
        operations = (_brightness, _contrast, _saturation, _hue)
        for k in drawn.order:
            if config.jitter[k]:
                images = operations[k](images, drawn.colour[:, k].view(-1, 1, 1, 1))
    return statistics.normalise(images)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return images.mul_(factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    return images.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(images)
    return images.mul_(factor).add_(grey * (1 - factor)).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    r, g, b = images.unbind(1)
    return (r * _LUMA[0]).add_(g, alpha=_LUMA[1]).add_(b, alpha=_LUMA[2]).unsqueeze_(1)


def _hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by a share of the full circle, in HSV space."""
    value, arg = images.max(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    following, before = (images.gather(1, (arg + k) % 3) for k in (1, 2))
    # The hue in sixths of the circle: 0, 2 or 4 for a red, green or blue maximum, plus the lead of the next channel.
    hue = 2 * arg + (following - before) / chroma.clamp_min(1e-8) + 6 * shift
    channels = constant((5.0, 3.0, 1.0), images.device).view(1, 3, 1, 1)
    k = (channels + hue) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)
