"""Process group of Lightning Fabric: one model trained by several processes, gradients averaged by DDP."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...methods.base import Batch, LossFunction, Method, TrainContext
from ..core import shutdown
from ..planning.config import RunConfig
from .process_group import Losses, ProcessGroup, SharedLoss
from .shared_batch_ops import WholeBatch

WAIT = timedelta(minutes=30)  # for each other: the first scores validation maps and writes while the others wait


class _Loss(torch.nn.Module):
    """A method whose forward is one of its losses: what DDP wraps."""

    def __init__(self, method: Method, context: TrainContext) -> None:
        super().__init__()
        self.method, self.context = method, context

    def forward(self, losses: LossFunction, batch: Batch) -> Losses:
        """The losses of an update, of this process's part of a batch."""
        return losses(batch, self.context)


class FabricGroup(ProcessGroup):
    """This process as one of several. NCCL or Gloo exchanges gradients, a Gloo group beside it what hosts agree on."""

    def __init__(self, rank: int, size: int, fabric: Any) -> None:
        self.rank, self.size, self.fabric = rank, size, fabric
        self._hosts: Any = dist.new_group(backend="gloo", timeout=WAIT)
        self._module: Any = None

    @classmethod
    def meet(
        cls, rank: int, run: RunConfig, tell_port: Callable[[int], None], hear_port: Callable[[], int]
    ) -> "FabricGroup":
        """Waits for the others. run.device: this process's own. The first tells the others where it listens."""
        device, size = torch.device(run.device), run.devices
        if sys.platform.startswith("linux"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on one machine: its name need not resolve
        shared: Any = {"timeout": WAIT, "wait_for_workers": False}
        torch_store: Any = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]
        if rank == 0:
            store = torch_store("127.0.0.1", 0, size, is_master=True, **shared)
            tell_port(store.port)
        else:
            store = torch_store("127.0.0.1", hear_port(), size, is_master=False, **shared)
        own = device if device.type == "cuda" else None
        backend = "nccl" if own else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAIT, device_id=own)
        return cls(rank, size, cls._fabric(rank, size, device))

    @staticmethod
    def _fabric(rank: int, size: int, device: torch.device) -> Any:
        """Fabric on processes that are there already, whatever cluster this machine belongs to."""
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments.lightning import LightningEnvironment
        from lightning_fabric.strategies.ddp import DDPStrategy

        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        # a method may leave out a term of its loss, and with it parameters
        strategy = DDPStrategy(cluster_environment=LightningEnvironment(), find_unused_parameters=True, timeout=WAIT)
        first = (device.index or 0) - rank
        devices = [first + k for k in range(size)] if device.type == "cuda" else size
        fabric = Fabric(accelerator=device.type, devices=devices, strategy=strategy)
        fabric.launch()
        return fabric

    def join(self, method: Method, optimizer: torch.optim.Optimizer, context: TrainContext) -> SharedLoss:
        """Losses through DDP. The optimizer stays our own: its parameters are those that DDP fills with gradients."""
        self._module, _ = self.fabric.setup(_Loss(method, context), optimizer)
        return self._module

    def holding(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients of the parts before the last stay here until the last."""
        return self.fabric.no_backward_sync(self._module, enabled=not last)

    def whole_batch(self, context: TrainContext) -> AbstractContextManager[Any]:
        """Statistics and dropout as one process would have them."""
        return WholeBatch(context)

    def backward(self, loss: Tensor, params: Sequence[Tensor] | None = None) -> None:
        """DDP takes the mean over the processes, and the shares of a loss add up: hence the factor.

        It waits for the gradients of all parameters; those beside `params` are dropped afterwards.
        """
        self.fabric.backward(loss * self.size)

    def requested(self) -> int:
        """A code that any process has heard, so that all stop at the same step. Waits for hosts, not GPUs.

        That another run has taken over (a code below 0) goes before all else.
        """
        code = shutdown.requested()
        codes = torch.tensor([max(code, 0), max(-code, 0)])
        dist.all_reduce(codes, dist.ReduceOp.MAX, group=self._hosts)
        stop_code, lost = codes.tolist()
        if answer := -lost or stop_code:
            shutdown.request(answer)
        return answer

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes, where the tensor lives."""
        values = values.detach().clone()
        dist.all_reduce(values)
        return values

    def most(self, value: float) -> float:
        """The largest value of all processes."""
        largest = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._hosts)
        return float(largest)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in the first, an empty list in the others; tensors travel by way of the CPU."""
        gathered: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(_on_cpu(value), gathered, group=self._hosts)
        return gathered or []


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {k: _on_cpu(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return type(value)(*(_on_cpu(v) for v in value))
    return value
