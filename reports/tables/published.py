"""Published numbers: read from the packaged CSV files, beside our rows only where nothing that matters differs."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ...benchmark.core.errors import BenchError
from .aggregate import Line

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
    found = [n for n in own if n.status == TABLE and n.metric == METRIC and not n.setting and n.backbone != "mean"]
    if not found:
        known = ", only numbers found in its authors' code" if any(n.status != TABLE for n in own) else ""
        return Verdict(None, f"no published {'table' if known else 'number'} for this method{known}")
    found = [n for n in found if (n.train, n.eval) == (row.train, row.eval)]
    if not found:
        where = row.eval if row.train == row.eval else f"{row.train} → {row.eval}"
        return Verdict(None, f"no published number on {where}")
    known = ", ".join(sorted({n.backbone for n in found}))
    found = [n for n in found if n.backbone == row.backbone]
    if not found:
        return Verdict(None, f"no published number for {row.backbone} (there are {known})")
    return _same_rules(line, protocol, found[0])


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
