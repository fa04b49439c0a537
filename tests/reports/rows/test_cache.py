"""What is kept between reports: the same as worked out anew, and gone as soon as what it was made from has changed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from wsolbench.benchmark.core.files import read_npz, write_npz
from wsolbench.reports.drawing import jobs, render
from wsolbench.reports.drawing.render import render_report_figures
from wsolbench.reports.page import gallery
from wsolbench.reports.rows import measures, packing
from wsolbench.reports.rows.cache import read_kept, write_kept
from wsolbench.reports.rows.load import collect, load_report_rows
from wsolbench.reports.statistics import quality
from wsolbench.reports.tables.aggregate import tables_of
from wsolbench.reports.tables.contents import Contents


def plain(found) -> list[dict]:
    return [row.to_json() for row in found.rows]


def no_more(*_):
    raise AssertionError("worked out again")


# -- numbers of rows -------------------------------------------------------------------------------------------------
def test_numbers_are_worked_out_once(small, monkeypatch):
    (small.cache_dir / measures.KEPT).unlink(missing_ok=True)
    anew = plain(collect(small, keep=False))
    assert not (small.cache_dir / measures.KEPT).exists()
    assert plain(collect(small)) == anew
    monkeypatch.setattr(quality, "map_quality", no_more)
    monkeypatch.setattr(measures, "best_tau", no_more)
    again = collect(small)
    assert plain(again) == anew
    assert set(again.evidence) == {r.stage for r in again.rows if r.kind != "none"}


def test_other_arrays_give_other_numbers(small):
    row = next(r for r in collect(small).rows if r.method == "layercam" and r.selection == "cl")
    path = small.run_dir(row.stage) / "scores.npz"
    arrays = read_npz(path)
    write_npz(path, {**arrays, "foreground": arrays["background"], "background": arrays["foreground"]})
    changed = next(r for r in collect(small).rows if r.stage == row.stage)
    assert changed.chance == pytest.approx(100 - row.chance)
    behind = small.run_dir(row.stage_val) / "scores.npz"  # another threshold, though the test arrays are the same
    arrays = read_npz(behind)
    write_npz(behind, {**arrays, "foreground": arrays["foreground"][:, ::-1]})
    moved = next(r for r in collect(small).rows if r.stage == row.stage)
    assert moved.tau_val != changed.tau_val
    assert moved.dice_tau_val != changed.dice_tau_val
    assert moved.pxap == changed.pxap


@pytest.mark.parametrize("damage", ["text", "number", "shape"])
def test_a_kept_file_of_no_use_is_made_again(small, damage):
    anew, path = plain(collect(small)), small.cache_dir / measures.KEPT
    found = json.loads(path.read_text())
    assert found["kept"]
    for key, entry in found["kept"].items():
        if damage == "shape":
            found["kept"][key] = [*entry[:2], 5]
        elif isinstance(entry[2][0], dict):
            entry[2][0]["pxap"] = 1.0
    path.write_text("{" if damage == "text" else json.dumps(found))
    assert plain(collect(small)) == anew


def test_the_code_that_measures_counts():
    assert Path(measures.__file__) in measures._MEASURED_BY


RECORDS = {
    "no labels": {"labels": None},
    "no parents": {"parents": None},
    "odd parent": {"parents": {"val": ["x"]}},
    "odd classes": {"facts": {}},
}


def test_damaged_stages_cost_their_own_rows_alone(small):
    (small.cache_dir / measures.KEPT).unlink(missing_ok=True)
    rows = collect(small, keep=False).rows
    lost = dict(
        zip([*RECORDS, "labels", "logits", "foreground"], (r.stage for r in rows if not r.baseline), strict=False)
    )
    assert len(lost) == 7
    for what, stage in lost.items():
        folder = small.run_dir(stage)
        if what in RECORDS:
            path = folder / "record.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **RECORDS[what]}))
        else:
            arrays = read_npz(folder / "scores.npz")
            write_npz(folder / "scores.npz", {**arrays, what: arrays[what].astype(str)})
    found = collect(small)
    assert [r.stage for r in found.rows] == [r.stage for r in rows if r.stage not in lost.values()]
    for stage in lost.values():
        assert sum(stage in problem for problem in found.problems) == 1
    assert len(found.problems) == len(lost)


def test_json_rows_write_nothing(small):
    (small.cache_dir / measures.KEPT).unlink(missing_ok=True)
    before = sorted(small.root.rglob("*"))
    load_report_rows(small)
    assert sorted(small.root.rglob("*")) == before


# -- figures ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def few_figures(monkeypatch):
    monkeypatch.setattr(jobs, "FIGURES", {"selection": "Checkpoint selection", "threshold": "Quality"})


def test_figures_are_drawn_again_only_where_something_changed(small, tmp_path, few_figures, monkeypatch):
    contents = Contents(collect(small))
    first = render_report_figures(small, tmp_path, contents)
    drawn: list[str] = []
    make = render._render_job
    monkeypatch.setattr(render, "_render_job", lambda job, folder: drawn.append(job.module) or make(job, folder))
    again = render_report_figures(small, tmp_path, Contents(collect(small)))
    assert drawn == []
    assert again == first
    (tmp_path / f"{first.tables[0].pictures[0].name}.pdf").unlink()
    assert render_report_figures(small, tmp_path, contents) == first
    assert drawn == ["selection"]
    rows = [replace(r, pxap=r.pxap / 2) for r in contents.findings.rows]
    other = render_report_figures(small, tmp_path, Contents(replace(contents.findings, rows=rows)))
    assert drawn == ["selection", "selection", "threshold"]
    assert other.tables[0].pictures[0].source != first.tables[0].pictures[0].source


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
os.cpu_count = lambda: 2
from matplotlib.figure import Figure
from wsolbench.reports.drawing import render
from wsolbench.reports.drawing.base import Drawn
from wsolbench.reports.drawing.jobs import Drawings
render.FEW, parent = 0, os.getpid()

class Job:
    module = ""
    def __init__(self, name, first=None):
        self.name, self.first = name, first
    def draw(self):
        if self.first and os.getpid() != parent:
            self.first()
        figure = Figure((1, 1))
        figure.text(0, 0, self.name)
        return Drawings([Drawn(self.name, "", str(os.getpid() != parent), "", figure)])

def all_of(folder, *jobs):
    return [p for made in render._render_all(jobs, folder, lambda: meant.append(folder.name)) for p in made.pictures]

def left_alone():
    os.kill(parent, signal.SIGKILL)
    time.sleep(60)

out, meant = Path(sys.argv[1]), []
together = all_of(out / "together", Job("a"), Job("b"))
assert [p.name for p in together] == ["a", "b"] and all(p.how == "True" for p in together)
all_of(out / "alone", Job("a"))
all_of(out / "alone", Job("b"))
killed = all_of(out / "killed", Job("a"), Job("b", lambda: os.kill(os.getpid(), signal.SIGKILL)))
assert [p.name for p in killed] == ["a", "b"] and killed[1].how == "False"
assert meant == ["together", "killed"]
assert "torch" not in sys.modules
print("done", flush=True)
all_of(out, Job("a", left_alone), Job("b", left_alone))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_processes_draw_what_one_draws_and_end_with_their_parent(tmp_path):
    command = [sys.executable, "-c", SCRIPT, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)  # waits for all that hold its output
    assert done.stdout == "done\n", done.stderr
    assert done.returncode == -signal.SIGKILL
    for path in (tmp_path / "alone").iterdir():
        for other in ("together", "killed"):
            assert path.read_bytes() == (tmp_path / other / path.name).read_bytes()


def test_a_file_no_longer_readable_costs_its_figures_alone(small, tmp_path, few_figures):
    found = collect(small)
    stages = [r.stage for r in found.rows if r.kind != "none"]
    for stage in stages:
        path = small.run_dir(stage) / "scores.npz"
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = collect(small)
    assert plain(again) == plain(found)
    figures = render_report_figures(small, tmp_path / "out", Contents(again)).tables[0]
    assert [p.name.split("_")[0] for p in figures.pictures] == ["selection"]
    assert len(figures.missing) == 1
    assert "scores.npz is missing or damaged" in figures.missing[0]
    notes = read_kept(small.cache_dir / render.NOTES, "")
    assert [len(note["drawn"]) for note in notes.values()] == [1]  # what was lost may be there the next time


def test_figures_know_all_stages_behind_their_rows(small):
    found = collect(small)
    students = [r for r in found.rows if r.method == "pixelcam"]
    table = Contents(replace(found, rows=students)).tables[0]
    line = next(x for x in table.shown if x.first.method == "pixelcam")
    parent = found.records[line.first.stage_train]["parents"]["init"]
    scene = SimpleNamespace(stem=("a",), tables=(table,), palette=SimpleNamespace(look=str, names=()))
    job = SimpleNamespace(module="cost", scene=scene)

    def hashed():
        return render._Sources(small, found.records).of(job)

    assert parent not in {r.stage_train for r in table.rows}
    before = hashed()
    assert hashed() == before
    (small.run_dir(parent) / "record.json").write_text("{}")
    assert hashed() != before


@pytest.mark.parametrize("change", [None, "content", "code", "text"])
def test_only_what_was_written_is_read_back(tmp_path, change):
    path, kept = tmp_path / "kept.json", {"é": [1, 0.1, None, {"a": "b"}]}
    write_kept(path, "code", kept)
    if change == "content":
        path.write_text(path.read_text().replace("0.1", "5"))
    if change == "text":
        path.write_text("[" * 100_000)
    found = read_kept(path, "other" if change == "code" else "code")
    assert found == ({} if change else kept)


# -- maps of the page ------------------------------------------------------------------------------------------------
def test_half_floats_are_packed_as_the_numbers_they_are():
    scores = np.random.default_rng(0).random((37, 21)).astype(np.float16)
    scores[0, :3] = (0, 1, -0.0)
    assert packing.pack_map(scores) == packing.pack_map(scores.astype(np.float64))
    assert packing.within_0_and_1(scores)
    for wrong in (-1e-3, 1.001, np.nan, np.inf, -np.inf):
        for kind in (np.float16, np.float32):
            assert not packing.within_0_and_1(np.append(scores.ravel(), wrong).astype(kind))


@pytest.mark.parametrize("limit", [30_000, 10_000_000])
def test_maps_read_again_are_those_that_were_held(small, monkeypatch, limit):
    found = collect(small)
    tables = tables_of(found.rows, found.settings)
    held = gallery.build_gallery(small, found, tables, limit)
    monkeypatch.setattr(gallery, "HELD", 1)
    assert gallery.build_gallery(small, found, tables, limit) == held
    assert held.cards
    assert (held.cards < held.total) == (limit == 30_000)
