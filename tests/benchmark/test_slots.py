"""Stages that share GPUs: every slot once, GPU after GPU, waiting where none is free. The GPUs are made up."""

import threading
from contextlib import ExitStack

import pytest

from wsolbench.benchmark import slots
from wsolbench.benchmark.config import RunConfig
from wsolbench.benchmark.errors import BenchError
from wsolbench.benchmark.slots import gpu_slot, workers


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(slots, "gpus", lambda device: [] if device == "cpu" else [0, 1])
    monkeypatch.setattr(slots, "POLL_SECONDS", 0.01)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_as_many_stages_at_a_time_as_slots(two_gpus):
    assert workers(RunConfig(jobs_per_gpu=3)) == 6
    assert workers(RunConfig(jobs=4)) == 4
    assert workers(RunConfig(jobs=4, jobs_per_gpu=3, device="cpu")) == 4
    with pytest.raises(BenchError, match="jobs_per_gpu = -1"):
        RunConfig(jobs_per_gpu=-1)


def test_both_gpus_get_work_before_one_is_shared(two_gpus, tmp_path):
    with ExitStack() as held:
        found = [held.enter_context(gpu_slot(RunConfig(jobs_per_gpu=2), tmp_path)) for _ in range(4)]
    assert found == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_jobs_are_spread_over_the_gpus(two_gpus, tmp_path):
    with ExitStack() as held:
        found = [held.enter_context(gpu_slot(RunConfig(jobs=3), tmp_path)) for _ in range(3)]
    assert found == ["cuda:0", "cuda:1", "cuda:0"]


def test_who_finds_no_slot_waits_for_one(two_gpus, tmp_path):
    run, got = RunConfig(jobs_per_gpu=1), []
    with ExitStack() as held:
        first = held.enter_context(ExitStack())
        first.enter_context(gpu_slot(run, tmp_path))
        held.enter_context(gpu_slot(run, tmp_path))

        def late():
            with gpu_slot(run, tmp_path) as device:
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
        gpu_slot(RunConfig(device="cuda:1"), tmp_path) as one,
        gpu_slot(RunConfig(device="cpu", jobs=2), tmp_path) as two,
    ):
        assert (one, two) == ("cuda:1", "cpu")
    assert not list(tmp_path.iterdir())


def test_only_a_gpu_has_slots(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [slots.gpus(d) for d in ("auto", "cuda", "cuda:1", "cpu", "cpu:0")] == [[0, 1], [0, 1], [1], [], []]


def test_slots_follow_the_numbers_of_the_machine(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert "-7-0.lock" in slots._name(1, 0)
