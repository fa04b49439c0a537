"""Annotations of ASAP (Automated Slide Analysis Platform): XML files of polygons in level-0 coordinates."""

import math
import xml.parsers.expat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..benchmark.errors import BenchError

TUMOR_GROUPS = ("Tumor", "_0", "_1", "metastases")  # the last one is Camelyon17's
EXCLUDED_GROUPS = ("_2", "Exclusion", "normal")
_IGNORED_GROUPS = ("None", "")  # what ASAP writes for a polygon that nobody put in a group
_AREAS = ("Polygon", "Spline", "Rectangle")


@dataclass(frozen=True)
class Annotations:
    """Polygons of one slide, each an (n, 2) float array of x, y in level-0 px; notes say what was left out, and why."""

    tumor: tuple[np.ndarray, ...]
    excluded: tuple[np.ndarray, ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Shape:
    """One annotation as it stands in the file."""

    name: str
    kind: str
    group: str
    points: list[tuple[float, float, float]]  # order, x, y


def read_annotations(path: Path, size: tuple[int, int] | None = None, strict: bool = True) -> Annotations:
    """Reads an ASAP XML file. Groups Tumor, _0, _1 (and metastases) are tumour; _2, Exclusion (and normal) are not.

    size: width and height of the slide; given them, tumour that lies wholly outside is an error.
    strict: a group of another name is an error; else it is left out with a note, as are points, and shapes of fewer
    than three points. Raises BenchError naming the file if it is not such XML, declares a document type (so that no
    entity is ever expanded), has coordinates that are no numbers, or has no tumour polygon.
    """
    shapes = _parse(path)
    tumor, excluded = [], []
    left_out: Counter[str] = Counter()
    for shape in shapes:
        reason = _unusable(shape)
        if not reason and shape.group in TUMOR_GROUPS:
            tumor.append(_polygon(shape))
        elif not reason and shape.group in EXCLUDED_GROUPS:
            excluded.append(_polygon(shape))
        elif not reason and strict:
            raise BenchError(
                f"{path}: annotation '{shape.name}' is in the group '{shape.group}'. Known: "
                f"{', '.join(TUMOR_GROUPS)} (tumour), {', '.join(EXCLUDED_GROUPS)} (not). Rename the group in ASAP."
            )
        else:
            left_out[reason or f"group '{shape.group}'"] += 1
    notes = tuple(f"{n} annotations left out: {reason}" for reason, n in sorted(left_out.items()))
    if not tumor:
        raise BenchError(
            f"{path} holds no tumour polygon ({len(shapes)} annotations{'; ' + '; '.join(notes) if notes else ''}). "
            "Export it from ASAP again; a slide without tumour needs no XML file."
        )
    if size and not any(_touches(p, size) for p in tumor):
        raise BenchError(f"{path}: every polygon lies outside the slide of {size[0]} x {size[1]} px. Is it another's?")
    return Annotations(tuple(tumor), tuple(excluded), notes)


def _parse(path: Path) -> list[_Shape]:
    """All annotations of a file. ASAP keeps everything in attributes, so start tags are all there is to read."""
    shapes: list[_Shape] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "Annotation":
            get = attributes.get
            shapes.append(_Shape(get("Name", ""), get("Type", "Polygon"), get("PartOfGroup", ""), []))
        elif tag == "Coordinate" and shapes:
            shapes[-1].points.append(_point(path, shapes[-1], attributes))

    def refuse(*_: object) -> None:
        raise BenchError(f"{path} declares a document type, which no annotation of ASAP does. It is not read.")

    parser = xml.parsers.expat.ParserCreate()
    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = refuse
    try:
        with path.open("rb") as handle:
            parser.ParseFile(handle)
    except (xml.parsers.expat.ExpatError, LookupError, ValueError) as problem:  # the last two: odd encodings
        raise BenchError(f"{path} is not well-formed XML ({problem}). Download or export it again.") from None
    return shapes


def _point(path: Path, shape: _Shape, attributes: dict[str, str]) -> tuple[float, float, float]:
    try:
        point = (
            float(attributes.get("Order", len(shape.points))),
            float(attributes["X"].replace(",", ".")),  # ASAP has written decimal commas under some locales
            float(attributes["Y"].replace(",", ".")),
        )
    except (KeyError, ValueError):
        point = (math.nan, math.nan, math.nan)
    if not all(map(math.isfinite, point)):
        raise BenchError(f"{path}: annotation '{shape.name}' has a point that is no pair of numbers: {attributes}.")
    return point


def _unusable(shape: _Shape) -> str:
    if shape.kind not in _AREAS:
        return f"type {shape.kind} has no area"
    if len(shape.points) < 3:
        return "fewer than three points"
    return "in no group" if shape.group in _IGNORED_GROUPS else ""


def _polygon(shape: _Shape) -> np.ndarray:
    return np.array([(x, y) for _, x, y in sorted(shape.points, key=lambda p: p[0])])


def _touches(polygon: np.ndarray, size: Sequence[int]) -> bool:
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    return bool((high > 0).all() and low[0] < size[0] and low[1] < size[1])
