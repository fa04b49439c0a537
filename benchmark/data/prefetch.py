"""Moving arrays to a device without making the host wait, and reading ahead while the device works."""

import functools
import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
AHEAD = 3  # batches read before they are asked for
_END = object()


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. To a GPU it goes through pinned memory, as other copies make the host wait."""
    return staged(tensor, device).to(device, non_blocking=True)


def staged(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor where `upload` can take it from at once: pinned if it will go to a GPU. For reading ahead."""
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_cuda else tensor


@functools.lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A small float32 tensor of fixed values on a device, uploaded once. Nobody may write to it."""
    return torch.tensor(values, device=device, dtype=torch.float32)


def ahead(items: Iterator[T], depth: int = AHEAD) -> Iterator[T]:
    """The same items in the same order, made by a thread while the caller works; at most `depth` of them wait.

    What the items raise is raised here, in its turn. When the caller stops early, the thread ends after the item it is
    making.
    """
    waiting: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_produce, args=(items, waiting, stopped), daemon=True, name="reading ahead")
    thread.start()
    try:
        while (item := waiting.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.problem
            yield item
    finally:
        stopped.set()
        while thread.is_alive():  # it may stand before a full queue
            while not waiting.empty():
                waiting.get()
            thread.join(0.02)


class _Failure:
    """An exception on its way from the reading thread."""

    def __init__(self, problem: BaseException) -> None:
        self.problem = problem


def _produce(items: Iterator[Any], waiting: queue.Queue[Any], stopped: threading.Event) -> None:
    try:
        for item in items:
            waiting.put(item)
            if stopped.is_set():
                return
    except BaseException as problem:  # noqa: BLE001 - handed to the caller, who raises it
        waiting.put(_Failure(problem))
    waiting.put(_END)


class HostCopy:
    """Tensors on their way to the host: the copies start at once, and only `get` waits, for them and nothing later."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._there = {name: _to_host(t) for name, t in tensors.items()}
        self._done = None
        if device := next((t.device for t in tensors.values() if t.is_cuda), None):
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(device))

    def get(self) -> dict[str, Tensor]:
        """The tensors on the CPU."""
        if self._done is not None:
            self._done.synchronize()
        return self._there


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
