"""What a trained model is scored on: its own test set, other datasets, and shifted copies of either."""

from collections.abc import Sequence
from typing import NamedTuple

from ...datasets.base import DatasetCard
from ...datasets.shifts.shift import LADDER, expand_shift, is_shift, parse_shift
from ..core.errors import BenchError

EVERY_OTHER, NOTHING = "all", "none"


class EvalSet(NamedTuple):
    """The test split of a fold of a dataset, perhaps shifted; level 0 is the images as they are.

    dataset: as the user named it. lender, lender_fold: the dataset whose test images lend their stains, for a shift
    that needs some; the dataset itself unless the user names another.
    """

    dataset: str
    fold: str
    shift: str = ""
    level: int = 0
    lender: str = ""
    lender_fold: str = ""


class Target(NamedTuple):
    """One thing a user wants models to be scored on. An empty dataset stands for each model's own."""

    dataset: str
    shift: str = ""
    level: int = 0
    named: bool = True  # False: it came with `all` or `ladder`, and is left out where it makes no sense


def read_targets(asked: Sequence[str], datasets: Sequence[str]) -> list[Target]:
    """The targets of `--ood`, in order, each once.

    Words: `all` (every other dataset of the command), `none`, DATASET, DATASET:SHIFT-LEVEL, DATASET:SHIFT (all levels),
    SHIFT or SHIFT-LEVEL (of each model's own dataset), `ladder` (all levels of all shifts, likewise). Level 0 is the
    dataset itself. Raises BenchError for `none` beside anything else and for an unknown shift or level.
    """
    if NOTHING in asked and len(asked) > 1:
        raise BenchError(f"--ood {','.join(asked)}: `none` stands alone.")
    found: list[Target] = []
    for word in asked:
        if word == EVERY_OTHER:
            found += [Target(name, named=False) for name in datasets]
        elif word != NOTHING:
            found += _read_target(word)
    return list(dict.fromkeys(found))


def _read_target(word: str) -> list[Target]:
    if word.lower().endswith(".csv"):  # a file, though it be called jpeg-set.csv
        return [Target(word)]
    dataset, colon, last = word.rpartition(":")
    if not colon:
        dataset, last = "", word
    if is_shift(last):
        return [_shifted(dataset, rung, named=last != LADDER) for rung in expand_shift(last)]
    return [Target(word)]


def _shifted(dataset: str, rung: str, named: bool) -> Target:
    shift, level = parse_shift(rung)
    return Target(dataset, shift, level, named) if level else Target(dataset)


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
