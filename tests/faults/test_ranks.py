"""Processes that train together, seen from the one that starts them: failures, stops, and that nobody stays behind."""

import os
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest
import torch

from tests.faults.training import Bare
from wsolbench.benchmark.core import shutdown
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.shutdown import Stopped
from wsolbench.benchmark.stages import rank_process
from wsolbench.benchmark.training.train_step import DivergedError


@pytest.fixture(autouse=True)
def no_request():
    """No request to stop outlives its test."""
    yield
    shutdown._Request.code = 0


TALK = """
import os, sys, time
from multiprocessing.connection import Connection
line = Connection(int(sys.argv[1]))
job = line.recv_bytes()
with open({folder!r} + "/" + str(os.getpid()), "x"):
    pass
try:
    os.mkdir({folder!r} + "/first")
    first = True
except FileExistsError:
    first = False
"""
FAILED = '{"problem": None, "text": "RuntimeError: x", "trace": "its trace", "rank": 2, "peak": ""}'
CASES = {
    "killed": ("if first:\n    os.kill(os.getpid(), 9)\ntime.sleep(60)", BenchError, "was ended by SIGKILL"),
    "exits": ("if first:\n    sys.exit(7)\ntime.sleep(60)", BenchError, "ended with exit code 7"),
    "raises": (f"if first:\n    line.send(('failed', {FAILED}))\ntime.sleep(60)", RuntimeError, "its trace"),
    "memory": (
        f"if first:\n    line.send(('failed', {{**{FAILED}, 'rank': 0, 'peak': '9 MiB'}}))\ntime.sleep(60)",
        rank_process.RanksMemoryError,
        "RuntimeError: x",
    ),
    "killed, and the other notices first": (
        f"if first:\n    time.sleep(0.5)\n    os.kill(os.getpid(), 9)\n"
        f"line.send(('failed', {{**{FAILED}, 'rank': 3, 'text': 'gloo: connection closed'}}))\ntime.sleep(60)",
        BenchError,
        "was ended by SIGKILL",
    ),
    "stopped": ("line.recv_bytes()\nline.send(('stopped', None))\ntime.sleep(60)", Stopped, None),
    "interrupted": ("if first:\n    line.send(('event', {'interrupt': 1}))\ntime.sleep(60)", KeyboardInterrupt, None),
}


@pytest.mark.parametrize("case", CASES)
def test_however_it_ends_the_cause_is_told_and_nobody_stays(world, tmp_path, monkeypatch, case):
    body, error, message = CASES[case]
    pids = tmp_path / "pids"
    pids.mkdir()
    monkeypatch.setattr(rank_process, "ENTRY", TALK.format(folder=str(pids)) + body)
    bare = Bare(world, "classifier", run={"devices": 2})

    def report(event):
        raise KeyboardInterrupt

    bare.ctx.report = report
    if case == "stopped":
        shutdown.request(130)
        monkeypatch.setattr(shutdown, "check", lambda: None)  # the request comes while they train
    with pytest.raises(error, match=message):
        rank_process.train_together(bare.last_training, bare.ctx)
    found = [int(p.name) for p in pids.iterdir() if p.name != "first"]
    assert found
    for pid in found:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def listener(parent: int) -> tuple:
    """A forked process that does nothing but listen, and our end of the line to it."""
    ours, theirs = Pipe()
    if not (pid := os.fork()):
        ours.close()
        rank_process._listen(theirs, parent, None)
        os._exit(9)
    theirs.close()
    return pid, ours


def test_a_process_ends_with_its_parent():
    pid, line = listener(os.getpid())
    line.close()  # as the end of a process closes it
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    pid, line = listener(os.getpid() + 1)  # the line is held open by somebody else, but the parent has changed
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    line.close()


def test_what_cannot_be_shared_is_refused_before_anything_starts(world, monkeypatch):
    def refused(message, **run):
        bare = Bare(world, "classifier", run={"devices": 2, **run}, overrides={"train": {"batch_size": "16"}})
        with pytest.raises(BenchError, match=message):
            bare.do(["train"])

    refused("leave out --devices or run.compile", compile=True)
    refused("more than the 16 images of a batch", devices=17)
    honest = rank_process.importlib.util.find_spec
    monkeypatch.setattr(
        rank_process.importlib.util, "find_spec", lambda n: None if n == "lightning_fabric" else honest(n)
    )
    refused(r"pip install \"wsolbench\[ddp\]\"")


def saying(monkeypatch, problem) -> tuple:
    """What a process tells its parent when its training raises this."""

    def fails(*_):
        raise problem

    monkeypatch.setattr(rank_process, "_train", fails)
    ref = SimpleNamespace(spec=SimpleNamespace(origin="built-in"))
    stage = SimpleNamespace(inputs=SimpleNamespace(method=ref, model=ref))
    job = {"rank": 0, "threads": 1, "benchmark": False, "stage": stage, "run": SimpleNamespace(device="cpu")}
    return rank_process._work(job, None, None)


@pytest.mark.parametrize(
    "problem, rank, ours",
    [
        (BenchError("bad"), 0, True),
        (DivergedError("nan", {"step": 3}), 0, True),
        (OSError(28, "No space left on device"), 0, True),
        (ConnectionResetError(104, "reset"), 2, False),
        (RuntimeError("gloo: Connection closed by peer"), 3, False),
        (ValueError("a method's own"), 2, False),
        (torch.OutOfMemoryError("CUDA out of memory"), 0, False),
    ],
)
def test_what_a_process_says_it_failed_of(monkeypatch, problem, rank, ours):
    """What the harness knows by its type travels as it is, the rest as text; a cause goes before what follows."""
    kind, said = saying(monkeypatch, problem)
    assert (kind, said["rank"], said["problem"] is problem) == ("failed", rank, ours)
    assert bool(said["peak"]) == isinstance(problem, torch.OutOfMemoryError)
    assert str(problem) in said["trace"]


def test_a_stop_travels_as_such(monkeypatch):
    assert saying(monkeypatch, Stopped()) == ("stopped", None)
