"""Datasets opened by name or CSV file, and the hashes of content and splits that identify their rows."""

import functools
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ..benchmark.core.errors import BenchError, did_you_mean
from ..benchmark.core.files import file_sha256, key_of, write_json
from . import DATASETS
from .base import SPLITS, Dataset, Item, Manifest
from .masks.decode import decode_image, image_size
from .masks.reader import MaskPixels, mask_size

log = logging.getLogger(__name__)
INDEX_VERSION = 1
MaskReader = Callable[[Item], MaskPixels]
Measure = Callable[[Path], tuple[int, int]]  # file -> height and width in px
HASH_FILE = "file-hashes.json"  # the usual name of the index, in the cache of a results folder


class FileFacts(NamedTuple):
    """SHA-256 of a file and the height and width in px of the image or mask in it."""

    sha256: str
    height: int
    width: int


class BadFile(NamedTuple):
    """A file that cannot be used, and why."""

    path: Path
    reason: str


def open_dataset(name_or_csv: str, data_root: Path) -> Dataset:
    """The dataset of a registered name (`name:variant` allowed), or of a CSV manifest by its path, which ends in .csv.

    Raises BenchError for an unknown name or variant, with the nearest ones, and for a CSV file that is gone or wrong.
    """
    if name_or_csv.lower().endswith(".csv"):
        from .csv_manifest import CsvDataset

        return CsvDataset(Path(name_or_csv), data_root)
    entry = DATASETS.entry(name_or_csv)
    base, _, variant = name_or_csv.partition(":")
    dataset = DATASETS.load(name_or_csv)
    if not variant or entry.name == name_or_csv:
        return dataset(data_root)
    if variant not in dataset.variants:
        known = ", ".join(dataset.variants) or "none"
        raise BenchError(
            f"Dataset '{base}' has no variant '{variant}' (it has: {known}).{did_you_mean(variant, dataset.variants)}"
        )
    return dataset(data_root, variant)


def content_hashes(manifest: Manifest, cache_file: Path) -> dict[Path, FileFacts]:
    """Facts of every file of a manifest. A file not in the index, or changed, is hashed, and its header read.

    The index at `cache_file` maps path, size and modification time to the facts, so a second call only asks for the
    status of each file. Raises BenchError listing the first files whose header shows that they cannot be used; damage
    behind the header is found by whoever decodes the pixels (the image cache before a training, `bench data verify`).
    """
    facts, bad = scan_files(manifest.items, cache_file)
    if bad:
        raise bad_files_error(f"{manifest.card.name}, fold {manifest.fold}", bad, len(facts) + len(bad))
    return facts


def scan_files(
    items: Iterable[Item], cache_file: Path, decode: MaskReader | None = None
) -> tuple[dict[Path, FileFacts], list[BadFile]]:
    """As `content_hashes`, but returns the files that cannot be used instead of raising.

    `decode`: the dataset's mask reader; given it, every file is decoded to its last pixel, known or not.
    """
    measures: dict[Path, Measure] = {}
    for item in items:
        measures[item.image] = _decoded_image if decode else image_size
        if item.mask is not None:
            measures[item.mask] = _decoded_mask(decode, item) if decode else mask_size
    index = {} if decode else _read_index(cache_file)
    facts: dict[Path, FileFacts] = {}
    bad: list[BadFile] = []
    fresh: dict[str, list[Any]] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looked_up = pool.map(lambda p: _look_up(p, measures[p], index), measures)
        for path, (status, measured) in zip(measures, looked_up, strict=True):
            if isinstance(measured, BadFile):
                bad.append(measured)
                continue
            facts[path] = measured
            if str(path.absolute()) not in index or index[str(path.absolute())][:2] != status:
                fresh[str(path.absolute())] = [*status, *measured]
    if fresh:
        write_json(cache_file, {"version": INDEX_VERSION, "files": {**_read_index(cache_file), **fresh}})
    return facts, bad


def bad_files_error(where: str, bad: Collection[BadFile], of: int) -> BenchError:
    """One error for all files that cannot be used: how many, and the first five with the reason of each."""
    some = "\n  ".join(b.reason for b in list(bad)[:5])
    return BenchError(f"{where}: {len(bad)} of {of} files cannot be used, the first:\n  {some}")


def manifest_identity(
    manifest: Manifest, facts: Mapping[Path, FileFacts], splits: Collection[str] = SPLITS
) -> dict[str, Any]:
    """What makes two manifests the same for the rows of `splits`, as a JSON value; where the files lie plays no part.

    `split` hashes (id, label, group, split, pixel_val) and `content` hashes (id, image, mask) over the sorted rows, a
    row with a mask rule of its own adding that. `masks` is what the numbers in the masks mean.
    Masks count even in `train`, so altered masks change the key of methods that never read them: safe, if strict.
    """
    if unknown := set(splits) - set(SPLITS):
        raise ValueError(f"unknown splits {sorted(unknown)}")
    rows = sorted((i for i in manifest.items if i.split in splits), key=lambda i: i.id)
    division = [[i.id, i.label, i.group, i.split, i.pixel_val] for i in rows]
    content = [
        [
            i.id,
            facts[i.image].sha256,
            facts[i.mask].sha256 if i.mask else None,
            *([i.mask_rule.identity()] if i.mask_rule else []),
        ]
        for i in rows
    ]
    return {
        "name": manifest.card.name,
        "version": manifest.card.version,
        "classes": list(manifest.card.classes),
        "positive": manifest.card.positive_class,
        "regions": list(manifest.card.region_classes),
        "masks": manifest.card.mask_rule.identity(),
        "fold": manifest.fold,
        "synthetic": manifest.synthetic,
        "splits": [s for s in SPLITS if s in splits],
        "images": len(rows),
        "split": key_of(division),
        "content": key_of(content),
    }


def _read_index(cache_file: Path) -> dict[str, list[Any]]:
    """The index; a missing or damaged one, or one of another version, is empty, for it can always be made again."""
    try:
        index = json.loads(cache_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    version = index.get("version") if isinstance(index, dict) else None
    if isinstance(version, int | str) and version != INDEX_VERSION:
        _tell_old(cache_file, version)
    if version != INDEX_VERSION or not isinstance(index.get("files"), dict):
        return {}
    return {path: entry for path, entry in index["files"].items() if isinstance(entry, list) and len(entry) == 5}


@functools.cache
def _tell_old(path: Path, version: object) -> None:
    """One line a file, however often it is asked for."""
    log.warning("%s: old schema (%s), ignored; every file is read again.", path, version)


def _decoded_image(path: Path) -> tuple[int, int]:
    """Measures an image by decoding all of it."""
    height, width = decode_image(path).shape[:2]
    return height, width


def _decoded_mask(decode: MaskReader, item: Item) -> Measure:
    """Measures a mask by decoding all of it."""

    def measure(path: Path) -> tuple[int, int]:
        height, width = decode(item).foreground.shape
        return height, width

    return measure


def _look_up(path: Path, measure: Measure, index: Mapping[str, list[Any]]) -> tuple[list[int], FileFacts | BadFile]:
    """Size and modification time of a file, and its facts from the index or from its bytes."""
    try:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        known = index.get(str(path.absolute()))
        if known and known[:2] == stamp:
            return stamp, FileFacts(*known[2:])
        height, width = measure(path)
        return stamp, FileFacts(file_sha256(path), height, width)
    except BenchError as problem:
        return [], BadFile(path, str(problem))
    except OSError as problem:
        return [], BadFile(path, f"{path} cannot be read ({problem.strerror}).")
