"""Anybody's score maps as files, and the labels beside them, with nothing silently repaired."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...datasets.masks.arrays import is_array_file, read_array
from ...datasets.masks.decode import decode_grey
from ...datasets.masks.files import stored_values
from ...datasets.masks.reader import MaskPixels, MaskRule
from ...datasets.masks.reader import read_mask as read_any_mask
from ...datasets.parts.csv_table import GAPS, whole
from ...datasets.parts.identity import one_spelling
from ..core.errors import BenchError, did_you_mean
from .map_pairs import MASK_SUFFIXES, bare_name

_TOPS = {np.dtype(np.bool_): 1, np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
_COLUMNS = ("id", "label", "prediction", "group")
DARKEST = 1 / 255  # the highest value of 0 and 1 saved with 8 bits, and of 8 bits (255) saved with 16


@dataclass(frozen=True)
class LabelRow:
    """Row of a labels CSV; `prediction` None without that column, `group` is the id without it."""

    label: str
    prediction: str | None
    group: str


def read_map(path: Path) -> np.ndarray:
    """A score map as (h, w) float64: arrays and float TIFF as stored, 8-bit grey / 255, 16-bit grey / 65535.

    An npz holds one array, or the map under `map` or `arr_0`; (1, h, w) and (h, w, 1) are read as (h, w). Raises
    BenchError naming the file for anything else: colour or palette images, lossy compression, pickles, damaged files,
    other shapes, values that are NaN or infinite.
    """
    if is_array_file(path):
        values = read_array(path, "map").astype(np.float64)
    elif path.suffix.lower() in (".tif", ".tiff"):
        values = _tiff(path)
    else:
        values = decode_grey(path)
    if not np.isfinite(values).all():
        raise BenchError(f"{path} is not finite: {int((~np.isfinite(values)).sum())} values are NaN or infinite.")
    return values


def _tiff(path: Path) -> np.ndarray:
    """ImageJ and QuPath write maps as 32-bit float TIFF; grey levels are scaled as those of a PNG."""
    try:
        stored = stored_values(path)
    except BenchError as problem:
        raise BenchError(str(problem).replace("the mask", "the map").replace("masks are", "maps are")) from None
    if stored.dtype.kind == "f":
        return stored.astype(np.float64)
    if stored.dtype not in _TOPS:
        raise BenchError(f"{path} holds {stored.dtype}: which value means 1 is open. Save floats, or 8 or 16 bits.")
    return stored.astype(np.float64) / _TOPS[stored.dtype]


def are_grey_levels(values: np.ndarray) -> bool:
    """Whether all values are levels of 8 or 16 bits, unlike those of a float TIFF."""
    levels = values * 65535
    return bool((np.abs(levels - np.rint(levels)) < 1e-6).all())


def read_mask(path: Path, rule: MaskRule = MaskRule()) -> MaskPixels:  # noqa: B008 - frozen
    """A mask. Raises BenchError as `datasets.masks.read_mask` does."""
    try:
        return read_any_mask(path, rule)
    except BenchError as problem:
        more = f"If this is the image, its mask needs the same stem, or one that adds {' or '.join(MASK_SUFFIXES)}."
        raise BenchError(f"{problem} {more}") from None


def read_labels(path: Path) -> tuple[dict[str, LabelRow], list[str]]:
    """A CSV with the columns id and label, and perhaps prediction and group, by id; and how doubtful cells were read.

    An id may be given as a file name. Other columns are left out, and so is the index that pandas adds. Raises
    BenchError, naming the line, for a file that cannot be read, a missing column, an empty field or an id that occurs
    twice.
    """
    lines = _lines(path)
    columns, notes = _columns(path, lines[0] if lines else [])
    rows: dict[str, LabelRow] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not any(line):
            continue
        where = f"{path}, line {number}"
        if len(line) != len(columns):
            raise BenchError(f"{where}: {len(line)} fields, the first line has {len(columns)}.")
        row = {name: value for name, value in zip(columns, line, strict=True) if name}
        for name, value in row.items():
            if value.lower() in ("", *GAPS):
                raise BenchError(f"{where}: the {name} is {repr(value) if value else 'empty'}. Every row needs one.")
        key = bare_name(row["id"])
        if key in rows:
            raise BenchError(f"{where}: the id '{key}' occurs twice.")
        prediction = row.get("prediction")
        rows[key] = LabelRow(whole(row["label"]), prediction and whole(prediction), row.get("group", key))
    if not rows:
        raise BenchError(f"{path} names no image.")
    names, remarks = one_spelling(row.group for row in rows.values())
    rows = {k: replace(row, group=names.get(row.group, row.group)) for k, row in rows.items()}
    return rows, [*notes, *remarks]


def _lines(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            text = [line for line in handle if not line.startswith("#")]
        return [[field.strip() for field in row] for row in csv.reader(text)]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise BenchError(f"The labels {path} cannot be read: {problem}.") from None


def _columns(path: Path, header: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the columns, empty for those that are not read, and what is said of them."""
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise BenchError(f"{path}: the fields must be separated by commas. Export it as comma-separated.")
    names = [name.lower() if name.lower() in _COLUMNS else name for name in header]
    missing = [name for name in _COLUMNS[:2] if name not in names]
    others = [name for name in names if name not in _COLUMNS]
    for name in others:
        near = did_you_mean(name, [*missing, *(c for c in _COLUMNS if c not in names)])
        if near.startswith(" Did"):
            raise BenchError(f"{path} has a column '{name}'.{near}")
    if missing:
        raise BenchError(
            f"{path} has no column '{missing[0]}': its first line must name id,label[,prediction][,group]."
        )
    if twice := [name for name in _COLUMNS if names.count(name) > 1]:
        raise BenchError(f"{path} has the column '{twice[0]}' twice.")
    named = [name for name in others if name and not name.lower().startswith("unnamed")]
    notes = [f"columns of {path.name} that are not read: {', '.join(named)}"] if named else []
    return [name if name in _COLUMNS else "" for name in names], notes
