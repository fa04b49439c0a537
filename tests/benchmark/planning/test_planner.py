"""The plan: shared stages appear once, keys change with what changes a number and with nothing else."""

import subprocess
import sys
from dataclasses import replace

import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.planning.planner import Planner


def keys(plan):
    return set(plan.stages)


def test_explainers_share_one_training(world):
    _, plan = world.plan("classifier,cam,gradcam,gradcampp,xgradcam,layercam", protocols=("fair", "paper"))
    assert len(plan.kinds("train")) == 1
    # Three selections, two of them for the classifier (no maps); lines of gated maps need no score of their own.
    assert len(plan.rows) == 2 * (2 + 5 * 3)


def test_a_student_shares_its_teachers_classifier_and_maps(world):
    _, plan = world.plan("layercam,pixelcam")
    assert sorted(s.labels["method"] for s in plan.kinds("train")) == ["classifier", "pixelcam"]
    assert len(plan.kinds("maps")) == 1
    student = next(s for s in plan.kinds("train") if s.labels["method"] == "pixelcam")
    assert plan.stages[student.parents["maps"]].labels["method"] == "layercam"
    assert plan.stages[student.parents["init"]].labels["method"] == "classifier"


def test_a_student_is_trained_once_a_protocol_and_its_classifier_once(world):
    """The protocols choose a teacher's checkpoint differently, so a student of either learns from other maps."""
    _, plan = world.plan("layercam,pixelcam", protocols=("fair", "paper"))
    trained = [s.labels["method"] for s in plan.kinds("train")]
    assert sorted(trained) == ["classifier", "pixelcam", "pixelcam"]
    assert len(plan.kinds("maps")) == 2
    roles = {s.identity["role"] for s in plan.kinds("maps")}
    assert len(roles) == 2


def test_parents_come_before_children(world):
    _, plan = world.plan("unet,pixelcam,cam,random", seeds=(0, 1))
    seen = set()
    for key, stage in plan.stages.items():
        assert set(stage.parents.values()) <= seen
        seen.add(key)


def test_baselines_are_planned_once_whatever_the_backbones_and_seeds(world):
    request = {"backbones": ("test_resnet", "resnet18"), "seeds": (0, 1)}
    planner_request = world.request("constant,random")
    from dataclasses import replace

    from wsolbench.benchmark.planning.planner import Planner

    plan = Planner(replace(planner_request, **request)).build()
    by_method = [s.labels["method"] for k, s in plan.stages.items() if k in plan.rows]
    assert by_method.count("constant") == 1
    assert by_method.count("random") == 2
    assert not plan.kinds("train")


@pytest.mark.parametrize(
    "changes",
    [
        {"overrides": {"train": {"lr": "0.04"}}},
        {"overrides": {"train": {"epochs": "4"}}},
        {"overrides": {"train": {"micro_batch": "4"}}},
        {"overrides": {"classifier": {"dropout": "0.2"}}},
        {"overrides": {"classifier": {"train.lr": "0.03"}}},
        {"seeds": (1,)},
        {"overrides": {"protocol": {"size": "112"}}},
    ],
)
def test_what_must_change_a_key(world, changes):
    _, before = world.plan("cam")
    _, after = world.plan("cam", **changes)
    assert not set(before.rows) & set(after.rows)


def test_other_data_change_a_key(world, blobs, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(blobs.parent, copy)
    _, before = world.plan("cam")
    world.csv = copy / "blobs.csv"
    _, moved = world.plan("cam")
    assert keys(moved) == keys(before), "where the files lie must not matter"
    from PIL import Image

    Image.new("RGB", (64, 64)).save(copy / "train_00.png")
    _, changed = world.plan("cam")
    assert not set(changed.rows) & set(before.rows)


@pytest.mark.parametrize(
    "run",
    [{"device": "auto"}, {"jobs": 2}, {"score_batch": 5}, {"snapshot_seconds": 99.0},
     {"deterministic": True}, {"backend": "dask"}],
)  # fmt: skip
def test_what_must_not_change_a_key(world, run):
    _, before = world.plan("cam,pixelcam")
    _, after = world.plan("cam,pixelcam", run=run)
    assert keys(before) == keys(after)


def test_results_folder_and_option_order_do_not_change_a_key(world, tmp_path):
    _, before = world.plan("cam,pixelcam")
    world.results = tmp_path / "elsewhere"
    _, after = world.plan("pixelcam,cam")
    assert keys(before) == keys(after)


def test_an_option_of_an_explainer_leaves_the_training_alone(world):
    _, before = world.plan("layercam")
    _, after = world.plan("layercam:shallow")
    assert [s.key for s in before.kinds("train")] == [s.key for s in after.kinds("train")]
    assert not set(before.rows) & set(after.rows)


@pytest.mark.parametrize(
    ("methods", "changes", "message"),
    [
        ("pixlecam", {}, "Did you mean pixelcam"),
        ("cam", {"overrides": {"trian": {"lr": "1"}}}, "Did you mean train"),
        ("cam", {"overrides": {"pixelcam": {"lambda_pixel": "1"}}}, "belong to no method of this run"),
        ("pixelcam", {"overrides": {"pixelcam": {"lamda_pixel": "1"}}}, "Did you mean lambda_pixel"),
        ("pixelcam", {"overrides": {"pixelcam": {"lambda_pixel": "big"}}}, "is not of type float"),
        ("pixelcam:classifier", {}, "makes no maps and cannot be a teacher"),
        ("cam:what", {}, "has no variants"),
        ("cam", {"protocols": ("fare",)}, "Did you mean fair"),
        ("cam", {"overrides": {"protocol": {"ties": "last"}}}, "cannot be changed"),
        ("cam", {"folds": ("7",)}, "no fold '7'"),
    ],
)
def test_bad_requests(world, methods, changes, message):
    with pytest.raises(BenchError, match=message):
        world.plan(methods, **changes)


def test_planning_imports_no_torch(world):
    code = (
        "import sys; from pathlib import Path; from wsolbench.benchmark.planning.config import *; "
        "from wsolbench.benchmark.planning.planner import Planner; "
        f"plan = Planner(Request(('cam', 'pixelcam'), ({str(world.csv)!r},), weights='none', "
        f"run=RunConfig(results=Path({str(world.results)!r})))).build(); "
        "assert plan.rows; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_student_of_a_model_that_saw_masks_is_an_upper_bound(world):
    _, plan = world.plan("pixelcam:unet,pixelcam,darkness")
    supervision = {s.labels["method"]: s.inputs.supervision for s in plan.kinds("score")}
    assert supervision == {"pixelcam:unet": "pixel", "pixelcam": "image", "darkness": "none"}


def test_a_teacher_outside_every_circle(world):
    with pytest.raises(BenchError, match="learns from pixelcam:pixelcam: choose a teacher"):
        world.plan("pixelcam", overrides={"pixelcam": {"teacher": "pixelcam"}})
    world.plan("pixelcam:pixelcam")  # the student of a student is none


def test_the_version_of_a_selecting_explainer_is_part_of_the_training(world, monkeypatch):
    """It picked the `loc` checkpoints, so they are not those of its new version."""
    from dataclasses import replace

    from wsolbench.benchmark.planning import method_refs

    _, before = world.plan("cam")
    honest = method_refs.method_spec
    newer = {"layercam": 99}
    monkeypatch.setattr(
        method_refs, "method_spec", lambda n: replace(honest(n), version=newer.get(n, honest(n).version))
    )
    _, after = world.plan("cam")
    assert not {s.key for s in before.kinds("train")} & {s.key for s in after.kinds("train")}


def test_an_explainer_may_need_nothing_of_a_backbone(world, tmp_path):
    path = tmp_path / "bare.py"
    path.write_text(
        '"""Bare."""\nfrom wsolbench.methods.base import register\n\n'
        '@register("bare", backbone=(), needs=("checkpoint:classifier",))\n'
        'def bare(evidence, options):\n    """A map."""\n    return evidence.activations.mean(1)\n'
    )
    _, plan = world.plan(str(path))
    assert len(plan.kinds("train")) == 1


def test_rows_ask_each_question_once(world, monkeypatch):
    """The keys are those of a planner that remembers nothing."""
    from dataclasses import replace

    from wsolbench.benchmark.planning import planner as planning

    request = replace(world.request("cam,pixelcam,unet,constant"), seeds=(0, 1), protocols=("fair", "paper"))
    asked: list[str] = []
    monkeypatch.setattr(planning, "train_config", lambda *a, real=planning.train_config: asked.append("x") or real(*a))
    quick = planning.Planner(request).build()
    few = len(asked)

    class Forgetful(dict):
        def __contains__(self, key):
            return False

    slow = planning.Planner(request)
    slow.answers = Forgetful()
    found = slow.build()
    assert (list(found.stages), found.rows) == (list(quick.stages), quick.rows)
    assert [s.parents for s in found.stages.values()] == [s.parents for s in quick.stages.values()]
    assert few < len(quick.rows) < len(asked) - few


def test_equal_methods_are_one_in_a_set():
    from wsolbench.benchmark.planning.method_refs import Resolver

    found = [Resolver({}).ref("pixelcam"), Resolver({}).ref("pixelcam"), Resolver({}).ref("pixelcam:deepmil")]
    assert [r.label for r in dict.fromkeys(found)] == ["pixelcam", "pixelcam:deepmil"]


def test_every_set_of_options_is_checked_once(monkeypatch):
    """One name may have other options on another dataset."""
    from dataclasses import replace
    from types import SimpleNamespace

    from wsolbench.benchmark.execution import preflight
    from wsolbench.benchmark.planning.method_refs import Resolver

    checked = []
    method = SimpleNamespace(check_options=lambda options: checked.append(options.layers))
    monkeypatch.setattr(preflight.METHODS, "load", lambda name: method)
    one = Resolver({}).ref("layercam")
    other = replace(one, options={"layers": "all"})  # as a recipe may settle it
    preflight._check_options([SimpleNamespace(inputs=SimpleNamespace(method=ref)) for ref in (one, other, one, other)])
    assert checked == ["last", "all"]


def test_names_are_checked_before_anything_slow():
    code = (
        "import sys; from wsolbench.benchmark.cli import _run\n"
        "for words in (['--methods', 'camm', '--datasets', 'glas'], ['--methods', 'cam', '--datasets', 'glass']):\n"
        "    assert _run(['run', *words]) == 2\n"
        "assert 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Did you mean cam" in done.stderr
    assert "Did you mean glas" in done.stderr


def test_seconds_are_learnt_from_trainings_alike(world, tmp_path):
    from wsolbench.benchmark.core.results_store import Store
    from wsolbench.benchmark.planning.estimate import estimate_seconds

    _, plan = world.plan("cam")
    (training,), store = plan.kinds("train"), Store(tmp_path / "other")
    assert estimate_seconds([], store) == 0
    assert estimate_seconds([training], store) is None
    epochs = training.inputs.config.epochs
    images = training.identity["data"]["images"] * epochs
    far = {**training.identity, "backbone": {"name": "resnet50"}}
    for name, identity, speed in (("a", far, 1.0), ("b", far, 2.0), ("c", far, 4.0)):
        store.finish(name, {"kind": "train", "identity": identity, "seconds": images / speed / 2, "epochs": epochs / 2})
    assert estimate_seconds([training], store) == pytest.approx(images / 2)
    store.finish("d", {"kind": "train", "identity": training.identity, "seconds": images / 8, "epochs": epochs})
    score = plan.kinds("score")[0]
    store.finish("e", {"kind": "score", "identity": score.identity, "seconds": None})
    assert estimate_seconds([training, score], store) > images / 8  # as dear as in a training, until one was timed
    store.finish("f", {"kind": "score", "identity": score.identity, "seconds": 3.0})
    assert estimate_seconds([training, score], store) == pytest.approx(images / 8 + 3)


def test_what_differs_from_the_published_recipe_is_kept(world):
    """Weights, stride and schedule: a published number stands beside ours only where nothing of it differs."""

    def unlike(request):
        return list(Planner(request).build().kinds("train")[0].inputs.unlike_published)

    found = unlike(world.request("cam"))
    assert found[0] == "starting weights none, published ImageNet's"
    assert any(text.startswith("epochs ") and ", published " in text for text in found)
    paper = unlike(replace(world.request("cam"), preset="paper", overrides={}))
    assert paper == ["starting weights none, published ImageNet's"]
