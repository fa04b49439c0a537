"""The results folder: one folder a stage, whose completion record is written last.

A stage folder `runs/<key>/` counts only if it holds `record.json`.
"""

import contextlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from .errors import BenchError, DamagedError
from .files import key_of, read_json, write_json

SCHEMA = 1
RECORD, FAILURE = "record.json", "failure.json"
WEIGHTS_SEEN = "weights_seen.json"


class Store:
    """A results folder: `runs/<key>/` per stage, `cache/` for what can be made again, `report/` for pages."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run_dir(self, key: str) -> Path:
        """The folder of a stage, existing or not."""
        return self.root / "runs" / key

    @property
    def cache_dir(self) -> Path:
        """Decoded images, hashes of files, thumbnails: safe to delete."""
        return self.root / "cache"

    def lock(self, key: str, timeout: float = -1) -> FileLock:
        """The lock of a stage; it vanishes with its owner, so a killed process leaves none behind."""
        path = self.root / "locks" / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, timeout=timeout)

    def is_done(self, key: str) -> bool:
        """Whether the stage has its completion record."""
        return os.path.isfile(f"{self.root}/runs/{key}/{RECORD}")  # noqa: PTH113 - Path takes three times as long

    def done(self, keys: Iterable[str]) -> set[str]:
        """Keys of some stages that have their completion record."""
        begun = set(self._folders())  # one listing spares asking for all that was never begun
        return {key for key in keys if key in begun and self.is_done(key)}

    def _folders(self) -> list[str]:
        """The keys that have a folder, sorted."""
        try:
            return sorted(os.listdir(self.root / "runs"))  # noqa: PTH208 - names, not paths
        except (FileNotFoundError, NotADirectoryError):
            return []

    def record(self, key: str) -> dict[str, Any]:
        """The completion record of a stage. Raises DamagedError if it is missing, damaged or of another schema."""
        path = self.run_dir(key) / RECORD
        if not path.is_file():
            raise DamagedError(path, f"does not exist: stage {key} is not finished")
        record = read_json(path)
        schema = record.get("schema") if isinstance(record, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise BenchError(
                f"{path} was written by a newer wsolbench (schema {schema}, here {SCHEMA}). Update this one."
            )
        if schema != SCHEMA or record.get("key") != key:
            raise DamagedError(path, f"has the schema {schema!r} of another version, or belongs to another stage")
        return record

    def records(self) -> dict[str, dict[str, Any]]:
        """All completion records of this schema by stage key; others, and damaged ones, are left out."""
        records = {}
        for key in self._folders():
            with contextlib.suppress(BenchError):  # told of where it matters: `unreadable`, and the reports
                records[key] = self.record(key)
        return records

    def failures(self) -> dict[str, dict[str, Any]]:
        """The last failure of every stage that failed and was not finished since."""
        failures = {}
        for key in self._folders():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                failure = read_json(self.run_dir(key) / FAILURE)
                if not self.is_done(key):
                    failures[key] = failure
        return failures

    def unreadable(self, keys: Iterable[str]) -> dict[str, str]:
        """Finished stages of these whose record cannot be used, by key, with the reason."""
        reasons = {}
        for key in sorted(keys):
            try:
                self.record(key)
            except DamagedError as problem:
                reasons[key] = str(problem)
        return reasons

    def stamp(self, key: str) -> tuple[int, int]:
        """Time and size of a stage's record, zeros without one: whether it is still the one that was looked at."""
        try:
            status = (self.run_dir(key) / RECORD).stat()
        except FileNotFoundError:
            return 0, 0
        return status.st_mtime_ns, status.st_size

    def finish(self, key: str, record: Mapping[str, Any]) -> None:
        """Writes the completion record; call it after everything else of the stage is on disk."""
        worker = {"host": platform.node(), "pid": os.getpid()}
        write_json(self.run_dir(key) / RECORD, {"schema": SCHEMA, "key": key, "worker": worker, **record})
        (self.run_dir(key) / FAILURE).unlink(missing_ok=True)

    def note_plan(self, command: str, rows: Sequence[str], stages: Iterable[str]) -> None:
        """Notes what a command asked for, so that `bench clean` knows which stages somebody's plan refers to."""
        name = key_of([list(rows)])
        plan = {"schema": SCHEMA, "command": command, "rows": list(rows), "stages": list(stages), "time": time.time()}
        write_json(self.root / "plans" / f"{name}.json", plan)

    def weights_seen(self) -> dict[str, list[str]]:
        """Which sets and splits starting weights are declared to have seen, by hash or tag of the weights."""
        path = self.root / WEIGHTS_SEEN
        return read_json(path) if path.is_file() else {}

    def note_weights_seen(self, weights_seen: Mapping[str, Sequence[str]]) -> None:
        """Keeps what starting weights are declared to have seen, in place of what was kept."""
        write_json(self.root / WEIGHTS_SEEN, weights_seen)

    def fail(self, key: str, failure: Mapping[str, Any]) -> None:
        """Notes why a stage failed; a failed stage is never counted and is tried again by the next run."""
        write_json(self.run_dir(key) / FAILURE, {"schema": SCHEMA, "key": key, **failure})

    def check_writable(self) -> None:
        """Raises BenchError unless files can be made in the results folder, or the folder itself; makes neither."""
        there = next(p for p in (self.root, *self.root.absolute().parents) if p.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as problem:
            raise BenchError(
                f"The results folder {self.root} cannot be written ({problem.strerror}). "
                "Choose another with --results or mend its permissions."
            ) from None

    def remove(self, key: str) -> None:
        """Deletes a stage's folder, record first, so that half of it is never counted.

        Where others may be at work, the caller holds the stage's claim and has looked again under it.
        """
        (self.run_dir(key) / RECORD).unlink(missing_ok=True)
        shutil.rmtree(self.run_dir(key), ignore_errors=True)
