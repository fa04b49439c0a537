"""Doing a plan: wave by wave of the graph, stages started only through joblib; a failure stops nobody else."""

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
from .parallel_backends import Engine, engine
from .progress_channel import STOP_FILE, Follower, new_folder
from .stage_leases import claim
from .worker import GroupResult, Job, do_group, parts_of, record_failure

Report = Callable[[dict[str, Any]], None]


class WorkerDiedError(Exception):
    """A worker process ended in the middle of a stage, every time it was tried."""


@dataclass
class Outcome:
    """Stage keys by what became of them. `blocked` waits for a stage that failed; full: the disk is, in words."""

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
    found = store.unreadable(store.done(plan.stages))
    gone = [k for k in found if _aside(plan, store, k, lambda k=k: k in store.unreadable([k]))]
    return [f"{found[key]} {title_of(plan, key)} is done again." for key in gone]


def _aside(plan: Plan, store: Store, key: str, still: Callable[[], bool]) -> bool:
    """Sets a damaged stage aside unless another command does so, or has done it over, by now; whether it did."""
    with contextlib.suppress(BusyError), claim(store, [plan.stages[key]], wait=False):
        if still():
            store.remove(key)
            return True
    return False


def heal_scores(plan: Plan, store: Store, shown: Collection[str]) -> list[str]:
    """Sets aside scores whose arrays cannot be read, where a finished row is not among those shown; one line each."""
    said = []
    for row in (r for r in plan.rows if r not in shown):
        for key in (row, plan.stages[row].parents.get("val", "")):
            if not key or not store.is_done(key):
                continue
            problem = _unreadable_scores(store, key)
            if problem and _aside(plan, store, key, lambda key=key: bool(_unreadable_scores(store, key))):
                said.append(f"{problem} {title_of(plan, key)} is done again.")
    return said


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
    """Waves of groups: every wave needs only earlier ones; a group shares one pass and is one job."""
    level: dict[str, int] = {}
    for stage in stages:  # parents come first in a plan
        level[stage.key] = 1 + max((level[p] for p in stage.parents.values() if p in level), default=-1)
    found: list[dict[tuple[str, ...], list[Stage]]] = [{} for _ in range(max(level.values(), default=-1) + 1)]
    for stage in stages:
        found[level[stage.key]].setdefault(stage.group or (stage.key,), []).append(stage)
    return [list(groups.values()) for groups in found]


def execute(plan: Plan, run: RunConfig, open_datasets: dict[str, OpenDataset], report: Report) -> Outcome:
    """Does what is missing of a plan. Failures are recorded with their traceback and returned, not raised.

    A stored file that turns out to be damaged is set aside and its stage done again, once. Raises stop.Stopped when a
    signal asked to stop, after every worker has left what it needs to go on.
    """
    store = Store(run.results)
    outcome = Outcome(cached=sorted(store.done(plan.stages)))
    with contextlib.ExitStack() as opened:
        scheduler = opened.enter_context(_scheduler(plan, run, open_datasets, report))
        while True:
            damaged = scheduler.round(plan, outcome)
            fresh = {k: seen for k, seen in damaged.items() if k in plan.stages and k not in scheduler.job.healed}
            if not fresh or outcome.full:
                return outcome
            for key, (why, stamp) in fresh.items():
                if _aside(plan, store, key, lambda key=key, stamp=stamp: store.stamp(key) == stamp):
                    report({"kind": "warning", "text": f"{why} {title_of(plan, key)} is done again."})
            scheduler.job = replace(scheduler.job, healed=scheduler.job.healed | fresh.keys())


@contextlib.contextmanager
def _scheduler(
    plan: Plan, run: RunConfig, open_datasets: dict[str, OpenDataset], report: Report
) -> Iterator["Scheduler"]:
    """An engine with what its workers need, and the way their progress comes back."""
    with contextlib.ExitStack() as opened:
        folder = None

        def tell(code: int) -> None:
            if folder is not None:
                with contextlib.suppress(OSError):  # the folder of a run that has just ended
                    (folder / STOP_FILE).write_text(str(code), encoding="ascii")
            with contextlib.suppress(OSError):  # Ctrl-C may have ended the reader of our words, too
                os.write(2, b"\nStopping at the next safe point (a second Ctrl-C stops at once) ...\n")

        kind = opened.enter_context(engine(run))
        opened.enter_context(shutdown.listening(tell))  # after the engine: Ray sets handlers of its own
        job = Job(run, open_datasets, kind.at_once, kind.threads, None, (platform.node(), os.getpid()))
        if not kind.alone:
            folder = new_folder(run.results)
            opened.enter_context(Follower(folder, plan.stages, report))
            needs = known_needs(plan, Store(run.results), run)
            job = replace(job, relay=folder, needs=needs, place=str(Path.cwd()))
            report(
                {"kind": "note", "text": f"Stages run on {kind.where}, {kind.at_once or 'as many as fit'} at a time."}
            )
        yield Scheduler(kind, job, report)


@dataclass
class Scheduler:
    """The workers of one command."""

    engine: Engine
    job: Job
    report: Report

    def round(self, plan: Plan, outcome: Outcome) -> dict[str, tuple[str, tuple[int, int]]]:
        """Does the open stages wave by wave, but for those that failed before; returns damaged stages and why."""
        store, damaged = Store(self.job.run.results), dict[str, tuple[str, tuple[int, int]]]()
        todo = [s for s in open_stages(plan, store) if s.key not in outcome.failed]
        outcome.blocked.clear()
        keys = {s.key for s in todo} | outcome.failed.keys()
        for wave in waves(todo):
            ready = []
            for group in wave:
                bad = [s for s in group if any(p in keys and not store.is_done(p) for p in s.parents.values())]
                outcome.blocked += [s.key for s in bad]
                if good := [s for s in group if s not in bad]:
                    ready.append(good)
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
        """What became of each group. Groups of others come last: by then they may be done."""
        results = self._persist(groups, self.job)
        while busy := {i: done.busy for i, done in results.items() if done.busy}:
            for other in sorted(set(busy.values())):
                mine = [groups[i][0] for i, who in busy.items() if who == other]
                self.report({"kind": "waiting", "stage": mine[0], "groups": len(mine), "owner": other})
            again = self._persist([groups[i] for i in busy], replace(self.job, wait=True))
            results.update(zip(busy, (again[i] for i in range(len(busy))), strict=True))
        return [results[i] for i in range(len(groups))]

    def _persist(self, groups: Sequence[Sequence[Stage]], job: Job) -> dict[int, GroupResult]:
        """Starts the groups; where a worker dies, what is left again, with fewer at a time, in the end one by one.

        So a stage that takes too much memory beside others gets it alone, and one that kills its worker every time is
        the only one to fail.
        """
        results: dict[int, GroupResult] = {}
        most = self.engine.at_once
        for at_once in (most, max(1, most // 2) if most else 0):
            left = [i for i in range(len(groups)) if i not in results]
            if not left or (problem := self._start(groups, left, job, at_once, results)) is None:
                break
            advice = "What was unfinished is tried again with fewer workers."
            self.report({"kind": "warning", "text": f"A worker died ({_short(problem)}). {advice}"})
        for i in [i for i in range(len(groups)) if i not in results]:
            results[i] = self._alone(groups[i], job)
        return results

    def _alone(self, group: Sequence[Stage], job: Job) -> GroupResult:
        """One group by itself; where it kills its worker again, its parts, so that only the faulty one is given up."""
        found = dict[int, GroupResult]()
        if (problem := self._start([group], [0], job, 1, found)) is None:
            return found[0]
        parts = parts_of([s for s in group if not Store(job.run.results).is_done(s.key)])
        if len(parts) <= 1:
            return self._give_up(group, problem)
        whole = GroupResult()
        for part in parts:
            done = self._alone(part, job)
            whole.problems.update(done.problems)
            whole.damaged.update(done.damaged)
            whole.busy, whole.full = whole.busy or done.busy, whole.full or done.full
        return whole

    def _start(
        self,
        groups: Sequence[Sequence[Stage]],
        chosen: Sequence[int],
        job: Job,
        at_once: int,
        results: dict[int, GroupResult],
    ) -> Exception | None:
        """Adds the results of some groups as they come; returns the problem if the engine broke before the end."""
        report = self.report if self.engine.alone else None
        found: Iterator[GroupResult] = self.engine.start(
            do_group, [(groups[i], job, report, i) for i in chosen], at_once
        )
        problem: Exception | None = None
        try:
            for done in found:  # also after a request to stop: workers are writing their checkpoints
                if done.stopped and shutdown.requested() <= 0:
                    problem = WorkerDiedError("it was told to end by a signal")
                    continue
                results[done.number] = done
                if done.full:
                    break
        except Exception as broken:  # noqa: BLE001 - each engine has its own errors for a worker that died
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
        lost = [s for s in group if not store.is_done(s.key)]
        died = WorkerDiedError(
            f"its worker process died each time, in the end with nothing beside it ({_short(problem)}). Often the "
            "system ended it for want of memory: lower run.score_batch or train.micro_batch, or take a larger machine."
        )
        died.__cause__ = problem
        return GroupResult(problems=record_failure(lost, store, died, 0.0))


def _short(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0][:200]}" if lines else type(problem).__name__
