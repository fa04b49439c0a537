"""What a person reads on the terminal beside the progress: tables of any width, lists, suggestions, states."""

import json
import subprocess
import sys

import pytest

from wsolbench.benchmark.core.errors import bare, did_you_mean, many
from wsolbench.datasets import DATASETS
from wsolbench.methods import METHODS


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("gradcam++", "gradcampp"),
        ("Grad-CAM++", "gradcampp"),
        ("PixelCAM", "pixelcam"),
        ("NEGEV", "negev"),
        ("deepMIL", "deepmil"),
        ("F-CAM", "fcam"),
        ("u-net", "unet"),
        ("LayerCam", "layercam"),
        ("scorecam", "gradcam:ScoreCAM"),
        ("ablation_cam", "gradcam:AblationCAM"),
        ("pixlecam", "pixelcam"),
    ],
)
def test_methods_as_papers_spell_them(typed, meant):
    with pytest.raises(Exception, match=rf"no method .* Did you mean {meant}\b"):
        METHODS.entry(typed)


@pytest.mark.parametrize("typed", ["GlaS", "CAMELYON-16", "camelyon 16", "Camelyon17"])
def test_datasets_as_papers_spell_them(typed):
    with pytest.raises(Exception, match=f"Did you mean {bare(typed)}"):
        DATASETS.entry(typed)


def test_words_of_names_and_nothing_near():
    known = ("image_size", "load_size", "lr", "epochs")
    assert did_you_mean("size", known) == " Did you mean image_size or load_size?"
    assert did_you_mean("xyzzy", known) == " Known: epochs, image_size, load_size, lr."
    assert did_you_mean("xyzzy", ()) == ""
    assert [many(k, "training") for k in (0, 1, 2, 15664)] == [
        "0 trainings",
        "1 training",
        "2 trainings",
        "15,664 trainings",
    ]
    assert many(2, "copy", "copies") == "2 copies"


def test_every_setting_is_listed(warm_bench):
    from dataclasses import fields

    from wsolbench.benchmark.core.protocols import Protocol
    from wsolbench.benchmark.planning.config import RunConfig, TrainConfig

    rows = {r["name"]: r for r in json.loads(warm_bench("list", "settings", "--json").stdout)}
    for section, config in (("train", TrainConfig), ("run", RunConfig), ("protocol", Protocol)):
        for field in fields(config):
            if (section, field.name) not in (("protocol", "name"), ("protocol", "version")):
                row = rows.pop(f"{section}.{field.name}")
                assert row["summary"], row
                assert row["identity"] == (section != "run")
    assert list(rows) == ["shift.stains", "METHOD.OPTION", "METHOD.train.KEY"]
    shown = warm_bench("list", "settings").stdout
    assert "train.lr" in shown
    assert "paper: 1000" in shown


def test_checkpoints_can_be_chosen(warm_bench, world):
    def rows(*more):
        line = ("run", "--methods", "cam,darkness", "--datasets", world.csv, "--weights", "none", "--preset", "smoke")
        done = warm_bench(*line, "--results", world.results, "--device", "cpu", "--dry-run", "--json", *more)
        assert done.returncode == 0, done.stderr
        return [s for s in json.loads(done.stdout)["stages"] if s["labels"].get("split") == "test"]

    every, some = rows(), rows("--selections", "cl")
    assert {s["labels"]["selection"] for s in every} == {"loc", "cl", "last", "-"}
    assert {s["labels"]["selection"] for s in some} == {"cl", "-"}
    assert {s["stage"] for s in some} < {s["stage"] for s in every}
    done = warm_bench("run", "--methods", "cam", "--datasets", world.csv, "--weights", "none", "--selections", "best")
    assert done.returncode == 2
    assert "no checkpoint 'best'" in done.stderr


HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_stage_at_work_is_no_interrupted_one(warm_bench, tmp_path):
    for key in ("busy", "idle"):
        (tmp_path / "runs" / key).mkdir(parents=True)
    (tmp_path / "locks").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "locks" / "busy.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            told = warm_bench("status", "--results", tmp_path).stdout
            value = json.loads(warm_bench("status", "--results", tmp_path, "--json").stdout)
        finally:
            holder.kill()
    assert "running busy: a `bench run` is at work on it" in told
    assert "interrupted idle: the same `bench run` continues it" in told
    assert (value["running"], value["interrupted"]) == (["busy"], ["idle"])
