"""Equal arrays in one growing file, found by what they were made from: one copy for all folds, stages and processes.

A store is two files: `NAME.bin` holds the arrays one after the other, `NAME.idx` one line an array, the SHA-256 of the
file it was decoded from. Arrays are written and flushed before their lines, so that a line stands for a whole array
whatever happens in between; an array without a line is overwritten by the next call. Arrays stand in the order in
which they were written.
"""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_LINE = 65  # 64 hexadecimal digits and a line break


class StoredRows:
    """Rows of a store in a given order, read from the file when asked for: memory does not grow with their number.

    rows: (N,) int64 positions in the store; -1 stands for an array of zeros. Indexing with an integer, a slice or an
    array of integers gives numpy arrays of shape (…, *shape), which belong to the caller.
    """

    def __init__(self, path: Path, rows: np.ndarray, item_shape: tuple[int, ...], dtype: Any) -> None:
        self.path, self.rows, self.item_shape, self.dtype = (
            path,
            np.asarray(rows, np.int64),
            item_shape,
            np.dtype(dtype),
        )
        self.item_bytes = int(np.prod(item_shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *item_shape)."""
        return (len(self.rows), *self.item_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows together."""
        return len(self.rows) * self.item_bytes

    def __getitem__(self, key: Any) -> np.ndarray:
        chosen = self.rows[key]
        if chosen.ndim == 0:
            return self._read(chosen[None])[0]
        return self._read(chosen)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows of a store are read from disk, which is a copy")
        pixels = self._read(self.rows)
        return pixels if dtype is None else pixels.astype(dtype)

    def _read(self, chosen: np.ndarray) -> np.ndarray:
        pixels = np.zeros((len(chosen), *self.item_shape), self.dtype)
        if not pixels.size or chosen.max() < 0:
            return pixels
        flat = memoryview(pixels.reshape(-1).view(np.uint8).data)
        with self.path.open("rb", buffering=0) as handle:
            for start, stop in _runs(chosen):
                if chosen[start] >= 0:
                    part = flat[start * self.item_bytes : stop * self.item_bytes]
                    handle.seek(int(chosen[start]) * self.item_bytes)
                    _fill(handle, part, self.path)
        return pixels

    def mapped(self) -> np.ndarray:
        """The whole store as one read-only memory map, (M, *item_shape); index it with `rows`. Nothing is copied."""
        count = self.path.stat().st_size // self.item_bytes if self.path.is_file() else 0
        if not count:
            return np.zeros((0, *self.item_shape), self.dtype)
        return np.memmap(self.path, self.dtype, "r", shape=(count, *self.item_shape))


def _runs(chosen: np.ndarray) -> list[tuple[int, int]]:
    """Stretches of consecutive positions (or of -1), as slices of `chosen`."""
    step = np.diff(chosen)
    joined = np.where(chosen[1:] < 0, step == 0, (step == 1) & (chosen[:-1] >= 0))
    cuts = np.flatnonzero(~joined) + 1
    return list(zip([0, *cuts.tolist()], [*cuts.tolist(), len(chosen)], strict=True))


def _fill(handle: Any, part: memoryview, path: Path) -> None:
    done = 0
    while done < len(part):
        got = handle.readinto(part[done:])
        if not got:
            raise OSError(f"{path} ends in the middle of an array; delete the folder of decoded images")
        done += got


class PixelStore:
    """One store of arrays of one shape and type."""

    def __init__(self, stem: Path, item_shape: tuple[int, ...], dtype: Any) -> None:
        self.data, self.index = stem.with_name(f"{stem.name}.bin"), stem.with_name(f"{stem.name}.idx")
        self.item_shape, self.dtype = item_shape, np.dtype(dtype)
        self.item_bytes = int(np.prod(item_shape)) * self.dtype.itemsize

    def known(self) -> dict[str, int]:
        """SHA-256 -> position of every array that is there whole."""
        try:
            text = self.index.read_bytes()
        except FileNotFoundError:
            return {}
        there = self.data.stat().st_size // self.item_bytes if self.data.is_file() else 0
        return _known(text[: min(len(text) // _LINE, there) * _LINE])

    def rows(self, digests: Sequence[str | None]) -> StoredRows:
        """The rows of these files in this order, None for zeros. Raises KeyError for a file that is not decoded."""
        known = self.known()
        places = np.fromiter((-1 if d is None else known[d] for d in digests), np.int64, len(digests))
        return StoredRows(self.data, places, self.item_shape, self.dtype)

    def begin(self, digests: Sequence[str]) -> "StoreWriter":
        """Room for the arrays of files that are not in the store yet. The caller holds a lock and then commits."""
        self.data.parent.mkdir(parents=True, exist_ok=True)
        return StoreWriter(self, digests)


def _known(text: bytes) -> dict[str, int]:
    """Digest -> position, up to the first line that is none: what a damaged index says after it counts for nothing."""
    count = len(text) // _LINE
    if text.isascii() and text[_LINE - 1 :: _LINE] == b"\n" * count:
        positions = {digest.strip(): position for position, digest in enumerate(text.decode("ascii").split("\n")[:-1])}
        if len(positions) == count and "" not in positions:
            return positions
    positions = {}
    for position in range(count):
        line = text[position * _LINE : (position + 1) * _LINE]
        digest = line.strip().decode("ascii", "replace")
        if not line.isascii() or line.find(b"\n") != _LINE - 1 or not digest or digest in positions:
            break
        positions[digest] = position
    return positions


class StoreWriter:
    """Arrays being added; threads may `put` at the same time, in any order.

    What is written whole comes to stay with `flush` and `commit`; a process killed in between loses what came after
    the last of them, and nothing else.
    """

    def __init__(self, store: PixelStore, digests: Sequence[str]) -> None:
        self.store = store
        self._first = self._listed = len(store.known())  # arrays there before, and those with a line by now
        self._awaited = set(digests)
        self._put: list[str] = []  # by place, counted from the first
        self._unwritten: set[int] = set()  # places given away whose arrays are not whole, or never became so
        self._turn = threading.Condition()
        self._writers, self._closed = 0, False
        self._handle = os.open(store.data, os.O_RDWR | os.O_CREAT, 0o666)
        if store.index.is_file():
            # lines past the arrays (a data file that was cut short) go first: they would name what is now written there
            os.truncate(store.index, self._first * _LINE)
        os.ftruncate(self._handle, self._first * store.item_bytes)

    def put(self, digest: str, array: np.ndarray) -> None:
        """Writes one array. Raises KeyError for a file that was not announced or is there already."""
        store = self.store
        if array.shape != store.item_shape:
            raise ValueError(f"an array of shape {array.shape} cannot join a store of {store.item_shape}")
        data = memoryview(np.ascontiguousarray(array, store.dtype).reshape(-1).view(np.uint8).data)
        with self._turn:
            if self._closed:
                raise ValueError("the store no longer takes arrays: it was committed or abandoned")
            self._awaited.remove(digest)
            place = self._first + len(self._put)
            self._put.append(digest)
            self._unwritten.add(place)
            self._writers += 1
        done, whole = 0, False
        try:
            while done < len(data):
                done += os.pwrite(self._handle, data[done:], place * store.item_bytes + done)
            whole = True
        finally:
            with self._turn:
                self._writers -= 1
                if whole:
                    self._unwritten.remove(place)
                self._turn.notify_all()

    def flush(self) -> None:
        """Makes the arrays that are whole durable, then adds their lines to the index; others go on writing."""
        with self._turn:
            stop = min(self._unwritten, default=self._first + len(self._put))
            digests = self._put[self._listed - self._first : stop - self._first]
        if not digests:
            return
        os.fsync(self._handle)
        with self.store.index.open("ab") as handle:
            handle.truncate(self._listed * _LINE)
            handle.write(b"".join(f"{digest:>64}\n".encode("ascii") for digest in digests))
            handle.flush()
            os.fsync(handle.fileno())
        self._listed = stop

    def commit(self) -> None:
        """Keeps every array that is whole and closes the store to more."""
        self._close(self.flush)

    def abandon(self) -> None:
        """Leaves the store as the last `flush` left it, or as it was."""
        self._close(lambda: None)

    def _close(self, last: Callable[[], None]) -> None:
        """Waits for the arrays that are being written: their file must not be closed, and its number reused, before."""
        with self._turn:
            self._closed = True
            self._turn.wait_for(lambda: self._writers == 0)
        try:
            last()
            os.ftruncate(self._handle, self._listed * self.store.item_bytes)
        finally:
            os.close(self._handle)
