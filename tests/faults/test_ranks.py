"""Processes that train together, seen from the one that starts them: failures, stops, and that nobody stays behind."""

import os
import queue
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.faults.training import Bare
from wsolbench.benchmark.core import shutdown
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.shutdown import Stopped
from wsolbench.benchmark.distributed.ddp_launcher import Cause, RanksMemoryError
from wsolbench.benchmark.planning.config import RunConfig
from wsolbench.benchmark.stages import rank_process
from wsolbench.benchmark.stages.rank_process import RankJob
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
IMPORT = "from wsolbench.benchmark.distributed.ddp_launcher import Cause, RankFailure\n"
CASES = {
    "killed": ("if first:\n    os.kill(os.getpid(), 9)\ntime.sleep(60)", BenchError, "was ended by SIGKILL"),
    "exits": ("if first:\n    sys.exit(7)\ntime.sleep(60)", BenchError, "ended with exit code 7"),
    "raises": (
        "if first:\n    line.send(('failed', RankFailure(Cause.OTHER, None, 'x', 'its trace')))\ntime.sleep(60)",
        RuntimeError,
        "its trace",
    ),
    "memory": (
        "if first:\n    line.send(('failed', RankFailure(Cause.KNOWN, text='RuntimeError: x', peak='9 MiB')))\n"
        "time.sleep(60)",
        RanksMemoryError,
        "RuntimeError: x",
    ),
    "killed, and the other notices first": (
        "if first:\n    time.sleep(0.5)\n    os.kill(os.getpid(), 9)\n"
        "line.send(('failed', RankFailure(Cause.CONNECTION, text='gloo: connection closed')))\ntime.sleep(60)",
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
    monkeypatch.setattr(rank_process, "PROGRAM", IMPORT + TALK.format(folder=str(pids)) + body)
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
    end: Any = theirs
    if not (pid := os.fork()):
        ours.close()
        rank_process._listen(end, parent, queue.Queue())
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
    ref.chain = (ref,)
    stage: Any = SimpleNamespace(inputs=SimpleNamespace(method=ref, model=ref))
    nothing: Any = None
    job = RankJob(stage, RunConfig(device="cpu"), {}, 0, 1, 1, False)
    return rank_process._work(job, nothing, nothing)


@pytest.mark.parametrize(
    "problem, cause, known",
    [
        (BenchError("bad"), Cause.KNOWN, True),
        (DivergedError("nan", {"step": 3}), Cause.KNOWN, True),
        (OSError(28, "No space left on device"), Cause.KNOWN, True),
        (ConnectionResetError(104, "reset"), Cause.OTHER, False),
        (RuntimeError("gloo: Connection closed by peer"), Cause.CONNECTION, False),
        (ValueError("a method's own"), Cause.OTHER, False),
        (torch.OutOfMemoryError("CUDA out of memory"), Cause.KNOWN, False),
    ],
)
def test_what_a_process_says_it_failed_of(monkeypatch, problem, cause, known):
    """What the harness knows by its type travels as it is, the rest as text; a cause goes before what follows."""
    kind, said = saying(monkeypatch, problem)
    assert (kind, said.cause, said.problem is problem) == ("failed", cause, known)
    assert bool(said.peak) == isinstance(problem, torch.OutOfMemoryError)
    assert str(problem) in said.trace


def test_a_stop_travels_as_such(monkeypatch):
    assert saying(monkeypatch, Stopped()) == ("stopped", None)
