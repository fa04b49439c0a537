"""EigenCAM: the first principal component of the activations, whatever the class."""

import torch
from torch import Tensor

from .base import Evidence, Options, register

BLOCK = 16  # vectors iterated together: what decides is then the ratio of the 17th eigenvalue to the first
DEGREE = 10  # multiplications between two looks at the residual; each look makes the host of a GPU wait
ROUNDS = 8
TOLERANCE = 1e-5  # residual as a share of the gap to the second eigenvalue: it bounds the angle to the true component
ROUNDING = 1e-6  # residual as a share of the eigenvalue that float32 does not get below
UNDECIDED = 1e-4  # correlation with the mean activation below which its sign says nothing


@register(
    "eigencam",
    version=1,
    family="gradient",
    kind="score",
    needs=("checkpoint:classifier",),
    class_specific=False,
    citation="Muhammad & Yeasin, Eigen-CAM, IJCNN 2020",
)
def eigencam(evidence: Evidence, options: Options) -> Tensor:
    """EigenCAM: the first principal component of the activations, whatever the class.

    M = ReLU(X v), X (n, D) the activations of an image's n positions less their mean over positions, v the direction
    of D channels along which they vary most. A component has no sign of its own: here M correlates positively with the
    mean over channels; where the two do not correlate, the value of largest size is positive. Activations that are the
    same everywhere give zeros. Returns (B, h, w), not negative.
    """
    grid = evidence.activations.float()
    points = grid.flatten(2)
    mean = points.mean(2, keepdim=True)
    centred = points - mean
    few = centred.shape[2] <= centred.shape[1]  # the Gram matrix of the smaller side: positions or channels
    side = centred.transpose(1, 2) if few else centred
    gram = torch.bmm(side, side.transpose(1, 2))
    variation = gram.diagonal(dim1=1, dim2=2).sum(1)
    size = variation + centred.shape[2] * mean.square().sum((1, 2))
    # a mean of equal values may be off by this much
    alive = variation.isfinite() & (variation > (4 * torch.finfo(torch.float32).eps) ** 2 * size)
    value, vector = leading_eigenvector((gram / variation[:, None, None]).masked_fill(~alive[:, None, None], 0.0))
    scale = (value.clamp(min=0) * variation).sqrt()[:, None]
    scores = vector * scale if few else torch.bmm(vector[:, None], centred)[:, 0]
    scores = _signed(scores, centred.mean(1)).masked_fill(~alive[:, None], 0.0)
    scores = scores + 0 * variation[:, None]  # a map of activations that are not finite says so
    return scores.relu().view(len(grid), *grid.shape[2:])


def leading_eigenvector(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues (B,) and unit eigenvectors (B, s) of positive semidefinite matrices (B, s, s), float32.

    A block of vectors is filtered, made orthogonal and rotated to Ritz vectors until the leading residual of every
    matrix is small beside the gap to the second eigenvalue; a matrix that does not get there is decomposed whole. The
    filter is a Chebyshev polynomial, small on the eigenvalues below those of the block and growing fast above. The
    block starts from fixed random numbers of a generator of its own.
    """
    count, side, _ = matrices.shape
    start = torch.randn(min(BLOCK, side), side, generator=torch.Generator().manual_seed(0))
    rows = start.to(matrices).expand(count, -1, -1) @ matrices  # vectors as rows: twice as fast as columns on a CPU
    values, rows, settled = _ritz(matrices, rows @ matrices)
    for _ in range(ROUNDS):
        values, rows, settled = _ritz(matrices, _filtered(matrices, rows, values))
        if bool(settled.all()):
            return values[:, 0], rows[:, 0]
    value, vector = values[:, 0].clone(), rows[:, 0].clone()
    every, columns = torch.linalg.eigh(matrices[~settled])
    value[~settled], vector[~settled] = every[:, -1], columns[:, :, -1]
    return value, vector


def _filtered(matrices: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """The Chebyshev polynomial of DEGREE that is at most 1 up to the smallest Ritz value, applied to rows (B, b, s)."""
    # not below a share of the largest, so that the square of the polynomial stays within float32
    cut = torch.maximum(values[:, -1], values[:, 0] * 0.1).clamp(min=torch.finfo(torch.float32).tiny)
    slope = (2 / cut)[:, None, None]
    before, now = rows, slope * (rows @ matrices) - rows
    for _ in range(DEGREE - 1):
        before, now = now, 2 * (slope * (now @ matrices) - now) - before
    return now


def _ritz(matrices: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values (B, b) and vectors (B, b, s) in the span of rows, largest first, and whether the first is settled."""
    rows = torch.linalg.qr(rows.transpose(1, 2)).Q.transpose(1, 2)
    images = rows @ matrices
    small = images @ rows.transpose(1, 2)
    values, turn = torch.linalg.eigh((small + small.transpose(1, 2)) / 2)
    values, turn = values.flip(1), turn.transpose(1, 2).flip(1)
    rows, images = turn @ rows, turn @ images
    residual = (images[:, 0] - values[:, :1] * rows[:, 0]).norm(dim=1)
    gap = values[:, 0] - values[:, 1] if values.shape[1] > 1 else values[:, 0]
    return values, rows, residual <= torch.maximum(TOLERANCE * gap, ROUNDING * values[:, 0])


def _signed(scores: Tensor, mean: Tensor) -> Tensor:
    """Scores (B, n) with the sign that eigencam's text explains; mean (B, n) is centred, as the scores are."""
    product = (scores * mean).sum(1)
    undecided = product.abs() <= UNDECIDED * scores.norm(dim=1) * mean.norm(dim=1)
    largest = scores.amax(1) + scores.amin(1)
    return torch.where((torch.where(undecided, largest, product) < 0)[:, None], -scores, scores)
