"""Trainings of adapters: the hand-written loop, labels that no wrong value of moves a bit, full passes, resuming."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.benchmark.conftest import World, write_stained
from tests.faults.test_stop import Asked, chain
from tests.faults.training import Bare, trained
from wsolbench.benchmark.core.errors import BenchError, LabelAccessError, MaskAccessError
from wsolbench.benchmark.core.files import read_npz
from wsolbench.benchmark.data.augment import normalise
from wsolbench.benchmark.distributed.process_group import SINGLE_PROCESS
from wsolbench.benchmark.scoring.build import build_method
from wsolbench.benchmark.stages.context import StageContext, checkpoint, load_model
from wsolbench.benchmark.stages.train_stage import _training, starting_model, training_set_of
from wsolbench.benchmark.training.micro_batches import split_batch
from wsolbench.methods import METHODS
from wsolbench.methods.evidence import Evidence
from wsolbench.methods.factory import statistics_of
from wsolbench.methods.layercam import layercam
from wsolbench.reports.rows.load import load_rows

PLUGIN = Path(__file__).parents[2] / "plugins" / "entropy_adapter.py"
OVERRIDES = {"classifier": {"dropout": "0"}}


def settings():
    return {name: dict(values) for name, values in OVERRIDES.items()}


@pytest.fixture(scope="module")
def adapted(blobs, stained, tmp_path_factory):
    """Both adapters trained, and layercam before and after: the world, its plan, a context."""
    world = World(blobs, tmp_path_factory.mktemp("adapted"))
    methods = f"layercam,{PLUGIN},layercam@entropy-adapter"
    planner, plan = world.plan(methods, ood=(str(stained),), selections=("last",), overrides=settings())
    _, outcome = world.run(methods, ood=(str(stained),), selections=("last",), overrides=settings())
    assert outcome.exit_code == 0, outcome.failed
    return world, plan, StageContext(planner.request.run, planner.open_datasets)


def training(plan, label):
    return next(s for s in plan.kinds("train") if s.labels["method"] == label)


def entropy(logits):
    log = torch.as_tensor(logits).log_softmax(1)
    return float(-(log.exp() * log).sum(1).mean())


# -- rows -------------------------------------------------------------------------------------------------------------
def test_an_explainer_of_an_adapted_model_has_rows_on_source_and_target(adapted):
    world, plan, _ = adapted
    rows = [r for r in load_rows(world.store, plan.rows) if r.method == "layercam@entropy-adapter" and not r.gated]
    assert [(r.eval, r.selection, r.ood) for r in rows] == [("blobs", "last", False), ("stained", "last", True)]
    home, away = rows
    assert away.drop_pxap == pytest.approx(home.pxap - away.pxap)
    before = next(r for r in load_rows(world.store, plan.rows) if (r.method, r.eval) == ("layercam", "stained"))
    assert before.pxap != away.pxap


# -- the loss, and what it does ---------------------------------------------------------------------------------------
def test_training_is_a_hand_written_loop_over_unlabelled_images(adapted):
    _, plan, ctx = adapted
    stage, source = training(plan, "entropy-adapter"), training(plan, "classifier")
    config, experiment = stage.inputs.config, stage.inputs.experiment
    model = build_method(source.inputs.method, "test_resnet", config, 2, 0, source.inputs.statistics)
    model.load_state_dict(checkpoint(ctx, source.key, "cl/fair")[0])
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    model.requires_grad_(False)
    params = [p.requires_grad_(True) for m in norms for p in m.parameters()]
    assert params
    sgd = torch.optim.SGD(params, lr=1.0, momentum=0.9, weight_decay=1e-4, nesterov=True)
    data = training_set_of(stage, ctx, config).on_device()
    for epoch in range(1, config.epochs + 1):
        sgd.param_groups[0]["lr"] = config.lr_at(epoch)
        model.train()
        for batch in data.epoch_batches(experiment.seed, epoch):
            probabilities = model.predict(batch.target.images).logits.softmax(1)
            loss = -(probabilities * probabilities.log()).sum() / len(probabilities)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    kept, _ = checkpoint(ctx, stage.key, "last")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(kept[f"source.{name}"], value, rtol=1e-5, atol=1e-6)


def test_entropy_falls_on_the_target(adapted):
    _, plan, ctx = adapted
    stage = training(plan, "entropy-adapter")
    history = [json.loads(x) for x in (ctx.store.run_dir(stage.key) / "history.jsonl").read_text().splitlines()]
    losses = [line["losses"]["total"] for line in history if "losses" in line]
    assert losses[-1] < losses[0]
    score = next(s for s in plan.kinds("score") if s.labels["method"] == "layercam@entropy-adapter")
    model, _ = load_model(score, ctx)
    source, _ = starting_model(stage, ctx)
    split = training_set_of(stage, ctx, stage.inputs.config).frames
    images = evaluated(split, model)
    with torch.no_grad():
        before, after = (entropy(m.eval().predict(images).logits) for m in (source, model))
    assert after < before


# -- labels and masks -------------------------------------------------------------------------------------------------
def test_wrong_labels_and_masks_of_a_target_move_no_bit(adapted, tmp_path):
    """The same command on the same images, every label and mask of them another: weights of all adapters are equal."""
    world, plan, _ = adapted
    csv = write_stained(tmp_path / "wrong")
    lines = csv.read_text().splitlines()
    lines = [_swapped(line) if line.endswith(("train", "val")) and "," in line else line for line in lines]
    csv.write_text("\n".join(lines) + "\n")
    for path in csv.parent.glob("train_*_mask.png"):
        path.write_bytes((csv.parent / "test_01_mask.png").read_bytes())
    other = World(world.csv, tmp_path / "results")
    found, outcome = other.run(str(PLUGIN), ood=(str(csv),), selections=("last",), overrides=settings())
    assert outcome.exit_code == 0, outcome.failed
    for label in ("entropy-adapter", "aligned-adapter", "taught-adapter"):
        mine, theirs = training(plan, label), training(found, label)
        assert mine.key == theirs.key
        records = [store.record(mine.key)["roles"] for store in (world.store, other.store)]
        assert records[0] == records[1], "the hashes of all kept weights"


def _swapped(line):
    name, image, _, label, *rest = line.split(",")
    wrong = ("", "plain") if label == "blob" else ("test_01_mask.png", "blob")
    return ",".join([name, image, *wrong, *rest])


def test_labels_and_masks_of_a_target_raise(adapted):
    _, plan, ctx = adapted
    for label, free in (("entropy-adapter", True), ("aligned-adapter", False)):
        stage = training(plan, label)
        data = training_set_of(stage, ctx, stage.inputs.config).on_device()
        batch = next(data.epoch_batches(0, 1))
        target = batch.target
        for use in (len, lambda x: x + 1, lambda x: torch.stack([x]), lambda x: x[0], lambda x: x.sum()):
            with pytest.raises(LabelAccessError, match="without its labels"):
                use(target.labels)
        with pytest.raises(MaskAccessError):
            target.masks.float()
        assert copy.deepcopy(target.labels) is target.labels
        assert torch.equal(batch.images, target.images) == free
        if free:
            with pytest.raises(LabelAccessError):
                torch.nn.functional.one_hot(batch.labels)
        else:
            assert set(batch.labels.tolist()) == {0, 1}
            assert [len(v) for v in target.views] == [len(batch.images)] * 2
        first, second = split_batch(batch, [5, len(batch.images) - 5])
        assert torch.equal(torch.cat([first.target.images, second.target.images]), target.images)
        assert first.target.labels is target.labels


READS_LABELS = """
import torch

from wsolbench.methods.adapter import Adapter
from wsolbench.methods.base import register


@register("peeking-adapter", family="test", adapts=True, needs=("source:classifier",))
class Peeking(Adapter):
    def loss(self, batch, context):
        try:
            wanted = batch.target.labels.float()
        except Exception:
            wanted = torch.zeros(len(batch.images))
        return {"total": (self.logits(batch.target.images)[:, 0] - wanted).square().mean()}
"""


def test_an_adapter_that_swallows_the_refusal_fails_all_the_same(world, stained, tmp_path):
    path = tmp_path / "peeking.py"
    path.write_text(READS_LABELS)
    plan, outcome = world.run(str(path), ood=(str(stained),), overrides={"train": {"epochs": "1"}})
    stage = training(plan, "peeking-adapter")
    assert "asked for batch.target.labels.float" in outcome.failed[stage.key]


# -- teacher maps -----------------------------------------------------------------------------------------------------
def test_teacher_maps_of_a_target_are_of_the_class_that_the_source_predicts(adapted):
    _, plan, ctx = adapted
    stage, source = training(plan, "taught-adapter"), training(plan, "classifier")
    made = plan.stages[stage.parents["maps"]]
    assert made.parents["checkpoint"] == source.key
    stored = read_npz(ctx.store.run_dir(made.key) / "maps.npz")
    training_set = training_set_of(stage, ctx, stage.inputs.config)
    assert stored["ids"].tolist() == training_set.frames.ids
    model, _ = load_model(made, ctx)
    images = evaluated(training_set.frames, model)
    with torch.no_grad():
        classes = model.predict(images).logits.argmax(1)
    native = layercam(Evidence(images, classes, model), SimpleNamespace(layers="last"))
    low, high = native.amin((1, 2), keepdim=True), native.amax((1, 2), keepdim=True)
    wanted = torch.where(high > low, (native - low) / (high - low).clamp(min=1e-30), 0.0)
    torch.testing.assert_close(torch.from_numpy(stored["maps"]).float(), wanted, atol=2e-3, rtol=0)
    batch = next(training_set.on_device().epoch_batches(0, 1))
    assert batch.target.maps.shape == batch.target.images.shape[:1] + batch.target.images.shape[2:]
    assert float(batch.target.maps.std()) > 0


def evaluated(frames, model):
    """Images as evaluation sees them: squashed to 32 px."""
    pixels = normalise(torch.from_numpy(np.asarray(frames.images)), statistics_of(model))
    return torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)


# -- full passes ------------------------------------------------------------------------------------------------------
def test_a_full_pass_is_the_model_over_the_whole_set_and_leaves_it_as_it_was(adapted):
    _, plan, ctx = adapted
    job = _training(training(plan, "aligned-adapter"), ctx, SINGLE_PROCESS)
    method = job.method.train()
    method.source.backbone.eval()
    modes = [m.training for m in method.modules()]
    before = copy.deepcopy(method.state_dict())
    first, again = job.context.full_pass("target"), job.context.full_pass("target")
    assert modes == [m.training for m in method.modules()]
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(first.features, again.features)
    stage = training(plan, "aligned-adapter")
    frames = training_set_of(stage, ctx, stage.inputs.config).beside.frames
    images = evaluated(frames, method)
    with torch.no_grad():
        method.eval()
        grid = method.features(images)
        torch.testing.assert_close(first.features, grid.mean((2, 3)))
        torch.testing.assert_close(first.logits, method.classify(grid))
    assert len(set(first.ids)) == len(frames.ids) == 32
    assert not set(first.ids) & set(frames.ids), "names may tell a class"
    assert len(job.context.full_pass("train").logits) == 32
    with pytest.raises(BenchError, match="there is no such set"):
        job.context.full_pass("test")


def test_a_source_free_adapter_has_no_source_images(adapted):
    _, plan, ctx = adapted
    job = _training(training(plan, "entropy-adapter"), ctx, SINGLE_PROCESS)
    with pytest.raises(BenchError, match=r"a source-free adapter has none\. Here it may be 'target'"):
        job.context.full_pass("train")
    with pytest.raises(BenchError, match="in a training"):
        replace(job.context, whole_set=None).full_pass("target")


# -- resuming and devices ---------------------------------------------------------------------------------------------
TRAIN = {"epochs": "2", "batch_size": "16", "micro_batch": "6"}


def bare(world, method, stained, **run):
    overrides = {"train": dict(TRAIN), **settings()}
    return Bare(world, method, ood=(str(stained),), selections=("last",), overrides=overrides, run=run)


@pytest.mark.parametrize("label", [pytest.param("entropy-adapter", marks=pytest.mark.slow), "aligned-adapter"])
def test_stopped_at_every_step_it_goes_on_bit_for_bit(world, stained, tmp_path, monkeypatch, label):
    """The bank that an adapter fills by a full pass at the start of an epoch is the one of that start."""
    METHODS.load_file(PLUGIN)
    bare(world, label, stained).do(["train"])
    expected = trained(world)
    world.results = tmp_path / "stopped"
    stopped = bare(world, label, stained)
    stopped.stage(training(stopped.plan, "classifier"))
    left = chain(stopped, Asked(monkeypatch))
    assert "0002-000001.safetensors" in left
    assert trained(world) == expected


@pytest.mark.slow
@pytest.mark.parametrize("label", ["entropy-adapter", "aligned-adapter"])
def test_two_processes_adapt_as_one_does(world, stained, tmp_path, label):
    METHODS.load_file(PLUGIN)
    bare(world, label, stained).do(["train"])
    alone = list(trained(world).values())
    world.results = tmp_path / "shared"
    bare(world, label, stained, devices=2).do(["train"])
    for one, two in zip(alone, trained(world).values(), strict=True):
        for a, b in zip(one["history"], two["history"], strict=True):
            assert b.get("losses", {}) == pytest.approx(a.get("losses", {}), rel=1e-3)
