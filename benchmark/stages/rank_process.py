"""Training stage on several processes (`--devices N`): what each process is given, and the program it runs."""

import errno
import importlib.util
import logging
import os
import queue
import signal
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from ..core import shutdown
from ..core.errors import BenchError
from ..data.epoch_order import epoch_order
from ..distributed.batch_shards import cut_batch
from ..distributed.ddp_launcher import Cause, RankFailure, launch
from ..planning.config import RunConfig
from ..planning.open_datasets import OpenDataset
from ..planning.stage import TrainStage
from ..scoring.adaptive_batch import is_out_of_memory, peak_text
from ..training.train_step import DivergedError
from .context import StageContext, epoch_items, load_method_files
from .sandbox import sandbox
from .train_stage import fit, retry_of

PROGRAM = "from wsolbench.benchmark.stages.rank_process import main; main()"
PORT_SECONDS = 600  # until the first process must have said where it listens


@dataclass(frozen=True)
class RankJob:
    """What a process is given. run: the settings, with this process's device. parent: the process that started it."""

    stage: TrainStage
    run: RunConfig
    open_datasets: dict[str, OpenDataset]
    rank: int
    parent: int
    threads: int
    cudnn_benchmark: bool


def train_together(stage: TrainStage, ctx: StageContext) -> None:
    """As `fit`, in `--devices` processes that share every batch.

    Raises what the training raised in them, BenchError where it cannot start or one of them dies, Stopped after a stop.
    """
    count = ctx.run.devices
    devices = _devices(ctx)
    _check_batches(stage, ctx, count)
    threads = max(1, torch.get_num_threads() // count) if devices[0] == "cpu" else torch.get_num_threads()
    benchmark = torch.backends.cudnn.benchmark
    jobs = [
        RankJob(stage, replace(ctx.run, device=device), ctx.open_datasets, rank, os.getpid(), threads, benchmark)
        for rank, device in enumerate(devices)
    ]
    launch(PROGRAM, jobs, lambda event: ctx.report({**event, "stage": stage}), stage.title)


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
    visible = torch.cuda.device_count()
    first = device.index or 0
    if first + count > visible:
        raise BenchError(f"--devices {count} starting with GPU {first}: torch sees {visible} GPUs. Ask for fewer.")
    return [f"cuda:{first + number}" for number in range(count)]


def _check_batches(stage: TrainStage, ctx: StageContext, count: int) -> None:
    config = stage.inputs.config
    images, most = len(epoch_items(stage.inputs, ctx)), retry_of(stage, ctx).used
    sizes = {len(rows) for rows in epoch_order(images, config.batch_size, 0, 1)}
    least = min(p.whole.stop - p.whole.start for size in sizes for p in cut_batch(size, most))
    if least < count:
        raise BenchError(
            f"--devices {count} is more than the {least} images of a batch that are trained on at once. Use fewer "
            "devices, or a larger train.batch_size or train.micro_batch."
        )


# -- in the processes ------------------------------------------------------------------------------------------------
def main() -> None:
    """The program of a process: receives its job, trains, says how it ended."""
    connection = Connection(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent gets them too, and passes them on
    try:
        _, job = connection.recv()
    except EOFError:
        os._exit(1)
    ports: queue.Queue[int] = queue.Queue()
    threading.Thread(target=_listen, args=(connection, job.parent, ports), daemon=True).start()
    message = _work(job, connection, ports)
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.send(message)
    sys.stderr.flush()
    os._exit(0)  # groups of processes that are left behind would wait for each other


def _listen(connection: Connection, parent: int, ports: "queue.Queue[int]") -> None:
    """Hears the parent; ends this process, whatever it is doing, when there is no parent any more."""
    try:
        while True:
            while not connection.poll(1.0):
                if os.getppid() != parent:
                    os._exit(1)
            kind, content = connection.recv()
            if kind == "stop":
                shutdown.request(content)
            else:
                ports.put(content)
    except (EOFError, OSError):
        os._exit(1)


def _work(job: RankJob, connection: Connection, ports: "queue.Queue[int]") -> tuple[str, RankFailure | None]:
    """Does the job; returns the message that says how it ended."""
    # warnings are the same in all: one of them is enough
    logging.basicConfig(level=logging.ERROR if job.rank else logging.WARNING, format="%(message)s")
    torch.set_num_threads(job.threads)
    torch.backends.cudnn.benchmark = job.cudnn_benchmark
    try:
        load_method_files([job.stage])
        _train(job, connection, ports)
    except shutdown.Stopped:
        return "stopped", None
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as problem:  # noqa: BLE001 - the border of a process: told to the parent, who raises it
        return "failed", _failure(problem, torch.device(job.run.device))
    return "done", None


def _failure(problem: Exception, device: torch.device) -> RankFailure:
    full_disk = isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT)
    known = problem if full_disk or isinstance(problem, BenchError | DivergedError) else None
    memory = is_out_of_memory(problem)
    cause = Cause.KNOWN if known or memory else Cause.CONNECTION if _is_of_others(problem) else Cause.OTHER
    trace = "".join(traceback.format_exception(problem))
    return RankFailure(cause, known, f"{type(problem).__name__}: {problem}", trace, peak_text(device) if memory else "")


def _is_of_others(problem: Exception) -> bool:
    """Whether an error may only say that another process has gone."""
    words = ("gloo", "nccl", "connection", "socket", "tcpstore", "broken pipe")
    return isinstance(problem, RuntimeError) and any(w in str(problem).lower() for w in words)


def _train(job: RankJob, connection: Connection, ports: "queue.Queue[int]") -> None:
    from ..distributed.fabric_group import FabricGroup

    process_group = FabricGroup.meet(
        job.rank, job.run, lambda port: connection.send(("port", port)), lambda: ports.get(timeout=PORT_SECONDS)
    )

    def report(event: dict[str, Any]) -> None:
        if process_group.first:
            connection.send(("event", {k: v for k, v in event.items() if k != "stage"}))

    ctx = StageContext(job.run, job.open_datasets, report)
    with sandbox([job.stage], ctx):
        fit(job.stage, ctx, process_group)
