"""Batches that fit in memory: halved where it runs out; where that is not enough, the error says what to set."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..core.device import peak_memory_mb
from ..core.errors import BenchError
from ..core.files import read_json, write_json
from ..data.eval_loader import EvalBatch, part_of
from ..distributed.batch_shards import even

log = logging.getLogger(__name__)
T = TypeVar("T")
PHRASES = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "_alloc_failed")


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error means that memory ran out: of torch on a GPU or the CPU, of a CUDA library, or of Python."""
    if isinstance(problem, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(p in str(problem).lower() for p in PHRASES)


def free_memory() -> None:
    """Gives back what nobody holds any more. Call it where no exception is being handled: that holds all its frames."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def peak_text(device: torch.device) -> str:
    """The highest memory use so far, in words."""
    return f"{peak_memory_mb(device):,.0f} MiB at most {'on the GPU' if device.type == 'cuda' else 'in this process'}"


class AdaptiveBatch:
    """Batch size that fits in memory while scoring: what does not fit is halved, down to one, and stays so."""

    def __init__(self, what: str, device: torch.device) -> None:
        self.what, self.device, self.most = what, device, 0

    def each(self, seen: EvalBatch, work: Callable[[EvalBatch], T]) -> list[T]:
        """The results of some work on a batch, in one piece or in several, in order.

        work must leave nothing behind when it runs out of memory, or what doing it again overwrites. Raises BenchError
        where one image alone does not fit.
        """
        parts, results = self._cut(seen), []
        while parts:
            try:
                results.append(work(parts[0]))
                parts.pop(0)
                continue
            except (RuntimeError, MemoryError) as problem:
                if not is_out_of_memory(problem):
                    raise
            free_memory()  # where no error is being handled any more: it holds the frames of the work
            count = len(parts[0].ids)
            if count == 1:
                raise BenchError(
                    f"{self.what}: one image alone does not fit into memory ({peak_text(self.device)}). Use a larger "
                    "GPU, fewer stages a GPU (--jobs-per-gpu) or --device cpu."
                )
            self.most = -(-count // 2)
            log.warning("%s: out of memory with %d images at a time, going on with %d", self.what, count, self.most)
            parts = [small for part in parts for small in self._cut(part)]
        return results

    def _cut(self, seen: EvalBatch) -> list[EvalBatch]:
        count = len(seen.ids)
        if not self.most or count <= self.most:
            return [seen]
        return [part_of(seen, some) for some in even(count, -(-count // self.most))]


class OutOfMemoryRetry:
    """Retry of a training that ran out of memory: once, from the start, with half of each batch at a time.

    The decision lies in the stage's folder, so that a training that is killed goes on with the parts it began with. It
    is forgotten when the training is done, and when half is too much as well: the next try may find more memory.
    """

    def __init__(self, folder: Path, micro_batch: int, largest: int) -> None:
        """micro_batch: the setting, 0 = all. largest: images of the largest batch."""
        self._path, self.micro_batch, self.largest = folder / "retry.json", micro_batch, largest

    @property
    def used(self) -> int:
        """The images of a batch that are trained on at once, 0 = all."""
        return int(read_json(self._path)["micro_batch"]) if self._path.is_file() else self.micro_batch

    @property
    def facts(self) -> dict[str, Any]:
        """Facts for the record of a training that was done again."""
        return {} if self.used == self.micro_batch else {"micro_batch": {"asked": self.micro_batch, "used": self.used}}

    def halve(self, title: str, peak: str) -> None:
        """Settles on half. Raises BenchError if that was done before, or if a batch is one image."""
        at_once = min(self.used or self.largest, self.largest)
        if self.used != self.micro_batch or at_once == 1:
            self.forget()
            first = min(self.micro_batch or self.largest, self.largest)
            before = "" if at_once == 1 else f", after {first} did not fit either"
            raise BenchError(
                f"Out of memory with {at_once} images at a time{before} ({peak}). Set train.micro_batch to less than "
                f"{at_once}, use a larger GPU or fewer stages a GPU (--jobs-per-gpu), or spread the training over "
                "several (--devices)."
            )
        half = -(-at_once // 2)
        write_json(self._path, {"micro_batch": half, "asked": self.micro_batch, "peak": peak})
        log.warning(
            "%s: out of memory with %d images at a time (%s); once more from the start with %d at a time, gradients "
            "added up to the same batch",
            title, at_once, peak, half,
        )  # fmt: skip

    def forget(self) -> None:
        """Takes the decision back."""
        self._path.unlink(missing_ok=True)

    def attempts(self, title: str, device: torch.device) -> "Iterator[Attempt]":
        """Blocks to train in: a second one with half of each batch at a time if memory runs out in the first.

        Raises BenchError if it runs out again.
        """
        while True:
            attempt = Attempt(device)
            yield attempt
            if attempt.peak is None:
                break
            free_memory()
            self.halve(title, attempt.peak)
        self.forget()


class Attempt(AbstractContextManager[None]):
    """The block of one try at a training. peak: the highest memory use in words if memory ran out, else None."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak: str | None = None

    def __exit__(self, kind: Any, problem: BaseException | None, trace: Any) -> bool:
        if not isinstance(problem, RuntimeError | MemoryError) or not is_out_of_memory(problem):
            return False
        self.peak = getattr(problem, "peak", "") or peak_text(self.device)
        return True
