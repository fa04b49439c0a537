"""XML files of ASAP (Automated Slide Analysis Platform): annotations in level-0 px, and groups that may be nested."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from ...benchmark.core.errors import BenchError
from .shapes import Shape, ShapeFile, area_shape, as_points, check_parents, group_key, is_coordinate

_AREAS = ("Polygon", "Spline", "Rectangle")


@dataclass
class _AnnotationPoints:
    """An annotation with its numbered points, as read so far."""

    name: str
    kind: str
    group: str
    points: list[tuple[float, float, float]] = field(default_factory=list)  # order, x, y


def read_asap(path: Path) -> ShapeFile:
    """All annotations of a file and its groups. Raises BenchError naming the file where it is not such XML, declares a
    document type (so that no entity is ever expanded), has coordinates that are no numbers or groups in a circle.

    Everything is in attributes of elements, so that their order in the file is all there is to follow.
    """
    shapes: list[_AnnotationPoints] = []
    parents: dict[str, str] = {}
    for element in _elements(path):
        get = element.attrib.get
        if element.tag == "Annotation":
            shapes.append(_AnnotationPoints(get("Name", ""), get("Type", "Polygon"), get("PartOfGroup", "")))
        elif element.tag == "Coordinate" and shapes:
            shapes[-1].points.append(_point(path, shapes[-1], element.attrib))
        elif element.tag == "Group":
            key, above = group_key(get("Name", "")), get("PartOfGroup", "")
            if group_key(parents.setdefault(key, above)) != group_key(above):
                raise BenchError(f"{path} puts the group '{get('Name')}' into both '{parents[key]}' and '{above}'.")
    check_parents(path, parents)
    return ShapeFile(tuple(map(_shape, shapes)), parents)


def _elements(path: Path) -> Iterator[Element]:
    """The elements of a file in document order, read by defusedxml, which refuses document types and entities."""
    try:
        with path.open("rb") as handle:
            return parse(handle, forbid_dtd=True).iter()
    except DefusedXmlException:
        raise BenchError(
            f"{path} declares a document type, which no annotation of ASAP does. It is not read."
        ) from None
    except (ParseError, LookupError, ValueError) as problem:  # the last two: odd encodings
        raise BenchError(f"{path} is not well-formed XML ({problem}). Download or export it again.") from None


def _shape(annotation: _AnnotationPoints) -> Shape:
    if annotation.kind.strip().capitalize() not in _AREAS:
        return Shape(annotation.name, annotation.kind, annotation.group, (), f"type {annotation.kind} has no area")
    points = as_points((x, y) for _, x, y in sorted(annotation.points, key=lambda p: p[0]))
    shape = area_shape(annotation.name, annotation.kind.strip().capitalize(), annotation.group, [[points]])
    if len({order for order, *_ in annotation.points}) == len(annotation.points):
        return shape
    return replace(shape, note="outlines whose points repeat a number in Order, those taken as they stand in the file")


def _point(path: Path, shape: _AnnotationPoints, attributes: dict[str, str]) -> tuple[float, float, float]:
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
