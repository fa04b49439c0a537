"""Process-group interface; the default is a single process. What processes must agree on is asked of the group."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ...methods.base import Batch, LossFunction, Method, TrainContext
from ..core import shutdown

Losses = dict[str, Tensor]
SharedLoss = Callable[[LossFunction, Batch], Losses]  # computes a loss function on this process's part of a batch


class ProcessGroup:
    """A single process. A group of several has the same methods; each process must call them in the same order.

    rank, size: number of this process, and how many there are. The first writes and reports.
    """

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def join(self, method: Method, optimizer: torch.optim.Optimizer, context: TrainContext) -> SharedLoss | None:
        """How losses are computed together, None where they are simply called; asked once, as training begins."""
        return None

    def holding(self, last: bool) -> AbstractContextManager[Any]:
        """The block of forward and backward of a part of a batch; gradients are exchanged after the last part."""
        return nullcontext()

    def whole_batch(self, context: TrainContext) -> AbstractContextManager[Any]:
        """The block in which batch statistics and dropout are those of the whole batch."""
        return nullcontext()

    def backward(self, loss: Tensor, params: Sequence[Tensor] | None = None) -> None:
        """Gradients of a share of the loss of a batch; the gradients of a group are those of the sum of its shares.

        params: those that are needed; others may be left out.
        """
        loss.backward(inputs=params)

    def requested(self) -> int:
        """The exit code of a requested stop, 0 without one (as `shutdown.requested`); the same in all processes."""
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


SINGLE_PROCESS = ProcessGroup()
