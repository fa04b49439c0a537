"""The data frame of rows: documented columns, the values of the rows, and the groups of pandas as those of a loop."""

from dataclasses import replace
from pathlib import Path

import pytest

from wsolbench.reports.rows.frame import COLUMNS, alike, rows_frame

DOCS = Path(__file__).resolve().parents[3] / "docs" / "columns.md"


def test_one_line_a_row_with_its_values(found):
    frame = rows_frame(found.rows)
    assert list(frame) == list(COLUMNS)
    assert len(frame) == len(found.rows)
    for k in (0, len(frame) // 2, len(frame) - 1):
        row, line = found.rows[k], frame.iloc[k]
        assert (line["method"], line["seed"], line["stage"]) == (row.method, row.seed, row.stage)
        assert line["pxap"] == pytest.approx(row.pxap, nan_ok=True)


def test_means_of_pandas_are_those_of_the_table(found):
    """What the page prints is what a user gets from the frame with one line of pandas."""
    from wsolbench.reports.tables.aggregate import build_tables

    table = next(t for t in build_tables(found.rows, found.settings) if t.protocol == "fair")
    frame = rows_frame(table.rows)
    means = frame.groupby(["method", "selection", "gated"])["pxap"].mean()
    for line in table.lines:
        first = line.first
        expected = means[first.method, first.selection, first.gated]
        assert line.cells["pxap"].number == pytest.approx(expected, nan_ok=True)


def test_epochs_stay_whole_where_one_is_missing(found):
    rows = [replace(found.rows[0], epoch=e) for e in (3, None)]
    frame = rows_frame(rows, ("epoch",))
    assert frame["epoch"].iloc[0] == 3
    assert str(frame["epoch"].dtype) == "Int64"
    assert frame["epoch"].isna().tolist() == [False, True]


def test_groups_keep_the_order_of_rows_whatever_their_types(found):
    """Folds are numbers or names; groups stand in the order of their first row, rows in their own."""
    folds = ("b", 1, "b", 0, 1, "b")
    rows = [replace(found.rows[0], fold=fold, seed=k) for k, fold in enumerate(folds)]
    groups = [(place, [r.seed for r in runs]) for place, runs in alike(rows, ("fold",))]
    assert groups == [(("b",), [0, 2, 5]), ((1,), [1, 4]), ((0,), [3])]
    assert list(alike([], ("fold",))) == []


def test_unknown_columns_are_refused(found):
    with pytest.raises(AttributeError, match="pxpa"):
        rows_frame(found.rows, ("pxpa",))


def test_docs_tell_every_column():
    lines = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert lines == [f"| `{name}` | {unit} | {meaning} |" for name, (unit, meaning) in COLUMNS.items()]
