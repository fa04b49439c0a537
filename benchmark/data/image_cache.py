"""Decoded images: every file is decoded once, squashed to the sizes needed, and kept as uint8 on disk.

The arrays are shared by all folds, stages and processes. Masks live in files of their own, which only scoring opens,
and training of methods declared pixel-supervised.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from joblib import cpu_count

from ...datasets.base import Dataset, Item
from ...datasets.masks.decode import decode_squashed
from ...datasets.masks.reader import FOREGROUND, IGNORED, READER_VERSION, MaskRule
from ...datasets.masks.sizes import reduce_mask
from ..core.errors import BenchError
from ..core.files import canonical_json, key_of
from ..core.locks import exclusive
from ..core.mask_guard import reading_masks
from ..core.results_store import Store
from .mask_facts import StoredFacts, add_facts, read_facts
from .pixel_store import PixelStore, StoredRows, StoreWriter

DECODER_VERSION = 1
FLUSH_SECONDS = 2.0  # what a process killed while decoding loses; the disk writes while the threads go on decoding

Places = list[tuple["StoreWriter | None", int]]


class MaskForm(NamedTuple):
    """Form of stored masks: the side in px they are squashed to, and how (see datasets/masks/sizes.py)."""

    size: int
    reduction: str = "nearest"


class DecodeRequest(NamedTuple):
    """Arrays to have at hand: these rows at this size. Images, or with a way of reduction their masks."""

    items: tuple[Item, ...]
    size: int
    reduction: str = ""


@dataclass(frozen=True)
class ImageSplit:
    """Rows of a dataset with their decoded pixels, read from disk when indexed.

    images (N, S, S, 3) uint8; masks (N, P, P) bool, or uint8 codes where the dataset ignores pixels, or None.
    """

    items: tuple[Item, ...]
    images: StoredRows
    masks: StoredRows | None = None

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64."""
        return np.array([i.label for i in self.items], np.int64)

    @property
    def ids(self) -> list[str]:
        """Ids in row order."""
        return [i.id for i in self.items]


@dataclass
class _Job:
    """One file to decode: where each array of it goes (nowhere where only the facts of a mask are missing)."""

    item: Item
    places: Places


class ImageCache:
    """The decoded arrays of one dataset under `<results>/cache/images`."""

    def __init__(self, store: Store, dataset: Dataset, hashes: dict[str, str]) -> None:
        """`hashes`: SHA-256 of every file by path, so that a changed file never meets an old array."""
        self.store, self.dataset, self._hashes = store, dataset, hashes
        self.folder = store.cache_dir / "images"

    def _store(self, size: int, reduction: str = "") -> PixelStore:
        card, codes = self.dataset.card, self.dataset.ignores
        if not reduction:
            rule = [DECODER_VERSION, card.name.partition(":")[0]]
            stem = self.folder / f"{key_of(rule)[:12]}-images-{size}"
            return PixelStore(stem, (size, size, 3), np.uint8)
        rule = [DECODER_VERSION, READER_VERSION, card.name, card.version, reduction, codes]
        stem = self.folder / f"{key_of(rule)[:12]}-masks-{size}"
        return PixelStore(stem, (size, size), np.uint8 if codes else np.bool_)

    def prepare(self, needs: Sequence[DecodeRequest]) -> None:
        """Makes the arrays that are missing, decoding each file once for all sizes.

        Whatever was decoded stays, so that an interrupted call goes on where it stopped. Raises BenchError listing
        the files that cannot be decoded.
        """
        with exclusive(self.store.root, "images"):
            self._build_images([n for n in needs if not n.reduction])
            masks: dict[str, list[DecodeRequest]] = {}
            for need in needs:
                if need.reduction:
                    masks.setdefault(need.reduction, []).append(need)
            with reading_masks():
                for reduction, requests in masks.items():
                    self._build_masks(requests, reduction)

    def _build_images(self, needs: Sequence[DecodeRequest]) -> None:
        growing, jobs = self._jobs(needs, "", {})
        if bad := _decode_all(jobs, growing, lambda item, sizes: decode_squashed(item.image, sizes)):
            raise BenchError(_unreadable(bad, len(jobs)))

    def _build_masks(self, needs: Sequence[DecodeRequest], reduction: str) -> None:
        files = {n.size: facts_file(self._store(n.size, reduction)) for n in needs}
        known_facts = {size: read_facts(path) for size, path in files.items()}
        growing, jobs = self._jobs(needs, reduction, known_facts)
        fresh: dict[int, dict[str, StoredFacts]] = {size: {} for size in files}

        def decode(item: Item, sizes: Sequence[int]) -> list[np.ndarray]:
            with reading_masks():  # each in a thread of its own
                mask = self.dataset.read_mask(item)
            whole = mask.codes if self.dataset.ignores else mask.foreground
            arrays = [reduce_mask(whole, size, reduction) for size in sizes]
            for size, array in zip(sizes, arrays, strict=True):
                left, out = (int(np.count_nonzero(array == code)) for code in (FOREGROUND, IGNORED))
                fresh[size][self._mask_digest(item)] = StoredFacts(mask.facts, left, out)
            return arrays

        try:
            bad = _decode_all(jobs, growing, decode)
        finally:
            for size, facts in fresh.items():
                add_facts(files[size], facts)
        if bad:
            raise BenchError(_unreadable(bad, len(jobs)))

    def _jobs(
        self, needs: Sequence[DecodeRequest], reduction: str, facts: Mapping[int, Collection[str]]
    ) -> tuple[list[StoreWriter], dict[str, _Job]]:
        """Files to be decoded. facts: for masks, the digests whose facts are known, by size."""
        wanted: dict[int, dict[str, Item]] = {}
        for need in needs:
            digest = self._mask_digest if reduction else self._image_digest
            wanted.setdefault(need.size, {}).update({digest(i): i for i in need.items})
        growing: list[StoreWriter] = []
        jobs: dict[str, _Job] = {}
        for size, files in wanted.items():
            target = self._store(size, reduction)
            known = target.known()
            fresh = [d for d in files if d not in known]
            untold = [d for d in files if d in known and size in facts and d not in facts[size]]
            growth = target.begin(fresh) if fresh else None
            growing += [growth] if growth else []
            for digest, place in [*((d, growth) for d in fresh), *((d, None) for d in untold)]:
                jobs.setdefault(digest, _Job(files[digest], [])).places.append((place, size))
        return growing, jobs

    def _digest(self, path: Path) -> str:
        return self._hashes[str(path)]

    def _image_digest(self, item: Item) -> str:
        return self._digest(item.image)

    def _mask_digest(self, item: Item) -> str:
        """Of the file and of what its numbers mean."""
        if item.mask is None:
            raise BenchError(f"Image '{item.id}' is declared maskless; its mask cannot be read.")
        rule = _rule_text(item.mask_rule or self.dataset.card.mask_rule)
        return hashlib.sha256(f"{self._digest(item.mask)} {rule}".encode()).hexdigest()

    def frames(self, items: Sequence[Item], size: int, masks: MaskForm | None = None) -> ImageSplit:
        """The rows of prepared arrays; with a form, their masks too (declared maskless: all background).

        Raises KeyError for a file whose present content was never prepared.
        """
        items = tuple(items)
        images = self._store(size).rows([self._image_digest(i) for i in items])
        return ImageSplit(items, images, self.masks(items, masks) if masks else None)

    def masks(self, items: Sequence[Item], form: MaskForm) -> StoredRows:
        """(N, size, size) bool or codes in row order; zeros for the declared maskless."""
        digests = [self._mask_digest(i) if i.mask else None for i in items]
        stored = self._store(*form).rows(digests)
        return MaskRows(stored.path, stored.rows, stored.item_shape, stored.dtype)

    def mask_facts(self, items: Sequence[Item], form: MaskForm) -> list[StoredFacts]:
        """Facts of the masks of these rows, which all have one. Raises KeyError where one is not prepared."""
        with reading_masks():
            facts = read_facts(facts_file(self._store(*form)))
        return [facts[self._mask_digest(i)] for i in items]


@functools.lru_cache(maxsize=256)
def _rule_text(rule: MaskRule) -> str:
    return canonical_json(rule.identity())


class MaskRows(StoredRows):
    """Rows of a store of masks: nothing else opens it while a stage runs."""

    def _read(self, chosen: np.ndarray) -> np.ndarray:
        with reading_masks():
            return super()._read(chosen)

    def mapped(self) -> np.ndarray:
        """The whole store as one memory map, opened as a reader of masks."""
        with reading_masks():
            return super().mapped()


def mask_request(items: Sequence[Item], size: int, reduction: str = "nearest") -> DecodeRequest:
    """The need for the masks of those rows that have one."""
    return DecodeRequest(tuple(i for i in items if i.mask is not None), size, reduction)


def facts_file(store: PixelStore) -> Path:
    """Path of the facts of a store of masks."""
    return store.data.with_suffix(".facts")


Decode = Callable[[Item, Sequence[int]], list[np.ndarray]]


def _decode_all(jobs: Mapping[str, _Job], growing: Sequence[StoreWriter], decode: Decode) -> list[str]:
    """Decodes files in threads (Pillow works outside the interpreter's lock); returns what is wrong with the bad."""
    if not jobs:
        return []
    pool = ThreadPoolExecutor(max(1, min(cpu_count(), len(jobs))))
    bad: list[str] = []
    flushed = time.monotonic()
    try:
        todo = [pool.submit(_fill, digest, job, decode) for digest, job in jobs.items()]
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


def _fill(digest: str, job: _Job, decode: Decode) -> str:
    """Decodes one file into all its places; returns what is wrong with it, or nothing."""
    try:
        arrays = decode(job.item, [size for _, size in job.places])
    except BenchError as problem:
        return str(problem)
    for (growth, _), array in zip(job.places, arrays, strict=True):
        if growth is not None:
            growth.put(digest, array)
    return ""


def _unreadable(bad: list[str], total: int) -> str:
    some = "\n  ".join(bad[:5])
    return f"{len(bad)} of {total} files cannot be read, the first:\n  {some}\nMend or restore them and run again."
