"""What is kept between reports: the same as worked out anew, and gone as soon as what it was made from has changed."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from wsolbench.benchmark.store import read_npz, write_npz
from wsolbench.reports import gallery, measures, packing, quality, studio
from wsolbench.reports.aggregate import tables_of
from wsolbench.reports.art import make_art
from wsolbench.reports.contents import Contents
from wsolbench.reports.figures import draw
from wsolbench.reports.rows import collect, load_report_rows


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


@pytest.mark.parametrize("damage", ["text", "code", "shape"])
def test_a_kept_file_of_no_use_is_made_again(small, damage):
    anew, path = plain(collect(small)), small.cache_dir / measures.KEPT
    found = json.loads(path.read_text())
    for entry in found["scores"].values():
        if isinstance(entry[2][0], dict):
            entry[2][0]["pxap"] = 1.0  # numbers that other code may have found
    changed = {"code": "another"} if damage == "code" else {"scores": [1]} if damage == "shape" else {}
    path.write_text("{" if damage == "text" else json.dumps({**found, **changed}))
    assert plain(collect(small)) == anew


def test_json_rows_write_nothing(small):
    (small.cache_dir / measures.KEPT).unlink(missing_ok=True)
    before = sorted(small.root.rglob("*"))
    load_report_rows(small)
    assert sorted(small.root.rglob("*")) == before


# -- figures ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def few_figures(monkeypatch):
    monkeypatch.setattr(draw, "FIGURES", {"selection": "Checkpoint selection", "threshold": "Quality"})


def test_figures_are_drawn_again_only_where_something_changed(small, tmp_path, few_figures, monkeypatch):
    contents = Contents(collect(small))
    first = make_art(small, tmp_path, contents)
    drawn: list[str] = []
    make = studio._make
    monkeypatch.setattr(studio, "_make", lambda job, folder: drawn.append(job.module) or make(job, folder))
    again = make_art(small, tmp_path, Contents(collect(small)))
    assert drawn == []
    assert again == first
    (tmp_path / f"{first.tables[0].pictures[0].name}.pdf").unlink()
    assert make_art(small, tmp_path, contents) == first
    assert drawn == ["selection"]
    rows = [replace(r, pxap=r.pxap / 2) for r in contents.findings.rows]
    other = make_art(small, tmp_path, Contents(replace(contents.findings, rows=rows)))
    assert drawn == ["selection", "selection", "threshold"]
    assert other.tables[0].pictures[0].source != first.tables[0].pictures[0].source


def test_processes_draw_what_one_draws(small, tmp_path):
    code = (
        "import os, sys; from pathlib import Path; os.cpu_count = lambda: 2\n"
        "from wsolbench.benchmark.store import Store; from wsolbench.reports import studio\n"
        "from wsolbench.reports.art import make_art; from wsolbench.reports.contents import Contents\n"
        "from wsolbench.reports.figures import draw; from wsolbench.reports.rows import collect\n"
        "draw.FIGURES = {'selection': 'Selection', 'threshold': 'Quality'}\n"
        "store, out = Store(Path(sys.argv[1])), Path(sys.argv[2]); contents = Contents(collect(store))\n"
        "alone = make_art(store, out / 'alone', contents)\n"
        "studio.FEW = 0\n"
        "mine, make = os.getpid(), studio._make\n"
        "studio._make = lambda *job: make(*job) if os.getpid() != mine else 1 / 0\n"
        "together = make_art(store, out / 'together', contents)\n"
        "assert together.tables == alone.tables and together.tables[0].pictures\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, small.root, tmp_path], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "together" / path.name).read_bytes()


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
