"""Launcher of processes that train together: starts one a device, watches them, and ends them with their parent.

The parent trains nothing: it passes on requests to stop, and the progress that the first process reports. Each process
is a program of its own on a socket to its parent, and ends when the socket closes or its parent changes.

Why not torch's own: torchrun's programs outlive a parent that was killed (tried: `kill -9` leaves all of them), its
functions and `torch.multiprocessing.start_processes` cannot start inside a daemonic process (a Dask worker), and both
report an error as text, so that memory that ran out, a full disk and a fault of the method could not be told apart.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

from ..core import shutdown
from ..core.errors import BenchError

POLL_SECONDS = 0.2
GRACE_SECONDS = 2.0  # for the others to say what they died of, when one has failed
EXIT_SECONDS = 5.0  # for a process that is done to end by itself


class Cause(IntEnum):
    """How likely a failure is the cause of the others, most likely first: the death of one process breaks the rest."""

    KNOWN = 0  # an error the harness has a type for, or memory that ran out
    DIED = 1  # said nothing
    OTHER = 2
    CONNECTION = 3  # perhaps only that another process has gone


@dataclass(frozen=True)
class RankFailure:
    """Why a process failed. problem: the error itself where the harness has a type for it, else None.

    text, trace: the error and its traceback in words. peak: highest memory use in words where memory ran out.
    """

    cause: Cause = Cause.DIED
    problem: Exception | None = None
    text: str = ""
    trace: str = ""
    peak: str = ""


class RanksMemoryError(MemoryError):
    """A process ran out of memory. peak: its highest use, in words."""

    def __init__(self, message: str, peak: str) -> None:
        super().__init__(message)
        self.peak = peak


@dataclass(frozen=True)
class Rank:
    """A process that trains, and the connection to it."""

    number: int
    process: subprocess.Popen
    connection: Any

    @classmethod
    def start(cls, number: int, program: str) -> "Rank":
        """A fresh interpreter with this one's search path. program: its Python code; argument 1 is its socket."""
        ours, theirs = Pipe()
        path = os.pathsep.join(p for p in sys.path if p)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", program, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=2,  # what methods print; the output is for results
            )
        return cls(number, process, ours)

    def send(self, kind: str, content: Any) -> None:
        """Sends a message; whether the process still lives is asked elsewhere."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((kind, content))

    def receive(self) -> tuple[str, Any]:
        """The next message; that a process has died is one too."""
        try:
            kind, content = self.connection.recv()
            return kind, content
        except (EOFError, OSError):
            return "failed", RankFailure()

    def end(self, seconds: float) -> None:
        """Waits a little for the process to end by itself, then kills it."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.connection.close()

    def death(self) -> str:
        """How the process ended, in words."""
        try:
            code = self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def launch(program: str, jobs: Sequence[Any], report: Callable[[dict[str, Any]], None], title: str) -> None:
    """Runs one process for each job until all have ended; none is left behind, however this ends.

    program: Python code of a process; it receives `("job", job)`. report: called with events of the first process.
    title: what is trained, for messages. Raises what a process raised, RanksMemoryError, BenchError where one of them
    dies, and Stopped when all have stopped.
    """
    ranks: list[Rank] = []
    ended = False
    try:
        for number in range(len(jobs)):
            ranks.append(Rank.start(number, program))  # noqa: PERF401 - those started are ended, also where one fails
        for rank, job in zip(ranks, jobs, strict=True):
            rank.send("job", job)
        _watch(ranks, report, title)
        ended = True
    finally:
        for rank in ranks:
            rank.end(EXIT_SECONDS if ended else 0.0)


def _watch(ranks: list[Rank], report: Callable[[dict[str, Any]], None], title: str) -> None:
    """Until all have ended: passes on messages. Raises the cause when one fails, Stopped when all have stopped."""
    running, passed_on, stopped = {r.connection: r for r in ranks}, 0, False
    while running:
        if (code := shutdown.requested()) and code != passed_on:
            passed_on = code
            for rank in running.values():
                rank.send("stop", code)
        for connection in wait(list(running), POLL_SECONDS):
            rank = running[connection]  # pyright: ignore[reportArgumentType]
            kind, content = rank.receive()
            if kind == "port":
                for other in ranks:
                    if other is not rank:
                        other.send("port", content)
            elif kind == "event":
                report(content)
            elif kind == "failed":
                raise _cause([(rank, content)], [r for r in running.values() if r is not rank], title)
            else:
                stopped = stopped or kind == "stopped"
                del running[rank.connection]
    if stopped:
        raise shutdown.Stopped


def _cause(failures: list[tuple[Rank, RankFailure]], others: list[Rank], title: str) -> Exception:
    """The error to raise: one failure makes the others fail, so what they say within a moment is heard too."""
    running, until = {r.connection: r for r in others}, time.monotonic() + GRACE_SECONDS
    while running and (left := until - time.monotonic()) > 0:
        for connection in wait(list(running), left):
            rank = running[connection]  # pyright: ignore[reportArgumentType]
            kind, content = rank.receive()
            if kind == "failed":
                failures.append((rank, content))
            if kind in ("failed", "done", "stopped"):
                del running[rank.connection]
    rank, failure = min(failures, key=lambda f: f[1].cause)
    who = f"process {rank.number + 1} of those that train together"
    if failure.peak:
        return RanksMemoryError(failure.text, f"{who}: {failure.peak}")
    if failure.problem is not None:
        return failure.problem
    if failure.text:
        return RuntimeError(f"{failure.text} (in {who})\n{failure.trace}")
    return BenchError(
        f"{title}: {who} {rank.death()}, and the others were ended. The same command goes on from the last snapshot."
    )
