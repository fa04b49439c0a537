"""What a request to stop, a lost lease and a worker that was told to end leave, seen from the command that waits."""

import signal
import time

import pytest

from wsolbench.benchmark.core import shutdown
from wsolbench.benchmark.execution import progress_channel, scheduler, worker
from wsolbench.benchmark.execution.parallel_backends import ParallelBackend
from wsolbench.benchmark.execution.scheduler import PlanOutcome, Scheduler
from wsolbench.benchmark.execution.worker import GroupResult, WorkerJob


@pytest.fixture(autouse=True)
def forgotten():
    yield
    shutdown.forget()
    shutdown.follow(None)


@pytest.fixture
def planned(world):
    planner, plan = world.plan("random,darkness")
    return plan, planner.request.run, planner.open_datasets


def scheduled(run, sources, answer, monkeypatch, seen=None):
    """A scheduler whose groups are answered by a function instead of being done."""
    monkeypatch.setattr(scheduler, "do_group", answer)
    return Scheduler(
        ParallelBackend("loky", 1, True), WorkerJob(run, sources), (seen if seen is not None else []).append
    )


def test_what_comes_back_undone_is_not_done(planned, monkeypatch):
    plan, run, sources = planned
    outcome = PlanOutcome()
    scheduled(run, sources, lambda stages, job, report, number: GroupResult(number), monkeypatch).round(plan, outcome)
    assert (outcome.done, outcome.failed) == ([], {})
    assert set(outcome.blocked) == set(plan.stages)
    assert outcome.exit_code == 1


def test_a_worker_that_was_told_to_end_is_asked_again_and_then_given_up(planned, monkeypatch):
    plan, run, sources = planned
    outcome, asked, seen = PlanOutcome(), [], []

    def answer(stages, job, report, number):
        asked.append(stages[0].key)
        return GroupResult(number, stopped=True)

    scheduled(run, sources, answer, monkeypatch, seen).round(plan, outcome)
    assert outcome.exit_code == 1
    assert any("told to end by a signal" in e for e in outcome.failed.values())
    assert max(asked.count(k) for k in asked) >= 3
    assert "A worker died" in seen[0]["text"]


def test_who_finds_others_at_work_again_waits_again(planned, monkeypatch, world):
    plan, run, sources = planned
    answers = {}

    def answer(stages, job, report, number):
        count = answers[stages[0].key] = answers.get(stages[0].key, 0) + 1
        if count < 4:
            return GroupResult(number, busy="process 7 on node7")
        for stage in stages:
            world.store.finish(stage.key, {"kind": stage.kind})
        return GroupResult(number)

    outcome = PlanOutcome()
    scheduled(run, sources, answer, monkeypatch).round(plan, outcome)
    assert outcome.exit_code == 0
    assert set(outcome.done) == set(plan.stages)


def test_a_time_limit_outdoes_a_lost_lease():
    shutdown.request(shutdown.LOST)
    shutdown.request(shutdown.TERMINATED)
    assert shutdown.requested() == shutdown.TERMINATED
    shutdown.request(shutdown.LOST)
    assert shutdown.requested() == shutdown.TERMINATED


def test_a_lease_lost_after_the_work_leaves_no_request_behind(planned, monkeypatch):
    plan, run, sources = planned
    group = next(iter(plan.stages.values()))
    monkeypatch.setattr(worker, "_attempt", lambda *a: shutdown.request(shutdown.LOST))
    done = worker.do_group([group], WorkerJob(run, sources), lambda event: None)
    assert (done.stopped, done.busy, shutdown.requested()) == (False, "", 0)


def test_an_error_outside_the_work_fails_its_stages(planned, monkeypatch, world):
    plan, run, sources = planned
    group = next(iter(plan.stages.values()))

    def refuse(*_):
        raise PermissionError(13, "Permission denied", "locks/x.lock")

    monkeypatch.setattr(worker, "claim", refuse)
    done = worker.do_group([group], WorkerJob(run, sources), lambda event: None)
    assert "Permission denied" in done.problems[group.key]
    assert "Permission denied" in world.store.failures()[group.key]["error"]


def test_half_a_line_does_not_end_the_progress(tmp_path):
    folder, seen = progress_channel.new_folder(tmp_path), []
    follower = progress_channel.ProgressReader(folder, {}, seen.append)
    (folder / "node-1.jsonl").write_bytes(
        b'{"kind": "warn{"kind": "warning", "text": "a"}\n{"kind":"warning","text":"b"}\n'
    )
    follower.read()
    assert seen == [{"kind": "warning", "text": "b"}]


TEE = """
import os, pathlib, select, threading, time
reads, writes = os.pipe()
os.dup2(writes, 2)
os.close(writes)
def tee():
    while not list(pathlib.Path(FOLDER).glob("runs/*/history.jsonl")):
        if select.select([reads], [], [], 0.01)[0]:
            os.read(reads, 4096)
    os.close(reads)
threading.Thread(target=tee, daemon=True).start()
"""


def test_nobody_reads_the_terminal_any_more(matrix, tmp_path):
    """`bench run … | tee log` and Ctrl-C: tee ends first, and every word of ours meets a broken pipe."""
    inject = TEE.replace("FOLDER", repr(str(tmp_path / "r")))
    job = matrix.start(tmp_path / "r", inject=inject, train_epochs=60, run_snapshot_seconds=3600)
    until = time.monotonic() + 60
    while not list((tmp_path / "r").glob("runs/*/history.jsonl")) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.2)
    job.signal(signal.SIGINT)
    assert job.wait(60) == 130
    assert list((tmp_path / "r").glob("runs/*/resume/state.json")), "a checkpoint all the same"
    assert not list((tmp_path / "r").glob("runs/*/failure.json"))
