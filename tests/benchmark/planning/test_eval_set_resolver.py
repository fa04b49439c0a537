"""Evaluation sets of a request: files called like shifts, sets to test on alone, and what is said of their scores."""

import csv as csv_module
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.execution.preflight import preflight
from wsolbench.benchmark.execution.scheduler import execute
from wsolbench.benchmark.planning.eval_sets import EvalSet, OodTarget, read_targets
from wsolbench.benchmark.planning.open_datasets import OpenDataset, refuse_overlap
from wsolbench.benchmark.planning.planner import Planner
from wsolbench.benchmark.stages.context import StageContext, needs_elsewhere, place_of
from wsolbench.benchmark.stages.score_stage import _synthetic


@pytest.fixture
def tests_only(blobs, tmp_path):
    """The test images of the blobs, each with one pixel changed, as a set of their own that is declared synthetic."""
    folder = tmp_path / "tests only"
    shutil.copytree(blobs.parent, folder)
    path = folder / "jpeg-set.csv"
    lines = (folder / blobs.name).read_text(encoding="utf-8").splitlines()
    head = [s for s in lines if s.startswith("#") and "name" not in s and "synthetic" not in s]
    table = list(csv_module.reader(s for s in lines if not s.startswith("#")))
    split, image = table[0].index("split"), table[0].index("image")
    rows = [r for r in table[1:] if r[split] == "test"]
    for row in rows:
        pixels = np.asarray(Image.open(folder / row[image])).copy()
        pixels[0, 0] ^= 1
        Image.fromarray(pixels).save(folder / row[image])
    with path.open("w", newline="", encoding="utf-8") as handle:
        handle.write("\n".join([*head, "# synthetic: yes"]) + "\n")
        csv_module.writer(handle, lineterminator="\n").writerows([table[0], *rows])
    return path


def test_a_file_may_be_called_like_a_shift():
    assert read_targets(("jpeg-set.csv",), ()) == [OodTarget("jpeg-set.csv")]
    assert read_targets(("stain-2.CSV", "stain-2"), ()) == [OodTarget("stain-2.CSV"), OodTarget("", "stain", 2)]


def test_a_table_of_test_rows_is_an_evaluation_set(world, tests_only):
    request = replace(world.request("constant"), ood=(str(tests_only),))
    planner = Planner(request)
    plan = planner.build()
    assert {plan.stages[k].labels["eval"] for k in plan.rows} == {"blobs", "jpeg-set"}
    assert planner.open_datasets[str(tests_only)].manifest("0").notes == ()
    preflight(list(plan.stages.values()), planner)
    assert execute(plan, request.run, planner.open_datasets, lambda event: None).exit_code == 0
    with pytest.raises(BenchError, match="has no training images; score models of another on it"):
        Planner(replace(request, datasets=(str(tests_only),)))


def test_a_score_is_synthetic_if_any_set_behind_it_is(world, tests_only):
    """A model of synthetic images scored on real ones is no result on real data, nor the other way round."""
    request = replace(world.request("constant"), ood=(str(tests_only),))
    planner = Planner(request)
    plan = planner.build()
    ctx = StageContext(request.run, planner.open_datasets)
    home, away = EvalSet(str(world.csv), "0"), EvalSet(str(tests_only), "0")
    stage = plan.stages[plan.rows[0]]
    real = planner.open_datasets[str(world.csv)].manifest("0")
    planner.open_datasets[str(world.csv)]._folds["0"] = (
        replace(real, synthetic=False),
        planner.open_datasets[home.dataset].facts("0"),
    )

    def behind(cell, on):
        place = stage.inputs.experiment._replace(dataset=cell.dataset, fold=cell.fold)
        return _synthetic(replace(stage, inputs=replace(stage.inputs, experiment=place, on=on)), ctx)

    assert not behind(home, home)
    assert behind(home, away)
    assert behind(away, home)
    assert behind(home, home._replace(shift="restain", level=1, stain_source=away.dataset, stain_fold="0"))


def test_pictures_take_the_stains_of_the_scores(world):
    """The network sees 32 px, the picture is larger: one pool serves both, so that the page shows what was scored."""
    request = replace(world.request("constant"), ood=("restain-2",))
    planner = Planner(request)
    plan = planner.build()
    stages = list(plan.stages.values())
    shifted = [s for s in stages if s.kind == "score" and s.inputs.on.shift]
    ctx = StageContext(request.run, planner.open_datasets)
    assert {need.size for s in shifted for _, need in needs_elsewhere(s, ctx)} == {32}
    preflight(stages, planner)
    outcome = execute(plan, request.run, planner.open_datasets, lambda event: None)
    assert outcome.exit_code == 0, outcome.failed
    assert Store(world.results).record(shifted[0].key)["facts"]["examples"]
    assert place_of(shifted[0]).shift == "restain"


def test_sets_are_compared_once_and_not_for_every_shift(world, tests_only, tmp_path, monkeypatch):
    one, other = (OpenDataset(str(p), tmp_path, tmp_path / "cache") for p in (world.csv, tests_only))
    refuse_overlap(one, "0", other, "0")
    monkeypatch.setattr(OpenDataset, "hashes", lambda *_: pytest.fail("compared again"))
    refuse_overlap(one, "0", other, "0")
    with pytest.raises(pytest.fail.Exception):
        refuse_overlap(other, "0", one, "0")
