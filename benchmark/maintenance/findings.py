"""Findings of `bench doctor`: one line each, with a level and what to do about it."""

from dataclasses import dataclass, field
from typing import Any

LEVELS = ("ok", "note", "warning", "problem")  # a problem stops runs, or makes them wrong


@dataclass(frozen=True)
class Finding:
    """One thing found. advice: what to do, empty where nothing is to be done. facts: the same as JSON values."""

    section: str
    level: str
    text: str
    advice: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def gib(count: float) -> str:
    """Bytes as a readable size."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB" if count < 1024 else f"{count / 1024:.1f} TiB"
