"""Which sets the models of a request are scored on, and what of such a set can change a number."""

import logging
from pathlib import Path
from typing import Any

from ...datasets.parts.leaks import check_kinds
from ...datasets.shifts.shift import SHIFTS, shift_identity
from ..core.errors import BenchError, did_you_mean
from .config import Request
from .eval_sets import EvalSet, Target, fold_of, map_labels, read_targets
from .open_datasets import Source, refuse_namesakes, refuse_overlap

log = logging.getLogger(__name__)


class Evaluated:
    """The opened datasets of a request and the evaluation sets made of them.

    Raises BenchError for a dataset that does not exist, two of one name, an evaluation-only set to train on, and an
    unknown word of `--ood`.
    """

    def __init__(self, request: Request) -> None:
        cache = request.run.results / "cache"
        check_kinds(request.allow_leaks)
        for key in request.overrides.get("shift", {}):
            if key != "stains":
                raise BenchError(f"There is no setting shift.{key}.{did_you_mean(key, ['stains'])}")
        self.targets = read_targets(request.ood, request.datasets)
        self.lender = str(request.overrides.get("shift", {}).get("stains", ""))
        named = [*request.datasets, *(t.dataset for t in self.targets), self.lender]
        names = dict.fromkeys(name for name in named if name)
        self.sources = {name: _open(name, request, cache) for name in names}
        refuse_namesakes(self.sources)
        for name in request.datasets:
            if self.sources[name].dataset.card.evaluation_only:
                raise BenchError(f"Dataset {name} has no training images; score models of another on it: --ood {name}.")
        self._found: dict[tuple[str, str], list[EvalSet]] = {}
        self._identities: dict[tuple[str, EvalSet, str], dict[str, Any]] = {}
        self._label_maps: dict[tuple[str, str], tuple[int, ...]] = {}

    def sets(self, dataset: str, fold: str) -> list[EvalSet]:
        """What models of a dataset's fold are scored on: its own test set first, then every other set asked for."""
        place = (dataset, fold)
        if place not in self._found:
            found = [EvalSet(*place)]
            for target in self.targets:
                name = target.dataset or dataset
                there = fold if name == dataset else fold_of(fold, self.sources[name].dataset.folds)
                wanted = self._lent(EvalSet(name, there, target.shift, target.level), target)
                if wanted is not None and wanted not in found and self._fits(EvalSet(*place), wanted, target):
                    found.append(wanted)
            self._found[place] = found
        return self._found[place]

    def title(self, on: EvalSet) -> str:
        """Its name in tables: `glas`, `glas:stain-3`, or `glas:restain-3@camelyon16` with the stains of another set."""
        name = self.sources[on.dataset].title
        borrowed = f"@{self.sources[on.lender].title}" if on.lender not in ("", on.dataset) else ""
        return f"{name}:{on.shift}-{on.level}{borrowed}" if on.shift else name

    def _lent(self, on: EvalSet, target: Target) -> EvalSet | None:
        """With the set that lends its stains, for a shift that needs some; None where that cannot be.

        Raises BenchError where it cannot be although the shift was named.
        """
        if not (on.shift and SHIFTS[on.shift].pooled):
            return on
        lender = self.lender or on.dataset
        source = self.sources[lender]
        fold = on.fold if lender == on.dataset else fold_of(on.fold, source.dataset.folds)
        least, here, text = max(SHIFTS[on.shift].levels), self.sources[on.dataset], ""
        if not here.manifest(on.fold).split("train"):
            text = f"{here.title} has no training images, from which distances count"
        elif len(source.manifest(fold).split("test")) < least:
            text = f"{source.title} has fewer than {least} test images to lend stains (--set shift.stains=DATASET)"
        if not text:
            return on._replace(lender=lender, lender_fold=fold)
        if target.named:
            raise BenchError(f"--ood {here.title}:{on.shift}: {text}. Leave this shift out.")
        if on.level == 1:
            log.warning("%s:%s is left out: %s.", here.title, on.shift, text)
        return None

    def _fits(self, home: EvalSet, wanted: EvalSet, target: Target) -> bool:
        """Whether models of `home` may be scored there. Raises BenchError for a set that was named and does not fit."""
        source, other = self.sources[home.dataset], self.sources[wanted.dataset]
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
        """What of an evaluation set enters a stage key."""
        place = (dataset, on, split)
        if place not in self._identities:
            self._identities[place] = self._identify(*place)
        return self._identities[place]

    def _identify(self, dataset: str, on: EvalSet, split: str) -> dict[str, Any]:
        found = self.sources[on.dataset].identity(on.fold, (split,))
        if on.shift:
            found = {**found, "shift": shift_identity(on.shift, on.level)}
        if on.lender:
            pool = [self.sources[on.dataset].identity(on.fold, ("train",))]
            found["pool"] = [*pool, self.sources[on.lender].identity(on.lender_fold, ("test",))]
        if on.dataset != dataset:
            found = {**found, "label_map": list(self.label_map(dataset, on))}
        return found

    def label_map(self, dataset: str, on: EvalSet) -> tuple[int, ...]:
        """For every class of the evaluation set, the class of the training set that means the same."""
        place = (dataset, on.dataset)
        if place not in self._label_maps:
            mapping = map_labels(*(self.sources[name].dataset.card for name in place))
            if mapping is None:
                raise ValueError(f"no label map from {dataset} to {on.dataset}")
            self._label_maps[place] = mapping
        return self._label_maps[place]


def _open(name: str, request: Request, cache: Path) -> Source:
    """A dataset by name. Raises BenchError for an unknown one; one of `--ood` may have been meant as a shift."""
    try:
        trained = name in request.datasets
        return Source(name, request.run.data_root, cache, trained, request.allow_leaks)
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
