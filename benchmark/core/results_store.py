"""Files that survive a crash: atomic writes, locks, stage folders whose record is written last.

A stage folder `runs/<key>/` counts only if it holds `record.json`. Arrays are npz without pickles, weights are
safetensors, so reading a results folder executes no code.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from .errors import BenchError, DamagedError

SCHEMA = 1
MAX_BYTES = 32 << 30  # of an npz unpacked; the maps of 100,000 training images take less than 1 GiB
RECORD, FAILURE = "record.json", "failure.json"
WEIGHTS_SEEN = "weights_seen.json"


def canonical_json(value: object) -> str:
    """One text per value: sorted keys, no blanks, shortest floats. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def key_of(value: object) -> str:
    """The 20-digit hexadecimal key of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and takes the name, else removed.

    What a killed process left half written in this folder goes first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path.parent, os.getpid())
    prefix = f".{path.name}.{_machine()}-{os.getpid()}-"
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    """What tells apart the machines, and containers, that number their processes by themselves."""
    space = ""
    with contextlib.suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{zlib.crc32(f'{platform.node()} {space}'.encode()):08x}"


@functools.cache  # once a process and folder: some folders hold a hundred thousand files
def _clear(folder: Path, process: int) -> None:
    """Removes the temporary files of processes of this machine that are dead; those of others are left alone."""
    if os.name == "nt":  # where asking whether a process lives would end it
        return
    for path in folder.glob(f".*.{_machine()}-*-*.tmp"):
        number = path.name.rsplit("-", 2)[-2]
        if number.isdecimal() and not _lives(int(number)):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself durable; systems that cannot open a folder (Windows) need no such step."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON atomically; NaN and infinities become null (the readers turn null into NaN again)."""
    write_text(path, json.dumps(jsonable(value), indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises DamagedError naming the file if it cannot be parsed."""
    try:
        with open(path, "rb", buffering=0) as handle:  # noqa: PTH123 - half the time, and a matrix has thousands
            return json.loads(handle.read().decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise DamagedError(path, f"is damaged ({problem})") from None


def jsonable(value: Any) -> Any:
    """A copy that JSON can hold: text keys, tuples as lists, numpy scalars as numbers, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays atomically, compressed; object arrays are refused because they would need pickle."""
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"array '{name}' holds Python objects; store numbers or fixed-width text")
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(handle, **arrays)  # pyright: ignore[reportArgumentType]


def read_npz(path: Path, names: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Reads some arrays of an npz file, without `names` all of them.

    Raises DamagedError naming the file if it is missing, damaged or holds pickles, and KeyError for an array that it
    does not hold.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            if (size := sum(member.file_size for member in data.zip.infolist())) > MAX_BYTES:
                raise DamagedError(path, f"unpacks to {size / 1e9:.1f} GB, more than anything that is stored here")
            return {name: data[name] for name in names or data.files}
    except FileNotFoundError:
        raise DamagedError(path, "is missing") from None
    except (KeyError, OSError, DamagedError):
        raise
    except Exception as problem:  # damage may surface as anything: zip, zlib, struct, memory, header
        raise DamagedError(path, f"is damaged ({problem})") from problem


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
        """Those of some stages that have their completion record."""
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
        found = {}
        for key in self._folders():
            with contextlib.suppress(BenchError):  # told of where it matters: `unreadable`, and the reports
                found[key] = self.record(key)
        return found

    def failures(self) -> dict[str, dict[str, Any]]:
        """The last failure of every stage that failed and was not finished since."""
        found = {}
        for key in self._folders():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                failure = read_json(self.run_dir(key) / FAILURE)
                if not self.is_done(key):
                    found[key] = failure
        return found

    def unreadable(self, keys: Iterable[str]) -> dict[str, str]:
        """Those of some finished stages whose record cannot be used, and why."""
        found = {}
        for key in sorted(keys):
            try:
                self.record(key)
            except DamagedError as problem:
                found[key] = str(problem)
        return found

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

    def note_weights_seen(self, found: Mapping[str, Sequence[str]]) -> None:
        """Keeps what starting weights are declared to have seen, in place of what was kept."""
        write_json(self.root / WEIGHTS_SEEN, found)

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
