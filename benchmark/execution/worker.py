"""Worker: runs a group of stages, in the process of the command or in any other."""

import contextlib
import errno
import functools
import logging
import os
import platform
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import shutdown
from ..core.environment import draw_to_files
from ..core.errors import BenchError, DamagedError
from ..core.locks import BusyError
from ..core.results_store import Store
from ..planning.config import RunConfig
from ..planning.open_datasets import OpenDataset
from ..planning.stage import AnyStage, MapsInputs
from .gpu_slots import gpu_slot
from .progress_channel import STOP_FILE, ProgressWriter, WarningForwarder
from .stage_leases import claim

if TYPE_CHECKING:
    from ..stages.context import StageContext

log = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ONE_AT_A_TIME = threading.Lock()  # threads of one worker share torch's global generator
Report = Callable[[dict[str, Any]], None]


class DiskFullError(BenchError):
    """The disk is full; every other stage would fail in the same way."""


@dataclass(frozen=True)
class WorkerJob:
    """Job of a worker: all it needs beside the stages.

    progress_folder: for progress and stop requests, None in the process of the command. driver: host and process of
    the command. place: its working folder, which relative paths mean. threads: of torch, 0 leaves them as they are.
    at_once: stages at a time on a machine, 0 if that is not known. wait: stay where another process runs the stages,
    instead of coming back. healed: stages that were repeated once already. needs: GPU memory in MiB by stage key, as
    far as it is known.
    """

    run: RunConfig
    open_datasets: dict[str, OpenDataset]
    at_once: int = 1
    threads: int = 0
    progress_folder: Path | None = None
    driver: tuple[str, int] = ("", 0)
    place: str = ""
    wait: bool = False
    healed: frozenset[str] = frozenset()
    needs: dict[str, float] = field(default_factory=dict)


@dataclass
class GroupResult:
    """Result of a group of stages.

    number: the caller's number for it. problems: error by stage key. damaged: what is wrong with stored stages and the
    stamp of their record as it was seen, by their key. busy: who else runs these stages now. full: why nothing can be
    written any more. stopped: a stop was asked for.
    """

    number: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, tuple[str, tuple[int, int]]] = field(default_factory=dict)
    busy: str = ""
    full: str = ""
    stopped: bool = False


def do_group(stages: Sequence[AnyStage], job: WorkerJob, report: Report | None = None, number: int = 0) -> GroupResult:
    """Runs the stages of one group in this process, unless they are done already.

    report: only in the command's own process. number: of the group, returned with the result.
    """
    result, store = GroupResult(number), Store(job.run.results)
    if report is None:
        draw_to_files()  # a cluster's worker has the surroundings of whoever started the cluster
    with _ONE_AT_A_TIME, _prepared_process(job, report) as tell:
        try:
            shutdown.check()
            with claim(store, stages, job.wait), _prepared(stages, job, store, tell) as (todo, ctx):
                _attempt(todo, ctx, job.healed, result)
        except BusyError as other:
            result.busy = str(other)
        except DiskFullError as problem:
            result.full = str(problem)
        except shutdown.Stopped:
            result.stopped = shutdown.requested() != shutdown.LOST
            if not result.stopped:
                result.busy = "a process that took over, as this one did not answer for a while"
        except Exception as problem:  # noqa: BLE001 - around the stages: a lock of another user, a method file that is gone
            _fail_outside(stages, store, problem, result)
        if shutdown.requested() == shutdown.LOST or report is None:
            shutdown.forget()  # a request to the whole run stands in its file; one to this worker was about this group
    return result


def _fail_outside(stages: Sequence[AnyStage], store: Store, problem: Exception, result: GroupResult) -> None:
    """An error before or after the work itself fails the stages that are not finished, as one in it does."""
    try:
        _raise_if_full(problem, store)
        unfinished = [s for s in stages if not store.is_done(s.key)]
        result.problems.update(record_failure(unfinished, store, problem, 0.0))
    except DiskFullError as full:
        result.full = str(full)


@contextlib.contextmanager
def _prepared(
    stages: Sequence[AnyStage], job: WorkerJob, store: Store, tell: Report
) -> Iterator[tuple[list[AnyStage], "StageContext"]]:
    """The stages still to be done, their methods registered and a GPU slot held while they are, and their context."""
    from ..stages.context import StageContext, load_method_files

    for stage in stages:  # a listing makes a network file system look again for a record another host has just written
        with contextlib.suppress(OSError):
            os.listdir(store.run_dir(stage.key))  # noqa: PTH208 - nothing is done with the names
    todo = [s for s in stages if not store.is_done(s.key)]
    load_method_files(todo)
    for stage in todo:  # half-written files of a killed run; the claim says that nobody is writing now
        for leftover in store.run_dir(stage.key).rglob(".*.tmp"):
            leftover.unlink()
    need = max((job.needs.get(s.key, 0.0) for s in todo), default=0.0)
    with contextlib.ExitStack() as held:
        slot = gpu_slot(job.run, store.root / "locks", job.at_once, need)
        device = held.enter_context(slot) if todo else job.run.device
        yield todo, StageContext(replace(job.run, device=device), job.open_datasets, tell)


def _attempt(stages: Sequence[AnyStage], ctx: "StageContext", healed: frozenset[str], result: GroupResult) -> None:
    """Runs stages together; where that fails, each method and checkpoint on its own: only the faulty one is lost."""
    from ..stages.run import RUNNERS

    if not stages:
        return
    shutdown.check()
    began = time.monotonic()
    try:
        RUNNERS[stages[0].kind](stages, ctx)
        return
    except (Exception, SystemExit) as problem:  # the border of a run: recorded with its traceback
        if shutdown.requested() == shutdown.LOST:
            raise shutdown.Stopped from problem  # the new owner may have cleared away what this process was writing
        _raise_if_full(problem, ctx.store)
        if (key := _stage_of(problem, ctx.store)) and key not in healed:
            result.damaged[key] = str(problem), ctx.store.stamp(key)
            return
        parts = parts_of([s for s in stages if not ctx.store.is_done(s.key)])
        if len(parts) <= 1:
            unfinished = list(chain(*parts))
            result.problems.update(record_failure(unfinished, ctx.store, problem, time.monotonic() - began))
            return
    for part in parts:
        _attempt([s for s in part if not ctx.store.is_done(s.key)], ctx, healed, result)


def _stage_of(problem: BaseException, store: Store) -> str:
    """The key of the stage whose stored file is damaged; empty for any other problem."""
    runs = store.root / "runs"
    if not isinstance(problem, DamagedError) or not problem.path.is_relative_to(runs):
        return ""
    return problem.path.relative_to(runs).parts[0]


def _raise_if_full(problem: BaseException, store: Store) -> None:
    """Turns a full disk, however a library words it, into DiskFullError."""
    cause: BaseException | None = problem
    seen = set[int]()  # a chain of causes may lead back to itself
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if (isinstance(cause, OSError) and cause.errno in FULL) or f"os error {errno.ENOSPC})" in str(cause):
            raise DiskFullError(disk_full(cause, store.root)) from problem
        cause = cause.__cause__ or cause.__context__


def disk_full(problem: BaseException, folder: Path) -> str:
    """The message of a full disk: where, how much is free, what to do."""
    file = getattr(problem, "filename", None) or folder
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    usage = shutil.disk_usage(there)
    return (
        f"The disk is full: {file} could not be written ({usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB are "
        f"free in {folder}). What was stored before is untouched. Make room and run the same command again."
    )


def parts_of(stages: Sequence[AnyStage]) -> list[list[AnyStage]]:
    """Stages by method, or those of one method by the checkpoint they read: the smallest that can fail alone."""

    def method_of(stage: AnyStage) -> tuple[str, ...]:
        return stage.inputs.method.label, stage.inputs.method.changed

    def checkpoint_of(stage: AnyStage) -> tuple[str, ...]:
        return (stage.inputs.checkpoint_slot,) if isinstance(stage.inputs, MapsInputs) else ()

    for key in (method_of, checkpoint_of):
        parts: dict[tuple, list[AnyStage]] = {}
        for stage in stages:
            parts.setdefault(key(stage), []).append(stage)
        if len(parts) > 1:
            return list(parts.values())
    return [list(stages)] if stages else []


def record_failure(stages: Sequence[AnyStage], store: Store, problem: BaseException, seconds: float) -> dict[str, str]:
    """Writes why stages failed; returns the error by stage key. Raises DiskFullError if that cannot be written."""
    error = str(problem) if isinstance(problem, BenchError) else f"{type(problem).__name__}: {problem}"
    if isinstance(problem, SystemExit):
        error = f"the method ended the process (SystemExit {problem.code}); it must raise an error instead"
    facts = {"status": "failed", **getattr(problem, "facts", {})}
    trace = "".join(traceback.format_exception(problem))
    for stage in stages:
        failure = {"kind": stage.kind, "labels": stage.labels, "error": error, "seconds": seconds, "traceback": trace}
        try:
            store.fail(stage.key, {**failure, **facts})
        except OSError as second:
            _raise_if_full(second, store)
            raise
        log.debug("stage %s failed", stage.key, exc_info=problem)
    return {s.key: error for s in stages}


def begin_worker(parent: int) -> None:
    """Initialiser of a worker process: handlers of signals, and a watch that ends it with its parent.

    Ctrl-C and a cluster's SIGTERM reach all processes at once, idle ones too; a worker that died of them would take the
    others along in the middle of a write. So workers start with both signals blocked (`signals_blocked`), ignore
    Ctrl-C, which the command passes on, and take SIGTERM for a request to stop.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: shutdown.request(shutdown.TERMINATED))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _end_with_parent(parent)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes started in this block begin with Ctrl-C and SIGTERM blocked; this one still handles both."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, ended = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS), threading.Event()

    def receive() -> None:  # the one thread the system may deliver them to; Python runs handlers in the main one
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        ended.wait()

    thread = threading.Thread(target=receive, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.cache
def _end_with_parent(parent: int) -> None:
    """Ends this worker when its command has ended, killed perhaps; a running stage stops first, with its snapshot."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        shutdown.request(shutdown.TERMINATED)
        with _ONE_AT_A_TIME:
            os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextlib.contextmanager
def _prepared_process(job: WorkerJob, report: Report | None) -> Iterator[Report]:
    """Sets threads, determinism, working folder and stop file for a group of stages. Yields what to report to."""
    import torch

    if job.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not job.run.deterministic  # sizes hardly change: the search for a kernel pays
    if report is not None or job.progress_folder is None:
        yield report or (lambda event: None)
        return
    if job.threads:
        torch.set_num_threads(job.threads)
    if job.place:
        with contextlib.suppress(OSError):  # not there on this machine: absolute paths work all the same
            os.chdir(job.place)
    shutdown.follow(job.progress_folder / STOP_FILE)
    if (platform.node(), os.getppid()) == job.driver:
        _end_with_parent(job.driver[1])
    writer = ProgressWriter(job.progress_folder)
    logger, handler = logging.getLogger(__name__.partition(".")[0]), WarningForwarder(writer)
    logger.addHandler(handler)
    logger.propagate = False  # the command shows them
    try:
        yield writer
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
