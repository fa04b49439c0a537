"""From records to rows: what a score, and the stages it builds on, say of one line of a table."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...benchmark.core.files import key_of
from ...benchmark.core.results_store import Store
from ..statistics.quality import NAN, DamageError
from .findings import Findings
from .measures import UNUSABLE, Asked, AskedTau, Measures, RowMeasures
from .pooling import pooled_row
from .row import Row
from .stored import typed
from .versions import earlier_versions
from .weights import fed, seen_by


class Reader:
    """Reads rows; remembers what several rows share."""

    def __init__(self, store: Store, found: Findings) -> None:
        self.store, self.found = store, found
        self.measures = Measures(store)
        self._flat: dict[str, dict[str, str]] = {}
        self._asked: dict[str, Asked] = {}  # by Row.run
        self.seen = store.weights_seen()

    def prepare(self, scores: Mapping[str, dict[str, Any]]) -> None:
        """Works out the numbers of all rows at once; what cannot be had is told by `rows`."""
        tests: dict[str, dict[str, Any]] = {}
        taus: dict[AskedTau, None] = {}
        for key, record in scores.items():
            with contextlib.suppress(*UNUSABLE):
                if record["labels"]["split"] == "test" and record["parents"]["val"] in self.found.records:
                    taus.update(dict.fromkeys(self._tau_asked(record, gated) for gated in _gates(record)))
                    tests[key] = record
        self.measures.prepare(taus)
        questions = []
        for key, record in tests.items():
            with contextlib.suppress(DamageError, *UNUSABLE):
                questions += [self._question(key, record, gated) for gated in _gates(record)]
        self.measures.prepare(questions)

    def rows(self, key: str, record: dict[str, Any]) -> Iterator[Row]:
        """The row of a score and, where maps can be gated, a second one.

        Raises DamageError, or KeyError/TypeError for a record that lacks a field.
        """
        for gated in _gates(record):
            question = self._question(key, record, gated)
            measured = self.measures.test(question)
            if gated and not measured.gateable:
                continue
            row = self._row(key, record, question, measured)
            self._asked[row.run] = question
            if measured.maps:
                self.found.evidence.add(row.evidence, question)
            yield row

    def pool(self, groups: Iterable[Sequence[Row]]) -> Iterator[Row]:
        """Of each group of rows of several folds that share no test image, one row over all their images."""
        questions = {tuple(r.run for r in rows): _together([self._asked[r.run] for r in rows]) for rows in groups}
        by_run = {r.run: r for r in self.found.rows}
        self.measures.prepare(questions.values())
        for runs, question in questions.items():
            with contextlib.suppress(ValueError):  # image-level folds of a user's own may share images
                measured = self.measures.test(question)
                row = pooled_row([by_run[run] for run in runs], measured)
                if measured.maps:
                    self.found.evidence.add(row.evidence, question)
                yield row

    def _tau_asked(self, record: dict[str, Any], gated: bool) -> AskedTau:
        behind = record["parents"]["val"]
        regions = self._parent(behind)["facts"]["region_classes"] if gated else ()
        return AskedTau(behind, tuple(bool(region) for region in regions))

    def _question(self, key: str, record: dict[str, Any], gated: bool) -> Asked:
        facts, tau = record["facts"], self._tau(self._tau_asked(record, gated))[0]
        regions = tuple(bool(region) for region in facts["region_classes"])
        positive = facts.get("positive_class", max((k for k, r in enumerate(regions) if r), default=0))
        taus = (None if tau != tau else tau,)
        return Asked((key,), taus, regions, tuple(map(str, facts["classes"])), int(positive), gated)

    def _row(self, key: str, record: dict[str, Any], asked: Asked, measured: RowMeasures) -> Row:
        facts, labels, parents = record["facts"], record["labels"], record["parents"]
        tau, masks = self._tau(self._tau_asked(record, asked.gated))
        trained = parents.get("checkpoint", "")
        seconds = _seconds(self._parent(trained)) if trained else 0.0
        settings = self._settings(key)
        short = key_of(settings)[:8]
        self.found.settings[key] = settings
        evaluated, earlier = _evaluation(facts, labels), earlier_versions(key, self.found.records)
        row = Row(
            **{k: labels[k] for k in _LABELS}, **{k: facts[k] for k in _FACTS},
            **measured.values, **evaluated, **_sampled(facts, asked.gated, measured.values["pxap"]),
            protocol=labels["protocol"] + (f" [earlier version: {earlier}]" if earlier else ""), earlier=earlier,
            options=labels.get("options", ""),
            target=labels.get("target", ""), fold=_fold(labels["fold"]), tau_val=tau, validation_masks=masks,
            scheme=labels.get("scheme") or str(labels["fold"]).rpartition("-")[0] or "published", gated=asked.gated,
            classes=tuple(map(str, facts["classes"])), notes=tuple(map(str, facts["notes"])),
            normalisation=fed(facts) if trained else "",
            weights_seen=seen_by(self.found.records.get(trained, {}), evaluated["dataset"], self.seen),
            by_class=measured.by_class, **_effort(self.found.records.get(trained, {})),
            seconds_train=seconds, seconds_parents=self._seconds_before(trained), seconds_score=_seconds(record),
            stage=key, stage_train=trained, stage_val=parents["val"], settings=short, versions=record["environment"],
            clusters=measured.clusters,
        )  # fmt: skip
        return typed(row)

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

    def _tau(self, asked: AskedTau) -> tuple[float, int]:
        """The threshold a validation stage chose and the number of masks behind it."""
        self._parent(asked.stage)
        return self.measures.tau(asked)


UNRECORDED = "how it was trained is not recorded"
_LABELS = ("method", "backbone", "train", "eval", "seed", "selection", "map_class")
_FACTS = (
    "kind", "family", "supervision", "synthetic", "group", "parameters", "degenerate", "epoch", "weights_sha256",
    "foreground", "licence",
)  # fmt: skip
_NOT_A_SETTING = frozenset({"seed", "data", "target", "eval", "role", "roles", "map_class"})  # data, or said by a label


def _seconds(record: Mapping[str, Any]) -> float:
    return NAN if record["seconds"] is None else float(record["seconds"])


def _effort(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a training did otherwise than asked, or with more than one device."""
    facts = record.get("facts") or {}
    micro = facts.get("micro_batch") or {"asked": 0, "used": 0}
    return {
        "micro_batch": int(micro["used"]), "micro_batch_asked": int(micro["asked"]),
        "devices": int(facts.get("devices") or 1),
        "unlike_published": tuple(map(str, facts.get("unlike_published", [UNRECORDED]))) if record else (),
    }  # fmt: skip


# Until target stains were no longer called severities, this stood as their axis.
_DISTANCE = "mean Frobenius distance of the target's stain matrix to those of the own set"


def _evaluation(facts: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, Any]:
    """What was scored; records from before there were shifts say no more than its name."""
    evaluation = facts.get("evaluation") or {"dataset": labels["eval"]}
    severity, axis = evaluation.get("severity"), evaluation.get("axis", "")
    if axis == _DISTANCE:
        severity, axis = None, "target stain"
    change = evaluation.get("pixel_change")
    return {
        "dataset": evaluation["dataset"], "shift": evaluation.get("shift", ""),
        "level": int(evaluation.get("level", 0)),
        "severity": NAN if severity is None else float(severity), "axis": axis,
        "pixel_change": NAN if change is None else float(change),
        "label_map": evaluation.get("label_map", ""), "train_foreground": evaluation.get("train_foreground", ""),
        "unshifted": len(facts.get("left_unshifted", ())),
        "ood": evaluation["dataset"] != labels["train"] or bool(evaluation.get("shift")),
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


def _gates(record: Mapping[str, Any]) -> tuple[bool, ...]:
    """Whether a score has a second, gated row: where the map of a class with a region was asked for whatever the
    model predicts, and some class has none."""
    rules, facts = record["identity"].get("protocol") or {}, record["facts"]
    by_region = rules.get("map_class") == "region" and record["labels"]["map_class"] != "-"
    return (False, True) if by_region and not all(facts["region_classes"]) else (False,)


def _together(asked: Sequence[Asked]) -> Asked:
    """The question about the images of several folds."""
    stages, taus = (tuple(part[0] for part in parts) for parts in zip(*(a[:2] for a in asked), strict=True))
    return asked[0]._replace(stages=stages, taus=taus)


def _sampled(facts: Mapping[str, Any], gated: bool, found: float) -> dict[str, Any]:
    """What the sample of pixels says; records from before there was one say nothing."""
    sample = facts.get("sample") or {}
    numbers = (sample.get("gated") or {}) if gated else sample
    ap, binned = (NAN if numbers.get(k) is None else float(numbers[k]) for k in ("ap", "pxap"))
    return {
        "ap_sample": ap, "pxap_sample": binned, "ap": found + ap - binned, "sample_pixels": int(sample.get("pixels", 0))
    }  # fmt: skip
