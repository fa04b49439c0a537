"""The extended log-barrier, which makes a constraint f <= 0 a smooth loss, and the size term built on it."""

import math

import torch
from torch import Tensor

from ...benchmark.core.errors import BenchError


def log_barrier(values: Tensor, temperature: float) -> Tensor:
    """psi_t(f), elementwise: -log(-f) / t where f <= -1 / t^2, else its tangent t f - log(1 / t^2) / t + 1 / t.

    Continuous with its derivative at the switch, finite everywhere; nearer to the hard constraint as t grows.
    Kervadec et al., Constrained Deep Networks: Lagrangian Optimization via Log-Barrier Extensions, 2019.
    """
    t = temperature
    inside = values <= -1 / t**2
    safe = torch.where(inside, values, -1.0)  # else the side not taken would give NaN gradients
    return torch.where(inside, -torch.log(-safe) / t, t * values - math.log(1 / t**2) / t + 1 / t)


def temperature_at(epoch: int, start: float, most: float, factor: float) -> float:
    """t in epoch 1, 2, …: `start`, then times `factor` after every epoch, at most `most`."""
    return min(start * factor ** max(epoch - 1, 0), most)


def check_barrier(start: float, most: float, factor: float) -> None:
    """Raises BenchError for a schedule that makes no sense."""
    if not (0 < start <= most < math.inf and 1 <= factor < math.inf):
        raise BenchError(
            f"The log-barrier needs 0 < elb_start <= elb_max and elb_mu >= 1, not {start}, {most} and {factor}."
        )


def size_barrier(probabilities: Tensor, temperature: float) -> Tensor:
    """1/2 sum_c mean_b psi_t(-sum_p S_c(p)) over planes (B, C, H, W) in [0, 1]; forbids that one of them is empty.

    As the argument is a number of pixels it behaves like -log(area) / t: it prefers no size.
    Belharbi et al., F-CAM, WACV 2022.
    """
    areas = probabilities.float().sum((2, 3))
    return log_barrier(-areas, temperature).mean(0).sum() / 2
