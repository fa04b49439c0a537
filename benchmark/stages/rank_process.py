"""One training by several processes: `--devices N` starts them, watches them, and ends them with their parent.

The process that does the stage starts one process a GPU (or CPU processes) and talks with each over a socket. It trains
nothing itself: it passes on requests to stop, and the progress that the first of them reports. Each of them ends when
its socket closes or its parent changes, so that nothing stays behind a parent that was killed. They are programs, not
children of multiprocessing, because the stage may itself run in a worker that may have none of those.
"""

import errno
import importlib.util
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ..core import shutdown
from ..core.errors import BenchError
from ..data.epoch_order import epoch_order
from ..distributed.batch_shards import cut_batch
from ..planning.stage import TrainStage
from ..scoring.adaptive_batch import is_out_of_memory, peak_text
from ..training.train_step import DivergedError
from .context import StageContext, load_method_files
from .sandbox import sandboxed
from .train_stage import fit, retry_of

ENTRY = "from wsolbench.benchmark.stages.rank_process import main; main()"
POLL_SECONDS = 0.2
GRACE_SECONDS = 2.0  # for the others to say what they died of, when one has failed


class RanksMemoryError(MemoryError):
    """A process ran out of memory. peak: its highest use, in words."""

    def __init__(self, message: str, peak: str) -> None:
        super().__init__(message)
        self.peak = peak


@dataclass(frozen=True)
class _Rank:
    """A process that trains, and the line to it."""

    number: int
    process: subprocess.Popen
    line: Any

    @classmethod
    def start(cls, number: int) -> "_Rank":
        """A fresh interpreter with this one's search path."""
        ours, theirs = Pipe()
        path = os.pathsep.join(p for p in sys.path if p)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", ENTRY, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=2,  # what methods print; the output is for results
            )
        return cls(number, process, ours)

    def tell(self, *message: Any) -> None:
        """Sends a message; whether the process still lives is asked elsewhere."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.line.send(message)

    def end(self, seconds: float) -> None:
        """Waits a little for the process to end by itself, then kills it."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.line.close()

    def death(self) -> str:
        """How the process ended, in words."""
        try:
            code = self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its line"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def train_together(stage: TrainStage, ctx: StageContext) -> None:
    """As `fit`, in `--devices` processes that share every batch.

    Raises what the training raised in them, BenchError where it cannot start or one of them dies, Stopped after a stop.
    """
    count = ctx.run.devices
    devices = _devices(ctx)
    _check_batches(stage, ctx, count)
    ranks: list[_Rank] = []
    ended = False
    try:
        for number in range(count):
            ranks.append(_Rank.start(number))  # noqa: PERF401 - those started are ended, also where the next one fails
        threads = max(1, torch.get_num_threads() // count) if devices[0] == "cpu" else torch.get_num_threads()
        for rank in ranks:
            job = {
                "stage": stage,
                "run": replace(ctx.run, device=devices[rank.number]),
                "sources": ctx.open_datasets,
                "rank": rank.number,
                "parent": os.getpid(),
                "threads": threads,
                "benchmark": torch.backends.cudnn.benchmark,
            }
            rank.tell("job", job)
        _follow(ranks, stage, ctx)
        ended = True
    finally:
        for rank in ranks:
            rank.end(5.0 if ended else 0.0)


def _devices(ctx: StageContext) -> list[str]:
    """The device of every process. Raises BenchError where `--devices` cannot work."""
    count, device = ctx.run.devices, ctx.device
    if importlib.util.find_spec("lightning_fabric") is None:
        raise BenchError('--devices needs Lightning Fabric: pip install "wsolbench[ddp]".')
    if os.name != "posix":
        raise BenchError("--devices needs Linux or macOS; leave it out.")
    if ctx.run.compile:
        raise BenchError("run.compile works on one device: leave out --devices or run.compile.")
    if device.type != "cuda":
        return ["cpu"] * count
    here = torch.cuda.device_count()
    first = device.index or 0
    if first + count > here:
        raise BenchError(f"--devices {count} starting with GPU {first}: torch sees {here} GPUs. Ask for fewer.")
    return [f"cuda:{first + number}" for number in range(count)]


def _check_batches(stage: TrainStage, ctx: StageContext, count: int) -> None:
    config = stage.inputs.config
    images, most = len(ctx.manifest(stage.inputs.experiment).split("train")), retry_of(stage, ctx).used
    sizes = {len(rows) for rows in epoch_order(images, config.batch_size, 0, 1)}
    least = min(p.whole.stop - p.whole.start for size in sizes for p in cut_batch(size, most))
    if least < count:
        raise BenchError(
            f"--devices {count} is more than the {least} images of a batch that are trained on at once. Use fewer "
            "devices, or a larger train.batch_size or train.micro_batch."
        )


def _follow(ranks: list[_Rank], stage: TrainStage, ctx: StageContext) -> None:
    """Until all have ended: passes on messages. Raises the cause when one fails, Stopped when all have stopped."""
    open_lines, told, stopped = {r.line: r for r in ranks}, 0, False
    while open_lines:
        if (code := shutdown.requested()) and code != told:
            told = code
            for rank in open_lines.values():
                rank.tell("stop", code)
        for line in wait(list(open_lines), POLL_SECONDS):
            rank = open_lines[line]  # pyright: ignore[reportArgumentType]
            kind, content = _message(rank)
            if kind == "port":
                for other in ranks:
                    if other is not rank:
                        other.tell("port", content)
            elif kind == "event":
                ctx.report({**content, "stage": stage})
            elif kind == "failed":
                raise _cause([(rank, content)], [r for r in open_lines.values() if r is not rank], stage)
            else:
                stopped = stopped or kind == "stopped"
                del open_lines[rank.line]
    if stopped:
        raise shutdown.Stopped


def _message(rank: _Rank) -> tuple[str, Any]:
    """The next message; that a process has died is one too."""
    try:
        kind, content = rank.line.recv()
        return kind, content
    except (EOFError, OSError):
        return "failed", {"problem": None, "text": "", "trace": "", "rank": 1, "peak": ""}


def _cause(found: list[tuple[_Rank, dict]], others: list[_Rank], stage: TrainStage) -> Exception:
    """The error to raise: one failure makes the others fail, so what they say within a moment is heard too."""
    lines, until = {r.line: r for r in others}, time.monotonic() + GRACE_SECONDS
    while lines and (left := until - time.monotonic()) > 0:
        for line in wait(list(lines), left):
            rank = lines[line]  # pyright: ignore[reportArgumentType]
            kind, content = _message(rank)
            if kind == "failed":
                found.append((rank, content))
            if kind in ("failed", "done", "stopped"):
                del lines[rank.line]
    rank, content = min(found, key=lambda f: f[1]["rank"])
    who = f"process {rank.number + 1} of those that train together"
    if content["peak"]:
        return RanksMemoryError(content["text"], f"{who}: {content['peak']}")
    if content["problem"] is not None:
        return content["problem"]
    if content["text"]:
        return RuntimeError(f"{content['text']} (in {who})\n{content['trace']}")
    return BenchError(
        f"{stage.title}: {who} {rank.death()}, and the others were ended. The same command goes on from the last "
        "snapshot."
    )


# -- in the processes ------------------------------------------------------------------------------------------------
def main() -> None:
    """The program of a process: receives its job, trains, says how it ended."""
    line = Connection(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent gets them too, and tells
    try:
        _, job = line.recv()
    except EOFError:
        os._exit(1)
    inbox: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_listen, args=(line, job["parent"], inbox), daemon=True).start()
    message = _work(job, line, inbox)
    with suppress(BrokenPipeError, ConnectionResetError):
        line.send(message)
    sys.stderr.flush()
    os._exit(0)  # groups of processes that are left behind would wait for each other


def _listen(line: Connection, parent: int, inbox: "queue.Queue[Any]") -> None:
    """Hears the parent; ends this process, whatever it is doing, when there is no parent any more."""
    try:
        while True:
            while not line.poll(1.0):
                if os.getppid() != parent:
                    os._exit(1)
            kind, content = line.recv()
            if kind == "stop":
                shutdown.request(content)
            else:
                inbox.put(content)
    except (EOFError, OSError):
        os._exit(1)


def _work(job: dict[str, Any], line: Connection, inbox: "queue.Queue[Any]") -> tuple[str, Any]:
    """Does the job; returns the message that says how it ended."""
    # warnings are the same in all: one of them is enough
    logging.basicConfig(level=logging.ERROR if job["rank"] else logging.WARNING, format="%(message)s")
    torch.set_num_threads(job["threads"])
    torch.backends.cudnn.benchmark = job["benchmark"]
    stage, run = job["stage"], job["run"]
    try:
        load_method_files([stage])
        _train(job, line, inbox)
    except shutdown.Stopped:
        return "stopped", None
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as problem:  # noqa: BLE001 - the border of a process: told to the parent, who raises it
        full = isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT)
        ours = problem if full or isinstance(problem, BenchError | DivergedError) else None
        memory = is_out_of_memory(problem)
        device = torch.device(run.device)
        return "failed", {
            "problem": ours,
            "text": f"{type(problem).__name__}: {problem}",
            "trace": "".join(traceback.format_exception(problem)),
            "rank": 0 if ours or memory else 2 if not _is_of_others(problem) else 3,
            "peak": peak_text(device) if memory else "",
        }
    return "done", None


def _is_of_others(problem: Exception) -> bool:
    """Whether an error may only say that another process has gone."""
    words = ("gloo", "nccl", "connection", "socket", "tcpstore", "broken pipe")
    return isinstance(problem, RuntimeError) and any(w in str(problem).lower() for w in words)


def _train(job: dict[str, Any], line: Connection, inbox: "queue.Queue[Any]") -> None:
    from ..distributed.fabric_group import FabricGroup

    rank, run = job["rank"], job["run"]
    process_group = FabricGroup.meet(rank, run, lambda port: line.send(("port", port)), lambda: inbox.get(timeout=600))

    def report(event: dict[str, Any]) -> None:
        if process_group.first:
            line.send(("event", {k: v for k, v in event.items() if k != "stage"}))

    ctx = StageContext(run, job["sources"], report)
    sandboxed(lambda stage, ctx: fit(stage, ctx, process_group))(job["stage"], ctx)
