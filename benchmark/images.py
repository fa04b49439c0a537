"""Decoded images: every file is decoded once, squashed to the sizes needed, and kept as uint8 in memory-mapped files.

The arrays are shared by all stages and processes. Masks live in files of their own, which only scoring opens, and
training of methods declared pixel-supervised.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed

from ..datasets.base import Dataset, Item
from ..datasets.decode import decode_image, resize_image, resize_mask
from .errors import BenchError
from .store import Store, atomic_path, key_of

DECODER_VERSION = 1


class Need(NamedTuple):
    """Arrays to have at hand: these rows at this size, images or masks."""

    items: tuple[Item, ...]
    size: int
    masks: bool = False


@dataclass(frozen=True)
class Frames:
    """Rows of a dataset with their decoded pixels. images (N, S, S, 3) uint8; masks (N, P, P) bool or None."""

    items: tuple[Item, ...]
    images: np.ndarray
    masks: np.ndarray | None = None

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

    def _path(self, need: Need) -> Path:
        files = [(i.id, self._hashes[str(self._file(i, need))]) for i in need.items]
        what = "masks" if need.masks else "images"
        key = key_of([DECODER_VERSION, self.dataset.card.name, files, need.size])
        return self.folder / f"{key}-{what}-{need.size}.npy"

    def prepare(self, needs: Sequence[Need]) -> None:
        """Makes the arrays that are missing, decoding each file once for all sizes.

        Raises BenchError listing the images that cannot be decoded, before anything is written under their name.
        """
        with self.store.lock("images"):
            todo = [n for n in needs if n.items and not self._path(n).is_file()]
            self._build([n for n in todo if not n.masks], decode_image, resize_image)
            self._build([n for n in todo if n.masks], self.dataset.read_mask, resize_mask)

    def _build(self, needs: Sequence[Need], decode: Callable, resize: Callable) -> None:
        if not needs:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        files = {self._file(i, n): None for n in needs for i in n.items}
        places: dict[Path, list[tuple[np.memmap, int, int]]] = {f: [] for f in files}
        building = []
        for need in needs:
            context = atomic_path(self._path(need))
            temporary = context.__enter__()
            array = self._empty(temporary, need)
            building.append((context, array))
            for row, item in enumerate(need.items):
                places[self._file(item, need)].append((array, row, need.size))
        jobs = (delayed(_fill)(f, p, decode, resize) for f, p in places.items())
        bad = [str(p) for p in Parallel(n_jobs=-1, prefer="threads")(jobs) if p]
        error = BenchError(_unreadable(bad, len(files))) if bad else None
        for context, array in building:
            array.flush()
            if error:
                context.__exit__(BenchError, error, None)
            else:
                context.__exit__(None, None, None)
        if error:
            raise error

    @staticmethod
    def _file(item: Item, need: Need) -> Path:
        path = item.mask if need.masks else item.image
        if path is None:
            raise BenchError(f"Image '{item.id}' is declared maskless; its mask cannot be read.")
        return path

    @staticmethod
    def _empty(path: Path, need: Need) -> np.memmap:
        shape = (len(need.items), need.size, need.size) + (() if need.masks else (3,))
        return np.lib.format.open_memmap(path, "w+", np.bool_ if need.masks else np.uint8, shape)

    def frames(self, items: Sequence[Item], size: int, mask_size: int = 0) -> Frames:
        """The rows of prepared arrays; with `mask_size`, their masks too (declared maskless: all background)."""
        items = tuple(items)
        images = np.load(self._path(Need(items, size)), mmap_mode="r", allow_pickle=False)
        return Frames(items, images, self.masks(items, mask_size) if mask_size else None)

    def masks(self, items: Sequence[Item], size: int) -> np.ndarray:
        """(N, size, size) bool in row order."""
        have = tuple(i for i in items if i.mask is not None)
        if not have:
            return np.zeros((len(items), size, size), np.bool_)
        stored = np.load(self._path(Need(have, size, masks=True)), mmap_mode="r", allow_pickle=False)
        if len(have) == len(items):
            return stored
        masks = np.zeros((len(items), size, size), np.bool_)
        masks[[k for k, i in enumerate(items) if i.mask is not None]] = stored
        return masks


def mask_need(items: Sequence[Item], size: int) -> Need:
    """The need for the masks of those rows that have one."""
    return Need(tuple(i for i in items if i.mask is not None), size, masks=True)


def _fill(path: Path, places: list, decode: Callable, resize: Callable) -> str:
    """Decodes one file into all its places; returns what is wrong with it, or nothing."""
    try:
        array = decode(path)
    except BenchError as problem:
        return str(problem)
    for target, row, size in places:
        target[row] = resize(array, size)
    return ""


def _unreadable(bad: list[str], total: int) -> str:
    some = "\n  ".join(bad[:5])
    return f"{len(bad)} of {total} files cannot be read, the first:\n  {some}\nRestore them and run again."
