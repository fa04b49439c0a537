"""GeoJSON as QuPath exports it: annotations in px of the full-resolution image, their classification as group."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...benchmark.core.errors import BenchError
from .shapes import Shape, ShapeFile, area_shape, group_key, is_coordinate

LARGEST = 1_000_000_000  # bytes of unpacked text
_OLD_IDS = "PathAnnotationObject"  # what QuPath 0.2 wrote where newer versions write the object's type


def read_geojson(path: Path) -> ShapeFile:
    """The features of a FeatureCollection, of an array of features, or one feature; `.gz` is unpacked.

    A Polygon or MultiPolygon is an area, with its holes. Cells, detections and tiles are no annotations of a region,
    and are left out like points and lines. The class `Tumor: Positive` lies in the group `Tumor`.
    Raises BenchError naming the file for what is not such GeoJSON, and for coordinates that are no finite numbers.
    """
    shapes = tuple(_shape(path, number, feature) for number, feature in enumerate(_features(path), start=1))
    parents = {}
    for shape in shapes:
        words = shape.group.split(": ")
        parents |= {group_key(": ".join(words[: k + 1])): ": ".join(words[:k]) for k in range(1, len(words))}
    return ShapeFile(shapes, parents)


def _features(path: Path) -> list[Any]:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as handle:
            content = handle.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise BenchError(f"{path} holds more than {LARGEST // 1_000_000} MB of text. Export annotations only.")
        document = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError, EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise BenchError(f"{path} is not GeoJSON ({problem}). Export it from QuPath again.") from None
    if isinstance(document, dict):
        document = document.get("features") if document.get("type") == "FeatureCollection" else [document]
    if not isinstance(document, list) or not all(isinstance(f, dict) and f.get("type") == "Feature" for f in document):
        raise BenchError(
            f"{path} holds no GeoJSON features. Export it from QuPath by File > Export objects as GeoJSON."
        )
    return document


def _shape(path: Path, number: int, feature: Mapping[str, Any]) -> Shape:
    properties = _mapping(feature.get("properties"))
    name = str(properties.get("name") or f"feature {number}")
    geometry = _mapping(feature.get("geometry"))
    kind, group = str(geometry.get("type", "None")), _group(properties.get("classification"))
    if problem := _not_an_area(feature, properties, geometry, kind):
        return Shape(name, kind, group, (), problem)
    coordinates: Any = geometry.get("coordinates")
    polygons = coordinates if kind == "MultiPolygon" else [coordinates]
    try:
        areas = [[_ring(ring) for ring in polygon] for polygon in polygons]
    except (TypeError, ValueError, IndexError):
        raise BenchError(f"{path}: annotation '{name}' has a point that is no pair of numbers.") from None
    return area_shape(name, kind, group, areas)


def _not_an_area(
    feature: Mapping[str, Any], properties: Mapping[str, Any], geometry: Mapping[str, Any], kind: str
) -> str:
    """Why a feature is not read, or nothing."""
    stated, old = str(properties.get("objectType", "")), str(feature.get("id", ""))
    if not stated and old.startswith("Path") and old != _OLD_IDS:
        stated = old.removeprefix("Path").removesuffix("Object").lower()
    if stated not in ("", "annotation"):
        return f"a {stated}, not an annotation"
    if kind not in ("Polygon", "MultiPolygon"):
        return f"type {kind} has no area"
    plane = _mapping(geometry.get("plane"))
    return "on another plane than the first" if any(plane.get(axis) not in (None, 0) for axis in "zt") else ""


def _group(classification: Any) -> str:
    """The class of a feature; its parts as `Tumor: Positive`, empty for an unclassified one."""
    if isinstance(classification, str):
        return classification
    stated = _mapping(classification)
    names = stated.get("names")
    if isinstance(names, list) and names:
        return ": ".join(map(str, names))
    return str(stated.get("name") or "")


def _ring(rows: Any) -> np.ndarray:
    return np.array(list(_points(rows)), float).reshape(-1, 2)


def _points(rows: Any) -> Iterator[tuple[float, float]]:
    for row in rows:
        x, y = row[0], row[1]
        if isinstance(x, bool | str) or isinstance(y, bool | str) or not (is_coordinate(x) and is_coordinate(y)):
            raise ValueError(row)
        yield float(x), float(y)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
