"""The report of fixed made-up results, text for text: what a change of its insides must leave as it is.

A change that is meant is stored by `STORE_GOLDEN=1 python -m pytest tests/reports/test_golden.py`, and its difference
read before it is committed.
"""

import csv
import io
import math
import os
import re
from pathlib import Path

import pytest

from tests.reports.conftest import ladder, lymph
from wsolbench.reports.build import build_report
from wsolbench.reports.drawing import jobs

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("report.md", "report.tex", "rows.csv", "lines.csv")


def test_report_is_that_of_the_golden_files(write_results, recipe, tmp_path):
    """Words and printed digits exactly; full-precision numbers of the CSV files as far as machines agree.

    The results hold another data set, a shift, baselines, an upper bound and two seeds; figures are left out.
    """
    targets = (lymph(), *ladder("glas", "stain", (0.02, 0.1), "standard deviation of the HED shift"))
    store = write_results(tmp_path / "results", recipe(images=8, targets=targets, protocols=("fair",)))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FIGURES", "OOD_FIGURES", "SHIFT_FIGURES"):
            patch.setattr(jobs, name, {}, raising=False)
        build_report(store, tmp_path, ("md", "tex", "csv"))
    made = {name: (tmp_path / name).read_text(encoding="utf-8") for name in NAMES}
    made["report.md"] = re.sub(r"wsolbench [^ ]+\.", "wsolbench VERSION.", made["report.md"], count=1)
    made["rows.csv"] = "".join(made["rows.csv"].splitlines(keepends=True)[::8])  # every field, few rows
    if os.environ.get("STORE_GOLDEN"):
        for name, text in made.items():
            (GOLDEN / name).write_text(text, encoding="utf-8", newline="")
    for name in ("report.md", "report.tex"):
        assert made[name] == (GOLDEN / name).read_text(encoding="utf-8"), name
    for name in ("rows.csv", "lines.csv"):
        assert_same_table(made[name], (GOLDEN / name).read_text(encoding="utf-8"))


def assert_same_table(made: str, golden: str) -> None:
    ours, theirs = (list(csv.reader(io.StringIO(text))) for text in (made, golden))
    assert ours[0] == theirs[0]
    assert len(ours) == len(theirs)
    for number, (own, other) in enumerate(zip(ours, theirs, strict=True), 1):
        for title, a, b in zip(ours[0], own, other, strict=True):
            assert a == b or agree(a, b), (number, title, a, b)


def agree(a: str, b: str) -> bool:
    """Whether two cells are one number but for the last digits of its sum."""
    try:
        return math.isclose(float(a), float(b), rel_tol=1e-9, abs_tol=1e-9)
    except ValueError:
        return False
