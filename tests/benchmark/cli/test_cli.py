"""The command line as a user types it: exit codes, messages before any training, quick answers."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from wsolbench.methods import METHODS
from wsolbench.methods.spec import method_spec

BENCH = [sys.executable, "-c", "from wsolbench.benchmark.cli import main; main()"]


def cold(*words, **options):
    """The command in an interpreter of its own, as typed; all other tests take the warm one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*BENCH, *map(str, words)], capture_output=True, text=True, env=environment, **options)


@pytest.fixture
def bench(warm_bench):
    return warm_bench


@pytest.fixture
def run(world, bench):
    """Runs `bench run` on the blobs with changes, and returns the finished process."""

    def go(*words, methods="cam", datasets=None, results=None):
        settings = [f"--set=train.{k}={v}" for k, v in world.settings.items()]
        return bench(
            "run", "--methods", methods, "--datasets", datasets or world.csv, "--backbones", "test_resnet", "--weights",
            "none", "--preset", "smoke", "--results", results or world.results, "--device", "cpu", *settings, *words,
        )  # fmt: skip

    return go


def test_help_names_every_verb():
    found = cold("--help")
    assert found.returncode == 0
    for verb in ("run", "list", "status", "report", "score", "data", "check", "new-method", "demo"):
        assert f"  {verb} " in found.stdout


@pytest.mark.parametrize("verb", ["run", "list", "status", "report", "score", "data", "check", "new-method", "demo"])
def test_every_verb_explains_itself(bench, verb):
    found = bench(verb, "--help")
    assert found.returncode == 0
    assert len(found.stdout) > 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "Did you mean run"),
        (["run"], "Say which methods"),
        (["run", "--methods", "cam"], "Say which datasets"),
        (["run", "--methods", "pixlecam", "--datasets", "glas"], "Did you mean pixelcam"),
        (["run", "--methods", "cam", "--datasets", "glass"], "Did you mean glas"),
        (["run", "--methods", "cam", "--datasets", "glas", "--preset", "smokey"], "Did you mean smoke"),
        (["run", "--methods", "cam", "--datasets", "glas", "--seeds", "one"], "a seed is a whole number"),
        (["run", "--methods", "cam", "--datasets", "glas", "--set", "train"], "SECTION.KEY=VALUE"),
        (["run", "--methods", "cam", "--datasets", "glas", "--config", "none.toml"], "cannot be read"),
        (["run", "--methods", "cam", "--datasets", "glas", "--data-root", "nowhere"], "No GlaS dataset"),
        (["run", "--methods", "none.py", "--datasets", "glas"], "There is no file"),
        (["run", "--metods", "cam"], "No such option"),
        (["run", "--methods", "cam", "--datasets", "glas", "--ood", "jpeg-9"], "has no level '9'"),
        (["run", "--methods", "cam", "--datasets", "glas", "--ood", "none,all"], "stands alone"),
        (["check", "pixlecam"], "Did you mean pixelcam"),
        (["list", "methdos"], "methods"),
        (["new-method", "Class"], "not a usable name"),
        (["new-method", "cam"], "exists already"),
    ],
)
def test_mistakes_exit_with_2_and_say_what_to_do(bench, words, message, tmp_path):
    found = bench(*words, cwd=tmp_path)
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir()), "a usage error must write nothing"


def test_a_mistake_as_typed(tmp_path):
    found = cold("rnu", cwd=tmp_path)
    assert (found.returncode, "Did you mean run" in found.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_a_run_and_everything_that_reads_it(run, bench, world):
    done = run("--json", methods="cam,random")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    wanted = {
        "method", "backbone", "train", "eval", "fold", "seed", "selection", "protocol", "pxap", "chance", "accuracy",
        "dice_tau_val", "iou_tau_val", "tau_val", "seconds_train", "seconds_score", "stage",
    }  # fmt: skip
    assert all(wanted <= set(r) for r in rows)
    again = run("--json", methods="cam,random")
    assert json.loads(again.stdout) == rows
    reported = bench("report", "--results", world.results, "--json")
    assert {r["stage"] for r in json.loads(reported.stdout)} == {r["stage"] for r in rows}
    status = json.loads(bench("status", "--results", world.results, "--json").stdout)
    assert [s["method"] for s in status["finished"] if s["kind"] == "train"] == ["classifier"]
    assert (status["failed"], status["interrupted"]) == ([], [])
    text = run(methods="cam,random")
    assert "Nothing to do" in text.stdout
    assert "PxAP" in text.stdout
    assert bench("report", "--results", world.results).returncode == 0
    assert (world.results / "report" / "index.html").is_file()


def test_dry_run_shows_the_plan_and_writes_no_stage(run, world):
    found = run("--dry-run", methods="cam,pixelcam")
    assert found.returncode == 0, found.stderr
    assert "2 trainings, 2 to do" in found.stdout
    assert "estimated time" in found.stdout
    assert not (world.results / "runs").exists()
    plan = json.loads(run("--dry-run", "--json", methods="cam,pixelcam").stdout)
    assert plan["trainings"] == 2
    assert plan["to_do"] == len(plan["stages"])


def test_a_config_file_equals_its_options(run, bench, world, tmp_path):
    path = tmp_path / "run.toml"
    settings = "".join(f"{k} = {v}\n" for k, v in world.settings.items())
    path.write_text(
        f'methods = ["cam"]\ndatasets = ["{world.csv}"]\nbackbones = "test_resnet"\nweights = "none"\n'
        'preset = "smoke"\n'
        f'results = "{world.results}"\n[train]\n{settings}'
    )
    one = json.loads(run("--dry-run", "--json").stdout)["stages"]
    other = json.loads(bench("run", "--config", path, "--dry-run", "--json").stdout)["stages"]
    assert [s["stage"] for s in one] == [s["stage"] for s in other]
    path.write_text("methodz = 3\n")
    assert "Did you mean methods" in bench("run", "--config", path).stderr


@pytest.fixture
def copy(blobs, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(blobs.parent, folder)
    return folder / "blobs.csv"


def damaged(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: damaged(folder / "train_03.png"), "train_03.png"),
        (lambda folder: (folder / "test_01.png").unlink(), "files are missing"),
        (lambda folder: (folder / "val_01.png").write_bytes(b""), "val_01.png"),
        (lambda folder: Image.new("L", (32, 64)).save(folder / "test_01_mask.png"), "32 x 64 px"),
        (lambda folder: Image.new("RGB", (64, 64)).save(folder / "test_01_mask.png"), "one grey channel"),
    ],
)
def test_bad_data_stop_before_any_training(run, world, copy, damage, message):
    damage(copy.parent)
    found = run(datasets=copy)
    assert found.returncode == 2, found.stdout
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert not (world.results / "runs").exists()


def test_weights_that_do_not_fit_stop_before_any_training(run, world, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(3, 3, 1, 1)}, path)
    found = run("--weights", path)
    assert found.returncode == 2
    assert "other.safetensors" in found.stderr
    assert "Traceback" not in found.stderr
    assert not (world.results / "runs").exists()
    path.write_bytes(b"not weights")
    assert run("--weights", path).returncode == 2
    assert run("--weights", tmp_path / "none.safetensors").returncode == 2


def test_a_results_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("x")
    found = run(results=tmp_path / "file")
    assert found.returncode == 2
    assert "file" in found.stderr
    assert "Traceback" not in found.stderr


def test_an_unknown_backbone_and_a_missing_ability(run):
    found = run("--backbones", "resnet81")
    assert found.returncode == 2
    assert "resnet81" in found.stderr
    assert "Traceback" not in found.stderr


def test_options_a_method_refuses_stop_before_any_training(run, world):
    found = run(methods="gradcam:Nope,layercam:shalow")
    assert found.returncode == 2
    assert "no explainer 'Nope'" in found.stderr or "layers='shalow'" in found.stderr
    for words, message in (
        (("--set", "classifier.dropout=2"), "dropout"),
        (("--set", "train.lr=nan"), "train.lr"),
        (("--set", "protocol.scale_quantiles=0.5"), "scale_quantiles"),
        (("--backend", "dsk"), "Did you mean dask"),
    ):
        found = run(*words)
        assert (found.returncode, message in found.stderr) == (2, True), found.stderr
    assert not (world.results / "runs").exists()


def test_an_upper_bound_needs_the_training_masks(run, copy):
    copy.write_text(copy.read_text().replace("train_01_mask.png", ""))
    found = run(datasets=copy, methods="unet")
    assert found.returncode == 2
    assert "learns from masks" in found.stderr
    assert run("--dry-run", datasets=copy, methods="cam").returncode == 0


def test_a_faulty_method_exits_with_1_and_keeps_the_others(run, bench, world, tmp_path):
    path = tmp_path / "faulty.py"
    path.write_text(
        '"""Faulty."""\nfrom wsolbench.methods.base import register\n\n'
        '@register("faulty", needs=("checkpoint:classifier",))\n'
        'def faulty(evidence, options):\n    """Fails."""\n    raise ValueError("no idea")\n'
    )
    found = run("--json", methods=f"cam,{path}")
    assert found.returncode == 1
    assert {r["method"] for r in json.loads(found.stdout)} == {"cam"}
    text = run(methods=f"cam,{path}")
    assert "FAILED" in text.stderr
    assert "no idea" in text.stderr
    status = bench("status", "--results", world.results)
    assert "FAILED" in status.stdout


@pytest.mark.parametrize("kind", ["explainer", "trained", "student", "adapter"])
def test_a_new_method_of_each_kind_is_written_and_registers(kind, bench, tmp_path):
    path = tmp_path / f"my_{kind}.py"
    done = bench("new-method", f"my_{kind}", "--kind", kind, "--out", path)
    assert done.returncode == 0, done.stderr
    assert f"bench check {path}" in done.stdout
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\bNAME\b|\bCLASS\b", text)
    (name,) = METHODS.load_file(path)
    spec = method_spec(name)
    assert (spec.trains, spec.adapts) == (kind != "explainer", kind == "adapter")
