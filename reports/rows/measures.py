"""The numbers of a row, worked out once: kept beside the results, as reading histograms takes most of a report.

What is kept counts only for the same arrays (size and time of `scores.npz`), asked the same (regions, thresholds,
names) by the same code. `cache/rows.json` may be deleted at any time.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from ...benchmark.core import intervals, metrics
from ...benchmark.core.files import jsonable
from ...benchmark.core.metrics import best_tau
from ...benchmark.core.results_store import Store
from ..statistics import quality, spreads
from ..statistics.quality import NAN, ClassResult, DamageError, Scores, StoredMaps
from ..statistics.spreads import JACKKNIFED, Clusters, spread_over_groups
from .cache import read_kept, write_kept

KEPT = "rows.json"
LARGE = 1_000_000  # bytes of packed arrays; those of GlaS have a tenth, those of Camelyon16 a hundred times as many
_MODULES = (intervals, metrics, quality, spreads)
_MEASURED_BY = (*(Path(str(module.__file__)) for module in _MODULES), Path(__file__))
UNUSABLE = (KeyError, TypeError, ValueError, AttributeError)  # what comes of records and arrays that make no sense


class Asked(NamedTuple):
    """What the numbers of a row depend on beside arrays: values that JSON gives back as they were.

    stages: score stages, of one model or of the folds of one model, pooled. taus: tau_val of each, None where
    undefined. regions: per class, whether its images hold a region. positive: index of the positive class. gated:
    whether nothing is foreground in images predicted as a class without region.
    """

    stages: tuple[str, ...]
    taus: tuple[float | None, ...]
    regions: tuple[bool, ...]
    classes: tuple[str, ...]
    positive: int
    gated: bool = False


class AskedTau(NamedTuple):
    """A threshold: the validation stage, and regions of its classes if its maps are gated (empty: they are not)."""

    stage: str
    regions: tuple[bool, ...] = ()

    @property
    def stages(self) -> tuple[str, ...]:
        """The stage."""
        return (self.stage,)


class RowMeasures(NamedTuple):
    """All that a row takes from the arrays of its score. values: fields of a row by name; maps: whether there are.

    gateable: whether a gated row stands beside it.
    """

    values: dict[str, Any]
    by_class: tuple[ClassResult, ...]
    clusters: Clusters
    maps: bool
    gateable: bool


Question = Asked | AskedTau


class Measures:
    """The numbers of the scores of a results folder. Asking for one raises DamageError where its arrays are unusable.

    `prepare` works out many at once, on all cores; whoever asks for one that was not prepared gets it all the same.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._kept: dict[str, list[Any]] = read_kept(store.cache_dir / KEPT, _code())
        self._fresh: dict[str, list[Any]] = {}
        self._failed: dict[Question, DamageError] = {}

    def tau(self, asked: AskedTau) -> tuple[float, int]:
        """The threshold a validation stage chose and the number of masks behind it."""
        tau, masks = self._ask(asked)
        return NAN if tau is None else tau, masks

    def test(self, asked: Asked) -> RowMeasures:
        """The numbers of a test score. Raises ValueError where several stages share an image."""
        values, classes, clusters, maps, gateable = self._ask(asked)
        results = tuple(ClassResult(*map(_number, one)) for one in classes)
        numbers = {k: _number(v) for k, v in values.items()}
        return RowMeasures(numbers, results, Clusters.from_json(clusters), maps, gateable)

    def prepare(self, wanted: Iterable[Question]) -> None:
        """Works out what is not kept.

        Small sets are done side by side; a large one, whose arrays take much memory, waits until it is asked for.
        """
        missing = []
        for question in wanted:
            stamps = self._stamps(question)
            if all(stamps) and stamps[0][0] < LARGE and self._known(question, stamps) is None:
                missing.append(question)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for _ in pool.map(self._try, missing):
                pass

    def keep(self, stages: Iterable[str]) -> None:
        """Keeps what was worked out, and of what was kept before that of these stages; not in a folder closed to us."""
        if not self._fresh:
            return
        stages = set(stages)
        kept = {k: v for k, v in self._kept.items() if set(k.partition(":")[2].split("+")) <= stages} | self._fresh
        write_kept(self.store.cache_dir / KEPT, _code(), jsonable(kept))

    def _try(self, asked: Question) -> None:
        try:
            with contextlib.suppress(*UNUSABLE):  # told by whoever asks for this row
                self._ask(asked)
        except DamageError as problem:
            self._failed[asked] = problem

    def _ask(self, asked: Question) -> Any:
        if problem := self._failed.get(asked):
            raise problem
        stamps = self._stamps(asked)
        known = self._known(asked, stamps)
        if known is None:
            parts = [quality.read_scores(self.store.run_dir(stage)) for stage in asked.stages]
            folders = [self.store.run_dir(stage) for stage in asked.stages]
            known = _tau(parts[0], asked) if isinstance(asked, AskedTau) else _measure(parts, asked, folders)
            self._fresh[_name(asked)] = [stamps, _plain(asked), known]
        return known

    def _known(self, asked: Question, stamps: list[list[int]]) -> Any:
        entry = self._fresh.get(_name(asked)) or self._kept.get(_name(asked))
        return entry[2] if entry and all(stamps) and entry[0] == stamps and entry[1] == _plain(asked) else None

    def _stamps(self, asked: Question) -> list[list[int]]:
        return [self._stamp(stage) for stage in asked.stages]

    def _stamp(self, key: str) -> list[int]:
        """Size and time of a stage's arrays; nothing where they are gone."""
        try:
            status = os.stat(f"{self.store.root}/runs/{key}/scores.npz")  # noqa: PTH116 - a third of the time of Path
        except OSError:
            return []
        return [status.st_size, status.st_mtime_ns]


class EvidenceOf(Mapping[str, StoredMaps]):
    """What figures need of some rows by `Row.evidence`, read when it is asked for."""

    def __init__(self, store: Store | None = None) -> None:
        self.asked: dict[str, Asked] = {}
        self._read: Callable[[str], StoredMaps] = functools.cache(lambda name: _evidence(store, self.asked[name]))

    def add(self, name: str, asked: Asked) -> None:
        """Makes a row with maps known."""
        self.asked[name] = asked

    def __getitem__(self, key: str) -> StoredMaps:
        if key not in self.asked:
            raise KeyError(key)
        return self._read(key)

    def __contains__(self, key: object) -> bool:
        return key in self.asked

    def __iter__(self) -> Iterator[str]:
        return iter(self.asked)

    def __len__(self) -> int:
        return len(self.asked)


def _evidence(store: Store | None, asked: Asked) -> StoredMaps:
    if store is None:
        raise DamageError("there is no results folder to read from.")
    scores = _scores([quality.read_scores(store.run_dir(stage)) for stage in asked.stages], asked)
    return quality.evidence_of(scores.maps, scores.labels)


def _scores(parts: Sequence[Scores], asked: Asked) -> Scores:
    """The scores of one row: those of its folds together, gated where it is."""
    scores = parts[0] if len(parts) == 1 else quality.pooled(parts)
    return quality.gated(scores, asked.regions) if asked.gated else scores


def _tau(scores: Scores, asked: AskedTau) -> list[Any]:
    if asked.regions and quality.can_be_gated(scores, asked.regions):
        scores = quality.gated(scores, asked.regions)
    rows = len(scores.maps.foreground)
    tau = best_tau(scores.maps) if rows else NAN
    return [None if tau != tau else tau, rows]


def _measure(parts: Sequence[Scores], asked: Asked, folders: Sequence[Path]) -> list[Any]:
    region = np.asarray(asked.regions, bool)
    for part, folder in zip(parts, folders, strict=True):
        if not len(part.labels):
            raise DamageError(f"{folder / 'scores.npz'} holds no images; remove its folder.")
        if not 0 <= part.labels.min() <= part.labels.max() < len(region):
            raise DamageError(f"{folder / 'scores.npz'} has labels outside its classes.")
    gateable = all(quality.can_be_gated(part, asked.regions) for part in parts)
    scores = _scores(parts, asked)
    taus = np.concatenate(
        [np.full(len(p.labels), NAN if t is None else t) for p, t in zip(parts, asked.taus, strict=True)]
    )
    values, clusters = quality.map_quality(scores, region[scores.labels], taus)
    right, right_groups = quality.class_quality(scores, asked.positive)
    if right_groups is not None:
        clusters = replace(clusters, right=tuple(right_groups.tolist()))
    counts = {
        "images": len(scores.labels), "images_positive": int(region[scores.labels].sum()),
        "groups": len(clusters.names), "groups_effective": clusters.effective,
        "groups_region": sum(n > 0 for n in clusters.regions),
    }  # fmt: skip
    row = _Spreadable(clusters, **{k: v for k, v in (values | right).items() if k in SPREAD})
    ends = {f"{k}_{end}": v for k in SPREAD for end, v in spread_over_groups([row], k)._asdict().items()}
    classes = [list(one) for one in map(_fields, quality.by_class(scores, asked.classes))]
    numbers = {**values, **right, **counts, **ends}
    return [
        jsonable(numbers),
        jsonable(classes),
        jsonable(clusters.to_json()),
        len(scores.maps.foreground) > 0,
        gateable,
    ]


SPREAD = (*JACKKNIFED, "accuracy")  # values that have an interval


class _Spreadable(SimpleNamespace):
    """The values of a row that is being made, as far as its intervals need them."""

    def __init__(self, clusters: Clusters, **values: float) -> None:
        super().__init__(**values)
        self.clusters = clusters


def _number(value: Any) -> Any:
    """As JSON gave it back: what is undefined is NaN again."""
    return NAN if value is None else value


def _fields(result: ClassResult) -> Sequence[Any]:
    return result.name, result.images, result.accuracy, result.pxap, result.chance


def _name(asked: Question) -> str:
    """What an answer is kept by; its stages stand after the colon."""
    kind = ("gated-tau" if asked.regions else "tau") if isinstance(asked, AskedTau) else f"test-{asked.gated:d}"
    return f"{kind}:{'+'.join(asked.stages)}"


def _plain(asked: Question) -> Any:
    """As JSON gives it back."""
    return [list(v) if isinstance(v, tuple) else v for v in asked]


@functools.cache
def _code() -> str:
    """A hash of all that measures: numbers of other code are not kept."""
    texts = [path.read_bytes() for path in _MEASURED_BY]
    return hashlib.sha256(b"\0".join([*texts, np.__version__.encode()])).hexdigest()[:16]
