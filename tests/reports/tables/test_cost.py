"""What rows cost: each stage behind a row paid once, nothing guessed, devices never mixed in silence."""

import copy
import csv
import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Annotation

from wsolbench.benchmark.core.files import write_json
from wsolbench.reports.build import build_report
from wsolbench.reports.drawing import jobs as drawing
from wsolbench.reports.drawing.base import NoFigureError, Palette, Scene
from wsolbench.reports.figures.cost import FAR, Point, draw, front
from wsolbench.reports.rows.load import collect
from wsolbench.reports.tables.aggregate import build_tables
from wsolbench.reports.tables.cost import LineCost, amount, cost_grids, device_of, line_cost, run_cost
from wsolbench.reports.tables.grid_text import latex_grid, markdown_grid

CPU, GPU = {"device": "cpu", "threads": 2}, {"device": "NVIDIA H200"}
HOSTILE = '"><script>alert(1)</script>|*x*_$&'
TRAIN = {"load": 1.0, "forward": 5.0, "backward": 3.0}
SCORE = {"load": 0.5, "forward": 1.0, "gradient": 0.0, "explain": 0.25, "score": 0.25}


def stage(kind: str, method: str, seconds: float | None, parents: dict, place: dict = CPU, **more) -> dict:
    """A record, as far as costs go."""
    labels = {"method": method, "backbone": "resnet18"}
    return {
        "kind": kind, "labels": labels, "seconds": seconds, "parents": parents, "environment": place, "identity": {},
        **more,
    }  # fmt: skip


@pytest.fixture
def family() -> dict:
    """A classifier, maps read off it, and a student that starts from the one and learns from the other."""
    return {
        "c": stage("train", "classifier", 100.0, {}, peak_memory_mb=700.0, images_per_second=80.0),
        "v": stage("score", "cam", 9.0, {"checkpoint": "c"}),
        "m": stage("maps", "cam", 7.0, {"checkpoint": "c", "val": "v"}),
        "s": stage("train", "student", 50.0, {"init": "c", "maps": "m"}, peak_memory_mb=900.0, images_per_second=20.0),
        "score": stage("score", "student", 3.0, {"checkpoint": "s"}, ms_per_image=1.5),
    }


@pytest.fixture(scope="module")
def student(found):
    """A row of a trained method, to stand for the student."""
    row = next(r for r in found.rows if r.method == "pixelcam")
    return replace(row, method="student", stage="score", stage_train="s")


def timed(records: dict, change=lambda record: {}) -> dict:
    """A copy of the records of a folder as they are written now: times, the cost of an image, the threads."""
    records = copy.deepcopy(records)
    for key, record in records.items():
        number = int(key[:4], 16)
        record["environment"] = {**record["environment"], **CPU}
        if record["kind"] == "train":
            record.update(seconds=100.0 + number % 900, times=dict(TRAIN))
        else:
            record.update(
                ms_per_image=0.02 if record["labels"]["backbone"] == "-" else 5 + number % 37, times=dict(SCORE)
            )
        record.update(change(record))
    return records


def scene_of(found, store, records) -> Scene:
    table = build_tables(found.rows, found.settings)[0]
    return Scene(table, found.evidence, records, store, Palette(table.lines))


def drawn_points(axes) -> dict[str, tuple[float, float]]:
    """What is drawn: name -> x and y in data units."""
    return {a.get_gid(): (a.get_xdata()[0], a.get_ydata()[0]) for a in axes.lines if a.get_gid()}


def trained_by(method: str, **values):
    """Changes the records of the trainings of a method."""
    return lambda r: values if (r["kind"], r["labels"]["method"]) == ("train", method) else {}


# -- sums over what is behind a row ------------------------------------------------------------------------------------
def test_what_is_behind_a_row_is_paid_once(family, student):
    cost = run_cost(student, family)
    assert (cost.seconds_own, cost.seconds_all) == (50, 157)  # 100 + 7 + 50; the classifier is behind both parents
    assert (cost.images_per_second, cost.ms_per_image, cost.peak_memory_mb) == (20, 1.5, 900)
    explainer = replace(student, method="cam", stage="v", stage_train="c")
    cost = run_cost(explainer, family)
    assert (cost.seconds_own, cost.seconds_all, cost.peak_memory_mb) == (0, 100, 700)
    baseline = replace(student, method="constant", stage="v", stage_train="")
    cost = run_cost(baseline, family)
    assert (cost.seconds_own, cost.seconds_all, cost.devices_all) == (0, 0, ())


def test_what_no_record_says_is_not_zero(family, student):
    old = {k: {n: v for n, v in r.items() if n != "ms_per_image"} for k, r in family.items()}
    cell = LineCost((run_cost(student, old),)).cell("ms_per_image")
    assert (cell.value, math.isnan(cell.number)) == ("n/a", True)
    gone = {k: r for k, r in family.items() if k != "c"}
    cost = run_cost(student, gone)
    assert (cost.seconds_own, math.isnan(cost.seconds_all), math.isnan(cost.peak_memory_mb)) == (50, True, True)
    unknown = {**family, "m": {**family["m"], "seconds": None}}
    assert math.isnan(run_cost(student, unknown).seconds_all)
    half = LineCost((run_cost(student, family), run_cost(student, gone))).cell("seconds_all")
    assert half.text == "157 (1 of 2)"


def test_devices_are_not_mixed_in_silence(family, student):
    mixed = {**family, "s": {**family["s"], "environment": GPU}}
    cost = LineCost((run_cost(student, mixed),))
    assert cost.devices("seconds_all") == ("NVIDIA H200", "cpu (2 threads)")
    assert (cost.cell("seconds_all").text, cost.cell("seconds_own").text) == ("157 §", "50.0")
    assert cost.places == "trained: NVIDIA H200 + cpu (2 threads); scored: cpu (2 threads)"
    two = LineCost((run_cost(student, family), run_cost(student, mixed)))
    assert [two.cell(n).spread for n in ("seconds_own", "images_per_second", "ms_per_image")] == ["§", "§", ""]
    assert device_of({"environment": {"device": "cpu", "threads": 1}}) == "cpu (1 thread)"
    assert device_of({}) == "unknown device"


def test_amounts_are_never_rounded_to_nothing():
    assert [amount(v) for v in (0, 0.00123, 0.5, 12.34, 1234.5)] == ["0", "0.0012", "0.50", "12.3", "1234"]


# -- tables ------------------------------------------------------------------------------------------------------------
def test_the_table_has_the_means_of_the_records(found):
    table, records = build_tables(found.rows, found.settings)[0], timed(found.records)
    grid, _ = cost_grids(table, records)
    lines = {x.names[0]: x for b in grid.blocks for x in b.lines}
    assert set(lines) == {x.marked for x in table.shown}
    for line in table.shown:
        pxap, own, whole, speed, memory, image = (c.number for c in lines[line.marked].cells)
        trainings = [{r.stage_train, *records[r.stage_train]["parents"].values()} for r in line.runs if r.stage_train]
        seconds = [sum(records[k]["seconds"] for k in keys) for keys in trainings] or [0.0]
        assert whole == pytest.approx(np.mean(seconds))
        assert image == pytest.approx(np.mean([records[r.stage]["ms_per_image"] for r in line.runs]))
        if line.first.kind != "none":
            assert pxap == line.cells["pxap"].number
        if line.first.method in ("pixelcam", "unet", "classifier"):
            assert own == pytest.approx(np.mean([records[r.stage_train]["seconds"] for r in line.runs]))
        else:
            assert own == 0
        assert [math.isnan(v) for v in (speed, memory)] == [line.first.baseline] * 2
    assert "All measured on cpu (2 threads)." in grid.caption
    assert grid.stamped_caption.startswith("SYNTHETIC DATA")
    assert not [n for n in grid.footnotes if n.startswith("§")]


def test_the_table_says_where_devices_differ(found):
    table = build_tables(found.rows, found.settings)[0]
    grid, parts = cost_grids(table, timed(found.records, trained_by("pixelcam", environment=GPU)))
    assert "times of different devices do not compare" in grid.caption
    assert [n for n in grid.footnotes if n.startswith("§")]
    marked = {x.names[0] for b in grid.blocks for x in b.lines if any("§" in c.spread for c in x.cells)}
    assert marked == {"pixelcam"}  # its classifier was trained on the other device
    places = {x.names[0]: x.names[3] for b in parts.blocks if b.key == "train" for x in b.lines}
    assert places == {"classifier": "cpu (2 threads)", "pixelcam": "NVIDIA H200", "unet": "cpu (2 threads)"}


def test_shares_of_the_time(found):
    table = build_tables(found.rows, found.settings)[0]
    odd = trained_by("unet", times={"load": 2.0, "warm up": 6.0}, seconds=10.0)
    _, parts = cost_grids(table, timed(found.records, odd))
    names = [h.title for h in parts.heads]
    lines = {(b.key, x.names[0]): dict(zip(names, (c.value for c in x.cells), strict=True))
             for b in parts.blocks for x in b.lines}  # fmt: skip
    said = {k: v for k, v in lines["train", "unet"].items() if v}
    assert said == {"load [%]": "20.0", "warm up [%]": "60.0", "other [%]": "20.0", "total [s]": "10.0"}
    said = {k: v for k, v in lines["score", "layercam"].items() if v}  # only trainings have a rest
    shares = {
        "load [%]": "25.0",
        "forward [%]": "50.0",
        "gradient [%]": "0",
        "explain [%]": "12.5",
        "score [%]": "12.5",
    }
    assert said == {**shares, "total [s]": "2.00"}
    assert len([k for k in lines if k[0] == "train"]) == 3  # one classifier, whatever explains it
    assert len(cost_grids(table, found.records)) == 1  # records from before there were times


# -- the figure --------------------------------------------------------------------------------------------------------
def test_the_figure_has_the_points_of_the_table(results, found):
    records = timed(found.records)
    scene = scene_of(found, results, records)
    figure = draw(scene)[0].figure
    assert "SYNTHETIC DATA" in " ".join(t.get_text() for t in figure.texts)
    lines = [x for x in scene.table.shown if x.first.kind != "none"]
    assert len(figure.axes) == 2
    for axes, key in zip(figure.axes, ("seconds_all", "ms_per_image"), strict=True):
        points = drawn_points(axes)
        assert set(points) == {x.label for x in lines}
        cheapest = min(line_cost(x, records).mean(key) for x in lines if not x.first.baseline)
        for line in lines:
            x, y = points[line.label]
            cost = line_cost(line, records).mean(key)
            assert y == pytest.approx(line.cells["pxap"].number)
            if line.first.baseline:  # 0 s, and 0.02 ms beside 5 ms and more
                assert cost < cheapest / FAR
                assert axes.get_xlim()[0] < x < min(points[o.label][0] for o in lines if not o.first.baseline)
            else:
                assert x == pytest.approx(cost)
        assert axes.get_xscale() == "log"
    ticks = [next(t.get_text() for t in axes.get_xticklabels()) for axes in figure.axes]
    assert ticks == ["no training", "≤ 0.02"]


def test_real_data_bear_no_stamp_and_baselines_near_by_their_place(results, found):
    records = timed(found.records, lambda r: {"ms_per_image": 4.0} if r["labels"]["backbone"] == "-" else {})
    scene = scene_of(replace(found, rows=[replace(r, synthetic=False) for r in found.rows]), results, records)
    figure = draw(scene)[0].figure
    assert [t.get_text() for t in figure.texts] == ["Cost and quality · glas, protocol fair"]
    assert drawn_points(figure.axes[1])["random"][0] == 4.0


def test_the_front_is_what_nothing_beats():
    rng = np.random.default_rng(3)
    points = [Point(str(k), x, y, y, y, "", False, True, ()) for k, (x, y) in enumerate(rng.integers(0, 12, (40, 2)))]
    best = {(p.x, p.y) for p in points if not any(
        o.x <= p.x and o.y >= p.y and (o.x, o.y) != (p.x, p.y) for o in points)}  # fmt: skip
    steps = front(points)
    assert {(p.x, p.y) for p in steps} == best
    assert steps == sorted(steps, key=lambda p: p.x)


def test_the_front_joins_one_device_and_no_upper_bound(results, found):
    records = timed(found.records, trained_by("pixelcam", environment=GPU))
    scene = scene_of(found, results, records)
    drawn = draw(scene)[0]
    axes = drawn.figure.axes[0]
    points = drawn_points(axes)
    assert "pixelcam §" in points  # best of all but the upper bound, and left out for its two devices
    tops = [max(line.get_ydata()) for line in axes.lines if line.get_label() == "best for their cost"]
    alone = [v[1] for k, v in points.items() if "§" not in k and "‡" not in k]
    assert tops == [pytest.approx(max(alone))]
    assert points["unet ‡"][1] > tops[0]
    assert "one marker each" in drawn.how
    assert "§" in drawn.how
    assert {t.get_text() for t in drawn.figure.legends[0].texts} >= {
        "cpu (2 threads)",
        "NVIDIA H200 + cpu (2 threads) §",
    }


def test_names_hide_neither_each_other_nor_points(results, found):
    """20 methods at the cost of one classifier, as explainers are."""
    table = build_tables(found.rows, found.settings)[0]
    line = next(x for x in table.shown if x.name == "layercam")
    crowd = []
    for k in range(20):
        run = replace(line.first, method=f"explainer_{k}", pxap=60 + 1.1 * k, pxap_low=math.nan)
        cells = {**line.cells, "pxap": replace(line.cells["pxap"], number=run.pxap)}
        crowd.append(replace(line, runs=(run,), cells=cells))
    block = replace(table.blocks[0], lines=tuple(crowd))
    scene = replace(scene_of(found, results, timed(found.records)), table=replace(table, blocks=(block,)))
    for axes in draw(scene)[0].figure.axes:
        notes = [a for a in axes.texts if isinstance(a, Annotation)]
        boxes = [a.get_window_extent() for a in notes]
        assert len(boxes) == 20
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        dots = [axes.transData.transform(p) for p in drawn_points(axes).values()]
        assert not any(box.contains(*dot) for box in boxes for dot in dots)
        frame = axes.get_window_extent()
        assert all(frame.contains(*corner) for box in boxes for corner in box.corners())


def test_without_costs_there_is_a_sentence_and_no_picture(results, found, monkeypatch):
    scene = scene_of(found, results, found.records)  # seconds of training, but nothing of scoring
    drawn = draw(scene)[0]
    assert len(drawn.figure.axes) == 1
    assert "no record says the cost of scoring for all methods" in drawn.how
    bare = replace(scene, records={k: {**r, "seconds": None} for k, r in found.records.items()})
    with pytest.raises(NoFigureError, match="no record says"):
        draw(bare)
    monkeypatch.setattr(drawing, "FIGURES", {"cost": "Cost and quality"})
    left = drawing.draw_figures(bare)
    assert (left.drawn, left.missing) == ([], ["Cost and quality: no record says how long training or scoring took."])


# -- the report --------------------------------------------------------------------------------------------------------
def test_the_report_holds_costs_and_escapes_names(small, tmp_path, monkeypatch):
    for name in ("FIGURES", "OOD_FIGURES", "SHIFT_FIGURES"):
        monkeypatch.setattr(drawing, name, {"cost": "Cost and quality"} if name == "FIGURES" else {})
    records = timed(small.records(), lambda r: {"environment": {"device": HOSTILE}, "times": {HOSTILE: 1.0}})
    for key, record in records.items():
        write_json(small.run_dir(key) / "record.json", record)
    build_report(small, tmp_path)
    html, text, tex = ((tmp_path / n).read_text(encoding="utf-8") for n in ("index.html", "report.md", "report.tex"))
    for number in (1, 2, 3, 4):  # class by class, saturation, cost, and where the time went
        assert f'<table id="table-1-beside-{number}-1"' in html
    assert "figures/cost_glas_fair_synthetic.pdf" in html
    assert "<script>alert" not in html + text
    assert "&lt;script&gt;alert(1)" in html
    assert "### Cost of glas · protocol fair · SYNTHETIC DATA" in text
    assert (tmp_path / "figures" / "cost_glas_fair_synthetic.png").is_file()
    labels = re.findall(r"\\label\{(.*?)\}", tex)
    assert len(labels) == len(set(labels))
    table, found = build_tables(collect(small).rows)[0], small.records()
    for grid in cost_grids(table, found):
        assert latex_grid(grid, "9").count(r"\$\&") >= 2
        lines = [line for line in markdown_grid(grid).splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1  # no name adds a column
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as handle:
        rows = {r["stage"]: r for r in csv.DictReader(handle)}
    for run in table.rows:
        line = rows[run.stage]
        assert float(line["ms_per_image"]) == found[run.stage]["ms_per_image"]
        assert float(line["seconds_all"]) == run_cost(run, found).seconds_all
        assert line["method"] == run.method
