"""Annotations of a slide: outlines of tumour and of excluded tissue, from the XML of ASAP or QuPath's GeoJSON."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...benchmark.core.errors import BenchError
from .asap import read_asap
from .geojson import read_geojson
from .notes import Note
from .polygons import Outline, covers_itself, lies_within
from .shapes import Shape, ShapeFile, group_key, walk_groups

TUMOR_GROUPS = ("Tumor", "_0", "_1", "metastases")  # the last one is Camelyon17's
EXCLUDED_GROUPS = ("_2", "Exclusion", "normal")
ROLES = ("tumor", "excluded", "ignored")
SUFFIXES = (".xml", ".geojson", ".json", ".geojson.gz")
_NO_GROUP = ("none", "")  # what ASAP writes for a polygon that nobody put in a group
_EDGE = 1.0  # px beyond the slide that a hand may draw without a note


@dataclass(frozen=True)
class Reading:
    """How annotations are read.

    roles: what groups of other names are (tumor, excluded or ignored), by name. strict: a group of unknown name is an
    error, else it is left out with a note. innermost: an island of tumour within an exclusion stays tumour. subtract:
    exclusions are cut out of the masks. origin: level-0 px that are added to the coordinates of GeoJSON.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    strict: bool = True
    innermost: bool = False
    subtract: bool = True
    origin: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Annotations:
    """Outlines of one slide in level-0 px; unknown: areas that were left out, of which nobody knows what they are."""

    tumor: tuple[Outline, ...]
    excluded: tuple[Outline, ...]
    unknown: tuple[Outline, ...] = ()
    notes: tuple[Note, ...] = ()


def is_geojson(path: Path) -> bool:
    """Whether a file is read as GeoJSON, by its suffix."""
    return path.suffix.lower() != ".xml"


def read_annotations(path: Path, size: tuple[int, int] | None = None, reading: Reading | None = None) -> Annotations:
    """Reads the XML of ASAP or, by suffix, GeoJSON of QuPath.

    Groups (classes in QuPath) Tumor, _0, _1 and metastases are tumour; _2, Exclusion and normal are not, and neither
    case nor blanks matter; a group of another name counts as the group that it lies in. size: width and height of the
    slide; given them, tumour that lies wholly outside is an error. Whatever is left out or read in one of several ways
    is in the notes. Raises BenchError naming the file if it cannot be read, has a group of unknown meaning, or has no
    tumour outline.
    """
    reading = reading or Reading()
    file = read_geojson(path) if is_geojson(path) else read_asap(path)
    sorter = _Sorter(file, reading)
    for shape in file.shapes:
        sorter.take(shape)
    if sorter.strangers and reading.strict:
        raise BenchError(f"{path}: {_strangers(sorter.strangers)}")
    shift = np.array(reading.origin if is_geojson(path) else (0.0, 0.0))
    tumor, excluded, unknown = (_moved(sorter.outlines[k], shift) for k in ("tumor", "excluded", ""))
    notes = [Note(n, what) for what, n in sorted(sorter.notes.items())]
    if not tumor:
        details = "; ".join(n.text for n in notes)
        raise BenchError(
            f"{path} holds no tumour polygon ({len(file.shapes)} annotations{'; ' + details if details else ''}). "
            "Export it again; a slide without tumour needs no annotation file."
        )
    if size and not any(_touches(o, size) for o in tumor):
        raise BenchError(f"{path}: every polygon lies outside the slide of {size[0]} x {size[1]} px. Is it another's?")
    notes += _geometry_notes(tumor, excluded, size, reading)
    return Annotations(tumor, excluded, unknown, tuple(notes))


class _Sorter:
    """Shapes by what their group means, counting what is left out or not as it stands."""

    def __init__(self, file: ShapeFile, reading: Reading) -> None:
        self.parents, self.strict = file.parents, reading.strict
        known = dict.fromkeys(TUMOR_GROUPS, "tumor") | dict.fromkeys(EXCLUDED_GROUPS, "excluded")
        self.spelling = {group_key(g): g for g in (*known, *reading.roles)}
        self.roles = {group_key(g): role for g, role in (known | dict(reading.roles)).items()}
        self.outlines: dict[str, list[Outline]] = {"tumor": [], "excluded": [], "ignored": [], "": []}
        self.strangers: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()

    def take(self, shape: Shape) -> None:
        """Files one shape under its role; the empty role is that of areas whose meaning nobody knows."""
        if shape.problem:
            self.notes[f"annotations left out, {shape.problem}"] += 1
            return
        group = walk_groups(shape.group, self.parents, self.roles.__contains__)
        role = self.roles.get(group_key(group), "")
        self.outlines[role] += shape.outlines
        if role:
            self._note(shape, group, role)
        elif group_key(shape.group) in _NO_GROUP:
            self.notes["annotations left out, in no group"] += 1
        else:
            self.strangers[shape.group] += 1
            self.notes[f"annotations left out, group '{shape.group}'"] += not self.strict

    def _note(self, shape: Shape, group: str, role: str) -> None:
        if role == "ignored":
            self.notes[f"annotations left out, group '{group}' is declared ignored"] += 1
        elif group != shape.group:
            self.notes[f"annotations of group '{shape.group}' counted as '{group}', in which that group lies"] += 1
        elif group != self.spelling[group_key(group)]:
            self.notes[f"annotations of group '{group}' read as '{self.spelling[group_key(group)]}'"] += 1
        if shape.note and role != "ignored":
            self.notes[shape.note] += 1
        if shape.kind == "Spline":
            self.notes["Spline outlines read as straight lines between their points"] += 1


def _strangers(groups: Mapping[str, int]) -> str:
    named = ", ".join(f"group '{g}' ({n} annotation{'s' * (n > 1)})" for g, n in sorted(groups.items()))
    first = min(groups)
    return (
        f"nobody knows what this means: {named}. Known: {', '.join(TUMOR_GROUPS)} (tumour), "
        f"{', '.join(EXCLUDED_GROUPS)} (not). Say what it is with --group '{first}=tumor', excluded or ignored."
    )


def _geometry_notes(
    tumor: Sequence[Outline], excluded: Sequence[Outline], size: tuple[int, int] | None, reading: Reading
) -> list[Note]:
    both = [*tumor, *excluded]
    counts = {"outlines that cross or cover themselves: what they wind around counts as inside":
              sum(map(covers_itself, both))}  # fmt: skip
    if size:
        outside = [not _touches(o, size) for o in both]
        counts["outlines outside the slide, of no effect"] = sum(outside)
        counts["outlines that reach beyond the edge of the slide, cut there"] = sum(
            _reaches_out(o, size) for o, gone in zip(both, outside, strict=True) if not gone
        )
    islands = _islands(tumor, excluded)
    rule = "kept as tumour" if reading.innermost else "cut out with it (--overlaps innermost keeps them)"
    if reading.subtract:
        counts[f"tumour outlines inside an exclusion, {rule}"] = islands
    return [Note(n, what) for what, n in counts.items() if n]


def _islands(tumor: Sequence[Outline], excluded: Sequence[Outline]) -> int:
    """How many tumour outlines lie inside an excluded one; only those whose boxes allow it are compared."""
    if not excluded:
        return 0
    low, high = np.array([o.box[0] for o in excluded]), np.array([o.box[1] for o in excluded])
    islands = 0
    for inner in tumor:
        around = np.flatnonzero((low <= inner.box[0]).all(axis=1) & (high >= inner.box[1]).all(axis=1)).tolist()
        islands += any(lies_within(inner, excluded[k]) for k in around)
    return islands


def _moved(outlines: Iterable[Outline], shift: np.ndarray) -> tuple[Outline, ...]:
    return tuple(Outline(o.points + shift, tuple(h + shift for h in o.holes)) for o in outlines)


def _touches(outline: Outline, size: Sequence[int]) -> bool:
    low, high = outline.box
    return bool((high > 0).all() and low[0] < size[0] and low[1] < size[1])


def _reaches_out(outline: Outline, size: Sequence[int]) -> bool:
    low, high = outline.box
    return bool((low < -_EDGE).any() or (high > np.add(size, _EDGE)).any())
