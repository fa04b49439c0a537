"""The line the suite exists for, on tiny synthetic copies of both layouts: pixelcam,negev on glas,camelyon16."""

import json
from collections import Counter

import pytest

from tests.faults.offline import OFFLINE

PAIRS = {(a, b) for a in ("glas", "camelyon16") for b in ("glas", "camelyon16")}
TINY = (
    "--backbones", "test_resnet", "--weights", "none", "--preset", "smoke", "--device", "cpu",
    "--set=train.image_size=32", "--set=train.load_size=36", "--set=train.epochs=2", "--set=train.warmup_epochs=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(warm_bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    made = warm_bench("data", "synth", "--out", folder, "--train", 24, "--test", 8, "--size", 64)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture
def line(warm_bench, root):
    """Runs the line with more words."""

    def go(*words):
        return warm_bench("run", "--methods", "pixelcam,negev", "--datasets", "glas,camelyon16", "--data-root", root,
                          *TINY, "--results", root / "results", *words)  # fmt: skip

    return go


def test_the_plan_shows_each_shared_training_once(line):
    found = line("--dry-run", "--json")
    assert found.returncode == 0, found.stderr
    stages = json.loads(found.stdout)["stages"]
    trained = Counter((s["labels"]["method"], s["labels"]["train"]) for s in stages if s["kind"] == "train")
    assert set(trained.values()) == {1}
    assert set(trained) == {(m, d) for m in ("classifier", "pixelcam", "negev") for d in ("glas", "camelyon16")}
    text = line("--dry-run").stdout
    assert "6 trainings, 6 to do" in text
    assert "glas → camelyon16" in text


def test_the_plan_with_teachers_shows_each_shared_training_once(warm_bench, root):
    teachers = "pixelcam:layercam,pixelcam:gradcampp,pixelcam:deepmil,pixelcam:negev,negev,deepmil"
    found = warm_bench("run", "--methods", teachers, "--datasets", "glas,camelyon16", "--data-root", root, *TINY,
                       "--results", root / "results", "--dry-run", "--json")  # fmt: skip
    assert found.returncode == 0, found.stderr
    stages = [s for s in json.loads(found.stdout)["stages"] if s["labels"].get("train") == "glas"]
    trained = Counter(s["labels"]["method"] for s in stages if s["kind"] == "train")
    students = ("pixelcam", "pixelcam:gradcampp", "pixelcam:deepmil", "pixelcam:negev")
    assert trained == dict.fromkeys(("classifier", "deepmil", "negev", *students), 1)
    maps = Counter(s["labels"]["method"] for s in stages if s["kind"] == "maps")
    assert maps == dict.fromkeys(("layercam", "gradcampp", "deepmil", "negev", "cam"), 1)


@pytest.mark.slow
def test_the_line_runs_and_every_model_is_scored_on_both_sets(line, warm_bench, root):
    found = line("--json")
    assert found.returncode == 0, found.stderr
    rows = json.loads(found.stdout)
    assert {(r["train"], r["eval"]) for r in rows} == PAIRS
    assert {r["method"] for r in rows} == {"pixelcam", "negev"}
    assert all(r["synthetic"] for r in rows)
    chance = {(r["eval"], r["chance"]) for r in rows}
    assert len(chance) == 2, "the chance level belongs to the evaluation set"
    away = next(r for r in rows if (r["train"], r["eval"]) == ("glas", "camelyon16"))
    home = next(r for r in rows if r["train"] == r["eval"] == "glas" and r["selection"] == away["selection"])
    assert away["chance_positives"] > away["chance"]
    assert home["chance_positives"] == home["chance"], "every image of GlaS has glands"
    again = line("--json")
    assert json.loads(again.stdout) == rows
    page = warm_bench("report", "--results", root / "results")
    assert page.returncode == 0, page.stderr
    html = (root / "results" / "report" / "index.html").read_text(encoding="utf-8")
    assert "glas → camelyon16" in html
    assert "SYNTHETIC" in html


@pytest.fixture
def fresh(warm_bench, root, tmp_path):
    """The line as a newcomer types it, on a machine without a network and without a cache of weights."""

    def go(*words):
        return warm_bench(
            "run", "--methods", "pixelcam,negev", "--datasets", "glas,camelyon16", "--data-root", root,
            "--preset", "smoke", "--results", tmp_path / "fresh", *words,
            inject=OFFLINE.format(cache=str(tmp_path / "hub")),
        )  # fmt: skip

    return go


def test_the_line_is_planned_on_a_fresh_machine(fresh):
    found = fresh("--dry-run")
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("smoke goes on from random weights") == 1
    assert "WARNING" not in found.stderr
    assert "6 trainings, 6 to do" in found.stdout


@pytest.mark.slow
def test_the_line_ends_in_a_table_on_a_fresh_machine(fresh):
    found = fresh("--set=train.image_size=64", "--set=train.load_size=72", "--set=train.epochs=1", "--device", "cpu")
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("smoke goes on from random weights") == 1
    for word in ("pixelcam", "negev", "resnet18", "glas → camelyon16", "PxAP"):
        assert word in found.stdout
