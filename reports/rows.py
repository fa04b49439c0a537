"""One row of the table per finished score: read from records and histograms alone, undefined is NaN."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from ..benchmark.errors import BenchError
from ..benchmark.store import Store, jsonable, key_of
from .measures import UNUSABLE, Asked, EvidenceOf, Measures
from .quality import NAN, ClassResult, DamageError, Evidence
from .stored import ignored_words, read_stored, typed
from .unfinished import Unfinished, unfinished_of
from .weights import fed, seen_by

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One checkpoint of one method on one evaluation set under one protocol.

    eval: full name of the evaluation set, made of `dataset` and, where its images were changed, `shift` and `level`
    (1 is the mildest; the unchanged set is no row of its own). severity: the value of that level on the scale that
    `axis` names, NaN where it has none. ood: whether the set differs from the one trained on, by data or by a shift.
    Quality is in percent, thresholds (`tau_*`) in [0, 1], times in seconds; what is undefined is NaN.

    selection: `loc`, `cl`, `last`, or `-` for a baseline. map_class: class whose map is scored, `any` for maps that
    know no class, `-` for a method without maps. `*_low`, `*_high`: 95% interval, whole groups (patients, slides)
    resampled. `*_positives`: only images whose class has a region. `*_tau_val`: at the threshold chosen on
    `validation_masks` masks; `*_oracle`: at the threshold chosen on the scored images themselves, never a fair number.
    seconds_train: of the training whose checkpoint is read; seconds_parents: of everything that training builds on.
    skill: PxAP above chance in percent of what chance leaves. drop_*: percentage points lost against the row of the
    same checkpoint on the set it was trained for (negative: gained); NaN in domain and without such a row.
    by_class: the images of each class alone. label_map: how the classes of another set were read, in words.
    micro_batch: images at once that a training fell back to when memory ran out, 0 if it did not; micro_batch_asked:
    those it was asked for, 0 for all. devices: processes or GPUs that trained one model.
    train_foreground: what a mask marks in the set trained on. unshifted: images that a shift could not change.
    normalisation: what images are normalised by. weights_seen: what of this set the starting weights have seen.
    settings: short hash of all that identifies the run but data, fold and seed; different ones are never averaged.
    """

    method: str
    options: str
    backbone: str
    train: str
    eval: str
    dataset: str
    shift: str
    level: int
    severity: float
    axis: str
    ood: bool
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
    skill: float
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
    drop_pxap: float = NAN
    drop_skill: float = NAN
    drop_accuracy: float = NAN
    label_map: str = ""
    train_foreground: str = ""
    unshifted: int = 0
    micro_batch: int = 0
    micro_batch_asked: int = 0
    devices: int = 1
    classes: tuple[str, ...] = ()
    by_class: tuple[ClassResult, ...] = ()
    notes: tuple[str, ...] = ()
    normalisation: str = ""
    weights_seen: tuple[str, ...] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def baseline(self) -> bool:
        """Whether nothing was learned: no supervision at all."""
        return self.supervision == "none"

    @property
    def upper_bound(self) -> bool:
        """Whether training saw masks."""
        return self.supervision == "pixel"

    @property
    def pair(self) -> bool:
        """Whether the set is another data set than the one trained on, as it is (no shift)."""
        return self.ood and not self.shift

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON value; NaN becomes None."""
        return jsonable(asdict(self))


@dataclass
class Findings:
    """What a results folder holds for a report. `problems` says which rows and stages were left out and why."""

    rows: list[Row] = field(default_factory=list)
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def unfinished(self) -> list[Unfinished]:
        """What failed or diverged and was not finished since."""
        return unfinished_of(self.failures)


def load_rows(store: Store, keys: Iterable[str] | None = None) -> list[Row]:
    """The rows of a results folder, or of some of its score stages, sorted; warns about each row left out.

    A row is left out, never guessed, when its record, its arrays or a parent record are missing, damaged or old.
    """
    found = collect(store, keys)
    for problem in found.problems:
        log.warning("%s", problem)
    return found.rows


def load_report_rows(store: Store) -> list[Row]:
    """All rows, as `load_rows`, writing nothing. Raises BenchError if there is none, saying what to do."""
    found = collect(store, keep=False)
    for problem in found.problems:
        log.warning("%s", problem)
    need_rows(found, store)
    return found.rows


def collect(store: Store, keys: Iterable[str] | None = None, keep: bool = True) -> Findings:
    """Rows, and beside them what figures and the page need.

    keep: whether numbers worked out here may be kept in the results folder for the next time.
    """
    evidence = EvidenceOf(store)
    stored = read_stored(store)
    found = Findings(records=stored.records, failures=stored.failures, evidence=evidence)
    found.problems += ignored_words(stored)
    wanted = found.records if keys is None else set(keys)
    scores = {k: r for k, r in found.records.items() if r.get("kind") == "score" and k in wanted}
    reader = _Reader(store, found)
    reader.prepare(scores)
    for key, record in scores.items():
        try:
            if record["labels"]["split"] == "test":
                row, maps = reader.row(key, record)
                found.rows.append(row)
                if maps:
                    evidence.add(key)
        except DamageError as problem:
            found.problems.append(f"A row is left out: {problem} Run the same `bench run` again.")
        except UNUSABLE as problem:
            what = f"{type(problem).__name__}: {problem}"
            path = store.run_dir(key) / "record.json"
            found.problems.append(f"A row is left out: {path} or a record it builds on lacks something ({what}).")
    if keep:
        reader.measures.keep(found.records)
    found.rows = sorted(with_drops(found.rows), key=sort_key)
    return found


def with_drops(rows: Iterable[Row]) -> list[Row]:
    """The rows in their order; each out-of-domain row gets its `drop_*` against the in-domain row of its checkpoint."""
    rows = list(rows)
    at_home = {_checkpoint(r): r for r in rows if not r.ood}
    return [_dropped(r, at_home[_checkpoint(r)]) if r.ood and _checkpoint(r) in at_home else r for r in rows]


def _dropped(row: Row, home: Row) -> Row:
    names = ("pxap", "skill", "accuracy")
    return replace(row, **{f"drop_{n}": getattr(home, n) - getattr(row, n) for n in names})


def _checkpoint(row: Row) -> tuple[Any, ...]:
    """What a row has in common with the rows of the same model, map and rules on other sets."""
    what = (row.method, row.options, row.settings, row.map_class, row.selection, row.protocol)
    return (row.train, row.backbone, row.stage_train, str(row.fold), row.seed, *what)


def sort_key(row: Row) -> tuple[Any, ...]:
    """Evaluation set, protocol, then what the row is; folds by number where they are numbers."""
    fold = (isinstance(row.fold, str), row.fold if isinstance(row.fold, int) else 0, str(row.fold))
    what = (row.method, row.options, row.settings, row.map_class, row.selection)
    return (
        row.dataset,
        row.shift,
        row.level,
        row.eval,
        row.protocol,
        row.synthetic,
        row.train,
        row.backbone,
        *what,
        fold,
        row.seed,
        row.stage,
    )


class _Reader:
    """Reads rows; remembers what several rows share."""

    def __init__(self, store: Store, found: Findings) -> None:
        self.store, self.found = store, found
        self.measures = Measures(store)
        self._flat: dict[str, dict[str, str]] = {}
        self.seen = store.weights_seen()

    def prepare(self, scores: Mapping[str, dict[str, Any]]) -> None:
        """Works out the numbers of all rows at once; what cannot be had is told by `row`."""
        tests: dict[str, dict[str, Any]] = {}
        behind: dict[str, None] = {}
        for key, record in scores.items():
            with contextlib.suppress(*UNUSABLE):
                if record["labels"]["split"] == "test" and record["parents"]["val"] in self.found.records:
                    tests[key] = record
                    behind[record["parents"]["val"]] = None
        self.measures.prepare((key, None) for key in behind)
        asked = []
        for key, record in tests.items():
            with contextlib.suppress(DamageError, *UNUSABLE):
                asked.append((key, self._asked(record)))
        self.measures.prepare(asked)

    def _asked(self, record: dict[str, Any]) -> Asked:
        facts, tau = record["facts"], self._tau(record["parents"]["val"])[0]
        regions = [bool(region) for region in facts["region_classes"]]
        return Asked(regions, list(facts["classes"]), None if tau != tau else tau, record["labels"]["eval"])

    def row(self, key: str, record: dict[str, Any]) -> tuple[Row, bool]:
        """One row, and whether its method makes maps.

        Raises DamageError, or KeyError/TypeError for a record that lacks a field.
        """
        facts, labels, parents = record["facts"], record["labels"], record["parents"]
        asked, (tau, masks) = self._asked(record), self._tau(parents["val"])
        trained = parents.get("checkpoint", "")
        seconds = _seconds(self._parent(trained)) if trained else 0.0
        settings = self._settings(key)
        short = key_of(settings)[:8]
        self.found.settings[key] = settings
        measured, evaluated = self.measures.test(key, asked), _evaluation(facts, labels)
        row = Row(
            **{k: labels[k] for k in _LABELS}, **{k: facts[k] for k in _FACTS},
            **measured.values, **evaluated,
            options=labels.get("options", ""), fold=_fold(labels["fold"]), tau_val=tau, validation_masks=masks,
            classes=tuple(map(str, facts["classes"])), notes=tuple(map(str, facts["notes"])),
            normalisation=fed(facts) if trained else "",
            weights_seen=seen_by(self.found.records.get(trained, {}), evaluated["dataset"], self.seen),
            by_class=measured.by_class, **_effort(self.found.records.get(trained, {})),
            seconds_train=seconds, seconds_parents=self._seconds_before(trained), seconds_score=_seconds(record),
            stage=key, stage_train=trained, stage_val=parents["val"], settings=short, versions=record["environment"],
        )  # fmt: skip
        return typed(row), measured.maps

    def _parent(self, key: str) -> dict[str, Any]:
        if key not in self.found.records:
            raise DamageError(f"stage {key}, which it builds on, is not in {self.store.root / 'runs'}.")
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
        self._parent(key)
        return self.measures.tau(key)


_LABELS = ("method", "backbone", "train", "eval", "seed", "selection", "protocol", "map_class")
_FACTS = (
    "kind", "family", "supervision", "synthetic", "group", "parameters", "degenerate", "epoch", "weights_sha256",
    "foreground", "licence",
)  # fmt: skip
_NOT_A_SETTING = frozenset({"seed", "data", "eval", "role", "roles", "map_class"})  # data, or said by a label


def _seconds(record: Mapping[str, Any]) -> float:
    return NAN if record["seconds"] is None else float(record["seconds"])


def _effort(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a training did otherwise than asked, or with more than one device."""
    facts = record.get("facts") or {}
    micro = facts.get("micro_batch") or {"asked": 0, "used": 0}
    return {
        "micro_batch": int(micro["used"]), "micro_batch_asked": int(micro["asked"]),
        "devices": int(facts.get("devices") or 1),
    }  # fmt: skip


def _evaluation(facts: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, Any]:
    """What was scored; records from before there were shifts say no more than its name."""
    found = facts.get("evaluation") or {"dataset": labels["eval"]}
    severity = found.get("severity")
    return {
        "dataset": found["dataset"], "shift": found.get("shift", ""), "level": int(found.get("level", 0)),
        "severity": NAN if severity is None else float(severity), "axis": found.get("axis", ""),
        "label_map": found.get("label_map", ""), "train_foreground": found.get("train_foreground", ""),
        "unshifted": len(facts.get("left_unshifted", ())),
        "ood": found["dataset"] != labels["train"] or bool(found.get("shift")),
    }  # fmt: skip


def _flatten(value: Any, path: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name in sorted(value):
            yield from _flatten(value[name], f"{path}.{name}" if path else name)
    else:
        yield path, str(value)


def _fold(text: str | int) -> int | str:
    """Fold numbers as numbers, names as they are."""
    return int(text) if str(text).isdecimal() and str(text).isascii() else str(text)


def need_rows(found: Findings, store: Store) -> None:
    """Raises BenchError when there is nothing to report, saying what to do."""
    if found.rows:
        return
    if not (store.root / "runs").is_dir():
        raise BenchError(f"{store.root} holds no results. Give the folder of a `bench run` with --results, or run one.")
    reason = " ".join(found.problems[:3])
    if found.unfinished:
        counts = Counter(u.status for u in found.unfinished)
        what = " and ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        reason += f" Of what was begun, {what}: `bench status --results {store.root}` says why."
    raise BenchError(f"{store.root} has no finished row yet. Run the same `bench run` again. {reason}".rstrip())
