"""Batch statistics and dropout of a batch that several processes share, as one process with all of it has them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...methods.base import TrainContext


class BatchNormCall(NamedTuple):
    """The arguments of torch's functional batch norm, in its order and with its defaults; input (B, C, …)."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


class WholeBatch(TorchFunctionMode):
    """While it is entered, torch's batch_norm and dropout functions work on the batch that all processes share.

    Statistics and running statistics are those of all images. Dropout draws for all images, and each process takes the
    rows of its own, so that no two images share a mask and the CPU draws what one process would. In eval mode, and for
    tensors that do not have one row (or equally many) an image, the functions are torch's own.
    """

    def __init__(self, context: TrainContext) -> None:
        super().__init__()
        self.context = context
        self.ours: dict[Any, Callable[..., Tensor]] = {
            F.batch_norm: self._batch_norm,
            F.dropout: self._dropout,
            F.dropout1d: self._dropout1d,
            F.dropout2d: self._dropout2d,
            F.dropout3d: self._dropout3d,
        }

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Called by torch in place of each of its functions; what is called here runs without the mode."""
        run: Any = self.ours.get(func, func)
        return run(*args, **(kwargs or {}))

    def _batch_norm(self, *args: Any, **kwargs: Any) -> Tensor:
        call = BatchNormCall(*args, **kwargs)
        if not call.training:
            return F.batch_norm(*call)
        if call.input.is_cuda:  # torch's own for GPUs, which has no counterpart for the CPU
            from torch.nn.modules._functions import SyncBatchNorm

            affine, running = (call.weight, call.bias), (call.running_mean, call.running_var)
            group: Any = (dist.group.WORLD, dist.get_world_size())
            normalised: Any = SyncBatchNorm.apply(call.input, *affine, *running, call.eps, call.momentum, *group)
            return normalised
        return _normalise(call)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return self._drop(F.dropout, input, p, training, inplace, 0)

    def _dropout1d(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return self._drop(F.dropout1d, input, p, training, inplace, 3)

    def _dropout2d(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return self._drop(F.dropout2d, input, p, training, inplace, 4)

    def _dropout3d(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return self._drop(F.dropout3d, input, p, training, inplace, 5)

    def _drop(self, usual: Callable, input: Tensor, p: float, training: bool, inplace: bool, channels: int) -> Tensor:
        """channels: dimensions of a tensor of which whole channels are dropped, 0 to drop single values."""
        share = self.context.shard
        fits = share is not None and len(input) and len(input) % share.count == 0 and channels in (0, input.ndim)
        if share is None or not fits or not training or not 0 < p < 1:
            return usual(input, p, training, inplace)
        rows = len(input) // share.count * share.total
        shape = (rows, *input.shape[1:2], *[1] * (input.ndim - 2)) if channels else (rows, *input.shape[1:])
        last = input.ndim == 4 and not channels and input.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        noise = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout).bernoulli_(1 - p)
        noise = share.take(noise.div_(1 - p))
        return input.mul_(noise) if inplace else input * noise


def _normalise(call: BatchNormCall) -> Tensor:
    """Batch normalisation of (B, C, …) over all processes, in float32 or better."""
    values = call.input if call.input.dtype == torch.float64 else call.input.float()
    dims, shape = [d for d in range(call.input.ndim) if d != 1], (1, -1, *[1] * (call.input.ndim - 2))
    count = torch.tensor([float(values.numel() // values.shape[1])])
    dist.all_reduce(count)
    number = float(count)
    mean = _Sum.apply(values.sum(dims)) / number  # pyright: ignore[reportOperatorIssue]
    centred = values - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(dims)) / number  # pyright: ignore[reportOperatorIssue]
    with torch.no_grad():
        if call.running_mean is not None:
            call.running_mean.lerp_(mean.to(call.running_mean.dtype), call.momentum)
        if call.running_var is not None:
            unbiased = variance * (number / max(number - 1, 1))
            call.running_var.lerp_(unbiased.to(call.running_var.dtype), call.momentum)
    normalised = centred * torch.rsqrt(variance + call.eps).view(shape)
    if call.weight is not None:
        normalised = normalised * call.weight.to(values.dtype).view(shape)
    if call.bias is not None:
        normalised = normalised + call.bias.to(values.dtype).view(shape)
    return normalised.to(call.input.dtype)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient, as each of them depends on all."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The sum."""
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The sum of gradients."""
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient
