"""Ctrl-C and SIGTERM through the real command line: a checkpoint, the command to go on with, nobody left behind."""

import json
import shlex
import signal
import time
from collections import Counter

import pytest

from tests.faults.matrix import LONG, TWO_CORES, contents, leftovers

CASES = [(signal.SIGTERM, 3, "Ended by SIGTERM"), (signal.SIGINT, 130, "Interrupted")]


def until_said(job, words: str) -> None:
    """Waits until the command has said so."""
    wait_until = time.monotonic() + 200
    while words not in job.stderr:
        assert job.poll() is None, job.stderr
        assert time.monotonic() < wait_until
        time.sleep(0.005)


def check_stopped(job, results, code, words) -> None:
    assert job.wait(60) == code, job.stderr
    assert "Stopping at the next safe point" in job.stderr
    assert words in job.stderr
    assert job.stderr.rstrip().endswith(shlex.join(["bench", *job.words])), "the command to go on with"
    assert "Traceback" not in job.stderr
    assert not leftovers(results)
    assert not list(results.glob("locks/*.lease"))
    assert not (results / "progress").exists()
    assert list(results.glob("runs/*/resume/state.json")), "a checkpoint to go on from"


def gone(job) -> bool:
    """Whether no process of the command is left, after a moment for those that are about to end."""
    until = time.monotonic() + 20
    while job.members() and time.monotonic() < until:
        time.sleep(0.05)
    return not job.members()


@pytest.mark.parametrize(("number", "code", "words"), [CASES[0], pytest.param(*CASES[1], marks=pytest.mark.slow)])
def test_a_signal_ends_with_a_checkpoint(matrix, tmp_path, long_reference, number, code, words):
    job = matrix.start(tmp_path / "r", run_snapshot_seconds=3600, **LONG)
    until_said(job, "epoch 4/12")
    job.signal(number)
    check_stopped(job, tmp_path / "r", code, words)
    states = [json.loads(p.read_text()) for p in (tmp_path / "r").glob("runs/*/resume/state.json")]
    assert [s["epoch"] >= 3 for s in states] == [True], "not at the start, although no snapshot was due"
    done = matrix.run(tmp_path / "r", run_snapshot_seconds=3600, **LONG)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "r") == long_reference


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "words"), CASES, ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_reaches_the_workers(matrix, tmp_path, long_reference, number, code, words):
    """As a terminal and a cluster do it: to every process of the session."""
    job = matrix.bench.start(*matrix.words(tmp_path / "r", "--jobs", 2, **LONG), env=TWO_CORES)
    until_said(job, "epoch 4/12")
    job.signal(number, whole=True)
    check_stopped(job, tmp_path / "r", code, words)
    assert gone(job)
    done = matrix.run(tmp_path / "r", **LONG)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "r") == long_reference


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_only_the_command_gets_the_signal(matrix, tmp_path, long_reference, backend):
    """Workers elsewhere learn of it through the results folder."""
    job = matrix.bench.start(*matrix.words(tmp_path / "r", "--jobs", 2, "--backend", backend, **LONG), env=TWO_CORES)
    until_said(job, "epoch 4/12")
    job.signal(signal.SIGTERM)
    check_stopped(job, tmp_path / "r", 3, "Ended by SIGTERM")
    assert gone(job)
    done = matrix.run(tmp_path / "r", **LONG)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "r") == long_reference


def test_a_time_limit_while_data_are_read(matrix, tmp_path):
    """Before the first stage: hashing and decoding may take hours, and a cluster requeues what ends with 3."""
    slow = "import time, wsolbench.benchmark.data.image_cache as i\n"
    slow += "i.decode_squashed = lambda *a: time.sleep(2) or 1 / 0\n"
    job = matrix.start(tmp_path / "r", inject=slow)
    until_said(job, "stages to do")
    time.sleep(0.3)
    job.signal(signal.SIGTERM)
    assert job.wait(30) == 3, job.stderr
    assert "Ended by SIGTERM" in job.stderr
    assert "Traceback" not in job.stderr
    assert gone(job)


def test_a_second_ctrl_c_stops_at_once(matrix, tmp_path):
    """Where the first is not enough, e.g. in a step that takes minutes."""
    slow = "import wsolbench.benchmark.training.train_step as t, time\nt.train_step = lambda *a, **k: time.sleep(600)\n"
    job = matrix.start(tmp_path / "r", inject=slow)
    until_said(job, "epoch 0/")
    job.signal(signal.SIGINT)
    time.sleep(0.5)
    assert job.poll() is None
    job.signal(signal.SIGINT)
    assert job.wait(10) == 130
    assert "To continue:" in job.stderr
    assert gone(job)


@pytest.mark.slow
def test_workers_of_a_killed_command_end(matrix, tmp_path, long_reference):
    """kill -9 of the command alone: its workers notice, leave a checkpoint and end."""
    job = matrix.bench.start(*matrix.words(tmp_path / "r", "--jobs", 2, **LONG), env=TWO_CORES)
    until_said(job, "epoch 4/12")
    job.kill(whole=False)
    assert gone(job)
    done = matrix.run(tmp_path / "r", **LONG)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "r") == long_reference
    assert Counter(e["record"]["kind"] for e in contents(tmp_path / "r").values())["train"] == 2
