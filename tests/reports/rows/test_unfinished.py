"""Stages that failed or diverged: told everywhere as what they are, and in no number anywhere."""

import csv
import io
import json

import pytest

from wsolbench.benchmark.core.files import write_json
from wsolbench.benchmark.core.results_store import SCHEMA
from wsolbench.reports.build import build_report
from wsolbench.reports.drawing import jobs
from wsolbench.reports.rows.frame import rows_frame
from wsolbench.reports.rows.load import collect
from wsolbench.reports.rows.unfinished import load_unfinished, unfinished_of
from wsolbench.reports.tables.contents import Contents
from wsolbench.reports.tables.formats import latex_table, markdown_table, rows_csv, terminal_table
from wsolbench.reports.tables.unfinished_tables import unfinished_grid

LABELS = {"method": "negev", "options": "", "backbone": "resnet18", "train": "glas", "fold": "0", "seed": 1}
NAN_LOSS = {
    "kind": "train", "labels": LABELS, "status": "diverged", "epoch": 2, "step": 3, "seed": 1,
    "ids": ["train_4", "train_9"], "traceback": "at x",
    "error": "the loss is not finite from step 3 of 8 of epoch 2 on",
}  # fmt: skip
BROKEN = {"kind": "train", "labels": {**LABELS, "method": "fcam"}, "error": "ValueError: no idea", "traceback": "at y"}


@pytest.fixture
def failed(small):
    """A folder with a training that diverged and one that failed."""
    small.fail("d" * 20, NAN_LOSS)
    small.fail("e" * 20, BROKEN)
    return small


@pytest.fixture
def written(failed, tmp_path, monkeypatch):
    """Every format of its report, as text."""
    monkeypatch.setattr(jobs, "FIGURES", {})
    build_report(failed, tmp_path / "out")
    return {p.name: p.read_text() for p in (tmp_path / "out").iterdir() if p.is_file()}


def test_every_format_tells_the_status_and_the_reason(written):
    for name in ("report.md", "report.tex", "index.html", "rows.csv"):
        text = written[name]
        assert "diverged" in text, name
        assert "not finite from step 3 of 8 of epoch 2" in text, name
        assert "no idea" in text, name
        assert "at x" not in text, name  # tracebacks stay in the folder
    for name in ("report.md", "report.tex", "index.html"):
        assert "diverged (epoch 2)" in written[name], name
        assert "Not finished" in written[name], name
        assert "train\\_4" in written[name] or "train_4" in written[name], name
    assert 'href="#unfinished"' in written["index.html"]


def test_no_number_counts_what_did_not_finish(failed, small, tmp_path):
    whole, rest = collect(failed), collect(small)
    assert [r.stage for r in whole.rows] == [r.stage for r in rest.rows]
    assert not any(r.method in ("negev", "fcam") for r in whole.rows)
    table = Contents(whole).tables[0]
    assert not any(line.first.method in ("negev", "fcam") for line in table.lines)
    for text in (markdown_table(table), latex_table(table, 1)):
        line = next(x for x in text.splitlines() if "Not finished, so in no number here" in x)
        assert "negev on resnet18, fold 0 seed 1: training diverged (epoch 2)" in line
        assert "fcam on resnet18, fold 0 seed 1: training failed" in line


def test_csv_has_a_row_without_numbers(failed):
    found = collect(failed)
    rows = list(csv.DictReader(io.StringIO(rows_csv(rows_frame(found.rows), found.unfinished))))
    assert {r["status"] for r in rows if r["method"] not in ("negev", "fcam")} == {"finished"}
    (negev,) = [r for r in rows if r["method"] == "negev"]
    told = {k: v for k, v in negev.items() if v}
    assert told == {
        "method": "negev", "backbone": "resnet18", "train": "glas", "fold": "0", "seed": "1", "stage": "d" * 20,
        "status": "diverged", "error": f"{NAN_LOSS['error']} (images of the batch: train_4, train_9)",
    }  # fmt: skip
    assert len(rows) == len(found.rows) + 2


def test_the_terminal_tells_it_too(failed):
    found = collect(failed)
    text = terminal_table(found.rows, 120, load_unfinished(failed, {"d" * 20, "x"}))
    assert "Not finished: 1" in text
    assert "diverged (epoch 2): training of negev on resnet18, fold 0 seed 1, glas" in text
    assert "fcam" not in text  # of another command
    assert max(map(len, text.splitlines())) <= 120
    assert terminal_table([], 80, found.unfinished).startswith("No finished row yet.\n\nNot finished: 2")
    assert "Not finished" not in terminal_table(found.rows)


def test_what_was_finished_since_is_no_longer_told(failed):
    record = next(iter(collect(failed).records.values()))
    write_json(failed.run_dir("d" * 20) / "record.json", {**record, "key": "d" * 20})
    assert [u.method for u in collect(failed).unfinished] == ["fcam"]


def test_stages_of_one_reason_are_one_row():
    score = {"kind": "score", "error": "boom", "labels": {**LABELS, "protocol": "fair", "split": "test"}}
    failures = {
        f"{k:020d}": {**score, "labels": {**score["labels"], "eval": name, "selection": s}}
        for k, (name, s) in enumerate([("glas", "cl"), ("glas", "last"), ("camelyon16", "cl")])
    }
    (one,) = unfinished_of(failures)
    assert (len(one.stages), one.data) == (3, "glas → camelyon16")
    other = {**score, "labels": {**score["labels"], "eval": "glas", "seed": 2}}
    assert len(unfinished_of({**failures, "f" * 20: other})) == 2
    assert unfinished_grid([]) is None


def test_a_failed_score_stands_under_its_own_table_only(small):
    labels = {**LABELS, "method": "layercam", "eval": "glas", "protocol": "paper", "split": "test"}
    small.fail("d" * 20, {"kind": "score", "labels": labels, "error": "boom"})
    found = collect(small)
    assert len(found.unfinished) == 1
    assert not any("Not finished" in note for t in Contents(found).tables for note in t.footnotes)


def test_failures_that_say_little_are_told_as_they_are(small, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "FIGURES", {})
    odd = ({}, {"kind": 3, "labels": "none", "ids": "abc", "epoch": "two"}, {"labels": {"method": None}})
    for k, failure in enumerate(odd):
        small.fail(f"{k:020d}", failure)
    (small.run_dir("f" * 20)).mkdir()
    (small.run_dir("f" * 20) / "failure.json").write_text("{")
    found = collect(small)
    assert {u.status for u in found.unfinished} == {"failed"}
    assert any("failure.json is damaged" in p for p in found.problems)
    build_report(small, tmp_path / "out", ["md", "html"])


def test_another_schema_is_counted_and_never_mixed_in(small, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "FIGURES", {})
    whole = collect(small)
    victims = [r for r in whole.rows if r.method == "cam"]
    for victim in victims:
        path = small.run_dir(victim.stage) / "record.json"
        write_json(path, {**json.loads(path.read_text()), "schema": SCHEMA - 1})
    small.fail("e" * 20, {**BROKEN, "schema": SCHEMA + 1})
    found = collect(small)
    assert len(found.rows) == len(whole.rows) - len(victims)
    assert not found.unfinished
    (told,) = [p for p in found.problems if "old schema, ignored" in p]
    assert told.startswith(f"{len(victims) + 1} stages were stored under another schema than {SCHEMA}")
    build_report(small, tmp_path / "out", ["md", "html"])
    for name in ("report.md", "index.html"):
        assert "old schema, ignored" in (tmp_path / "out" / name).read_text()


def test_smaller_parts_and_several_devices_are_footnotes(small):
    trained = next(k for k, r in collect(small).records.items() if r["kind"] == "train" and r["labels"]["seed"] == 0)
    path = small.run_dir(trained) / "record.json"
    record = json.loads(path.read_text())
    method = record["labels"]["method"]
    record["facts"].update(micro_batch={"asked": 32, "used": 16}, devices=2)
    write_json(path, record)
    found = collect(small)
    rows = [r for r in found.rows if r.stage_train == trained]
    assert {(r.micro_batch, r.micro_batch_asked, r.devices) for r in rows} == {(16, 32, 2)}
    text = " ".join(Contents(found).tables[0].footnotes)
    names = {r.method for r in rows}
    assert method in names
    for name in names:
        assert f"{name}: 1 of 1 trainings went in parts of 16 images instead of 32 after memory ran out" in text
        assert f"{name}: 1 of 1 trainings went on 2 devices at once" in text
    record["facts"]["micro_batch"]["asked"] = 0
    write_json(path, record)
    assert "16 images instead of whole batches" in " ".join(Contents(collect(small)).tables[0].footnotes)
