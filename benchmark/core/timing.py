"""Where the time of a stage went: parts that may nest, each charged only for what no inner part took.

On a GPU the work goes on after a call has returned. Times are therefore taken with events in its own queue and read
when the stage asks for them, so that measuring never makes the host wait.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Stopwatch:
    """Seconds by part. `device` decides the clock: events on CUDA, the wall clock elsewhere."""

    device: torch.device
    _seconds: dict[str, float] = field(default_factory=dict)
    _open: list[tuple[str, Any]] = field(default_factory=list)
    _spans: list[tuple[str, Any, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charges the time of a block to a part; the block around it is not charged meanwhile."""
        now = self._now()
        if self._open:
            self._charge(*self._open[-1], now)
        self._open.append((name, now))
        try:
            yield
        finally:
            now = self._now()
            self._charge(*self._open.pop(), now)
            if self._open:
                self._open[-1] = (self._open[-1][0], now)

    def add(self, name: str, seconds: float) -> None:
        """Charges seconds measured elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Seconds of every part so far, in the order the parts were met. On CUDA this waits for the work under way."""
        if self._spans:
            torch.cuda.synchronize(self.device)
            for name, start, stop in self._spans:
                self.add(name, start.elapsed_time(stop) / 1000)
            self._spans.clear()
        return dict(self._seconds)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _charge(self, name: str, start: Any, stop: Any) -> None:
        if self.device.type != "cuda":
            self.add(name, stop - start)
        else:
            self._seconds.setdefault(name, 0.0)
            self._spans.append((name, start, stop))
