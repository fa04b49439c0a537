"""Annotated shapes with their groups: the common form of both annotation formats."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...benchmark.core.errors import BenchError
from .polygons import Outline, is_flat

_FARTHEST = 1e8  # px


@dataclass(frozen=True)
class Shape:
    """One annotation as it stands in a file.

    problem: why it has no area to read, empty where it has. note: how it was read where that was not clear.
    """

    name: str
    kind: str
    group: str
    outlines: tuple[Outline, ...]
    problem: str = ""
    note: str = ""


@dataclass(frozen=True)
class ShapeFile:
    """The annotations of one file. parents: the group that a group lies in, by `group_key`, where the file says so."""

    shapes: tuple[Shape, ...]
    parents: Mapping[str, str] = field(default_factory=dict)


def is_coordinate(value: float) -> bool:
    """Whether a number can be a coordinate in px of any slide."""
    return math.isfinite(value) and abs(value) < _FARTHEST


def group_key(name: str) -> str:
    """A group's name as it is compared: upper and lower case alike, blanks around and between words alike."""
    return " ".join(name.split()).casefold()


def area_shape(name: str, kind: str, group: str, rings: Sequence[Sequence[np.ndarray]]) -> Shape:
    """A shape of one or more areas, each an outline and its holes; what has no area says so.

    A hole of no area is left away. Closing a ring by repeating its first point is allowed.
    """
    areas = [[_open(r) for r in area] for area in rings]
    if not areas or any(not area or len(area[0]) < 3 for area in areas):
        return Shape(name, kind, group, (), "fewer than three points")
    outlines = tuple(
        Outline(outer, tuple(h for h in holes if len(h) > 2 and not is_flat(h)))
        for outer, *holes in areas
        if not is_flat(outer)
    )
    return Shape(name, kind, group, outlines, "" if outlines else "without an area")


def check_parents(path: Path, parents: Mapping[str, str]) -> None:
    """Raises BenchError where groups lie in each other in a circle."""
    for start in parents:
        chain = [start]
        while (above := group_key(parents.get(chain[-1], ""))) in parents:
            if above in chain:
                raise BenchError(
                    f"{path}: the groups {' > '.join([*chain, above])} lie in each other in a circle. Mend "
                    "PartOfGroup of these groups."
                )
            chain.append(above)


def walk_groups(group: str, parents: Mapping[str, str], known: Callable[[str], bool]) -> str:
    """The innermost group around a shape that is known, from its own outwards; empty if there is none."""
    for _ in range(len(parents) + 1):
        if known(group_key(group)):
            return group
        if group_key(group) not in parents:
            break
        group = parents[group_key(group)]
    return ""


def _open(ring: np.ndarray) -> np.ndarray:
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def as_points(rows: Iterable[tuple[float, float]]) -> np.ndarray:
    """(n, 2) float."""
    return np.array(list(rows), float).reshape(-1, 2)
