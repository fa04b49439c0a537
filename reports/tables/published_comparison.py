"""Published numbers beside ours: read from the packaged CSV files, a line each where nothing that matters differs.

For every other line stands the reason why there is none.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ...benchmark.core.errors import BenchError
from .aggregate import Line, Table
from .cells import Cell, Column, mean_cell
from .grid import BLANK, Grid, GridBlock, GridLine, Group, Head

FOLDER = Path(__file__).resolve().parents[2] / "results" / "published"
TABLE = "published table"
NAMED = 4  # differences of two trainings that are told
METRIC, PROTOCOL, SELECTION, FOLD = "pxap", "paper", "loc", 0


@dataclass(frozen=True)
class Number:
    """One published number, percent unless its metric says otherwise; the columns are told in the folder's README."""

    source: str
    paper: str
    table: str
    train: str
    eval: str
    backbone: str
    method: str
    printed: str
    setting: str
    metric: str
    value: float
    protocol: str
    selection: str
    how_read: str
    status: str
    note: str


class Verdict(NamedTuple):
    """The published number a line may stand beside, or the reason why there is none."""

    number: Number | None
    reason: str


@cache
def published_numbers(folder: Path = FOLDER) -> tuple[Number, ...]:
    """All numbers of all CSV files of a folder. Raises BenchError for a missing column or a value that is no number."""
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise BenchError(f"{folder} holds no published numbers. Install wsolbench again: its data files are missing.")
    return tuple(number for path in paths for number in _read(path))


def _read(path: Path) -> Iterable[Number]:
    wanted = [f.name for f in fields(Number)]
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        if reader.fieldnames != wanted:
            raise BenchError(f"{path}: the columns must be {', '.join(wanted)}.")
        for line, row in enumerate(reader, 2):
            try:
                yield Number(**{**row, "value": float(row["value"])})
            except (TypeError, ValueError):
                raise BenchError(f"{path}, line {line}: a cell is missing or '{row['value']}' is no number.") from None


def verdict(line: Line, protocol: str, numbers: Iterable[Number] | None = None) -> Verdict:
    """The published PxAP of a line of an in-domain or out-of-domain table, or the first thing that differs.

    Asked in this order: method, data sets, backbone, protocol, checkpoint, options, division of the images, training
    (starting weights, stride, and the rest of the published recipe).
    """
    row = line.first
    own = [n for n in (published_numbers() if numbers is None else numbers) if n.method == row.method]
    numbers_left = [
        n for n in own if n.status == TABLE and n.metric == METRIC and not n.setting and n.backbone != "mean"
    ]
    if not numbers_left:
        known = ", only numbers found in its authors' code" if any(n.status != TABLE for n in own) else ""
        return Verdict(None, f"no published {'table' if known else 'number'} for this method{known}")
    numbers_left = [n for n in numbers_left if (n.train, n.eval) == (row.train, row.eval)]
    if not numbers_left:
        where = row.eval if row.train == row.eval else f"{row.train} → {row.eval}"
        return Verdict(None, f"no published number on {where}")
    known = ", ".join(sorted({n.backbone for n in numbers_left}))
    numbers_left = [n for n in numbers_left if n.backbone == row.backbone]
    if not numbers_left:
        return Verdict(None, f"no published number for {row.backbone} (there are {known})")
    return _same_rules(line, protocol, numbers_left[0])


def _same_rules(line: Line, protocol: str, number: Number) -> Verdict:
    """Whether our line was made by the rules of a published number of its method, data and backbone."""
    row = line.first
    folds = {r.fold for r in line.runs}
    unlike = list(dict.fromkeys(text for r in line.runs for text in r.unlike_published))
    trained = "; ".join(unlike[:NAMED]) + (f"; and {len(unlike) - NAMED} more settings" if len(unlike) > NAMED else "")
    theirs = number.selection
    reasons = (
        (protocol != number.protocol, f"different protocol: ours is {protocol}, published {number.protocol}"),
        (row.selection != theirs, f"different checkpoint: ours {row.selection}, published {theirs}"),
        (bool(row.options), f"different options: {row.options}"),
        (FOLD not in folds, f"different division of the images: fold {', '.join(map(str, sorted(folds, key=str)))}"),
        (bool(unlike), f"trained otherwise: {trained}"),
    )
    reason = next((text for differs, text in reasons if differs), "")
    return Verdict(None, reason) if reason else Verdict(number, "")


SYNTHETIC_ONLY = (
    "The data of this report are synthetic. Published numbers belong to real images, so none stand beside these."
)
_SOME_SYNTHETIC = "Rows on synthetic data are left out: published numbers belong to real images."
_TEXT = (
    "Published PxAP beside ours where method, data, backbone, protocol, checkpoint, starting weights, stride and the "
    "published training recipe (--preset paper) agree; below, why the other lines have none."
)
_COLUMN = Column(METRIC, "PxAP", "")
_HEADS = (
    Head("Ours", "PxAP in percent, mean over the runs.", brief="Ours"),
    Head("Published", "PxAP in percent as printed.", brief="Published"),
    Head("Difference", "Ours minus published, in percentage points.", brief="Difference"),
    Head("Where, or why not", "Where the number is printed, or why no number stands beside ours.", text=True),
)


def build_beside(tables: Sequence[Table], records: Mapping[str, Mapping[str, Any]]) -> Grid:
    """The comparison for tables of real data, in domain or not; on synthetic data alone one sentence and no number."""
    real = [t for t in tables if not t.synthetic]
    if not real:
        return _grid((), SYNTHETIC_ONLY, ())
    same: list[GridLine] = []
    others: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for table in sorted(real, key=lambda t: (t.protocol != PROTOCOL, t.train != t.eval)):
        for line in sorted(table.lines, key=lambda x: x.first.selection != SELECTION):
            answer = verdict(line, table.protocol)
            if answer.number:
                same.append(_beside(table, line, answer.number, records))
            else:
                checkpoint = f" · {line.first.selection}" if line.first.selection != "-" else ""
                place = f"{table.sets} · {table.protocol}{checkpoint}"
                others[place, answer.reason, line.first.backbone].append(line)
    blocks = (
        GridBlock("same", "Same protocol, data, backbone, checkpoint and recipe", tuple(same)),
        GridBlock("none", "No published number to stand beside", tuple(_lonely(k, v) for k, v in others.items())),
    )
    notes = [
        "Published numbers are kept as printed, with their sources, in the CSV files of results/published; numbers "
        "found in authors' code but in no paper are there too and are never put beside ours.",
    ]
    if len(real) < len(tables):
        notes.append(_SOME_SYNTHETIC)
    return _grid(tuple(b for b in blocks if b.lines), _TEXT, tuple(notes))


def _grid(blocks: tuple[GridBlock, ...], text: str, notes: tuple[str, ...]) -> Grid:
    caption = (
        f"PxAP in percent; published numbers are of protocol {PROTOCOL}, checkpoint {SELECTION}." if blocks else ""
    )
    return Grid(
        "published", "Published beside ours", PROTOCOL, False, (Group("", _HEADS),) if blocks else (), blocks, caption,
        notes, ("Method", "Backbone", "Data and rules"), text,
    )  # fmt: skip


def _beside(table: Table, line: Line, number: Number, records: Mapping[str, Mapping[str, Any]]) -> GridLine:
    ours = mean_cell([r.pxap for r in line.runs], _COLUMN)
    published = Cell(f"{number.value:.1f}", number=number.value)
    difference = mean_cell([r.pxap - number.value for r in line.runs], Column(METRIC, "", "", sd=False))
    remarks = [f"{number.paper}, {number.table}", number.note, _ours(line, records)]
    words = Cell("; ".join(text for text in remarks if text))
    names = (line.marked, line.first.backbone, f"{table.sets} · {table.protocol} · {line.first.selection}")
    return GridLine(names, (ours, published, difference, words), "bound" if line.first.upper_bound else "")


def _ours(line: Line, records: Mapping[str, Mapping[str, Any]]) -> str:
    """What of our training a reader should know before comparing: its length, and folds that were not published."""
    epochs = sorted({records[r.stage_train].get("epochs", 0) for r in line.runs if r.stage_train in records} - {0})
    folds = sorted({str(r.fold) for r in line.runs})
    remarks = [f"ours trained {' or '.join(map(str, epochs))} epochs"] if epochs else []
    remarks += [f"ours is the mean of folds {', '.join(folds)}, published is fold {FOLD}"] if len(folds) > 1 else []
    return "; ".join(remarks)


def _lonely(place: tuple[str, ...], lines: Iterable[Line]) -> GridLine:
    where, reason, backbone = place
    methods = ", ".join(dict.fromkeys(line.marked for line in lines))
    return GridLine((methods, backbone, where), (BLANK, BLANK, BLANK, Cell(reason)))
