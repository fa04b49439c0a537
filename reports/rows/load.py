"""One row of the table per finished score: read from records and histograms alone, undefined is NaN."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ...benchmark.core.errors import BenchError
from ...benchmark.core.results_store import Store
from ..statistics.quality import ClassResult, DamageError, StoredMaps
from .findings import Findings
from .measures import UNUSABLE, EvidenceOf
from .pooling import foldwise
from .reader import Reader
from .row import USUAL, Row
from .stored import ignored_words, read_stored

__all__ = ["ClassResult", "Findings", "Row", "StoredMaps", "collect", "load_report_rows", "load_rows", "need_rows"]

log = logging.getLogger(__name__)


def load_rows(store: Store, keys: Iterable[str] | None = None) -> list[Row]:
    """The rows of a results folder, or of some of its score stages, sorted; warns about each row left out.

    A row is left out, never guessed, when its record, its arrays or a parent record are missing, damaged or old.
    """
    findings = collect(store, keys)
    for problem in findings.problems:
        log.warning("%s", problem)
    return findings.rows


def load_report_rows(store: Store) -> list[Row]:
    """All rows, as `load_rows`, writing nothing. Raises BenchError if there is none, saying what to do."""
    findings = collect(store, keep=False)
    for problem in findings.problems:
        log.warning("%s", problem)
    need_rows(findings, store)
    return findings.rows


def collect(store: Store, keys: Iterable[str] | None = None, keep: bool = True) -> Findings:
    """Rows, and beside them what figures and the page need.

    keep: whether numbers worked out here may be kept in the results folder for the next time.
    """
    stored = read_stored(store)
    findings = Findings(records=stored.records, failures=stored.failures, evidence=EvidenceOf(store))
    findings.problems += ignored_words(stored)
    wanted = findings.records if keys is None else set(keys)
    scores = {k: r for k, r in findings.records.items() if r.get("kind") == "score" and k in wanted}
    reader = Reader(store, findings)
    reader.prepare(scores)
    for key, record in scores.items():
        try:
            if record["labels"]["split"] == "test":
                findings.rows += list(reader.rows(key, record))
        except DamageError as problem:
            findings.problems.append(f"A row is left out: {problem} Run the same `bench run` again.")
        except UNUSABLE as problem:
            what = f"{type(problem).__name__}: {problem}"
            path = store.run_dir(key) / "record.json"
            findings.problems.append(f"A row is left out: {path} or a record it builds on lacks something ({what}).")
    findings.rows += list(reader.pool(foldwise(findings.rows)))
    if keep:
        reader.measures.keep(findings.records)
    findings.rows = sorted(with_drops(findings.rows), key=sort_key)
    return findings


def with_drops(rows: Iterable[Row]) -> list[Row]:
    """The rows in their order; each out-of-domain row gets its `drop_*` against the in-domain row of its checkpoint."""
    rows = list(rows)
    at_home = {_checkpoint(r): r for r in rows if not r.ood}
    return [_dropped(r, at_home[_checkpoint(r)]) if r.ood and _checkpoint(r) in at_home else r for r in rows]


def _dropped(row: Row, home: Row) -> Row:
    names = ("pxap", "skill", "accuracy")
    return replace(row, **{f"drop_{n}": getattr(home, n) - getattr(row, n) for n in names})


def _checkpoint(row: Row) -> tuple[Any, ...]:
    """What a row has in common with the rows of the same model, map and rules on other sets."""
    # options say to which target a model was adapted, but for the rows on that target; settings hold all of them
    what = (row.method, row.settings, row.map_class, row.gated, row.selection, row.protocol)
    return (row.train, row.backbone, row.stage_train, str(row.fold), row.seed, bool(row.pooled_of), *what)


def sort_key(row: Row) -> tuple[Any, ...]:
    """Evaluation set, protocol, then what the row is; folds by number where they are numbers."""
    fold = (isinstance(row.fold, str), row.fold if isinstance(row.fold, int) else 0, str(row.fold))
    what = (row.method, row.options, row.settings, row.map_class, row.gated, row.selection)
    return (
        row.dataset,
        row.shift,
        row.level,
        row.eval,
        row.scheme not in USUAL,
        row.scheme,
        row.protocol,
        row.synthetic,
        row.train,
        row.backbone,
        *what,
        fold,
        row.seed,
        len(row.pooled_of),
        row.stage,
    )


def need_rows(found: Findings, store: Store) -> None:
    """Raises BenchError when there is nothing to report, saying what to do."""
    if found.rows:
        return
    if not (store.root / "runs").is_dir():
        raise BenchError(f"{store.root} holds no results. Give the folder of a `bench run` with --results, or run one.")
    reason = " ".join(found.problems[:3])
    if found.unfinished:
        counts = Counter(u.status for u in found.unfinished)
        what = " and ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        reason += f" Of what was begun, {what}: `bench status --results {store.root}` says why."
    raise BenchError(f"{store.root} has no finished row yet. Run the same `bench run` again. {reason}".rstrip())
