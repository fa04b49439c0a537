"""Decoded images: every file is decoded once, squashed to the sizes needed, and kept as uint8 on disk.

The arrays are shared by all folds, stages and processes. Masks live in files of their own, which only scoring opens,
and training of methods declared pixel-supervised.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from joblib import cpu_count

from ..datasets.base import Dataset, Item
from ..datasets.decode import decode_squashed, resize_mask
from .claims import exclusive
from .errors import BenchError
from .guard import reading_masks
from .pixelstore import Growth, PixelStore, Rows
from .store import Store, key_of

DECODER_VERSION = 1
FLUSH_SECONDS = 2.0  # what a process killed while decoding loses; the disk writes while the threads go on decoding

Decode = Callable[[Path, Sequence[int]], list[np.ndarray]]
Places = list[tuple["Growth", int]]


class Need(NamedTuple):
    """Arrays to have at hand: these rows at this size, images or masks."""

    items: tuple[Item, ...]
    size: int
    masks: bool = False


@dataclass(frozen=True)
class Frames:
    """Rows of a dataset with their decoded pixels, read from disk when indexed.

    images (N, S, S, 3) uint8; masks (N, P, P) bool or None.
    """

    items: tuple[Item, ...]
    images: Rows
    masks: Rows | None = None

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64."""
        return np.array([i.label for i in self.items], np.int64)

    @property
    def ids(self) -> list[str]:
        """Ids in row order."""
        return [i.id for i in self.items]


class ImageCache:
    """The decoded arrays of one dataset under `<results>/cache/images`."""

    def __init__(self, store: Store, dataset: Dataset, hashes: dict[str, str]) -> None:
        """`hashes`: SHA-256 of every file by path, so that a changed file never meets an old array."""
        self.store, self.dataset, self._hashes = store, dataset, hashes
        self.folder = store.cache_dir / "images"

    def _store(self, size: int, masks: bool) -> PixelStore:
        card = self.dataset.card
        rule = [DECODER_VERSION, card.name, card.version] if masks else [DECODER_VERSION, card.name.partition(":")[0]]
        stem = self.folder / f"{key_of(rule)[:12]}-{'masks' if masks else 'images'}-{size}"
        return PixelStore(stem, (size, size), np.bool_) if masks else PixelStore(stem, (size, size, 3), np.uint8)

    def prepare(self, needs: Sequence[Need]) -> None:
        """Makes the arrays that are missing, decoding each file once for all sizes.

        Whatever was decoded stays, so that an interrupted call goes on where it stopped. Raises BenchError listing
        the files that cannot be decoded.
        """
        with exclusive(self.store, "images"):
            self._build([n for n in needs if not n.masks], decode_squashed)
            with reading_masks():
                self._build([n for n in needs if n.masks], self._read_masks)

    def _read_masks(self, path: Path, sizes: Sequence[int]) -> list[np.ndarray]:
        with reading_masks():  # each in a thread of its own
            mask = self.dataset.read_mask(path)
        return [resize_mask(mask, size) for size in sizes]

    def _build(self, needs: Sequence[Need], decode: Decode) -> None:
        wanted: dict[tuple[int, bool], dict[str, Path]] = {}
        for need in needs:
            files = {self._digest(path): path for path in (_file(i, need) for i in need.items)}
            wanted.setdefault((need.size, need.masks), {}).update(files)
        growing: list[Growth] = []
        jobs: dict[str, tuple[Path, Places]] = {}
        for (size, masks), files in wanted.items():
            target = self._store(size, masks)
            known = target.known()
            fresh = {digest: path for digest, path in files.items() if digest not in known}
            if not fresh:
                continue
            growing.append(target.begin(list(fresh)))
            for digest, path in fresh.items():
                jobs.setdefault(digest, (path, []))[1].append((growing[-1], size))
        if bad := _decode_all(jobs, growing, decode):
            raise BenchError(_unreadable(bad, len(jobs)))

    def _digest(self, path: Path) -> str:
        return self._hashes[str(path)]

    def frames(self, items: Sequence[Item], size: int, mask_size: int = 0) -> Frames:
        """The rows of prepared arrays; with `mask_size`, their masks too (declared maskless: all background).

        Raises KeyError for a file whose present content was never prepared.
        """
        items = tuple(items)
        images = self._store(size, masks=False).rows([self._digest(i.image) for i in items])
        return Frames(items, images, self.masks(items, mask_size) if mask_size else None)

    def masks(self, items: Sequence[Item], size: int) -> Rows:
        """(N, size, size) bool in row order; zeros for the declared maskless."""
        found = self._store(size, masks=True).rows([self._digest(i.mask) if i.mask else None for i in items])
        return MaskRows(found.path, found.rows, found.item_shape, found.dtype)


class MaskRows(Rows):
    """Rows of a store of masks: nothing else opens it while a stage runs."""

    def _read(self, chosen: np.ndarray) -> np.ndarray:
        with reading_masks():
            return super()._read(chosen)

    def mapped(self) -> np.ndarray:
        """As of other rows."""
        with reading_masks():
            return super().mapped()


def mask_need(items: Sequence[Item], size: int) -> Need:
    """The need for the masks of those rows that have one."""
    return Need(tuple(i for i in items if i.mask is not None), size, masks=True)


def _file(item: Item, need: Need) -> Path:
    path = item.mask if need.masks else item.image
    if path is None:
        raise BenchError(f"Image '{item.id}' is declared maskless; its mask cannot be read.")
    return path


def _decode_all(jobs: Mapping[str, tuple[Path, Places]], growing: Sequence[Growth], decode: Decode) -> list[str]:
    """Decodes files in threads (Pillow works outside the interpreter's lock); returns what is wrong with the bad."""
    pool = ThreadPoolExecutor(max(1, min(cpu_count(), len(jobs))))
    bad: list[str] = []
    flushed = time.monotonic()
    try:
        todo = [pool.submit(_fill, path, digest, places, decode) for digest, (path, places) in jobs.items()]
        for done in as_completed(todo):
            if problem := done.result():
                bad.append(problem)
            if time.monotonic() - flushed >= FLUSH_SECONDS:
                for growth in growing:
                    growth.flush()
                flushed = time.monotonic()
    finally:
        # whatever ended the loop, Ctrl-C included: nobody writes any more, and what is whole is kept
        pool.shutdown(cancel_futures=True)
        for growth in growing:
            growth.commit()
    return sorted(bad)


def _fill(path: Path, digest: str, places: Places, decode: Decode) -> str:
    """Decodes one file into all its places; returns what is wrong with it, or nothing."""
    try:
        arrays = decode(path, [size for _, size in places])
    except BenchError as problem:
        return str(problem)
    for (growth, _), array in zip(places, arrays, strict=True):
        growth.put(digest, array)
    return ""


def _unreadable(bad: list[str], total: int) -> str:
    some = "\n  ".join(bad[:5])
    return f"{len(bad)} of {total} files cannot be read, the first:\n  {some}\nRestore them and run again."
