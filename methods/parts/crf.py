"""The dense CRF as a loss: neighbouring pixels of like colour should get the same label. Exact, on a reduced grid.

For planes S_c (probabilities of the labels) and an affinity G between all pairs of N pixels, the loss of an image is

    L = -(1 / N^2) sum_c S_c^T G S_c,   G_ij = exp(-|I_i - I_j|^2 / (2 rgb^2) - |p_i - p_j|^2 / (2 xy^2)),

pairs of a pixel with itself included; where the planes sum to 1 it is the relaxed Potts energy up to a constant. As the
mean over pairs it hardly depends on the grid. The published form is the sum over the pairs of 224x224 pixels, weighted
by 2e-9: `PUBLISHED_PAIRS` times such a weight is the weight here. Tang et al., On Regularized Losses for
Weakly-supervised CNN Segmentation, ECCV 2018; its gradient is -(2 / N^2) G S.
"""

import torch
from torch import Tensor

from ..backbones.normalisation import Statistics

SIDE = 224  # px, of the images that the published weights and distances are meant for
PUBLISHED_PAIRS = float(SIDE**2) ** 2
MOST = 2**24  # affinities formed at a time
LUMA = (0.299, 0.587, 0.114)


def dense_crf(
    probabilities: Tensor,
    images: Tensor,
    size: int = 56,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 100.0,
    *,
    statistics: Statistics,
) -> Tensor:
    """The mean loss over images, in [-1, 0].

    probabilities: (B, C, H, W) in [0, 1]. images: (B, 3, H, W) normalised by `statistics`.
    size: side of the grid to which both are averaged; smaller images are taken as they are. sigma_rgb: in 0..255.
    sigma_xy: in px of an image of 224 px; on others it is the same share of the side.
    """
    planes, colours = _reduced(probabilities, size), _reduced(_rgb(images, statistics), size)
    height, width = planes.shape[-2:]
    y = torch.arange(height, device=planes.device, dtype=planes.dtype) / (sigma_xy * height / SIDE)
    x = torch.arange(width, device=planes.device, dtype=planes.dtype) / (sigma_xy * width / SIDE)
    places = torch.stack([y[:, None].expand(-1, width), x.expand(height, -1)]).expand(len(planes), -1, -1, -1)
    features = torch.cat([colours / sigma_rgb, places], 1)
    return -agreement(features.flatten(2), planes.flatten(2)).mean()


def joint_crf(
    probabilities: Tensor,
    images: Tensor,
    partners: Tensor,
    size: int = 56,
    sigma_grey: float = 15.0,
    *,
    statistics: Statistics,
) -> Tensor:
    """As `dense_crf`, by grey value alone, over the pixels of each image and its partner's together.

    partners: (B,) index of another image of the batch, -1 for an image without one, which is left out; all -1 give 0.
    """
    paired = (partners >= 0).nonzero()[:, 0]
    if not len(paired):
        return probabilities.sum() * 0
    planes = _reduced(probabilities, size).flatten(2)
    luma = images.new_tensor(LUMA).view(1, 3, 1, 1)
    grey = (_reduced((_rgb(images, statistics) * luma).sum(1, keepdim=True), size) / sigma_grey).flatten(2)
    others = partners[paired]
    both = [torch.cat([t[paired], t[others]], 2) for t in (grey, planes)]
    return -agreement(*both).mean()


def draw_partners(labels: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) for every image another one of its class, drawn at random, -1 where there is none."""
    order = torch.randperm(len(labels), generator=generator, device=labels.device)
    partners = torch.full_like(labels, -1)
    for label in labels.unique():
        rows = order[labels[order] == label]
        if len(rows) > 1:
            partners[rows] = rows.roll(1)
    return partners


def agreement(features: Tensor, planes: Tensor) -> Tensor:
    """(1 / N^2) sum_c S_c^T G S_c of each image, (B,); G_ij = exp(-|f_i - f_j|^2 / 2).

    features: (B, F, N), no gradient. planes: (B, C, N). G is formed in parts of whole rows, never kept.
    """
    device, count = planes.device.type, planes.shape[2]
    with torch.no_grad(), torch.autocast(device, enabled=False):
        spread = _spread(features - features.mean(2, keepdim=True), planes.detach())
    value = (planes * spread).sum((1, 2))
    # The gradient of S^T G S is 2 G S, that of `value`, where G S is held fixed, is G S: so add it once more.
    return (2 * value - value.detach()) / count**2


def _spread(features: Tensor, planes: Tensor) -> Tensor:
    """G S, (B, C, N), of features (B, F, N) and planes (B, C, N)."""
    batch, count = planes.shape[0], planes.shape[2]
    half = features.square().sum(1) / 2
    smoothed = torch.empty_like(planes)
    images = max(1, MOST // count**2)
    rows = max(1, MOST // (images * count))
    for first in range(0, batch, images):
        some = slice(first, first + images)
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            exponent = torch.baddbmm(-half[some, None, :], features[some, :, part].mT, features[some])
            affinity = exponent.sub_(half[some, part, None]).clamp_(max=0).exp_()
            smoothed[some, :, part] = planes[some] @ affinity.mT
    return smoothed


def _rgb(images: Tensor, statistics: Statistics) -> Tensor:
    """Normalised images back to 0..255."""
    return (statistics.restore(images.detach()) * 255).clamp(0, 255)


def _reduced(values: Tensor, size: int) -> Tensor:
    """(B, C, H, W) averaged to sides of at most `size`, in float32 or better.

    As two products of matrices, whose gradient is deterministic on any device.
    """
    values = values if values.dtype == torch.float64 else values.float()
    with torch.autocast(values.device.type, enabled=False):
        for dim in (2, 3):
            length = values.shape[dim]
            if length > size:
                values = (values.transpose(dim, 3) @ _averaging(length, size, values).mT).transpose(dim, 3)
    return values


def _averaging(length: int, size: int, like: Tensor) -> Tensor:
    """(size, length): row k holds the share of the k-th of `size` equal parts that each of `length` pixels covers."""
    edges = torch.arange(size + 1, device=like.device, dtype=like.dtype) * (length / size)
    pixels = torch.arange(length, device=like.device, dtype=like.dtype)
    covered = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return covered.clamp(min=0) / (length / size)
