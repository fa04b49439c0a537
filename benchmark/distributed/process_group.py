"""Who trains a model: this process alone, or as one of several. What they must agree on is asked of the team."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...methods.base import Batch, Method, TrainContext
from ..core import shutdown

Losses = dict[str, Tensor]


class Team:
    """One process alone. A team of several has the same methods; each must call them in the same order.

    rank, size: number of this process, and how many there are. The first writes and reports.
    """

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def join(
        self, method: Method, optimizer: torch.optim.Optimizer, context: TrainContext
    ) -> Callable[[Batch], Losses]:
        """The loss to train on, as a function of a batch; called once everything is where training begins."""
        return lambda batch: method.loss(batch, context)

    def holding(self, last: bool) -> AbstractContextManager[Any]:
        """The block of forward and backward of a part of a batch; gradients are exchanged after the last part."""
        return nullcontext()

    def whole_batch(self, context: TrainContext) -> AbstractContextManager[Any]:
        """The block in which batch statistics and dropout are those of the whole batch."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Gradients of a share of the loss of a batch; the gradients of a team are those of the sum of its shares."""
        loss.backward()

    def requested(self) -> int:
        """As `stop.requested`, with one answer for all."""
        return shutdown.requested()

    def check(self) -> None:
        """Raises Stopped in all processes if a stop was requested."""
        if self.requested():
            raise shutdown.Stopped

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes, without gradient."""
        return values

    def most(self, value: float) -> float:
        """The largest value of all processes."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in the first, an empty list in the others."""
        return [value]


ALONE = Team()


def even(count: int, parts: int) -> list[slice]:
    """`count` positions in nearly equal parts, the longer ones first, as torch.tensor_split cuts them."""
    edges = [k * (count // parts) + min(k, count % parts) for k in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]
