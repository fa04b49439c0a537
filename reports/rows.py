"""One row of the table per finished score: read from records and histograms alone, undefined is NaN."""

import logging
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..benchmark.errors import BenchError
from ..benchmark.metrics import (
    BINS,
    Histograms,
    accuracy,
    accuracy_interval,
    at_tau,
    best_tau,
    chance_level,
    pxap,
    pxap_interval,
    pxap_rows,
)
from ..benchmark.seeds import seed_for
from ..benchmark.store import Store, key_of

log = logging.getLogger(__name__)
NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """One checkpoint of one method on one evaluation set under one protocol.

    Quality is in percent, thresholds (`tau_*`) in [0, 1], times in seconds; what is undefined is NaN.

    selection: `loc`, `cl`, `last`, or `-` for a baseline. map_class: class whose map is scored, `any` for maps that
    know no class, `-` for a method without maps. `*_low`, `*_high`: 95% interval, whole groups (patients, slides)
    resampled. `*_positives`: only images whose class has a region. `*_tau_val`: at the threshold chosen on
    `validation_masks` masks; `*_oracle`: at the threshold chosen on the scored images themselves, never a fair number.
    seconds_train: of the training whose checkpoint is read; seconds_parents: of everything that training builds on.
    settings: short hash of all that identifies the run but data, fold and seed; different ones are never averaged.
    """

    method: str
    options: str
    backbone: str
    train: str
    eval: str
    fold: int | str
    seed: int
    selection: str
    protocol: str
    map_class: str
    kind: str
    family: str
    supervision: str
    synthetic: bool
    pxap: float
    pxap_low: float
    pxap_high: float
    chance: float
    pxap_positives: float
    chance_positives: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    tau_val: float
    dice_tau_val: float
    iou_tau_val: float
    miou_tau_val: float
    dice_half: float
    tau_oracle: float
    dice_oracle: float
    iou_oracle: float
    miou_oracle: float
    images: int
    images_positive: int
    degenerate: int
    validation_masks: int
    groups: int
    group: str
    epoch: int | None
    parameters: int
    seconds_train: float
    seconds_parents: float
    seconds_score: float
    stage: str
    stage_train: str
    stage_val: str
    weights_sha256: str
    settings: str
    foreground: str
    licence: str
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def baseline(self) -> bool:
        """Whether nothing was learned: no supervision at all."""
        return self.supervision == "none"

    @property
    def upper_bound(self) -> bool:
        """Whether training saw masks."""
        return self.supervision == "pixel"

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON value; NaN becomes None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


class Evidence(NamedTuple):
    """What figures need of a row, float64 arrays of shape (BINS,).

    pooled: pixel counts of all images, foreground and background. typical: mean over images of each image's own
    histogram in percent of its pixels of that kind; NaN where no image has such pixels. by_image: PxAP in percent of
    every image on its own, (N,), NaN without foreground. labels: (N,) class indices.
    """

    pooled: Histograms
    typical: Histograms
    by_image: np.ndarray
    labels: np.ndarray


@dataclass
class Findings:
    """What a results folder holds for a report. `problems` says which rows were left out and why."""

    rows: list[Row] = field(default_factory=list)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)


def load_rows(store: Store, keys: Iterable[str] | None = None) -> list[Row]:
    """The rows of a results folder, or of some of its score stages, sorted; warns about each row left out.

    A row is left out, never guessed, when its arrays or a parent record are missing or damaged. Raises BenchError
    for a record.json that is no JSON.
    """
    found = collect(store, keys)
    for problem in found.problems:
        log.warning("%s", problem)
    return found.rows


def load_report_rows(store: Store) -> list[Row]:
    """All rows, as `load_rows`. Raises BenchError if there is none, saying what to do."""
    found = collect(store)
    for problem in found.problems:
        log.warning("%s", problem)
    need_rows(found, store)
    return found.rows


def collect(store: Store, keys: Iterable[str] | None = None) -> Findings:
    """Rows, and beside them what figures and the page need. Raises BenchError as `load_rows` does."""
    found = Findings(records=store.records(), failures=store.failures())
    wanted = None if keys is None else set(keys)
    reader = _Reader(store, found)
    for key, record in found.records.items():
        if record.get("kind") != "score" or (wanted is not None and key not in wanted):
            continue
        try:
            if record["labels"]["split"] == "test":
                found.rows.append(reader.row(key, record))
        except _DamageError as problem:
            found.problems.append(f"A row is left out: {problem} Run the same `bench run` again.")
        except (KeyError, TypeError, AttributeError) as problem:
            what = f"{type(problem).__name__}: {problem}"
            path = store.run_dir(key) / "record.json"
            found.problems.append(f"A row is left out: {path} or a record it builds on lacks something ({what}).")
    found.rows.sort(key=sort_key)
    return found


def sort_key(row: Row) -> tuple[Any, ...]:
    """Evaluation set, protocol, then what the row is; folds by number where they are numbers."""
    fold = (isinstance(row.fold, str), row.fold if isinstance(row.fold, int) else 0, str(row.fold))
    what = (row.method, row.options, row.settings, row.map_class, row.selection)
    return (row.eval, row.protocol, row.synthetic, row.train, row.backbone, *what, fold, row.seed, row.stage)


class _DamageError(Exception):
    """A file a row needs is missing or unusable."""


class _Scores(NamedTuple):
    labels: np.ndarray
    groups: np.ndarray
    logits: np.ndarray
    maps: Histograms  # no rows for a method without maps, or a split without masks


class _Reader:
    """Reads rows; remembers what several rows share."""

    def __init__(self, store: Store, found: Findings) -> None:
        self.store, self.found = store, found
        self._taus: dict[str, tuple[float, int]] = {}
        self._flat: dict[str, dict[str, str]] = {}

    def row(self, key: str, record: dict[str, Any]) -> Row:
        """One row. Raises _DamageError, or KeyError/TypeError for a record that lacks a field."""
        facts, labels, parents = record["facts"], record["labels"], record["parents"]
        scores = self._scores(key)
        tau, masks = self._tau(parents["val"])
        trained = parents.get("checkpoint", "")
        seconds = _seconds(self._parent(trained)) if trained else 0.0
        settings = self._settings(key)
        short = key_of(settings)[:8]
        self.found.settings[key] = settings
        region = np.asarray(facts["region_classes"], bool)
        if not len(scores.labels):
            raise _DamageError(f"{self.store.run_dir(key) / 'scores.npz'} holds no images; remove its folder.")
        if not 0 <= scores.labels.min() <= scores.labels.max() < len(region):
            raise _DamageError(f"{self.store.run_dir(key) / 'scores.npz'} has labels outside its classes.")
        quality = _map_quality(scores, region[scores.labels], tau, labels["eval"])
        if len(scores.maps.foreground):
            self.found.evidence[key] = _evidence(scores.maps, scores.labels)
        return Row(
            **{k: labels[k] for k in _LABELS}, **{k: facts[k] for k in _FACTS},
            **quality, **_class_quality(scores, labels["eval"]),
            options=labels.get("options", ""), fold=_fold(labels["fold"]), tau_val=tau, validation_masks=masks,
            images=len(scores.labels), images_positive=int(region[scores.labels].sum()),
            groups=len(set(scores.groups.tolist())), classes=tuple(facts["classes"]), notes=tuple(facts["notes"]),
            seconds_train=seconds, seconds_parents=self._seconds_before(trained), seconds_score=_seconds(record),
            stage=key, stage_train=trained, stage_val=parents["val"], settings=short, versions=record["environment"],
        )  # fmt: skip

    def _parent(self, key: str) -> dict[str, Any]:
        if key not in self.found.records:
            raise _DamageError(f"stage {key}, which it builds on, is not in {self.store.root / 'runs'}.")
        return self.found.records[key]

    def _seconds_before(self, key: str) -> float:
        """Seconds of all stages a training builds on, each once; NaN if the record of one is gone."""
        waiting = list(self._parent(key)["parents"].values()) if key else []
        seen: dict[str, float] = {}
        while waiting:
            parent = waiting.pop()
            if parent in seen:
                continue
            record = self.found.records.get(parent, {"seconds": NAN, "parents": {}})
            seen[parent] = _seconds(record)
            waiting += record["parents"].values()
        return sum(seen.values(), 0.0)

    def _settings(self, key: str) -> dict[str, str]:
        """Identity of a stage and of all it builds on, flat, without what may differ between averaged runs."""
        if key in self._flat:
            return self._flat[key]
        record = self._parent(key)
        flat = dict(_flatten({k: v for k, v in record["identity"].items() if k not in _NOT_A_SETTING}, ""))
        for role, parent in record["parents"].items():
            if role != "val" and parent in self.found.records:
                flat.update({f"{role}.{k}": v for k, v in self._settings(parent).items()})
        self._flat[key] = flat
        return flat

    def _tau(self, key: str) -> tuple[float, int]:
        """The threshold a validation stage chose and the number of masks behind it."""
        if key not in self._taus:
            self._parent(key)
            maps = self._scores(key).maps
            rows = len(maps.foreground)
            self._taus[key] = (best_tau(maps) if rows else NAN, rows)
        return self._taus[key]

    def _scores(self, key: str) -> _Scores:
        path = self.store.run_dir(key) / "scores.npz"
        try:
            with np.load(path, allow_pickle=False) as data:
                labels, groups, logits, fg, bg = (
                    data[k] for k in ("labels", "groups", "logits", "foreground", "background")
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
            raise _DamageError(f"{path} is missing or damaged ({problem}); remove {path.parent}.") from None
        if fg.shape != bg.shape or fg.shape not in ((len(labels), BINS), (len(labels), 0), (0, 0)):
            raise _DamageError(f"{path} has histograms of shape {fg.shape} and {bg.shape} for {len(labels)} images.")
        if not len(labels) == len(groups) == len(logits) or logits.ndim != 2:
            raise _DamageError(f"{path} has labels, groups and logits of different lengths.")
        maps = Histograms(fg, bg) if fg.shape[1] else Histograms(np.zeros((0, BINS)), np.zeros((0, BINS)))
        return _Scores(labels, groups, logits, maps)


_LABELS = ("method", "backbone", "train", "eval", "seed", "selection", "protocol", "map_class")
_FACTS = (
    "kind", "family", "supervision", "synthetic", "group", "parameters", "degenerate", "epoch", "weights_sha256",
    "foreground", "licence",
)  # fmt: skip
_NOT_A_SETTING = frozenset({"seed", "data", "eval", "role", "roles", "map_class"})  # data, or said by a label


def _seconds(record: Mapping[str, Any]) -> float:
    return NAN if record["seconds"] is None else float(record["seconds"])


def _flatten(value: Any, path: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name in sorted(value):
            yield from _flatten(value[name], f"{path}.{name}" if path else name)
    else:
        yield path, str(value)


def _fold(text: str | int) -> int | str:
    """Fold numbers as numbers, names as they are."""
    return int(text) if str(text).isdecimal() and str(text).isascii() else str(text)


def _map_quality(scores: _Scores, positive: np.ndarray, tau: float, where: str) -> dict[str, Any]:
    """Everything told by the histograms; all NaN for a method without maps."""
    maps = scores.maps
    if not len(maps.foreground):
        maps, positive = Histograms(np.zeros((1, BINS)), np.zeros((1, BINS))), np.array([True])
        interval = (NAN, NAN)
    else:
        interval = pxap_interval(maps, scores.groups, seed_for("interval", where))
    some = maps.select(positive)
    tau_oracle = best_tau(maps)
    val, half, oracle = (at_tau(maps, t) for t in (tau, 0.5, tau_oracle))
    return {
        "pxap": pxap(maps), "pxap_low": interval[0], "pxap_high": interval[1], "chance": chance_level(maps),
        "pxap_positives": pxap(some), "chance_positives": chance_level(some), "tau_oracle": tau_oracle,
        "dice_half": half["dice"], **{f"{k}_tau_val": val[k] for k in ("dice", "iou", "miou")},
        **{f"{k}_oracle": oracle[k] for k in ("dice", "iou", "miou")},
    }  # fmt: skip


def _class_quality(scores: _Scores, where: str) -> dict[str, Any]:
    low, high = accuracy_interval(scores.logits, scores.labels, scores.groups, seed_for("interval", where))
    return {"accuracy": accuracy(scores.logits, scores.labels), "accuracy_low": low, "accuracy_high": high}


def _evidence(maps: Histograms, labels: np.ndarray) -> Evidence:
    typical = []
    for counts in maps:
        total = counts.sum(1, dtype=np.float64)
        share = counts[total > 0] / total[total > 0, None]
        typical.append(100 * share.mean(0) if len(share) else np.full(BINS, NAN))
    pooled = Histograms(*(h.sum(0, dtype=np.float64) for h in maps))
    return Evidence(pooled, Histograms(*typical), pxap_rows(maps), labels)


def need_rows(found: Findings, store: Store) -> None:
    """Raises BenchError when there is nothing to report, saying what to do."""
    if found.rows:
        return
    if not (store.root / "runs").is_dir():
        raise BenchError(f"{store.root} holds no results. Give the folder of a `bench run` with --results, or run one.")
    reason = " ".join(found.problems[:3])
    if found.failures:
        reason += f" {len(found.failures)} stages failed: `bench status --results {store.root}` says why."
    raise BenchError(f"{store.root} has no finished row yet. Run the same `bench run` again. {reason}".rstrip())
