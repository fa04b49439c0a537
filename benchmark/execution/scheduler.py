"""Scheduler: runs the stages of a plan, parents first, through joblib; one failed stage does not stop the others."""

import contextlib
import os
import platform
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core import shutdown
from ..core.errors import DamagedError
from ..core.files import read_npz
from ..core.locks import BusyError
from ..core.results_store import Store
from ..planning.config import RunConfig
from ..planning.open_datasets import OpenDataset
from ..planning.stage import Plan, Stage
from .gpu_slots import known_needs
from .parallel_backends import ParallelBackend, open_backend
from .progress_channel import STOP_FILE, ProgressReader, new_folder
from .stage_leases import claim
from .worker import GroupResult, WorkerJob, do_group, parts_of, record_failure

Report = Callable[[dict[str, Any]], None]


class WorkerDiedError(Exception):
    """A worker process ended in the middle of a stage, every time it was tried."""


@dataclass
class PlanOutcome:
    """Outcome of a plan, stages by key. blocked: waits for a stage that failed. full: that the disk is, in words."""

    done: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: list[str] = field(default_factory=list)
    full: str = ""

    @property
    def exit_code(self) -> int:
        """0 if every stage is there, else 1."""
        return 1 if self.failed or self.blocked or self.full else 0


def open_stages(plan: Plan, store: Store) -> list[Stage]:
    """The stages to do: unfinished ones that a row needs, directly or through unfinished stages; parents first.

    A finished score needs no weights behind it, so checkpoints may be deleted once the scores are there; but a row is
    shown with what the records of its parents say, so that a parent without its record is done again.
    """
    done, wanted = store.done(plan.stages), set[str]()
    waiting = [k for row in plan.rows for k in (row, *plan.stages[row].parents.values()) if k not in done]
    while waiting:
        key = waiting.pop()
        if key not in wanted:
            wanted.add(key)
            waiting += [p for p in plan.stages[key].parents.values() if p not in done]
    return [s for k, s in plan.stages.items() if k in wanted]


def heal(plan: Plan, store: Store) -> list[str]:
    """Sets aside finished stages whose record cannot be read or has an old schema; returns one line for each."""
    unreadable = store.unreadable(store.done(plan.stages))
    removed = [k for k in unreadable if _set_aside_damaged(plan, store, k, lambda k=k: k in store.unreadable([k]))]
    return [f"{unreadable[key]} {title_of(plan, key)} is done again." for key in removed]


def _set_aside_damaged(plan: Plan, store: Store, key: str, still_damaged: Callable[[], bool]) -> bool:
    """Removes a damaged stage unless another command does so, or has repeated it, by now; returns whether it did."""
    with contextlib.suppress(BusyError), claim(store, [plan.stages[key]], wait=False):
        if still_damaged():
            store.remove(key)
            return True
    return False


def heal_scores(plan: Plan, store: Store, shown: Collection[str]) -> list[str]:
    """Sets aside scores whose arrays cannot be read, where a finished row is not among those shown; one line each."""
    lines = []
    for row in (r for r in plan.rows if r not in shown):
        for key in (row, plan.stages[row].parents.get("val", "")):
            if not key or not store.is_done(key):
                continue
            problem = _unreadable_scores(store, key)
            if problem and _set_aside_damaged(plan, store, key, lambda key=key: bool(_unreadable_scores(store, key))):
                lines.append(f"{problem} {title_of(plan, key)} is done again.")
    return lines


def _unreadable_scores(store: Store, key: str) -> str:
    try:
        read_npz(store.run_dir(key) / "scores.npz")
    except DamagedError as problem:
        return str(problem)
    return ""


def title_of(plan: Plan, key: str) -> str:
    """A stage in words, with its kind and key."""
    stage = plan.stages[key]
    return f"Stage {key} ({stage.kind} {stage.labels['method']})"


def waves(stages: Sequence[Stage]) -> list[list[list[Stage]]]:
    """Groups of stages in waves: a wave needs only earlier ones; the stages of a group share one pass and one job."""
    level: dict[str, int] = {}
    for stage in stages:  # parents come first in a plan
        level[stage.key] = 1 + max((level[p] for p in stage.parents.values() if p in level), default=-1)
    groups_of: list[dict[tuple[str, ...], list[Stage]]] = [{} for _ in range(max(level.values(), default=-1) + 1)]
    for stage in stages:
        groups_of[level[stage.key]].setdefault(stage.group or (stage.key,), []).append(stage)
    return [list(groups.values()) for groups in groups_of]


def execute(plan: Plan, run: RunConfig, open_datasets: dict[str, OpenDataset], report: Report) -> PlanOutcome:
    """Runs what is missing of a plan. Failures are recorded with their traceback and returned, not raised.

    A stored file that turns out to be damaged is set aside and its stage repeated, once. Raises shutdown.Stopped when a
    signal asked to stop, after every worker has left what it needs to go on.
    """
    store = Store(run.results)
    outcome = PlanOutcome(cached=sorted(store.done(plan.stages)))
    with contextlib.ExitStack() as opened:
        scheduler = opened.enter_context(_open_scheduler(plan, run, open_datasets, report))
        while True:
            damaged = scheduler.round(plan, outcome)
            fresh = {k: seen for k, seen in damaged.items() if k in plan.stages and k not in scheduler.job.healed}
            if not fresh or outcome.full:
                return outcome
            for key, (why, stamp) in fresh.items():
                if _set_aside_damaged(plan, store, key, lambda key=key, stamp=stamp: store.stamp(key) == stamp):
                    report({"kind": "warning", "text": f"{why} {title_of(plan, key)} is done again."})
            scheduler.job = replace(scheduler.job, healed=scheduler.job.healed | fresh.keys())


@contextlib.contextmanager
def _open_scheduler(
    plan: Plan, run: RunConfig, open_datasets: dict[str, OpenDataset], report: Report
) -> Iterator["Scheduler"]:
    """A scheduler on an open backend, with what its workers need and the channel their progress comes back by."""
    with contextlib.ExitStack() as opened:
        folder = None

        def on_stop(code: int) -> None:
            if folder is not None:
                with contextlib.suppress(OSError):  # the folder of a run that has just ended
                    (folder / STOP_FILE).write_text(str(code), encoding="ascii")
            with contextlib.suppress(OSError):  # Ctrl-C may have ended the reader of our output, too
                os.write(2, b"\nStopping at the next safe point (a second Ctrl-C stops at once) ...\n")

        backend = opened.enter_context(open_backend(run))
        opened.enter_context(shutdown.listening(on_stop))  # after the backend: Ray sets handlers of its own
        job = WorkerJob(run, open_datasets, backend.at_once, backend.threads, None, (platform.node(), os.getpid()))
        if not backend.in_process:
            folder = new_folder(run.results)
            opened.enter_context(ProgressReader(folder, plan.stages, report))
            needs = known_needs(plan, Store(run.results), run)
            job = replace(job, progress_folder=folder, needs=needs, place=str(Path.cwd()))
            report(
                {
                    "kind": "note",
                    "text": f"Stages run on {backend.where}, {backend.at_once or 'as many as fit'} at a time.",
                }
            )
        yield Scheduler(backend, job, report)


@dataclass
class Scheduler:
    """Runs groups of stages in the workers of one command."""

    backend: ParallelBackend
    job: WorkerJob
    report: Report

    def round(self, plan: Plan, outcome: PlanOutcome) -> dict[str, tuple[str, tuple[int, int]]]:
        """Runs the open stages wave by wave, but for those that failed before; returns damaged stages and why."""
        store, damaged = Store(self.job.run.results), dict[str, tuple[str, tuple[int, int]]]()
        todo = [s for s in open_stages(plan, store) if s.key not in outcome.failed]
        outcome.blocked.clear()
        keys = {s.key for s in todo} | outcome.failed.keys()
        for wave in waves(todo):
            ready = []
            for group in wave:
                orphaned = [s for s in group if any(p in keys and not store.is_done(p) for p in s.parents.values())]
                outcome.blocked += [s.key for s in orphaned]
                if runnable := [s for s in group if s not in orphaned]:
                    ready.append(runnable)
            if outcome.full:
                outcome.blocked += [s.key for group in ready for s in group]
                continue
            for group, done in zip(ready, self._wave(ready), strict=True):
                outcome.failed.update(done.problems)
                damaged.update(done.damaged)
                outcome.full = outcome.full or done.full
                finished = [s.key for s in group if store.is_done(s.key)]
                outcome.done += finished
                outcome.blocked += [s.key for s in group if s.key not in finished and s.key not in done.problems]
                self.report({"kind": "settled", "stages": [s.key for s in group]})
        return damaged

    def _wave(self, groups: Sequence[Sequence[Stage]]) -> list[GroupResult]:
        """The result of each group. Groups that another process has claimed come last: by then they may be done."""
        results = self._persist(groups, self.job)
        while busy := {i: done.busy for i, done in results.items() if done.busy}:
            for other in sorted(set(busy.values())):
                waiting = [groups[i][0] for i, owner in busy.items() if owner == other]
                self.report({"kind": "waiting", "stage": waiting[0], "groups": len(waiting), "owner": other})
            retried = self._persist([groups[i] for i in busy], replace(self.job, wait=True))
            results.update(zip(busy, (retried[i] for i in range(len(busy))), strict=True))
        return [results[i] for i in range(len(groups))]

    def _persist(self, groups: Sequence[Sequence[Stage]], job: WorkerJob) -> dict[int, GroupResult]:
        """Starts the groups; where a worker dies, the rest again with fewer at a time, in the end one by one.

        So a stage that takes too much memory beside others gets it alone, and of stages that kill their worker every
        time nothing but those fails.
        """
        results: dict[int, GroupResult] = {}
        most = self.backend.at_once
        for at_once in (most, max(1, most // 2) if most else 0):
            left = [i for i in range(len(groups)) if i not in results]
            if not left or (problem := self._start(groups, left, job, at_once, results)) is None:
                break
            advice = "What was unfinished is tried again with fewer workers."
            self.report({"kind": "warning", "text": f"A worker died ({_short(problem)}). {advice}"})
        for i in [i for i in range(len(groups)) if i not in results]:
            results[i] = self._alone(groups[i], job)
        return results

    def _alone(self, group: Sequence[Stage], job: WorkerJob) -> GroupResult:
        """One group by itself; where it kills its worker again, its parts, so that only the faulty one is given up."""
        results = dict[int, GroupResult]()
        if (problem := self._start([group], [0], job, 1, results)) is None:
            return results[0]
        parts = parts_of([s for s in group if not Store(job.run.results).is_done(s.key)])
        if len(parts) <= 1:
            return self._give_up(group, problem)
        merged = GroupResult()
        for part in parts:
            done = self._alone(part, job)
            merged.problems.update(done.problems)
            merged.damaged.update(done.damaged)
            merged.busy, merged.full = merged.busy or done.busy, merged.full or done.full
        return merged

    def _start(
        self,
        groups: Sequence[Sequence[Stage]],
        chosen: Sequence[int],
        job: WorkerJob,
        at_once: int,
        results: dict[int, GroupResult],
    ) -> Exception | None:
        """Adds the results of some groups as they come; returns the problem if the backend broke before the end."""
        report = self.report if self.backend.in_process else None
        incoming: Iterator[GroupResult] = self.backend.start(
            do_group, [(groups[i], job, report, i) for i in chosen], at_once
        )
        problem: Exception | None = None
        try:
            for done in incoming:  # also after a request to stop: workers are writing their checkpoints
                if done.stopped and shutdown.requested() <= 0:
                    problem = WorkerDiedError("it was told to end by a signal")
                    continue
                results[done.number] = done
                if done.full:
                    break
        except Exception as broken:  # noqa: BLE001 - each backend has its own errors for a worker that died
            problem = broken
        if shutdown.requested() > 0:
            raise shutdown.Stopped
        if full := next((d.full for d in results.values() if d.full), ""):  # nothing more is begun
            for i in chosen:
                results.setdefault(i, GroupResult(full=full))
            return None
        return problem

    def _give_up(self, group: Sequence[Stage], problem: Exception) -> GroupResult:
        store = Store(self.job.run.results)
        unfinished = [s for s in group if not store.is_done(s.key)]
        died = WorkerDiedError(
            f"its worker process died each time, in the end with nothing beside it ({_short(problem)}). Often the "
            "system ended it for want of memory: lower run.score_batch or train.micro_batch, or take a larger machine."
        )
        died.__cause__ = problem
        return GroupResult(problems=record_failure(unfinished, store, died, 0.0))


def _short(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0][:200]}" if lines else type(problem).__name__
