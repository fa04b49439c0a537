"""Files that survive a crash: atomic writes, hashes, JSON, and arrays without pickles.

Reading any of them executes no code.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DamagedError

MAX_BYTES = 32 << 30  # of an npz unpacked; the maps of 100,000 training images take less than 1 GiB


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
    """Name of this machine or container, each of which numbers its processes by itself."""
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
