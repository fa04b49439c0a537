"""What a stage cost: seconds, images a second, and where the time went, for its record and for the terminal.

Parts of a training: load, augment, forward, backward, step, evaluate, write. Of a reading pass: load, forward and
gradient, which all maps read off one model share, then explain and score of each map alone.
"""

from collections.abc import Mapping, Set
from typing import Any


def cost_of(seconds: float, images: int, times: Mapping[str, float]) -> dict[str, Any]:
    """The fields every record has: seconds (wall clock), images a second in them, and seconds by part."""
    return {"seconds": seconds, "images_per_second": images / max(seconds, 1e-9), "times": dict(times)}


def pass_times(parts: Mapping[str, float]) -> dict[str, float]:
    """Seconds by part of a reading pass as a whole, from what its stopwatch was charged with."""
    found = {"load": parts.get("load", 0.0), "forward": parts.get("forward", 0.0) + _sum(parts, "predict:")}
    return found | {
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
    """Where the time went, the largest first: `backward 52%, forward 38%`; parts below 0.5% are left out."""
    total = sum(times.values())
    ordered = sorted(times.items(), key=lambda item: -item[1])
    return ", ".join(f"{n} {100 * s / total:.0f}%" for n, s in ordered if total and s / total >= 0.005)
