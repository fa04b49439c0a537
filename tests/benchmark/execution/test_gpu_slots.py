"""Stages that share GPUs: every slot once, GPU after GPU, waiting where none is free. The GPUs are made up."""

import threading
from contextlib import ExitStack
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.execution import gpu_slots
from wsolbench.benchmark.execution.gpu_slots import gpu_slot, known_needs, worker_count
from wsolbench.benchmark.planning.config import RunConfig, TrainConfig
from wsolbench.benchmark.planning.stage import Plan, Stage


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(gpu_slots, "allowed_gpus", lambda device: [] if device == "cpu" else [0, 1])
    monkeypatch.setattr(gpu_slots, "POLL_SECONDS", 0.01)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_as_many_stages_at_a_time_as_slots(two_gpus):
    assert worker_count(RunConfig(jobs_per_gpu=3)) == 6
    assert worker_count(RunConfig(jobs=4)) == 4
    assert worker_count(RunConfig(jobs=4, jobs_per_gpu=3, device="cpu")) == 4
    with pytest.raises(BenchError, match="jobs_per_gpu = -1"):
        RunConfig(jobs_per_gpu=-1)


def test_both_gpus_get_work_before_one_is_shared(two_gpus, tmp_path):
    with ExitStack() as held:
        found = [held.enter_context(gpu_slot(RunConfig(jobs_per_gpu=2), tmp_path, 4)) for _ in range(4)]
    assert found == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_jobs_are_spread_over_the_gpus(two_gpus, tmp_path):
    with ExitStack() as held:
        found = [held.enter_context(gpu_slot(RunConfig(jobs=3), tmp_path, 3)) for _ in range(3)]
    assert found == ["cuda:0", "cuda:1", "cuda:0"]


def test_memory_decides_where_a_stage_joins_others(two_gpus, tmp_path, monkeypatch):
    run, free = RunConfig(jobs_per_gpu=2), {0: 5000.0, 1: 20000.0}
    monkeypatch.setattr(gpu_slots, "free_memory", free.__getitem__)
    with ExitStack() as held:
        found = [held.enter_context(gpu_slot(run, tmp_path, 4, need)) for need in (90000, 90000, 8000)]
        # a GPU of its own whatever it needs, then the one with room although the other comes first
        assert found == ["cuda:0", "cuda:1", "cuda:1"]
        assert held.enter_context(gpu_slot(run, tmp_path, 4, 4000)) == "cuda:0"


def test_too_little_memory_beside_others_waits_for_a_gpu_of_its_own(two_gpus, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_slots, "free_memory", lambda gpu: 1000.0)
    check_waiting(RunConfig(jobs_per_gpu=2), tmp_path, 4, need=4000)


def test_the_memory_of_a_stage_is_known_from_its_like(two_gpus, tmp_path):
    config = TrainConfig()
    inputs: Any = SimpleNamespace(config=config)
    stage = Stage("train", {}, {}, {"method": "cam", "backbone": "resnet18"}, inputs, key="k")
    plan, store = Plan({"k": stage}), Store(tmp_path)
    record = {"kind": "train", "labels": stage.labels, "config": asdict(config), "peak_memory_mb": 700.0}
    store.finish("other", {**record, "environment": {"cuda": "12.8"}})
    store.finish("small", {**record, "environment": {"cuda": "12.8"}, "peak_memory_mb": 1.0})
    store.finish("cpu", {**record, "environment": {}, "peak_memory_mb": 9000.0})
    store.finish("deep", {**record, "labels": {**stage.labels, "backbone": "resnet50"}, "environment": {"cuda": "12"}})
    assert known_needs(plan, store, RunConfig(jobs_per_gpu=2)) == {"k": 700.0}
    assert known_needs(plan, store, RunConfig()) == {}


def test_several_gpus_for_one_model_run_alone(two_gpus):
    assert worker_count(RunConfig(devices=2)) == 1
    with pytest.raises(BenchError, match="leave out --jobs"):
        worker_count(RunConfig(devices=2, jobs=2))
    assert worker_count(RunConfig(devices=2, jobs=2, device="cpu")) == 2


def test_who_finds_no_slot_waits_for_one(two_gpus, tmp_path):
    check_waiting(RunConfig(jobs_per_gpu=1), tmp_path, 2)


def check_waiting(run, folder, at_once, **late_needs):
    """Both GPUs have a stage; a third gets none until the first of them ends, and then its GPU."""
    got = []
    with ExitStack() as held:
        first = held.enter_context(ExitStack())
        first.enter_context(gpu_slot(run, folder, at_once))
        held.enter_context(gpu_slot(run, folder, at_once))

        def late():
            with gpu_slot(run, folder, at_once, **late_needs) as device:
                got.append(device)

        waiting = threading.Thread(target=late)
        waiting.start()
        waiting.join(0.1)
        assert not got
        first.close()
        waiting.join(5)
    assert got == ["cuda:0"]


def test_a_stage_alone_takes_the_device_it_was_given(two_gpus, tmp_path):
    with (
        gpu_slot(RunConfig(device="cuda:1"), tmp_path, 1) as one,
        gpu_slot(RunConfig(device="cpu", jobs=2), tmp_path, 2) as two,
    ):
        assert (one, two) == ("cuda:1", "cpu")
    assert not list(tmp_path.iterdir())


def test_only_a_gpu_has_slots(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [gpu_slots.allowed_gpus(d) for d in ("auto", "cuda", "cuda:1", "cpu", "cpu:0")] == [
        [0, 1],
        [0, 1],
        [1],
        [],
        [],
    ]


def test_slots_follow_the_numbers_of_the_machine(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert "-7-0.lock" in gpu_slots._slot_name(1, 0)
