"""Losses that explode and memory that runs out: what is kept, what is tried again, and what the user is told."""

import itertools
import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.faults.training import Bare, scores, trained
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.data.epoch_order import epoch_order
from wsolbench.benchmark.data.eval_loader import EvalBatch
from wsolbench.benchmark.scoring.adaptive_batch import AdaptiveBatch, OutOfMemoryRetry, is_out_of_memory
from wsolbench.benchmark.scoring.map_extractor import MapExtractor
from wsolbench.benchmark.training import train_step
from wsolbench.benchmark.training.train_step import DivergedError

NUMBERS = itertools.count()
HEAD = """
import torch
from safetensors.torch import load_file
import torch.nn.functional as F

from wsolbench.methods.base import Prediction, register
from wsolbench.methods.classifier import Classifier


@register("{name}", family="test", kind="none", supervision="image", backbone=("grid",), options={{"dropout": 0.0}})
class Faulty(Classifier):
"""
EXPLODES = """
    def loss(self, batch, context):
        found = super().loss(batch, context)
        with torch.no_grad():
            bad = (batch.indices == 5).any() & (context.epoch == 2)
        return {"total": found["total"] / torch.where(bad, 0.0, 1.0)}
"""
FORGETS = """
    def on_epoch_end(self, context):
        if context.epoch == 2:
            with torch.no_grad():
                self.head.bias.fill_(float("nan"))
"""
HUNGRY = """
    most = {most}

    def loss(self, batch, context):
        if len(batch.labels) > self.most:
            raise {error}
        return super().loss(batch, context)
"""


def plugin(tmp_path, name, body, **values):
    name = f"{name}{next(NUMBERS)}"  # a name is registered once in a process
    path = tmp_path / f"{name}.py"
    path.write_text(HEAD.format(name=name) + (body.format(**values) if values else body))
    return str(path)


def bare(world, method, **train):
    return Bare(world, method, overrides={"train": {"epochs": "3", "batch_size": "16", **train}})


# -- divergence ------------------------------------------------------------------------------------------------------
def test_the_step_that_diverged_is_named_and_the_last_good_epoch_is_kept(world, tmp_path):
    one = bare(world, plugin(tmp_path, "explodes", EXPLODES))
    with pytest.raises(DivergedError, match="epoch 2") as caught:
        one.do(["train"])
    facts = caught.value.facts
    stage = one.last_training
    order = epoch_order(32, 16, stage.inputs.experiment.seed, 2)
    bad = next(k for k, rows in enumerate(order, 1) if 5 in rows.tolist())
    ids = [i.id for i in one.ctx.manifest(stage.inputs.experiment).split("train")]
    assert facts == {
        "status": "diverged", "epoch": 2, "step": bad, "seed": 0, "losses": {"total": "inf"},
        "ids": [ids[row] for row in order[bad - 1].tolist()],
    }  # fmt: skip
    assert ids[5] in facts["ids"]
    folder = one.ctx.store.run_dir(stage.key)
    state = json.loads((folder / "resume" / "state.json").read_text())
    assert state["epoch"] == 1
    assert state["midway"] is None
    assert not one.ctx.store.is_done(stage.key)
    kept = [load_file(path) for path in folder.glob("epoch-*.safetensors")]
    assert kept
    assert all(bool(torch.isfinite(t.float()).all()) for weights in kept for t in weights.values())
    with pytest.raises(DivergedError) as again:  # from the snapshot, to the same step
        one.do(["train"])
    assert again.value.facts == facts


def test_a_bad_step_between_two_looks_is_found_by_the_later_one(world, tmp_path, monkeypatch):
    """32 steps an epoch and a look every 50: the look at the end of the epoch finds the step in its midst."""
    checks = []
    honest = train_step.check_finite
    monkeypatch.setattr(train_step, "check_finite", lambda job, at: checks.append(at.step) or honest(job, at))
    with pytest.raises(DivergedError) as caught:
        bare(world, plugin(tmp_path, "explodes", EXPLODES), batch_size="2").do(["train"])
    order = epoch_order(32, 2, 0, 2)
    assert caught.value.facts["step"] == next(k for k, rows in enumerate(order, 1) if 5 in rows.tolist())
    assert checks == [16, 16]


def test_weights_that_are_nan_take_no_role(world, tmp_path):
    one = bare(world, plugin(tmp_path, "forgets", FORGETS))
    with pytest.raises(DivergedError, match="validation images is not finite from step 2 of 2 of epoch 2"):
        one.do(["train"])
    folder = one.ctx.store.run_dir(one.last_training.key)
    assert json.loads((folder / "resume" / "state.json").read_text())["epoch"] == 1
    assert len((folder / "history.jsonl").read_text().splitlines()) == 2


# -- memory ----------------------------------------------------------------------------------------------------------
ERRORS = [
    "torch.OutOfMemoryError('CUDA out of memory')",
    'RuntimeError("can\'t allocate memory: 8 bytes")',
    "MemoryError()",
]


@pytest.mark.parametrize("error", [ERRORS[0], *(pytest.param(e, marks=pytest.mark.slow) for e in ERRORS[1:])])
def test_a_training_that_runs_out_of_memory_is_done_again_with_half_batches(world, tmp_path, caplog, error):
    with caplog.at_level(logging.WARNING):
        one = bare(world, plugin(tmp_path, "hungry", HUNGRY, most=8, error=error))
        one.do(["train"])
    record = one.ctx.store.record(one.last_training.key)
    assert record["facts"]["micro_batch"] == {"asked": 0, "used": 8}
    assert "once more from the start with 8 at a time" in caplog.text
    assert caplog.text.count("out of memory") == 1
    folder = one.ctx.store.run_dir(one.last_training.key)
    assert not (folder / "retry.json").exists()
    [found] = trained(world).values()
    world.results = tmp_path / "asked"  # the numbers are those of a training that was asked for such parts
    asked = bare(world, plugin(tmp_path, "hungry", HUNGRY, most=8, error=error), micro_batch="8")
    asked.do(["train"])
    [expected] = trained(world).values()
    assert found["history"] == expected["history"]
    assert "micro_batch" not in expected["facts"]


def test_it_is_tried_once_and_the_peak_is_told(world, tmp_path):
    one = bare(world, plugin(tmp_path, "hungry", HUNGRY, most=4, error=ERRORS[0]))
    with pytest.raises(BenchError, match=r"Out of memory with 8 images at a time, after 16 .* \(\S+ MiB at most"):
        one.do(["train"])
    folder = one.ctx.store.run_dir(one.last_training.key)
    assert not (folder / "retry.json").exists(), "the next try may find more memory, and begins with the whole batch"


def test_a_retry_that_is_stopped_goes_on_with_its_parts(world, tmp_path, monkeypatch):
    """The decision lies on disk, and snapshots of whole batches are never mixed with it."""
    path = plugin(tmp_path, "hungry", HUNGRY, most=99, error=ERRORS[0])
    one = bare(world, path)
    folder = one.ctx.store.run_dir(one.last_training.key)
    honest = train_step.run_epoch

    def killed(job, optimizer, scaler, at, *rest):
        if at.epoch == 2:
            raise KeyboardInterrupt
        return honest(job, optimizer, scaler, at, *rest)

    monkeypatch.setattr("wsolbench.benchmark.training.trainer.run_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        one.do(["train"])
    assert json.loads((folder / "resume" / "state.json").read_text())["epoch"] == 1
    OutOfMemoryRetry(folder, 0, 16).halve("training", "1 MiB")
    with pytest.raises(KeyboardInterrupt):
        one.do(["train"])
    assert json.loads((folder / "resume" / "state.json").read_text())["parts"] == 8
    monkeypatch.undo()
    one.do(["train"])
    [found] = trained(world).values()
    assert found["facts"]["micro_batch"] == {"asked": 0, "used": 8}
    world.results = tmp_path / "asked"
    bare(world, path, micro_batch="8").do(["train"])
    [expected] = trained(world).values()
    assert found["history"] == expected["history"]


@pytest.mark.slow
def test_scoring_and_teacher_maps_go_on_with_fewer_images(world, tmp_path, monkeypatch, caplog):
    def made() -> Bare:
        return Bare(world, "pixelcam:darkness", overrides={"train": {"epochs": "1"}})

    made().do_some()
    expected = scores(world.results)
    world.results = tmp_path / "small"
    honest, sizes = MapExtractor.read, []

    def read(self, images, labels, ids):
        sizes.append(len(images))
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, images, labels, ids)

    monkeypatch.setattr(MapExtractor, "read", read)
    made().do_some()
    assert {s for s in sizes if s <= 5} <= {2, 3, 4}
    found = scores(world.results)
    assert found.keys() == expected.keys()
    for key, arrays in expected.items():
        for name, array in arrays.items():
            other = found[key][name]
            assert other.shape == array.shape
            if array.dtype == "float32":
                np.testing.assert_allclose(other, array, atol=1e-5)
            elif array.dtype.kind in "US":
                assert other.tolist() == array.tolist(), "every image once, in order"
    for what in ("teacher maps", "validation", "scoring"):
        assert f"{what}: out of memory with" in caplog.text


def test_one_image_that_does_not_fit_is_an_error():
    seen = EvalBatch(slice(4, 7), torch.zeros(3, 1), torch.arange(3), ["a", "b", "c"], None)

    def work(part):
        if "c" in part.ids:
            raise MemoryError
        return part.ids

    with pytest.raises(BenchError, match="one image alone does not fit"):
        AdaptiveBatch("scoring", torch.device("cpu")).each(seen, work)


def test_room_keeps_order_rows_and_what_it_has_learnt():
    room, tried = AdaptiveBatch("scoring", torch.device("cpu")), []

    def work(part):
        tried.append(len(part.ids))
        if len(part.ids) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return part.ids, part.rows, part.labels.tolist()

    seen = EvalBatch(slice(4, 9), torch.zeros(5, 1), torch.arange(5), list("abcde"), torch.zeros(5, 2))
    assert room.each(seen, work) == [
        (["a", "b"], slice(4, 6), [0, 1]), (["c"], slice(6, 7), [2]), (["d", "e"], slice(7, 9), [3, 4]),
    ]  # fmt: skip
    room.each(seen, work)
    assert tried == [5, 3, 2, 1, 2, 2, 2, 1]


def test_what_means_that_memory_ran_out():
    assert all(is_out_of_memory(e) for e in (MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("Out of memory")))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(OSError("Cannot allocate memory"))
