"""Published beside ours: a line each where the rules agree, and for every other line the reason why there is none."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .aggregate import Line, Table
from .cells import Cell, Column, mean_cell
from .grid import BLANK, Grid, GridBlock, GridLine, Group, Head
from .published import FOLD, METRIC, PROTOCOL, SELECTION, Number, verdict

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
            found = verdict(line, table.protocol)
            if found.number:
                same.append(_beside(table, line, found.number, records))
            else:
                checkpoint = f" · {line.first.selection}" if line.first.selection != "-" else ""
                place = f"{table.sets} · {table.protocol}{checkpoint}"
                others[place, found.reason, line.first.backbone].append(line)
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
    said = [f"{number.paper}, {number.table}", number.note, _ours(line, records)]
    words = Cell("; ".join(text for text in said if text))
    names = (line.marked, line.first.backbone, f"{table.sets} · {table.protocol} · {line.first.selection}")
    return GridLine(names, (ours, published, difference, words), "bound" if line.first.upper_bound else "")


def _ours(line: Line, records: Mapping[str, Mapping[str, Any]]) -> str:
    """What of our training a reader should know before comparing: its length, and folds that were not published."""
    epochs = sorted({records[r.stage_train].get("epochs", 0) for r in line.runs if r.stage_train in records} - {0})
    folds = sorted({str(r.fold) for r in line.runs})
    said = [f"ours trained {' or '.join(map(str, epochs))} epochs"] if epochs else []
    said += [f"ours is the mean of folds {', '.join(folds)}, published is fold {FOLD}"] if len(folds) > 1 else []
    return "; ".join(said)


def _lonely(place: tuple[str, ...], lines: Iterable[Line]) -> GridLine:
    where, reason, backbone = place
    methods = ", ".join(dict.fromkeys(line.marked for line in lines))
    return GridLine((methods, backbone, where), (BLANK, BLANK, BLANK, Cell(reason)))
