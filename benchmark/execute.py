"""Doing a plan: wave by wave of the graph, stages started only through joblib; a failure stops nobody else."""

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from joblib import Parallel, delayed

from .config import RunConfig
from .errors import BenchError
from .plan import Plan, Stage
from .slots import gpu_slot, workers
from .sources import Source
from .store import Store

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """Stage keys by what became of them. `blocked` waits for a stage that failed."""

    done: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 if every stage is there, else 1."""
        return 1 if self.failed or self.blocked else 0


def open_stages(plan: Plan, store: Store) -> list[Stage]:
    """The stages to do: unfinished ones that a row needs, directly or through unfinished stages; parents first.

    A finished score needs no training behind it, so checkpoints may be deleted once the scores are there.
    """
    done, wanted = store.done(plan.stages), set[str]()
    waiting = [k for k in plan.rows if k not in done]
    while waiting:
        key = waiting.pop()
        if key not in wanted:
            wanted.add(key)
            waiting += [p for p in plan.stages[key].parents.values() if p not in done]
    return [s for k, s in plan.stages.items() if k in wanted]


def waves(stages: Sequence[Stage]) -> list[list[list[Stage]]]:
    """Waves of groups: every wave needs only earlier ones; a group shares one pass and is one job."""
    level: dict[str, int] = {}
    for stage in stages:  # parents come first in a plan
        level[stage.key] = 1 + max((level[p] for p in stage.parents.values() if p in level), default=-1)
    found: list[dict[tuple[str, ...], list[Stage]]] = [{} for _ in range(max(level.values(), default=-1) + 1)]
    for stage in stages:
        found[level[stage.key]].setdefault(stage.group or (stage.key,), []).append(stage)
    return [list(groups.values()) for groups in found]


def execute(
    plan: Plan, run: RunConfig, sources: dict[str, Source], report: Callable[[dict[str, Any]], None]
) -> Outcome:
    """Does what is missing of a plan. Failures are recorded with their traceback and returned, not raised."""
    store, outcome = Store(run.results), Outcome()
    todo = open_stages(plan, store)
    outcome.cached = [k for k in plan.stages if store.is_done(k)]
    keys = {s.key for s in todo}
    for wave in waves(todo):
        ready = []
        for group in wave:
            bad = [s for s in group if any(p in keys and not store.is_done(p) for p in s.parents.values())]
            outcome.blocked += [s.key for s in bad]
            if good := [s for s in group if s not in bad]:
                ready.append(good)
        for group, problems in zip(ready, _guarded(ready, run, sources, report), strict=True):
            outcome.failed.update(problems)
            outcome.done += [s.key for s in group if s.key not in problems]
    return outcome


def _guarded(
    groups: Sequence[Sequence[Stage]], run: RunConfig, sources: dict[str, Source], report: Callable
) -> Iterable[dict[str, str]]:
    """As `_start`; where a worker died or the engine broke, what it left undone has failed, and the others go on."""
    try:
        return list(_start(groups, run, sources, report))
    except Exception as problem:  # noqa: BLE001 - the run border again: a killed worker takes its whole wave along
        store, error = Store(run.results), f"{type(problem).__name__}: {problem}"
        trace = "".join(traceback.format_exception(problem))
        lost = [[s for s in group if not store.is_done(s.key)] for group in groups]
        for stage in chain.from_iterable(lost):
            store.fail(stage.key, {"kind": stage.kind, "labels": stage.labels, "error": error, "traceback": trace})
        return [{s.key: error for s in group} for group in lost]


def _start(
    groups: Sequence[Sequence[Stage]], run: RunConfig, sources: dict[str, Source], report: Callable
) -> Iterable[dict[str, str]]:
    at_once = workers(run)
    alone = at_once == 1 and run.backend == "loky"  # in this process, where a bar can be shown
    parallel = Parallel(n_jobs=1) if alone else Parallel(n_jobs=at_once, backend=run.backend)
    found: Any = parallel(delayed(do_group)(g, run, sources, report if alone else None) for g in groups)
    return found


def do_group(
    stages: Sequence[Stage], run: RunConfig, sources: dict[str, Source], report: Callable[[dict[str, Any]], None] | None
) -> dict[str, str]:
    """Does the stages of one group in this process; returns the error of every stage that failed."""
    from .stages import Desk, know_files

    _settle_process(run, in_worker=report is None)
    store = Store(run.results)
    know_files(stages)
    with ExitStack() as locks:
        for key in sorted(s.key for s in stages):
            locks.enter_context(store.lock(key))
        todo = [s for s in stages if not store.is_done(s.key)]
        for stage in todo:  # half-written files of a killed run; the lock says that nobody is writing now
            for leftover in store.run_dir(stage.key).rglob(".*.tmp"):
                leftover.unlink()
        with gpu_slot(run, store.root / "locks") as device:
            return _attempt(todo, Desk(replace(run, device=device), sources, report or _log_event))


def _attempt(stages: Sequence[Stage], desk: Any) -> dict[str, str]:
    """Runs stages together; where that fails, each method and checkpoint on its own: only the faulty one is lost."""
    if not stages:
        return {}
    began = time.time()
    try:
        _run(stages, desk)
        return {}
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as problem:  # noqa: BLE001 - the run border: recorded with its traceback, the others go on
        parts = _parts([s for s in stages if not desk.store.is_done(s.key)])
        if len(parts) <= 1:
            return _record_failure(list(chain(*parts)), desk, problem, time.time() - began)
    problems: dict[str, str] = {}
    for part in parts:
        problems.update(_attempt([s for s in part if not desk.store.is_done(s.key)], desk))
    return problems


def _parts(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Stages by method, or those of one method by the checkpoint they read: the smallest that can fail alone."""
    for key in (lambda s: (s.work["method"].label, s.work["method"].changed), lambda s: (s.work.get("role"),)):
        found: dict[tuple, list[Stage]] = {}
        for stage in stages:
            found.setdefault(key(stage), []).append(stage)
        if len(found) > 1:
            return list(found.values())
    return [list(stages)] if stages else []


def _run(stages: Sequence[Stage], desk: Any) -> None:
    from .score import run_scores
    from .stages import run_maps, run_train

    kind = stages[0].kind
    if kind == "train":
        for stage in stages:
            run_train(stage, desk)
    else:
        {"maps": run_maps, "score": run_scores}[kind](stages, desk)


def _record_failure(stages: Sequence[Stage], desk: Any, problem: Exception, seconds: float) -> dict[str, str]:
    error = str(problem) if isinstance(problem, BenchError) else f"{type(problem).__name__}: {problem}"
    for stage in stages:
        desk.store.fail(
            stage.key,
            {
                "kind": stage.kind,
                "labels": stage.labels,
                "error": error,
                "seconds": seconds,
                "traceback": "".join(traceback.format_exception(problem)),
            },
        )
        log.debug("stage %s failed", stage.key, exc_info=problem)
    return {s.key: error for s in stages}


def _settle_process(run: RunConfig, in_worker: bool) -> None:
    """Threads and signals of a process that does stages."""
    import torch

    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not run.deterministic  # sizes hardly change: the search for a kernel pays
    if in_worker:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers(run)))
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _log_event(event: dict[str, Any]) -> None:
    """Progress of a worker process, as plain lines."""
    from .progress import describe

    if line := describe(event):
        log.info("%s", line)
