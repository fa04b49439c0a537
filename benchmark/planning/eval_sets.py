"""Evaluation sets: the test set of a model's own dataset, other datasets, and shifted copies of either."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...datasets.base import DatasetCard
from ...datasets.parts.leaks import check_kinds
from ...datasets.shifts.shift import LADDER, SHIFTS, expand_shift, is_shift, parse_shift, shift_identity
from ..core.errors import BenchError, did_you_mean
from .config import Request
from .open_datasets import OpenDataset, refuse_namesakes, refuse_overlap

log = logging.getLogger(__name__)

EVERY_OTHER, NOTHING = "all", "none"


class EvalSet(NamedTuple):
    """The test split of a fold of a dataset, perhaps shifted; level 0 is the images as they are.

    dataset: as the user named it. stain_source, stain_fold: the dataset whose test images give the target stains of a
    shift that needs some; the dataset itself unless the user names another.
    """

    dataset: str
    fold: str
    shift: str = ""
    level: int = 0
    stain_source: str = ""
    stain_fold: str = ""


class OodTarget(NamedTuple):
    """One thing a user wants models to be scored on. An empty dataset stands for each model's own."""

    dataset: str
    shift: str = ""
    level: int = 0
    named: bool = True  # False: it came with `all` or `ladder`, and is left out where it makes no sense


def read_targets(words: Sequence[str], datasets: Sequence[str]) -> list[OodTarget]:
    """The targets of `--ood`, in order, each once.

    Words: `all` (every other dataset of the command), `none`, DATASET, DATASET:SHIFT-LEVEL, DATASET:SHIFT (all levels),
    SHIFT or SHIFT-LEVEL (of each model's own dataset), `ladder` (all levels of all shifts, likewise). Level 0 is the
    dataset itself. Raises BenchError for `none` beside anything else and for an unknown shift or level.
    """
    if NOTHING in words and len(words) > 1:
        raise BenchError(f"--ood {','.join(words)}: `none` stands alone.")
    targets: list[OodTarget] = []
    for word in words:
        if word == EVERY_OTHER:
            targets += [OodTarget(name, named=False) for name in datasets]
        elif word != NOTHING:
            targets += _read_target(word)
    return list(dict.fromkeys(targets))


def _read_target(word: str) -> list[OodTarget]:
    if word.lower().endswith(".csv"):  # a file, though it be called jpeg-set.csv
        return [OodTarget(word)]
    dataset, colon, last = word.rpartition(":")
    if not colon:
        dataset, last = "", word
    if is_shift(last):
        return [_shifted(dataset, rung, named=last != LADDER) for rung in expand_shift(last)]
    return [OodTarget(word)]


def _shifted(dataset: str, rung: str, named: bool) -> OodTarget:
    shift, level = parse_shift(rung)
    return OodTarget(dataset, shift, level, named) if level else OodTarget(dataset)


def map_labels(source: DatasetCard, target: DatasetCard) -> tuple[int, ...] | None:
    """For every class of `target` the class of `source` that means the same, or None where there is no such mapping.

    Equal class names are the same class. Otherwise two sets of two classes are matched by their positive class:
    malignant and tumour on one side, benign and normal on the other.
    """
    if sorted(source.classes) == sorted(target.classes):
        return tuple(source.classes.index(name) for name in target.classes)
    if len(source.classes) == len(target.classes) == 2:
        same = source.positive_class == target.positive_class
        return (0, 1) if same else (1, 0)
    return None


def mapping_text(source: DatasetCard, target: DatasetCard, mapping: Sequence[int]) -> str:
    """The mapping in words, such as `normal as benign, tumor as malignant`."""
    return ", ".join(f"{name} as {source.classes[k]}" for name, k in zip(target.classes, mapping, strict=True))


def fold_of(fold: str, known: Sequence[str]) -> str:
    """The fold of an evaluation set for a model of `fold`: the one of that name, else the first."""
    return fold if fold in known else known[0]


class EvalSetResolver:
    """The opened datasets of a request and the evaluation sets made of them.

    Raises BenchError for a dataset that does not exist, two of one name, an evaluation-only set to train on, and an
    unknown word of `--ood`.
    """

    def __init__(self, request: Request, adapting: bool = False) -> None:
        """adapting: whether models learn from training images of the other datasets too."""
        cache = request.run.results / "cache"
        check_kinds(request.allow_leaks)
        for key in request.overrides.get("shift", {}):
            if key != "stains":
                raise BenchError(f"There is no setting shift.{key}.{did_you_mean(key, ['stains'])}")
        self.targets = read_targets(request.ood, request.datasets)
        self.stain_source = str(request.overrides.get("shift", {}).get("stains", ""))
        named = [*request.datasets, *(t.dataset for t in self.targets), self.stain_source]
        names = dict.fromkeys(name for name in named if name)
        self.open_datasets = {name: _open(name, request, cache, adapting) for name in names}
        refuse_namesakes(self.open_datasets)
        for name in request.datasets:
            if self.open_datasets[name].dataset.card.evaluation_only:
                raise BenchError(f"Dataset {name} has no training images; score models of another on it: --ood {name}.")
        self._found: dict[tuple[str, str], list[EvalSet]] = {}
        self._identities: dict[tuple[str, EvalSet, str], dict[str, Any]] = {}
        self._label_maps: dict[tuple[str, str], tuple[int, ...]] = {}

    def sets(self, dataset: str, fold: str) -> list[EvalSet]:
        """Evaluation sets of models of a dataset's fold: its own test set first, then every other set asked for."""
        place = (dataset, fold)
        if place not in self._found:
            eval_sets = [EvalSet(*place)]
            for target in self.targets:
                name = target.dataset or dataset
                there = fold if name == dataset else fold_of(fold, self.open_datasets[name].dataset.folds)
                wanted = self._with_stain_source(EvalSet(name, there, target.shift, target.level), target)
                if wanted is not None and wanted not in eval_sets and self._fits(EvalSet(*place), wanted, target):
                    eval_sets.append(wanted)
            self._found[place] = eval_sets
        return self._found[place]

    def title(self, on: EvalSet) -> str:
        """Its name in tables: `glas`, `glas:stain-3`, or `glas:restain-3@camelyon16` with the stains of another set."""
        name = self.open_datasets[on.dataset].title
        borrowed = f"@{self.open_datasets[on.stain_source].title}" if on.stain_source not in ("", on.dataset) else ""
        return f"{name}:{on.shift}-{on.level}{borrowed}" if on.shift else name

    def _with_stain_source(self, on: EvalSet, target: OodTarget) -> EvalSet | None:
        """With the set that lends its stains, for a shift that needs some; None where that cannot be.

        Raises BenchError where it cannot be although the shift was named.
        """
        if not (on.shift and SHIFTS[on.shift].pooled):
            return on
        stain_source = self.stain_source or on.dataset
        source = self.open_datasets[stain_source]
        fold = on.fold if stain_source == on.dataset else fold_of(on.fold, source.dataset.folds)
        least, opened, text = max(SHIFTS[on.shift].levels), self.open_datasets[on.dataset], ""
        if not opened.manifest(on.fold).split("train"):
            text = f"{opened.title} has no training images, from which distances count"
        elif len(source.manifest(fold).split("test")) < least:
            text = f"{source.title} has fewer than {least} test images to lend stains (--set shift.stains=DATASET)"
        if not text:
            return on._replace(stain_source=stain_source, stain_fold=fold)
        if target.named:
            raise BenchError(f"--ood {opened.title}:{on.shift}: {text}. Leave this shift out.")
        if on.level == 1:
            log.warning("%s:%s is left out: %s.", opened.title, on.shift, text)
        return None

    def _fits(self, home: EvalSet, wanted: EvalSet, target: OodTarget) -> bool:
        """Whether models of `home` may be scored there. Raises BenchError for a set that was named and does not fit."""
        source, other = self.open_datasets[home.dataset], self.open_datasets[wanted.dataset]
        if source is other:
            return True
        if map_labels(source.dataset.card, other.dataset.card) is None:
            text = (
                f"The classes of {other.title} ({', '.join(other.dataset.card.classes)}) cannot be told by a model of "
            )
            text += f"{source.title} ({', '.join(source.dataset.card.classes)})"
            if target.named:
                raise BenchError(f"--ood: {text}. Leave it out.")
            log.warning("%s: not scored there.", text)
            return False
        refuse_overlap(source, home.fold, other, wanted.fold)
        return True

    def identity(self, dataset: str, on: EvalSet, split: str) -> dict[str, Any]:
        """Identity of an evaluation set: its part of a stage key."""
        place = (dataset, on, split)
        if place not in self._identities:
            self._identities[place] = self._identify(*place)
        return self._identities[place]

    def _identify(self, dataset: str, on: EvalSet, split: str) -> dict[str, Any]:
        identity = self.open_datasets[on.dataset].identity(on.fold, (split,))
        if on.shift:
            identity = {**identity, "shift": shift_identity(on.shift, on.level)}
        if on.stain_source:
            pool = [self.open_datasets[on.dataset].identity(on.fold, ("train",))]
            identity["pool"] = [*pool, self.open_datasets[on.stain_source].identity(on.stain_fold, ("test",))]
        if on.dataset != dataset:
            identity = {**identity, "label_map": list(self.label_map(dataset, on))}
        return identity

    def label_map(self, dataset: str, on: EvalSet) -> tuple[int, ...]:
        """For every class of the evaluation set, the class of the training set that means the same."""
        place = (dataset, on.dataset)
        if place not in self._label_maps:
            mapping = map_labels(*(self.open_datasets[name].dataset.card for name in place))
            if mapping is None:
                raise ValueError(f"no label map from {dataset} to {on.dataset}")
            self._label_maps[place] = mapping
        return self._label_maps[place]


def _open(name: str, request: Request, cache: Path, adapting: bool = False) -> OpenDataset:
    """A dataset by name. Raises BenchError for an unknown one; one of `--ood` may have been meant as a shift."""
    try:
        trained = name in request.datasets or adapting
        return OpenDataset(name, request.run.data_root, cache, trained, request.allow_leaks)
    except BenchError as problem:
        words = [w for w in request.ood if w == name or w.startswith(f"{name}:")]
        if name in request.datasets or not words:
            raise
        text = f"--ood {words[0]}: {problem}"
        if not name.lower().endswith(".csv"):
            known = [*SHIFTS, *(f"{shift}-{k}" for shift, card in SHIFTS.items() for k in card.levels)]
            near = did_you_mean(name.rpartition(":")[2], known)
            text += f" Shifts: {', '.join(SHIFTS)}, each with its levels.{'' if ' Known:' in near else near}"
        raise BenchError(text) from None
