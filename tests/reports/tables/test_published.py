"""Published numbers: whole, tidy, packaged, equal to what methods declare, and beside ours only where all agree."""

import csv
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import wsolbench
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.methods import METHODS
from wsolbench.methods.spec import method_spec
from wsolbench.reports.tables.aggregate import build_tables, tables_of
from wsolbench.reports.tables.published_comparison import (
    FOLDER,
    SYNTHETIC_ONLY,
    TABLE,
    build_beside,
    published_numbers,
    verdict,
)

ROOT = Path(wsolbench.__file__).resolve().parent


@pytest.fixture(scope="module")
def numbers():
    return published_numbers()


def find(numbers, **wanted):
    return [n for n in numbers if all(getattr(n, k) == v for k, v in wanted.items())]


def value(numbers, **wanted):
    found = find(numbers, **wanted)
    assert len(found) == 1, (wanted, found)
    return found[0].value


MAIN = {"table": "Table 1", "metric": "pxap"}


def test_all_tables_are_there(numbers):
    main = find(numbers, **MAIN)
    assert len(main) == 22 * 2 * 4
    assert Counter(n.status for n in numbers) == {TABLE: 176 + 79 + 119, "repository artefact": 44 + 35 + 40}
    assert {n.source for n in numbers} == {"survey", "survey; negev", "negev", "maxmin", "dep-code"}
    assert {n.how_read for n in numbers} == {"text", "image"}
    assert all(n.paper and n.table and n.printed for n in numbers)


@pytest.mark.parametrize(
    "wanted, expected",
    [
        ({**MAIN, "eval": "glas", "printed": "NEGEV", "backbone": "resnet50"}, 82.0),
        ({**MAIN, "eval": "camelyon16", "printed": "MAXMIN", "backbone": "inception_v3"}, 80.8),
        ({**MAIN, "eval": "camelyon16", "printed": "LayerCAM", "backbone": "mean"}, 29.4),
        ({**MAIN, "eval": "camelyon16", "printed": "TS-CAM", "backbone": "deit_base_patch16_224"}, 21.6),
        ({"table": "ablations", "eval": "glas", "setting": "lambda=0.001", "backbone": "resnet50"}, 56.8),
        ({"table": "ablations", "eval": "camelyon16", "setting": "static seeds", "backbone": "mean"}, 49.2),
        ({"source": "maxmin", "eval": "glas", "printed": "SEM", "metric": "f1_background"}, 69.23),
        ({"source": "maxmin", "eval": "camelyon16", "printed": "ERASE", "metric": "fp_rate"}, 67.30),
        ({"source": "maxmin", "setting": "foreground, background (EEM)", "metric": "f1_foreground"}, 72.54),
        ({"printed": "PixelCAM", "setting": "stain 8 of 10", "metric": "pxap"}, 77.49),
        ({"printed": "SAT", "eval": "camelyon16", "setting": "no adaptation", "metric": "accuracy"}, 54.0),
        ({"printed": "PixelCAM", "setting": "adapted, pixel loss on", "metric": "pxap"}, 53.8),
        ({"printed": "GU", "eval": "camelyon17:centre-4"}, 16.8),
        ({"table": "features_metrics.txt", "metric": "ece"}, 0.371),
    ],
)
def test_spot_checks(numbers, wanted, expected):
    assert value(numbers, **wanted) == expected


def test_means_are_those_of_their_numbers_but_for_noted_misprints(numbers):
    """An oracle of the transcription: the printed mean of every line against its three numbers."""
    lines = {}
    for n in numbers:
        if n.metric == "pxap" and n.source in ("survey", "survey; negev", "negev") and not n.setting.startswith("n="):
            lines.setdefault((n.table, n.eval, n.printed, n.setting), []).append(n)
    assert len(lines) == 22 * 2 + 17
    misprints = []
    for place, members in lines.items():
        if place[2] == "average WSOL":  # its last column averages the means above it
            continue
        printed = [n for n in members if n.backbone == "mean"]
        three = [n.value for n in members if n.backbone != "mean"]
        assert (len(printed), len(three)) == (1, 3), place
        if math.floor(sum(three) / 0.3 + 1e-6) / 10 != printed[0].value:  # they are cut, not rounded
            misprints.append((place[2], place[1], printed[0].value))
            assert "typo" in printed[0].note
    assert sorted(misprints) == [("CAM", "camelyon16", 20.3), ("TS-CAM", "glas", 52.8)]


def test_averages_over_methods_are_those_of_the_lines(numbers):
    """The other direction: the average line against the 20 lines above it, column by column."""
    for dataset in ("glas", "camelyon16"):
        for backbone in ("vgg16", "inception_v3", "resnet50", "mean"):
            column = [n for n in find(numbers, **MAIN, eval=dataset) if n.note.find(f"column of {backbone}") >= 0]
            column += find(numbers, **MAIN, eval=dataset, backbone=backbone)
            printed = next(n.value for n in column if n.printed == "average WSOL")
            lines = [n.value for n in column if n.printed not in ("average WSOL", "U-Net (full sup.)")]
            assert len(lines) == 20
            assert sum(lines) / 20 == pytest.approx(printed, abs=0.1), (dataset, backbone)


def test_stains_average_to_the_mean_we_give(numbers):
    for printed in ("LayerCAM", "PixelCAM"):
        for metric in ("pxap", "accuracy"):
            found = find(numbers, table="stain robustness (scripts/plot_perf.py)", printed=printed, metric=metric)
            stains = [n.value for n in found if n.setting != "mean over stains"]
            mean = next(n.value for n in found if n.setting == "mean over stains")
            assert len(stains) == 10
            assert sum(stains) / 10 == pytest.approx(mean, abs=0.06)
            if metric == "accuracy":
                assert all((v * 80 / 100) % 1 == pytest.approx(0, abs=1e-9) for v in stains)  # of 80 images


def test_methods_declare_the_same_numbers(numbers):
    """What `bench list methods` shows is what the tables hold."""
    declared = 0
    for entry in (e for e in METHODS.entries() if e.origin == "built-in"):  # other tests register files
        for place, number in method_spec(entry.name).published.items():
            dataset, _, backbone = place.partition("/")
            wanted = {"eval": dataset, "backbone": backbone, "method": entry.name, "setting": "", "status": TABLE}
            found = find(numbers, metric="pxap", **wanted)
            if found:
                assert [n.value for n in found] == [number], (entry.name, place)
                declared += 1
    assert declared >= 6 * 4


def test_every_csv_is_tidy_and_told_in_the_readme():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in sorted(FOLDER.glob("*.csv")):
        assert f"`{path.name}`" in readme
        with path.open(encoding="utf-8", newline="") as handle:
            lines = list(csv.DictReader(handle))
        keys = [tuple(v for k, v in line.items() if k not in ("value", "note")) for line in lines]
        assert len(set(keys)) == len(keys), path
        assert all(f"`{name}`" in readme for name in lines[0])
    assert {n.metric.partition("_")[0] for n in published_numbers()} >= {"pxap", "accuracy", "f1"}


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(BenchError, match="no published numbers"):
        published_numbers(tmp_path)
    path = tmp_path / "a.csv"
    path.write_text("source,paper\nx,y\n")
    with pytest.raises(BenchError, match="columns must be"):
        published_numbers(tmp_path)
    text = (FOLDER / "maxmin.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.csv").write_text("\n".join([text[0], text[1].replace("66.01", "much")]))
    with pytest.raises(BenchError, match=r"line 2.*'much' is no number"):
        published_numbers(tmp_path / "b")


def test_a_wheel_holds_the_numbers():
    """What the build would copy, asked of the build tool itself."""
    pytest.importorskip("setuptools")
    code = (
        "from setuptools import Distribution\n"
        "d = Distribution(); d.parse_config_files(); c = d.get_command_obj('build_py'); c.ensure_finalized()\n"
        "print(*(f'{package}/{name}' for package, _, _, names in c.data_files for name in names), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = {f"wsolbench/results/published/{p.name}" for p in FOLDER.glob("*.csv")}
    assert wanted <= set(done.stdout.split())
    assert FOLDER == ROOT / "results" / "published"  # beside the packages, wherever they are installed


# -- beside ours -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def real(found):
    """Rows of a made-up paper run, said to be real and on a published backbone."""
    rows = [r for r in found.rows if r.protocol == "paper" and r.method in ("cam", "layercam", "pixelcam", "unet")]
    return [replace(r, synthetic=False, backbone="resnet50") for r in rows]


def line_of(rows, method="cam", selection="loc"):
    table = build_tables(rows)[0]
    return next(x for x in table.lines if (x.first.method, x.first.selection) == (method, selection)), table.protocol


def test_same_rules_stand_beside_each_other(real):
    number, reason = verdict(*line_of(real))
    assert (number.value, number.backbone, reason) == (64.4, "resnet50", "")
    assert verdict(*line_of(real, "unet")).number.value == 96.4


@pytest.mark.parametrize(
    "change, why",
    [
        ({"method": "darkness"}, "no published number for this method"),
        ({"method": "pixelcam"}, "only numbers found in its authors' code"),
        ({"train": "mine", "eval": "mine", "dataset": "mine"}, "no published number on mine"),
        ({"backbone": "resnet18"}, "no published number for resnet18 (there are inception_v3, resnet50, vgg16)"),
        ({"protocol": "fair"}, "different protocol: ours is fair, published paper"),
        ({"protocol": "paper(size=112)"}, "different protocol"),
        ({"selection": "cl"}, "different checkpoint: ours cl, published loc"),
        ({"options": "layer=3"}, "different options: layer=3"),
        ({"fold": "grouped-0"}, "different division of the images: fold grouped-0"),
        ({"fold": 3}, "different division of the images: fold 3"),
        ({"unlike_published": ("stride 16, published 8",)}, "trained otherwise: stride 16, published 8"),
        ({"unlike_published": tuple("abcdef")}, "trained otherwise: a; b; c; d; and 2 more settings"),
    ],
)
def test_what_differs_is_named(real, change, why):
    rows = [replace(r, **change) for r in real if r.method == "cam" and r.selection == "loc"]
    table = build_tables(rows)[0]
    number, reason = verdict(table.lines[0], table.protocol)
    assert number is None
    assert why in reason


def test_other_sets_have_no_published_number(real):
    rows = [replace(r, eval="camelyon16", dataset="camelyon16", ood=True) for r in real]
    table = tables_of(rows)[0]
    assert verdict(table.lines[0], table.protocol).reason == "no published number on glas → camelyon16"


def test_the_comparison(real, found):
    grid = build_beside(build_tables(real), found.records)
    same, none = grid.blocks
    assert {(x.names[0], x.names[1]) for x in same.lines} == {(m, "resnet50") for m in ("cam", "layercam", "unet ‡")}
    cam = next(x for x in same.lines if x.names[0] == "cam")
    runs = [r.pxap for r in real if r.method == "cam" and r.selection == "loc"]
    ours = sum(runs) / len(runs)
    assert cam.cells[0].number == pytest.approx(ours)
    assert cam.cells[1].text == "64.4"
    assert cam.cells[2].number == pytest.approx(ours - 64.4)
    assert "arXiv:1909.03354" in cam.cells[3].value
    assert "ours trained 8 epochs" in cam.cells[3].value
    told = {name for x in none.lines for name in x.names[0].split(", ")}
    assert told == {"cam", "layercam", "pixelcam", "unet ‡"}
    assert all(x.cells[3].value and math.isnan(x.cells[1].number) for x in none.lines)


def test_every_line_is_accounted_for(real, found):
    """Line by line: each stands beside a number, or its method is among those with a reason at its place."""
    tables = build_tables(real)
    same, none = build_beside(tables, found.records).blocks
    for line in tables[0].lines:
        place = f"glas · paper · {line.first.selection}"
        beside = any(x.names == (line.marked, "resnet50", place) for x in same.lines)
        reasons = [x for x in none.lines if line.marked in x.names[0].split(", ") and x.names[2] == place]
        assert beside + len(reasons) == 1, (line.marked, place)


def test_synthetic_data_have_one_sentence_and_no_number(real, found):
    grid = build_beside(build_tables(found.rows), found.records)
    assert (grid.blocks, grid.groups, grid.text) == ((), (), SYNTHETIC_ONLY)
    mixed = build_beside(build_tables([*real, *found.rows]), found.records)
    assert "synthetic" in " ".join(mixed.footnotes)
    assert len(mixed.blocks[0].lines) == 3
