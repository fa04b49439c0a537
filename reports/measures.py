"""The numbers of a row, worked out once: kept beside the results, as the intervals take most of a report's time.

What is kept counts only for the same arrays (size and time of `scores.npz`), asked the same (regions, threshold, names)
by the same code. `cache/rows.json` may be deleted at any time.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..benchmark import metrics, seeds
from ..benchmark.metrics import best_tau
from ..benchmark.store import Store, jsonable
from . import quality
from .kept import read_kept, write_kept
from .quality import NAN, ClassResult, DamageError, Evidence, Scores

KEPT = "rows.json"
LARGE = 1_000_000  # bytes of packed arrays; those of GlaS have a tenth, those of Camelyon16 a hundred times as many
_MEASURED_BY = (*(Path(str(module.__file__)) for module in (metrics, seeds, quality)), Path(__file__))
UNUSABLE = (KeyError, TypeError, ValueError, AttributeError)  # what comes of records and arrays that make no sense


class Asked(NamedTuple):
    """What the numbers of a scored set depend on beside its arrays: values that JSON gives back as they were.

    regions: per class, whether its images hold a region. tau: tau_val, None where undefined. where: names the draws.
    """

    regions: list[bool]
    classes: list[str]
    tau: float | None
    where: str


class Measured(NamedTuple):
    """All that a row takes from the arrays of its score. values: fields of a row by name; maps: whether there are."""

    values: dict[str, Any]
    by_class: tuple[ClassResult, ...]
    maps: bool


class Measures:
    """The numbers of the scores of a results folder. Asking for one raises DamageError where its arrays are unusable.

    `prepare` works out many at once, on all cores; whoever asks for one that was not prepared gets it all the same.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._kept: dict[str, list[Any]] = read_kept(store.cache_dir / KEPT, _code())
        self._fresh: dict[str, list[Any]] = {}
        self._failed: dict[tuple[str, Asked | None], DamageError] = {}

    def tau(self, key: str) -> tuple[float, int]:
        """The threshold a validation stage chose and the number of masks behind it."""
        tau, masks = self._ask(key, None)
        return NAN if tau is None else tau, masks

    def test(self, key: str, asked: Asked) -> Measured:
        """The numbers of a test score."""
        values, classes, maps = self._ask(key, asked)
        found = tuple(ClassResult(*map(_number, one)) for one in classes)
        return Measured({k: _number(v) for k, v in values.items()}, found, maps)

    def prepare(self, wanted: Iterable[tuple[str, Asked | None]]) -> None:
        """Works out what is not kept; None asks for the threshold of a validation score.

        Small sets are done side by side; a large one, whose arrays take much memory, waits until it is asked for.
        """
        missing = []
        for key, asked in wanted:
            stamp = self._stamp(key)
            if stamp and stamp[0] < LARGE and self._known(key, asked, stamp) is None:
                missing.append((key, asked))
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for _ in pool.map(lambda one: self._try(*one), missing):
                pass

    def keep(self, stages: Iterable[str]) -> None:
        """Keeps what was worked out, and of what was kept before that of these stages; not in a folder closed to us."""
        if not self._fresh:
            return
        stages = set(stages)
        kept = {k: v for k, v in self._kept.items() if k in stages} | self._fresh
        write_kept(self.store.cache_dir / KEPT, _code(), jsonable(kept))

    def _try(self, key: str, asked: Asked | None) -> None:
        try:
            with contextlib.suppress(*UNUSABLE):  # told by whoever asks for this row
                self._ask(key, asked)
        except DamageError as problem:
            self._failed[key, _hashable(asked)] = problem

    def _ask(self, key: str, asked: Asked | None) -> Any:
        if problem := self._failed.get((key, _hashable(asked))):
            raise problem
        stamp = self._stamp(key)
        known = self._known(key, asked, stamp)
        if known is None:
            scores = quality.read_scores(self.store.run_dir(key))
            known = _tau(scores) if asked is None else _measure(scores, asked, self.store.run_dir(key))
            self._fresh[key] = [stamp, _plain(asked), known]
        return known

    def _known(self, key: str, asked: Asked | None, stamp: list[int]) -> Any:
        entry = self._fresh.get(key) or self._kept.get(key)
        return entry[2] if entry and stamp and entry[0] == stamp and entry[1] == _plain(asked) else None

    def _stamp(self, key: str) -> list[int]:
        """Size and time of a stage's arrays; nothing where they are gone."""
        try:
            status = os.stat(f"{self.store.root}/runs/{key}/scores.npz")  # noqa: PTH116 - a third of the time of Path
        except OSError:
            return []
        return [status.st_size, status.st_mtime_ns]


class EvidenceOf(Mapping[str, Evidence]):
    """What figures need of some score stages by key, read when it is asked for."""

    def __init__(self, store: Store) -> None:
        self.keys_with_maps: dict[str, None] = {}
        self._read: Callable[[str], Evidence] = functools.cache(functools.partial(_evidence, store))

    def add(self, key: str) -> None:
        """Makes a stage with maps known."""
        self.keys_with_maps[key] = None

    def __getitem__(self, key: str) -> Evidence:
        if key not in self.keys_with_maps:
            raise KeyError(key)
        return self._read(key)

    def __contains__(self, key: object) -> bool:
        return key in self.keys_with_maps

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_with_maps)

    def __len__(self) -> int:
        return len(self.keys_with_maps)


def _evidence(store: Store, key: str) -> Evidence:
    scores = quality.read_scores(store.run_dir(key))
    return quality.evidence_of(scores.maps, scores.labels)


def _tau(scores: Scores) -> list[Any]:
    rows = len(scores.maps.foreground)
    tau = best_tau(scores.maps) if rows else NAN
    return [None if tau != tau else tau, rows]


def _measure(scores: Scores, asked: Asked, folder: Path) -> list[Any]:
    region = np.asarray(asked.regions, bool)
    if not len(scores.labels):
        raise DamageError(f"{folder / 'scores.npz'} holds no images; remove its folder.")
    if not 0 <= scores.labels.min() <= scores.labels.max() < len(region):
        raise DamageError(f"{folder / 'scores.npz'} has labels outside its classes.")
    tau = NAN if asked.tau is None else asked.tau
    values = {
        **quality.map_quality(scores, region[scores.labels], tau, asked.where),
        **quality.class_quality(scores, asked.where), "images": len(scores.labels),
        "images_positive": int(region[scores.labels].sum()), "groups": len(set(scores.groups.tolist())),
    }  # fmt: skip
    classes = [list(one) for one in map(_fields, quality.by_class(scores, asked.classes))]
    return [jsonable(values), jsonable(classes), len(scores.maps.foreground) > 0]


def _number(value: Any) -> Any:
    """As JSON gave it back: what is undefined is NaN again."""
    return NAN if value is None else value


def _fields(result: ClassResult) -> Sequence[Any]:
    return result.name, result.images, result.accuracy, result.pxap, result.chance


def _plain(asked: Asked | None) -> list[Any] | None:
    return None if asked is None else list(asked)


def _hashable(asked: Asked | None) -> Any:
    return None if asked is None else (tuple(asked.regions), tuple(asked.classes), asked.tau, asked.where)


@functools.cache
def _code() -> str:
    """A hash of all that measures: numbers of other code are not kept."""
    texts = [path.read_bytes() for path in _MEASURED_BY]
    return hashlib.sha256(b"\0".join([*texts, np.__version__.encode()])).hexdigest()[:16]
