"""Doing a plan: nothing twice, a failure stops nobody else, one pass equals many, parts equal the whole."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.files import read_npz
from wsolbench.benchmark.execution.preflight import preflight
from wsolbench.benchmark.execution.scheduler import open_stages, waves
from wsolbench.benchmark.training.checkpoints import load_tensors
from wsolbench.reports.rows.load import load_rows

BROKEN = '''"""A method that breaks its promise."""
from wsolbench.methods.base import register

@register("broken_map", family="test", needs=("checkpoint:classifier",))
def broken_map(evidence, options):
    """Returns maps of the wrong shape."""
    return evidence.activations
'''

NAN_LOSS = '''"""A method whose loss explodes."""
import torch.nn.functional as F
from torch import nn
from wsolbench.methods.base import Method, Prediction, register

@register("nan_loss", family="test", kind="none")
class NanLoss(Method):
    """Loses its mind in the second epoch."""

    def __init__(self, backbone, num_classes, options):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.dims[-1], num_classes)

    def loss(self, batch, context):
        logits = self.predict(batch.images).logits
        return {"total": F.cross_entropy(logits, batch.labels) * (float("nan") if context.epoch == 2 else 1.0)}

    def predict(self, images, classes=None):
        return Prediction(self.head(self.backbone.grid(images).mean((2, 3))), None)
'''


def scores(store, key):
    return read_npz(store.run_dir(key) / "scores.npz")


def numbers(store, plan):
    """Everything stored for the rows, without timings."""
    return {k: {n: a.tobytes() for n, a in scores(store, k).items()} for k in plan.rows}


def test_a_finished_run_does_nothing_again(world):
    plan, first = world.run("cam,layercam,random")
    assert sorted(first.done) == sorted(plan.stages)
    stamps = {p: p.stat().st_mtime_ns for p in world.results.rglob("*") if p.is_file() and "runs" in p.parts}
    _, second = world.run("cam,layercam,random")
    assert (second.done, second.failed, second.exit_code) == ([], {}, 0)
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}


@pytest.mark.slow  # tests/faults has the same through the command line, with a kill
def test_a_repeated_run_elsewhere_gives_the_same_bits(world, tmp_path):
    plan, _ = world.run("cam,layercam,pixelcam,random")
    one = numbers(world.store, plan)
    world.results = tmp_path / "again"
    plan, _ = world.run("cam,layercam,pixelcam,random")
    assert numbers(world.store, plan) == one


def test_scoring_together_equals_scoring_alone(world, tmp_path):
    plan, _ = world.run("cam,gradcampp,layercam")
    together = numbers(world.store, plan)
    world.results = tmp_path / "alone"
    alone = {}
    for method in ("cam", "gradcampp", "layercam"):
        plan, _ = world.run(method)
        alone.update(numbers(world.store, plan))
    assert alone == together


@pytest.mark.slow  # tests/faults has the same through the command line, with a kill
def test_worker_processes_give_the_rows_of_one_process(world, tmp_path):
    """Bit for bit, where both sides have as many threads: workers share the cores between them."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    try:
        plan, _ = world.run("cam,layercam,unet,random")
    finally:
        torch.set_num_threads(before)
    one = numbers(world.store, plan)
    world.results = tmp_path / "two"
    plan, outcome = world.run("cam,layercam,unet,random", run={"jobs": 2})
    assert outcome.exit_code == 0
    assert numbers(world.store, plan) == one


def test_score_batches_do_not_matter(world, tmp_path):
    plan, _ = world.run("cam")
    one = {k: scores(world.store, k) for k in plan.rows}
    world.results = tmp_path / "small"
    world.run("cam", run={"score_batch": 5})
    for key in plan.rows:
        two = scores(world.store, key)
        np.testing.assert_allclose(two["logits"], one[key]["logits"], atol=1e-4)
        moved = np.abs(two["foreground"].astype(int) - one[key]["foreground"].astype(int)).sum()
        assert moved <= 0.01 * one[key]["foreground"].sum()


def test_a_faulty_method_fails_alone(world, tmp_path):
    path = tmp_path / "broken_map.py"
    path.write_text(BROKEN)
    plan, outcome = world.run(f"cam,{path}")
    failed = {plan.stages[k].labels["method"] for k in outcome.failed}
    assert failed == {"broken_map"}
    assert outcome.exit_code == 1
    assert {r.method for r in load_rows(world.store)} == {"cam"}
    failures = world.store.failures()
    assert failures
    for failure in failures.values():
        assert "returned a map of shape" in failure["error"]
        assert "Traceback" in failure["traceback"]


def test_a_loss_that_explodes_stops_its_run_and_is_never_counted(world, tmp_path):
    path = tmp_path / "nan_loss.py"
    path.write_text(NAN_LOSS)
    plan, outcome = world.run(f"{path},cam")
    errors = [e for k, e in outcome.failed.items() if plan.stages[k].kind == "train"]
    assert len(errors) == 1
    assert "the loss is not finite from step 1" in errors[0]
    assert {plan.stages[k].labels["method"] for k in outcome.blocked} == {"nan_loss"}
    assert {r.method for r in load_rows(world.store)} == {"cam"}


def test_a_method_is_one_file(world, tmp_path):
    """Adding a method touches one file, in a folder of the user's own."""
    path = tmp_path / "mine.py"
    path.write_text(
        BROKEN.replace("broken_map", "mine").replace("evidence.activations", "evidence.activations.mean(1)")
    )
    world.run(f"{path}")
    rows = load_rows(world.store)
    assert {r.method for r in rows} == {"mine"}
    before = {r.stage for r in rows}
    path.write_text(path.read_text().replace("mean(1)", "amax(1)"))
    plan, outcome = world.run(f"{path}")
    assert not before & set(plan.rows), "an edited file must not show the numbers of the old one"
    assert outcome.exit_code == 0


def test_micro_batches_train_nearly_as_whole_ones(world, tmp_path):
    plan, _ = world.run("unet", overrides={"train": {"epochs": "1"}})
    key = plan.kinds("train")[0].key
    whole = json.loads((world.store.run_dir(key) / "history.jsonl").read_text().splitlines()[1])
    world.results = tmp_path / "parts"
    plan, _ = world.run("unet", overrides={"train": {"epochs": "1", "micro_batch": "8"}})
    key = plan.kinds("train")[0].key
    parts = json.loads((world.store.run_dir(key) / "history.jsonl").read_text().splitlines()[1])
    assert parts["losses"]["total"] == pytest.approx(whole["losses"]["total"], rel=0.25)


def test_three_selections_are_kept_and_point_at_their_epochs(world):
    plan, _ = world.run("layercam", overrides={"train": {"epochs": "6"}})
    key = plan.kinds("train")[0].key
    record, folder = world.store.record(key), world.store.run_dir(key)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [h["epoch"] for h in history] == list(range(7))
    accuracies = [h["val"]["accuracy"] for h in history]
    best = max(accuracies)
    assert record["roles"]["cl/paper"]["epoch"] == max(e for e, a in enumerate(accuracies) if a == best)
    fair = [(-h["val"]["accuracy"], h["val"]["loss"], h["epoch"]) for h in history[1:]]
    assert record["roles"]["cl/fair"]["epoch"] == min(fair)[2]
    pxap = [h["valpx"]["paper/layercam"]["pxap"] for h in history]
    assert record["roles"]["loc/paper/layercam"]["epoch"] == max(e for e, p in enumerate(pxap) if p == max(pxap))
    assert record["roles"]["last"]["epoch"] == 6
    kept = {p.name for p in folder.glob("epoch-*.safetensors")}
    assert kept == {r["weights"] for r in record["roles"].values()}
    assert not (folder / "resume").exists()
    for role in record["roles"].values():
        assert load_tensors(folder / role["weights"], role["sha256"])


def test_damaged_weights_are_never_loaded(world):
    plan, _ = world.run("cam")
    folder = world.store.run_dir(plan.kinds("train")[0].key)
    path = next(folder.glob("epoch-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    record = world.store.record(plan.kinds("train")[0].key)
    entry = next(r for r in record["roles"].values() if r["weights"] == path.name)
    with pytest.raises(BenchError, match="is damaged"):
        load_tensors(path, entry["sha256"])


def test_waves_hold_groups_that_share_a_pass(world):
    _, plan = world.plan("cam,layercam,pixelcam")
    todo = open_stages(plan, world.store)
    done = set()
    for wave in waves(todo):
        for group in wave:
            assert len({s.kind for s in group}) == 1
            assert all(set(s.parents.values()) <= done for s in group)
        done |= {s.key for group in wave for s in group}
    val = [
        g for wave in waves(todo) for g in wave if g[0].kind == "score" and g[0].labels["method"] in ("cam", "layercam")
    ]
    assert len(val) == 2, "one validation pass and one test pass for all explainers of a classifier"


def test_the_fair_protocol_reads_no_test_label(world, monkeypatch):
    """Permuting the labels of the test images changes no map and no logit under `fair`."""
    plan, _ = world.run("layercam")
    rows = [k for k in plan.rows if plan.stages[k].labels["map_class"] == "region"]
    before = {k: scores(world.store, k) for k in rows}
    from wsolbench.benchmark.scoring import map_extractor

    honest = map_extractor.MapExtractor.read
    monkeypatch.setattr(
        map_extractor.MapExtractor, "read", lambda self, images, labels, ids: honest(self, images, 1 - labels, ids)
    )
    for key in rows:
        world.store.remove(key)
    world.run("layercam")
    for key in rows:
        after = scores(world.store, key)
        for name in ("foreground", "background", "logits"):
            assert np.array_equal(before[key][name], after[name])


def test_a_class_without_region_needs_no_map_of_its_own(world):
    _, plan = world.plan("cam,unet")
    classes = {(s.labels["method"], s.labels["map_class"]) for s in plan.kinds("score")}
    assert classes == {("cam", "region"), ("unet", "any")}


def test_training_leaves_torch_as_it_was(world):
    before = torch.are_deterministic_algorithms_enabled()
    world.run("cam", run={"deterministic": True})
    assert torch.are_deterministic_algorithms_enabled() == before


def test_without_validation_masks_there_is_no_loc_and_no_tau(world, blobs, tmp_path):
    """A user's own weakly labelled set may have masks for its test images alone."""
    import re
    import shutil

    folder = tmp_path / "weak"
    shutil.copytree(blobs.parent, folder)
    text = (folder / "blobs.csv").read_text()
    (folder / "blobs.csv").write_text(re.sub(r"(train|val)_\d\d_mask\.png", "", text))
    world.csv = folder / "blobs.csv"
    _, outcome = world.run("cam,pixelcam")
    assert outcome.exit_code == 0, outcome.failed
    rows = load_rows(world.store)
    assert {r.selection for r in rows} == {"cl", "last"}
    assert all(np.isnan(r.tau_val) and np.isnan(r.dice_tau_val) and not np.isnan(r.pxap) for r in rows)
    with pytest.raises(BenchError, match="has none"):
        world.plan("pixelcam", protocols=("paper",))


def test_baselines_of_other_image_sizes_do_not_share_their_pixels(world, tmp_path):
    changes = {"overrides": {"darkness": {"train.image_size": "16"}}}
    plan, _ = world.run("constant,darkness", **changes)
    together = {k: v for k, v in numbers(world.store, plan).items() if plan.stages[k].labels["method"] == "darkness"}
    world.results = tmp_path / "alone"
    plan, _ = world.run("darkness", **changes)
    assert numbers(world.store, plan) == together


def test_a_checkpoint_that_is_not_there_costs_its_own_rows_only(world, blobs, tmp_path):
    """Empty validation masks: `loc` is never defined, `cl` and `last` are."""
    import shutil

    from PIL import Image

    folder = tmp_path / "empty"
    shutil.copytree(blobs.parent, folder)
    for path in folder.glob("val_*_mask.png"):
        Image.new("L", (64, 64)).save(path)
    world.csv = folder / "blobs.csv"
    plan, outcome = world.run("cam")
    assert outcome.exit_code == 1
    assert {plan.stages[k].labels["selection"] for k in (*outcome.failed, *outcome.blocked)} == {"loc"}
    assert {r.selection for r in load_rows(world.store)} == {"cl", "last"}
    assert not [k for k in outcome.failed if world.store.is_done(k)]


@pytest.mark.slow  # tests/faults has the same through the command line, with a kill
def test_a_worker_that_dies_is_a_failure_and_the_rest_goes_on(world, tmp_path):
    path = tmp_path / "suicide.py"
    path.write_text(
        '"""Dies."""\nimport os\nimport signal\n\nfrom wsolbench.methods.base import register\n\n'
        '@register("suicide", needs=("checkpoint:classifier",), uses_seed=True)\n'
        'def suicide(evidence, options):\n    """Dies."""\n    os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    _, outcome = world.run(f"{path}", run={"jobs": 2})
    assert outcome.exit_code == 1
    assert outcome.failed
    assert all("Terminated" in e or "kill" in e.lower() for e in outcome.failed.values()), outcome.failed
    _, outcome = world.run("cam")
    assert outcome.exit_code == 0


def test_no_silent_fallback_that_takes_days(world, monkeypatch):
    """`auto` without a GPU is refused for presets that are made for one, with the reason; `--device cpu` is not."""
    monkeypatch.setattr("wsolbench.benchmark.execution.preflight.why_no_gpu", lambda: "There is no NVIDIA driver.")
    planner, plan = world.plan("cam", run={"device": "auto"})
    todo = list(plan.stages.values())
    preflight(todo, planner)  # the preset of these tests is smoke
    planner.request = replace(planner.request, preset="quick")
    with pytest.raises(BenchError, match=r"There is no NVIDIA driver\. To train on the processor .*--device cpu"):
        preflight(todo, planner)
    preflight([s for s in todo if s.kind != "train"], planner)
    planner.request = replace(planner.request, run=replace(planner.request.run, device="cpu"))
    preflight(todo, planner)
