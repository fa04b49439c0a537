"""XML files of ASAP (Automated Slide Analysis Platform): annotations in level-0 px, and groups that may be nested."""

import math
import xml.parsers.expat
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...benchmark.core.errors import BenchError
from .shapes import Shape, ShapeFile, area_shape, as_points, check_parents, group_key, is_coordinate

_AREAS = ("Polygon", "Spline", "Rectangle")


@dataclass
class _Open:
    """An annotation whose coordinates are still being read."""

    name: str
    kind: str
    group: str
    points: list[tuple[float, float, float]] = field(default_factory=list)  # order, x, y


def read_asap(path: Path) -> ShapeFile:
    """All annotations of a file and its groups. Raises BenchError naming the file where it is not such XML, declares a
    document type (so that no entity is ever expanded), has coordinates that are no numbers or groups in a circle.

    ASAP keeps everything in attributes, so start tags are all there is to read.
    """
    shapes: list[_Open] = []
    parents: dict[str, str] = {}

    def start(tag: str, attributes: dict[str, str]) -> None:
        get = attributes.get
        if tag == "Annotation":
            shapes.append(_Open(get("Name", ""), get("Type", "Polygon"), get("PartOfGroup", "")))
        elif tag == "Coordinate" and shapes:
            shapes[-1].points.append(_point(path, shapes[-1], attributes))
        elif tag == "Group":
            key, above = group_key(get("Name", "")), get("PartOfGroup", "")
            if group_key(parents.setdefault(key, above)) != group_key(above):
                raise BenchError(f"{path} puts the group '{get('Name')}' into both '{parents[key]}' and '{above}'.")

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
    check_parents(path, parents)
    return ShapeFile(tuple(map(_shape, shapes)), parents)


def _shape(found: _Open) -> Shape:
    if found.kind.strip().capitalize() not in _AREAS:
        return Shape(found.name, found.kind, found.group, (), f"type {found.kind} has no area")
    points = as_points((x, y) for _, x, y in sorted(found.points, key=lambda p: p[0]))
    shape = area_shape(found.name, found.kind.strip().capitalize(), found.group, [[points]])
    if len({order for order, *_ in found.points}) == len(found.points):
        return shape
    return replace(shape, told="outlines whose points repeat a number in Order, those taken as they stand in the file")


def _point(path: Path, shape: _Open, attributes: dict[str, str]) -> tuple[float, float, float]:
    try:
        point = (
            float(attributes.get("Order", len(shape.points))),
            float(attributes["X"].replace(",", ".")),  # ASAP has written decimal commas under some locales
            float(attributes["Y"].replace(",", ".")),
        )
    except (KeyError, ValueError):
        point = (math.nan, math.nan, math.nan)
    if not all(map(is_coordinate, point)):
        raise BenchError(f"{path}: annotation '{shape.name}' has a point that is no pair of numbers: {attributes}.")
    return point
