"""Slide table of `--splits`, a row a slide: the user's own, or Camelyon17's stage_labels.csv as it is."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ...benchmark.core.errors import BenchError, did_you_mean
from ..base import SPLITS
from ..parts.identity import normal_group
from ..wsi.notes import name_some
from ..wsi.slide import SUFFIXES

NORMAL, TUMOR = "normal", "tumor"
CLASSES = (NORMAL, TUMOR)
STAGES = {"negative": NORMAL, "itc": TUMOR, "micro": TUMOR, "macro": TUMOR}  # of a node in Camelyon17
_COLUMNS = ("slide", "split", "label", "patient")
_INDEX = re.compile(r"(|unnamed: \d+)")  # what pandas calls the column of its index
_NOTHING = ("nan", "none", "null", "na", "n/a", "<na>")  # what programs write for an empty cell
_SHOWN = 10  # faulty lines that one message names


class SplitRow(NamedTuple):
    """What is known of a slide: empty where nothing is. stage: as Camelyon17 states it."""

    split: str
    label: str
    patient: str = ""
    stage: str = ""


@dataclass(frozen=True)
class SplitsTable:
    """Rows by slide, spelt as its file. missing: slides of the table without a file. stages: of Camelyon17."""

    rows: Mapping[str, SplitRow]
    missing: tuple[str, ...] = ()
    stages: bool = False
    notes: tuple[str, ...] = field(default_factory=tuple)


def read_splits(path: Path, known: Sequence[str]) -> SplitsTable:
    """Reads a CSV file with the columns slide, split and perhaps label and patient, or stage_labels.csv.

    known: names of the slides there are. A column split may be missing; the splits are then empty. The index column of
    pandas is passed over; other columns are passed over with a note. A slide may be written as a path or with its
    suffix, in upper or lower case, and a number as 7.0. Raises BenchError naming every line at fault.
    """
    lines = _lines(path)
    header = [c.strip().lower() for c in lines[0][1]] if lines else []
    if header == ["patient", "stage"]:
        return _read_stages(path, lines[1:], known)
    columns, notes = _columns(path, header)
    rows: dict[str, SplitRow] = {}
    missing: list[str] = []
    wrong: list[str] = []
    files = {n.lower(): n for n in known}
    for number, cells in lines[1:]:
        try:
            slide, row = _row(cells, header, columns)
            name = _match(slide, files)
            if (name or slide.lower()) in rows or slide.lower() in missing:
                raise BenchError(f"slide '{slide}' is listed twice")
        except BenchError as problem:
            wrong.append(f"line {number}: {problem}")
            continue
        if name:
            rows[name] = row
        else:
            missing.append(slide.lower())
    _refuse(path, wrong, rows, known)
    return SplitsTable(rows, tuple(sorted(missing)), notes=tuple(notes))


def _read_stages(path: Path, lines: Sequence[tuple[int, Sequence[str]]], known: Sequence[str]) -> SplitsTable:
    """Camelyon17: one line a node (`patient_000_node_0.tif,negative`) and one a patient (`patient_000.zip,pN0`)."""
    rows: dict[str, SplitRow] = {}
    missing: list[str] = []
    wrong: list[str] = []
    files = {n.lower(): n for n in known}
    for number, cells in lines:
        name, stage = [*(c.strip() for c in cells), "", ""][:2]
        if name.lower().endswith(".zip"):
            continue
        slide, label = _stem(name), STAGES.get(stage.lower())
        if len(cells) != 2 or not label:
            wrong.append(f"line {number}: '{','.join(cells)}' is no node and its stage ({', '.join(STAGES)})")
        elif file := _match(slide, files):
            rows[file] = SplitRow("", label, "", stage.lower())
        else:
            missing.append(slide)
    _refuse(path, wrong, rows, known)
    notes = [f"{len(missing)} of the {len(rows) + len(missing)} slides in {path.name} are not here"] * bool(missing)
    return SplitsTable(rows, (), stages=True, notes=tuple(notes))


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BenchError(f"There is no file {path}. Correct --splits.") from None
    except IsADirectoryError:
        raise BenchError(f"{path} is a folder. Give --splits a CSV file.") from None
    except UnicodeDecodeError:
        raise BenchError(f"{path} is not UTF-8 text. Save it as 'CSV UTF-8'.") from None
    try:
        numbered = [(n, cells) for n, cells in enumerate(csv.reader(text.splitlines()), start=1)]
    except csv.Error as problem:
        raise BenchError(f"{path} cannot be read as CSV ({problem}).") from None
    return [(n, cells) for n, cells in numbered if any(c.strip() for c in cells)]


def _columns(path: Path, header: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Where the known columns are, and what to say of the others."""
    positions = {name: header.index(name) for name in _COLUMNS if name in header}
    if "slide" not in positions or not {"split", "label"} & set(positions):
        raise BenchError(
            f"{path}: the header must be slide,split and perhaps label,patient, separated by commas (or that of "
            f"Camelyon17's stage_labels.csv); it is '{','.join(header)}'."
        )
    if twice := sorted({c for c in header if c in _COLUMNS and header.count(c) > 1}):
        raise BenchError(f"{path}: the column '{twice[0]}' occurs twice.")
    others = [c for k, c in enumerate(header) if c not in _COLUMNS and not (k == 0 and _INDEX.fullmatch(c))]
    return positions, [f"columns of {path.name} that are not read: {', '.join(others)}"] * bool(others)


def _row(cells: Sequence[str], header: Sequence[str], columns: Mapping[str, int]) -> tuple[str, SplitRow]:
    """One line. Raises BenchError saying what is wrong with it."""
    if len(cells) != len(header):
        raise BenchError(f"{len(cells)} fields, the header has {len(header)}")
    values = {name: cells[k].strip() for name, k in columns.items()}
    values |= dict.fromkeys((n for n, v in values.items() if n != "slide" and v.lower() in _NOTHING), "")
    split, label = values.get("split", "").lower(), values.get("label", "").lower()
    if "split" in columns and split not in SPLITS:
        raise BenchError(f"there is no split '{split}'.{did_you_mean(split, SPLITS)}")
    if label not in (*CLASSES, ""):
        raise BenchError(f"there is no label '{label}'.{did_you_mean(label, CLASSES)}")
    if not _stem(values["slide"]):
        raise BenchError("no slide is named")
    return _stem(values["slide"]), SplitRow(split, label, values.get("patient", ""))


def _stem(text: str) -> str:
    """A slide without folders and suffix."""
    name = PurePosixPath(text.replace("\\", "/")).name
    suffixes = "|".join(re.escape(s) for s in SUFFIXES)
    return re.sub(rf"({suffixes})$", "", name, flags=re.IGNORECASE)


def _match(slide: str, files: Mapping[str, str]) -> str:
    """The file of a slide: by its name, or the number that pandas made 7.0 of; empty if there is none."""
    if slide.lower() in files:
        return files[slide.lower()]
    if re.fullmatch(r"\d+\.0+", slide):
        same = [name for name in files.values() if name.isdigit() and normal_group(name) == normal_group(slide)]
        return same[0] if len(same) == 1 else ""
    return ""


def _refuse(path: Path, wrong: Sequence[str], rows: Mapping[str, SplitRow], known: Sequence[str]) -> None:
    if wrong:
        more = f" And {len(wrong) - _SHOWN} more lines." if len(wrong) > _SHOWN else ""
        raise BenchError(f"{path}, {'; '.join(w.rstrip('.') for w in wrong[:_SHOWN])}.{more}")
    if not rows:
        raise BenchError(f"{path} lists none of the {len(known)} slides, such as {name_some(sorted(known), 2)}.")
