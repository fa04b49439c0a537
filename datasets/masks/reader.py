"""Reader of masks by the rule that decodes their values: datasets, CSV sets and `bench score` go through it.

Nothing is guessed. A mask that can be read in two ways is refused, and the message says how to declare which is meant.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...benchmark.core.errors import BenchError
from .doubts import check_values
from .files import mask_size, stored_values
from .rule import ANY_RULE, BOTH_GIVEN, READER_VERSION, MaskRule, listed

__all__ = [
    "READER_VERSION", "SETTINGS", "MaskFacts", "MaskPixels", "MaskRule", "declared_rule", "listed", "make_rule",
    "mask_size", "read_mask",
]  # fmt: skip

BACKGROUND, FOREGROUND, IGNORED = 0, 1, 2  # codes of a pixel where masks are stored as numbers
LISTED = 64  # distinct values a mask's facts name
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")
_HIGHEST = 65535
SETTINGS = ("mask_foreground", "mask_ignore", "mask_threshold")


@dataclass(frozen=True)
class MaskFacts:
    """What was found in one mask.

    values: its distinct values, ascending, at most LISTED of them; distinct: how many there are. lowest, highest: of
    all values. foreground, ignored: pixels of each kind, of `pixels`.
    """

    values: tuple[float, ...]
    distinct: int
    lowest: float
    highest: float
    pixels: int
    foreground: int
    ignored: int

    @property
    def background(self) -> int:
        """Pixels that are background."""
        return self.pixels - self.foreground - self.ignored


@dataclass(frozen=True)
class MaskPixels:
    """One mask, read. foreground (H, W) bool; ignored (H, W) bool, or None where no pixel is ignored."""

    foreground: np.ndarray
    ignored: np.ndarray | None
    facts: MaskFacts

    @property
    def codes(self) -> np.ndarray:
        """(H, W) uint8: BACKGROUND, FOREGROUND or IGNORED."""
        codes = self.foreground.astype(np.uint8)
        if self.ignored is not None:
            codes[self.ignored] = IGNORED
        return codes


def read_mask(path: Path, rule: MaskRule = ANY_RULE) -> MaskPixels:
    """Reads a mask: BMP, PNG or TIFF with one grey channel (or a palette that holds numbers), NPY or NPZ.

    Raises BenchError naming the file for what is no mask, for a container that gives its numbers another meaning or
    has changed them (lossy compression), and for numbers that the rule does not make clear.
    """
    values = stored_values(path)
    if values.dtype == np.bool_:
        values = _greys(values, rule)
    distinct = _distinct(values)
    ignored = np.isin(values, rule.ignore) if rule.ignore else None
    if ignored is not None and not ignored.any():
        ignored = None
    check_values(path, values, distinct, ignored, rule)
    if rule.threshold is not None:
        foreground = values > rule.threshold
    elif rule.foreground is not None:
        foreground = np.isin(values, rule.foreground)
    else:
        foreground = values > 0
    if ignored is not None:
        foreground &= ~ignored
    facts = MaskFacts(
        values=tuple(distinct[:LISTED].tolist()),
        distinct=len(distinct),
        lowest=float(distinct[0]),
        highest=float(distinct[-1]),
        pixels=values.size,
        foreground=int(np.count_nonzero(foreground)),
        ignored=0 if ignored is None else int(np.count_nonzero(ignored)),
    )
    return MaskPixels(foreground, ignored, facts)


def _distinct(values: np.ndarray) -> np.ndarray:
    """The distinct values, ascending. Counting is many times faster than sorting all pixels."""
    if values.dtype.kind in "ui" and values.min() >= 0 and values.max() <= _HIGHEST:
        return np.flatnonzero(np.bincount(values.ravel())).astype(values.dtype)
    return np.unique(values)


def _greys(bits: np.ndarray, rule: MaskRule) -> np.ndarray:
    """1-bit pixels as numbers: white is 255 where the rule speaks of grey levels, else 1."""
    named = set(rule.foreground or ()) | set(rule.ignore)
    levels = rule.threshold is not None or rule.meaning == "black-white" or (255 in named and 1 not in named)
    return bits.astype(np.uint8) * np.uint8(255 if levels else 1)


def make_rule(foreground: str = "", ignore: str = "", threshold: str = "", where: str = "") -> MaskRule:
    """The rule that a person declared; an empty text declares nothing.

    foreground, ignore: whole numbers and ranges such as `2` or `1-3, 7`; foreground may also be `any`, which makes
    every value above 0 foreground whatever it looks like. threshold: one number. where: begins the message.
    Raises BenchError for a text that is none of that, or for two that contradict.
    """
    return declared_rule(dict(zip(SETTINGS, (foreground, ignore, threshold), strict=True)), where)


def declared_rule(texts: Mapping[str, str], where: str, base: MaskRule = ANY_RULE) -> MaskRule:
    """As `make_rule`, from texts by the names of SETTINGS. base: what holds where they are empty.

    A foreground or a threshold takes the place of both of the base.
    """
    foreground, ignore, threshold = (texts[name].strip() for name in SETTINGS)
    try:
        if foreground and threshold:
            raise BenchError(BOTH_GIVEN)
        changes: dict[str, Any] = {}
        if foreground or threshold:
            changes = {"foreground": None, "threshold": None, "meaning": "auto"}
        if foreground.lower() == "any":
            changes["meaning"] = "any"
        elif foreground:
            changes["foreground"] = _values(foreground, "mask_foreground")
        if threshold:
            changes["threshold"] = _number(threshold, "mask_threshold")
        if ignore:
            changes["ignore"] = _values(ignore, "mask_ignore")
        return replace(base, **changes)
    except BenchError as problem:
        raise BenchError(f"{where}: {problem}" if where else str(problem)) from None


def _values(text: str, what: str) -> tuple[int, ...]:
    """Whole numbers of a list such as `0, 3-5`, ascending."""
    numbers: set[int] = set()
    for part in filter(None, (p.strip() for p in re.split("[,;]", text))):
        if span := _RANGE.fullmatch(part):
            low, high = int(span[1]), int(span[2])
            if low > high or high > _HIGHEST:
                raise BenchError(f"{what} '{text}': {part} is no rising range of values up to {_HIGHEST}.")
            numbers.update(range(low, high + 1))
            continue
        number = _number(part, f"{what} '{text}'")
        if number != int(number) or abs(number) > _HIGHEST:
            raise BenchError(f"{what} '{text}': {part} is no whole number up to {_HIGHEST}.")
        numbers.add(int(number))
    return tuple(sorted(numbers))


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BenchError(
            f"{what}: '{text.strip()}' is not a number. Write one such as 127, or a list: 1, 3-5."
        ) from None
