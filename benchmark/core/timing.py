"""Time and cost of a stage: seconds by part, images a second, and milliseconds an image of one map.

Parts of a training: load, augment, forward, backward, step, evaluate, write. Of an inference pass: load, forward and
gradient, which all maps of one model share, then explain and score of each map alone. Parts may nest; each is charged
only for what no inner part took. On a GPU times are taken with CUDA events and read when the stage asks for them, so
that measuring never makes the host wait.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Set
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


def cost_of(seconds: float, images: int, times: Mapping[str, float]) -> dict[str, Any]:
    """The fields every record has: seconds (wall clock), images a second in them, and seconds by part."""
    return {"seconds": seconds, "images_per_second": images / max(seconds, 1e-9), "times": dict(times)}


def pass_times(parts: Mapping[str, float]) -> dict[str, float]:
    """Seconds by part of a whole inference pass, from its stopwatch."""
    seconds = {"load": parts.get("load", 0.0), "forward": parts.get("forward", 0.0) + _sum(parts, "predict:")}
    return seconds | {
        "gradient": _sum(parts, "gradient") + _sum(parts, "taps"),
        "explain": _sum(parts, "read:"),
        "score": _sum(parts, "score:"),
    }


def own_times(parts: Mapping[str, float], used: Set[str], view: str, task: str) -> dict[str, float]:
    """Seconds by part that one map alone would take: of the shared ones those it has `used`.

    The backward pass to shallower levels is one for all levels asked of a class, so beside a map that reads a shallower
    level than its own it counts as that one's.
    """
    return {
        "load": parts.get("load", 0.0),
        "forward": sum(parts.get(n, 0.0) for n in used if n == "forward") + parts.get(f"predict:{view}", 0.0),
        "gradient": sum(parts.get(n, 0.0) for n in used if n != "forward"),
        "explain": parts.get(f"read:{view}", 0.0),
        "score": parts.get(f"score:{task}", 0.0),
    }


def ms_per_image(own: Mapping[str, float], images: int) -> float:
    """Milliseconds an image of one map's own times. NaN without images.

    Loading is left out, as it depends on the disk and not on the method; so is writing.
    """
    seconds = sum(own.get(name, 0.0) for name in ("forward", "gradient", "explain", "score"))
    return 1000 * seconds / images if images else float("nan")


def _sum(parts: Mapping[str, float], prefix: str) -> float:
    return sum(s for name, s in parts.items() if name.startswith(prefix))


def shares(times: Mapping[str, float]) -> str:
    """Shares of the time, the largest first: `backward 52%, forward 38%`; parts below 0.5% are left out."""
    total = sum(times.values())
    ordered = sorted(times.items(), key=lambda item: -item[1])
    return ", ".join(f"{n} {100 * s / total:.0f}%" for n, s in ordered if total and s / total >= 0.005)
