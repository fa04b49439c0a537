"""What of a results folder can be read, and what cannot: records of another schema, and damaged ones."""

import contextlib
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ...benchmark.core.errors import BenchError
from ...benchmark.core.files import read_json
from ...benchmark.core.results_store import FAILURE, RECORD, SCHEMA, Store

Note = dict[str, Any]
T = TypeVar("T")
_PLAIN: dict[Any, tuple[type, ...]] = {str: (str,), int: (int,), bool: (bool,), float: (int, float)}
_SHAPE = {
    "kind": str, "labels": dict, "identity": dict, "parents": dict, "environment": dict,
    "seconds": int | float | None,
}  # fmt: skip


@dataclass
class Stored:
    """The stages of a results folder by key.

    records: finished stages. failures: the last failure of stages that did not finish since. ignored: why a stage with
    a record or a failure is neither, in words.
    """

    records: dict[str, Note] = field(default_factory=dict)
    failures: dict[str, Note] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    old: int = 0  # how many of the ignored are of another schema


def read_stored(store: Store) -> Stored:
    """Reads every record once. What is damaged or of another schema is told in `ignored` and never mixed in."""
    stored = Stored()
    for key in _folders(store):
        finished = _add(stored, stored.records, key, store.run_dir(key) / RECORD)
        if not finished:
            _add(stored, stored.failures, key, store.run_dir(key) / FAILURE)
    return stored


def _add(found: Stored, notes: dict[str, Note], key: str, path: Path) -> bool:
    """Reads one file into `notes`; returns whether it is there."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        try:
            note = read_json(path)
        except (BenchError, RecursionError, MemoryError):
            found.ignored[key] = f"{path} is damaged"
            return True
        if not isinstance(note, dict):
            found.ignored[key] = f"{path} is damaged"
        elif note.get("schema") != SCHEMA:
            found.ignored[key] = f"old schema ({note.get('schema', 'none')} instead of {SCHEMA}), ignored"
            found.old += 1
        elif path.name == RECORD and (field := _misshapen(note)):
            found.ignored[key] = f"{path} is damaged (its '{field}')"
        else:
            notes[key] = note
        return True
    return False


def _misshapen(record: Note) -> str:
    """The first field of a completion record that nothing of ours writes like that; empty for a sound one."""
    for name, kind in _SHAPE.items():
        if not isinstance(record.get(name), kind):
            return name
    parents = record["parents"]
    texts = all(isinstance(v, str) for v in parents.values())
    return "" if texts and isinstance(record.get("facts", {}), dict) else "parents" if not texts else "facts"


def typed(row: T) -> T:
    """A dataclass whose plain fields (text, numbers, flags) hold what they say. Raises TypeError naming one if not."""
    for one in fields(row):  # pyright: ignore[reportArgumentType]
        kinds = _PLAIN.get(one.type)
        if kinds and not isinstance(getattr(row, one.name), kinds):
            raise TypeError(f"{one.name} is {getattr(row, one.name)!r}")
    return row


def _folders(store: Store) -> list[str]:
    try:
        return sorted(os.listdir(store.root / "runs"))  # noqa: PTH208 - names, not paths
    except (FileNotFoundError, NotADirectoryError):
        return []


def ignored_words(found: Stored) -> list[str]:
    """What a reader must know of the stages that were ignored: one sentence on old ones, one for each damaged one."""
    notes = []
    if found.old:
        notes.append(
            f"{found.old} stages were stored under another schema than {SCHEMA}: old schema, ignored. The same "
            "`bench run` does them again; `bench status` names them."
        )
    return notes + [f"{why}: run the same `bench run` again." for why in found.ignored.values() if "damaged" in why]
