"""Mask rule of a dataset: which values are foreground, background, or ignored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...benchmark.core.errors import BenchError

READER_VERSION = 1  # raised whenever a file may give another mask than before; part of the identity of a data set
_MEANINGS = ("auto", "any", "instances", "black-white")
BOTH_GIVEN = (
    "mask_foreground and mask_threshold are both given. Keep one: the first names the values that are foreground, the "
    "second makes every value above it foreground."
)


@dataclass(frozen=True)
class MaskRule:
    """What the numbers in the masks of a data set mean; part of its identity.

    foreground: the values that are foreground, all others being background. None: every value above 0.
    ignore: values that mean "not annotated": such pixels count nowhere.
    threshold: a value above it is foreground; for soft masks. Excludes `foreground`.
    meaning: what is known where `foreground` and `threshold` are not given. `auto`: nothing, so that values which can
        be read in two ways are refused; `any`: declared to be foreground whatever they look like; `instances`: the
        data set stores object numbers; `black-white`: the data set stores 0 and 255 alone.
    """

    foreground: tuple[int, ...] | None = None
    ignore: tuple[int, ...] = ()
    threshold: float | None = None
    meaning: str = "auto"

    def __post_init__(self) -> None:
        if self.meaning not in _MEANINGS:
            raise ValueError(f"{self.meaning!r} is not one of {', '.join(_MEANINGS)}")
        if self.foreground is not None and self.threshold is not None:
            raise BenchError(BOTH_GIVEN)
        if self.foreground is not None and not self.foreground:
            raise BenchError("mask_foreground names no value.")
        if both := sorted(set(self.foreground or ()) & set(self.ignore)):
            raise BenchError(f"The mask value {both[0]} is given as foreground and as ignored. Keep one.")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise BenchError(f"mask_threshold = {self.threshold} is not a number that values can lie above.")

    @property
    def declarable(self) -> bool:
        """Whether a user can say what the values mean; not where the data set itself says so."""
        return self.meaning in ("auto", "any")

    @property
    def words(self) -> str:
        """What is foreground, for a reader of the table."""
        if self.threshold is not None:
            return f"mask value above {self.threshold:g}"
        if self.foreground is not None:
            return f"mask value {listed(self.foreground)}"
        return "mask value above 0"

    def identity(self) -> dict[str, Any]:
        """The rule as a JSON value, lists of values as ranges, with the version of the reader."""
        lists = {name: _ranges(getattr(self, name)) for name in ("foreground", "ignore")}
        return {**lists, "threshold": self.threshold, "meaning": self.meaning, "reader": READER_VERSION}


ANY_RULE = MaskRule()  # nothing is declared


def _ranges(values: Sequence[int] | None) -> list[list[int]] | None:
    """First and last value of every stretch without a gap."""
    if values is None:
        return None
    ranges: list[list[int]] = []
    for value in sorted(values):
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])
    return ranges


def listed(values: Sequence[float], most: int = 8) -> str:
    """Values for a message: `0, 1, 255`, cut off after `most`."""
    some = ", ".join(f"{v:g}" for v in values[:most])
    return some if len(values) <= most else f"{some}, … ({len(values)} values)"
