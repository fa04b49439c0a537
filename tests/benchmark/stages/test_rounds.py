"""Methods that see masks of some images, and active learning in rounds."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmark.conftest import World
from tests.faults.test_hooks import KILLED
from tests.faults.test_stop import Asked, chain
from tests.faults.training import Bare, trained
from wsolbench.benchmark.conformance.suite import run_checks
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.registry import Entry
from wsolbench.benchmark.planning.rounds import start_set, with_masks
from wsolbench.benchmark.stages.context import StageContext, checkpoint
from wsolbench.benchmark.stages.labelled_set import _checked, labelled_set
from wsolbench.benchmark.stages.train_stage import training_set_of
from wsolbench.benchmark.training.micro_batches import split_batch
from wsolbench.methods import METHODS
from wsolbench.methods.spec import spec_from_entry
from wsolbench.reports.rows.load import load_rows

PLUGIN = Path(__file__).parents[2] / "plugins" / "active_learner.py"
LAST = {"selections": ("last",)}


@pytest.fixture(scope="module")
def learned(blobs, tmp_path_factory):
    """Two rounds, and the first alone asked for beside them: the world, the plan of both, a context."""
    world = World(blobs, tmp_path_factory.mktemp("learned"))
    _, outcome = world.run(str(PLUGIN), **LAST)
    assert outcome.exit_code == 0, outcome.failed
    planner, plan = world.plan("active-learner", **LAST)
    return world, plan, StageContext(planner.request.run, planner.open_datasets)


def trainings(plan):
    return {s.labels["round"]: s for s in plan.kinds("train")}


def masks_of(stage, ctx):
    """Ids whose masks a training has, and its data."""
    data = training_set_of(stage, ctx, stage.inputs.config)
    return [i.id for i, seen in zip(data.frames.items, data.labelled, strict=True) if seen], data


# -- the plan ---------------------------------------------------------------------------------------------------------
def test_the_first_of_two_rounds_is_the_round_of_one(learned):
    world, plan, _ = learned
    assert sorted(trainings(plan)) == [1, 2]
    _, alone = world.plan("active-learner:1", **LAST)
    assert [s.key for s in alone.kinds("train")] == [trainings(plan)[1].key]
    assert "rounds" not in trainings(plan)[1].identity["method"]["options"]
    _, outcome = world.run("active-learner:1", **LAST)
    assert outcome.exit_code == 0
    rows = [r for r in load_rows(world.store, [*plan.rows, *alone.rows]) if not r.gated]
    assert {r.method: r.stage_train for r in rows} == {
        "active-learner": trainings(plan)[2].key, "active-learner:1": trainings(plan)[1].key,
    }  # fmt: skip
    assert {r.supervision for r in rows} == {"partial"}
    assert all(r.upper_bound for r in rows)


def test_another_number_of_images_is_another_training(learned):
    world, plan, _ = learned
    _, other = world.plan("active-learner", overrides={"active-learner": {"acquire": "3"}}, **LAST)
    assert not {s.key for s in other.kinds("train")} & {s.key for s in plan.kinds("train")}


def test_start_set_is_balanced_nested_and_of_its_seed(learned):
    _, plan, ctx = learned
    manifest = ctx.manifest(trainings(plan)[1].inputs.experiment)
    items = with_masks(manifest)
    label = {i.id: i.label for i in items}
    four, five = start_set(items, 4, 0), start_set(items, 5, 0)
    assert sorted(label[name] for name in four) == [0, 0, 1, 1]
    assert five[:4] == four
    assert start_set(list(reversed(items)), 4, 0) == four
    assert start_set(items, 4, 1) != four


@pytest.mark.parametrize(
    ("options", "words"),
    [({"labelled": "0"}, "labelled = 0: at least 1"), ({"acquire": "0"}, "acquire = 0: at least 1"),
     ({"rounds": "0"}, "rounds = 0: at least 1"), ({"labelled": "999"}, "labelled = 999 .*need 1003 training images"),
     ({"rounds": "9000"}, "labelled = 4 and 9000 rounds of active-learner.acquire = 4 need 36000 training images")],
)  # fmt: skip
def test_numbers_that_the_images_do_not_allow_are_refused(learned, options, words):
    world, *_ = learned
    with pytest.raises(BenchError, match=words):
        world.plan("active-learner", overrides={"active-learner": options}, **LAST)


# -- which masks a round has ------------------------------------------------------------------------------------------
def test_the_second_round_has_what_the_first_asked_for(learned):
    world, plan, ctx = learned
    first, second = (world.store.record(trainings(plan)[k].key)["round"] for k in (1, 2))
    ids, data = masks_of(trainings(plan)[2], ctx)
    assert len(first["labelled"]) == len(first["selected"]) == 4
    assert set(ids) == {*first["labelled"], *first["selected"]} == set(second["labelled"])
    assert len(second["selected"]) == 4  # asked after the last round, too, so that it can be shared
    assert not set(second["selected"]) & set(ids)
    items = {i.id: i for i in data.frames.items}
    assert all((items[name].mask is None) == (name not in ids) for name in items if items[name].label == 1)


def test_masks_of_other_images_are_zeros_in_every_part_of_a_batch(learned):
    _, plan, ctx = learned
    ids, frames = masks_of(trainings(plan)[2], ctx)
    known = torch.tensor([name in ids for name in frames.frames.ids])
    seen = 0
    for batch in frames.on_device().epoch_batches(0, 1):
        assert torch.equal(batch.has_mask, known[batch.indices])
        assert not batch.masks[~batch.has_mask].any()
        seen += int(batch.masks[batch.has_mask].any((1, 2)).sum())
        halves = split_batch(batch, [3, len(batch.images) - 3])
        assert torch.equal(torch.cat([h.has_mask for h in halves]), batch.has_mask)
    assert seen == sum(i.label == 1 for i in frames.frames.items if i.id in ids)


def test_wrong_masks_of_other_images_move_no_bit(learned, tmp_path):
    """The mask of every image outside the acquired set is another: the weights of both rounds are equal."""
    world, plan, ctx = learned
    seen = set(masks_of(trainings(plan)[2], ctx)[0])
    shutil.copytree(world.csv.parent, tmp_path / "data")
    swapped = 0
    for item in ctx.manifest(trainings(plan)[1].inputs.experiment).split("train"):
        if item.mask is not None and item.id not in seen:
            (tmp_path / "data" / item.mask.name).write_bytes((world.csv.parent / "test_01_mask.png").read_bytes())
            swapped += 1
    assert swapped > 5
    other = World(tmp_path / "data" / world.csv.name, tmp_path / "results")
    found, outcome = other.run("active-learner", **LAST)
    assert outcome.exit_code == 0, outcome.failed
    for number in (1, 2):
        mine, theirs = trainings(plan)[number].key, trainings(found)[number].key
        assert mine != theirs, "the masks are part of the data, and so of the key"
        one, two = world.store.record(mine), other.store.record(theirs)
        assert one["roles"]["last"]["sha256"] == two["roles"]["last"]["sha256"]
        assert one["round"] == two["round"]


def test_the_second_round_starts_from_the_model_of_the_first(learned):
    world, plan, ctx = learned
    history = [json.loads(x) for x in (world.store.run_dir(trainings(plan)[2].key) / "history.jsonl").open()]
    first = [json.loads(x) for x in (world.store.run_dir(trainings(plan)[1].key) / "history.jsonl").open()]
    assert history[0]["val"] == first[-1]["val"]  # before its first epoch it is what the first round ended with
    assert trainings(plan)[2].identity["roles"] == {"previous": "last"}
    before, _ = checkpoint(ctx, trainings(plan)[1].key, "last")
    after, _ = checkpoint(ctx, trainings(plan)[2].key, "last")
    assert any(not torch.equal(before[k], after[k]) for k in before)


def test_images_that_the_model_is_least_sure_of_are_selected(learned):
    """The closed form: entropies of the stored model's logits on the images as evaluation has them."""
    from wsolbench.benchmark.data.eval_loader import EvalLoader
    from wsolbench.benchmark.scoring.build import build_method
    from wsolbench.methods.factory import statistics_of

    world, plan, ctx = learned
    stage = trainings(plan)[1]
    inputs = stage.inputs
    model = build_method(inputs.method, "test_resnet", inputs.config, 2, 0, inputs.statistics)
    model.load_state_dict(checkpoint(ctx, stage.key, "last")[0])
    chosen = labelled_set(stage, ctx)
    split = training_set_of(stage, ctx, inputs.config).frames
    loader = EvalLoader(split, 8, torch.device("cpu"), statistics_of(model), side=inputs.config.image_size)
    with torch.no_grad():
        logits = torch.cat([model.eval().predict(batch.images).logits for batch in loader])
    p = logits.softmax(1).numpy().astype(np.float64)
    entropy = np.where(chosen.candidates, -(p * np.log(p)).sum(1), -1.0)
    wanted = {split.ids[k] for k in np.argsort(-entropy, kind="stable")[:4]}
    assert set(world.store.record(stage.key)["round"]["selected"]) == wanted


# -- what select may say ----------------------------------------------------------------------------------------------
def test_answers_that_are_no_choice_are_refused(learned):
    _, plan, ctx = learned
    stage = trainings(plan)[1]
    chosen = labelled_set(stage, ctx)
    free = np.flatnonzero(chosen.candidates).tolist()
    taken = int(np.flatnonzero(chosen.labelled)[0])
    assert _checked(torch.tensor(free[:4]), chosen, stage) == free[:4]
    for answer, words in (
        (None, "whole numbers"), (free[:3], "3 different rows of 3; 4 are expected"),
        ([free[0]] * 4, "1 different rows of 4"), ([*free[:3], taken], "labelled already"),
        ([*free[:3], 999], "rows 0 to"),
    ):  # fmt: skip
        with pytest.raises(BenchError, match=words):
            _checked(answer, chosen, stage)
    maskless = replace(chosen, candidates=chosen.candidates & (np.arange(len(chosen.items)) != free[0]))
    with pytest.raises(BenchError, match="mask is not known"):
        _checked(free[:4], maskless, stage)


def test_without_a_choice_of_its_own_a_method_draws(learned):
    _, plan, ctx = learned
    from types import SimpleNamespace

    from wsolbench.methods.base import Method

    chosen = labelled_set(trainings(plan)[1], ctx)
    context = SimpleNamespace(
        candidates=torch.from_numpy(chosen.candidates), acquire=4, generator=torch.Generator().manual_seed(3)
    )
    one = Method.select(SimpleNamespace(registered_name="x"), context)
    context.generator.manual_seed(3)
    assert Method.select(SimpleNamespace(registered_name="x"), context) == one
    assert _checked(one, chosen, trainings(plan)[1]) == one


# -- what is declared -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("facts", "words"),
    [({"rounds": "rounds"}, "go with supervision='partial'"), ({"rounds": 2}, "must be the name of the option"),
     ({"supervision": "partial"}, "needs the option 'labelled'"),
     ({"supervision": "partial", "rounds": "n", "options": {"labelled": 2, "n": 2}}, "needs the option 'acquire'"),
     ({"supervision": "partial", "options": {"labelled": 2.0}}, "needs the option 'labelled', a whole number"),
     ({"supervision": "partial", "adapts": True, "needs": ("source:classifier",)}, "an adapter sees no masks")],
)  # fmt: skip
def test_declarations_that_make_no_sense_are_refused(facts, words):
    with pytest.raises(BenchError, match=words):
        spec_from_entry(Entry("x", "file", "x.py", facts=facts))


# -- resuming and devices ---------------------------------------------------------------------------------------------
TRAIN = {"epochs": "2", "batch_size": "16", "micro_batch": "6"}


def bare(world, batch_size="16", **run):
    METHODS.load_file(PLUGIN)
    train = {**TRAIN, "batch_size": batch_size}
    return Bare(world, "active-learner", **LAST, overrides={"train": train}, run=run)


def outcome_of(world):
    """What every training left: weights, history, and the images of its round."""
    records = sorted(world.results.glob("runs/*/record.json"))
    found = (json.loads(path.read_text()) for path in records)
    return trained(world), [record["round"] for record in found if record["kind"] == "train"]


def test_stopped_at_every_step_of_round_two_it_goes_on_bit_for_bit(world, tmp_path, monkeypatch):
    bare(world).do(["train"])
    expected = outcome_of(world)
    world.results = tmp_path / "stopped"
    stopped = bare(world)
    stopped.stage(trainings(stopped.plan)[1])
    left = chain(stopped, Asked(monkeypatch))
    assert "0002-000001.safetensors" in left
    assert outcome_of(world) == expected


@pytest.mark.slow
def test_killed_in_round_two_it_goes_on_bit_for_bit(world, tmp_path):
    """Four steps an epoch: SIGKILL strikes before the third of the second."""
    bare(world, "8").do(["train"])
    expected = outcome_of(world)
    world.results = tmp_path / "killed"
    made = bare(world, "8")
    made.stage(trainings(made.plan)[1])
    train = {**TRAIN, "batch_size": "8"}
    program = KILLED.format(csv=str(world.csv), results=str(world.results), method=str(PLUGIN), train=train)
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not made.ctx.store.is_done(trainings(made.plan)[2].key)
    bare(world, "8").do(["train"])
    assert outcome_of(world) == expected


@pytest.mark.slow
def test_two_processes_learn_and_select_as_one_does(world, tmp_path):
    bare(world).do(["train"])
    alone, rounds = outcome_of(world)
    world.results = tmp_path / "shared"
    bare(world, devices=2).do(["train"])
    shared, same = outcome_of(world)
    assert rounds == same
    for one, two in zip(alone.values(), shared.values(), strict=True):
        for a, b in zip(one["history"], two["history"], strict=True):
            assert b.get("losses", {}) == pytest.approx(a.get("losses", {}), rel=1e-3)


@pytest.mark.slow
def test_the_contract_holds(tmp_path):
    found = list(run_checks(str(PLUGIN), tmp_path, "test_resnet"))
    assert not [line for line in found if line.state == "broken"]
    assert sum(line.state == "skipped" for line in found) <= 2
