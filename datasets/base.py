"""The contract of a dataset: a manifest, one row an image, and the rule that decodes its masks."""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from ..benchmark.core.errors import BenchError
from . import DATASETS, register
from .masks.reader import MaskPixels, MaskRule, read_mask
from .parts.identity import one_spelling

__all__ = ["DATASETS", "Dataset", "DatasetCard", "Item", "Manifest", "register"]

SPLITS = ("train", "val", "test")
LIST_FROM = 16  # files of one folder, from which on it is listed


@dataclass(frozen=True)
class Item:
    """One image. `group` is the patient or slide.

    `mask` None: all background where the class has no region of interest. Elsewhere it means unknown, which is allowed
    for images that are not scored (training images, and validation images that are not `pixel_val`).
    `pixel_val`: this validation image's mask may be read (valpx: `loc` selection and tau_val); False outside `val`.
    `meta`: what else the dataset says of the image, such as its site, by name; part of no key.
    `mask_rule`: what the numbers in this mask mean, None for the rule of the card.
    """

    id: str
    image: Path
    mask: Path | None
    label: int
    group: str
    split: str
    pixel_val: bool = False
    meta: tuple[tuple[str, str], ...] = ()
    mask_rule: MaskRule | None = None


@dataclass(frozen=True)
class DatasetCard:
    """What a dataset declares about itself.

    foreground: what a mask marks. region_classes: per class, whether its images hold a region of interest.
    positive_class: index of malignant, tumour. background_class: index of a class without any region, or None.
    evaluation_only: it has a test split alone, for models trained elsewhere.
    namespace: datasets of one namespace name their groups alike, so that an equal name is the same slide or patient.
    mask_rule: what the numbers in its masks mean.
    """

    name: str
    version: int
    classes: tuple[str, ...]
    positive_class: int
    region_classes: tuple[bool, ...]
    foreground: str
    group: str
    licence: str
    citation: str
    evaluation_only: bool = False
    namespace: str = ""
    mask_rule: MaskRule = MaskRule()

    @property
    def regions(self) -> tuple[int, ...]:
        """The classes whose images hold a region of interest."""
        return tuple(i for i, region in enumerate(self.region_classes) if region)

    @property
    def background_class(self) -> int | None:
        """The class whose images are all background, if there is one."""
        return next((i for i, region in enumerate(self.region_classes) if not region), None)


@dataclass(frozen=True)
class Manifest:
    """The rows of one fold.

    notes: facts a reader of the table must know. split_notes: those of them that are about the splits, such as patients
    that several share, and hold for models of this dataset alone. declared: kinds of leaks (parts/leaks.py) that the
    published splits have by design and the notes report.
    """

    card: DatasetCard
    fold: str
    items: tuple[Item, ...]
    synthetic: bool = False
    notes: tuple[str, ...] = field(default=())
    split_notes: tuple[str, ...] = ()
    declared: frozenset[str] = frozenset()

    def split(self, name: str) -> list[Item]:
        """Rows of `train`, `val`, `test`, or `valpx` (the validation rows whose masks may be read)."""
        if name == "valpx":
            return [i for i in self.items if i.pixel_val]
        return [i for i in self.items if i.split == name]


class Dataset(ABC):
    """A dataset on disk. Subclasses find their files in `data_root` and know their folds.

    variants: what may follow its name after a colon, as in `camelyon17:centre-2`; the variant asked for is `variant`,
    empty without one.
    """

    registered_name: str = ""
    card: ClassVar[DatasetCard]
    folds: ClassVar[tuple[str, ...]] = ("0",)
    scheme: ClassVar[str] = "published"  # of folds without a scheme in their name
    variants: ClassVar[tuple[str, ...]] = ()
    weights_seen: tuple[str, ...] = ()  # splits of it, `all`, or other sets, that its user's starting weights have seen

    def __init__(self, data_root: Path, variant: str = "") -> None:
        self.data_root, self.variant = data_root, variant

    @abstractmethod
    def manifest(self, fold: str) -> Manifest:
        """The rows of a fold, every file checked to exist. Raises BenchError saying what is missing and what to do."""

    @property
    def ignores(self) -> bool:
        """Whether masks may hold pixels that count nowhere."""
        return bool(self.card.mask_rule.ignore)

    def read_mask(self, item: Item) -> MaskPixels:
        """The mask of an image, by the rule of its row or else of the card.

        Raises BenchError for a file that is no mask, or whose numbers the rule does not make clear, and ValueError for
        an image that has none.
        """
        if item.mask is None:
            raise ValueError(f"image '{item.id}' is declared maskless")
        return read_mask(item.mask, item.mask_rule or self.card.mask_rule)

    def scheme_of(self, fold: str) -> str:
        """How images are divided in a fold, e.g. `published` or `grouped`: numbers of two schemes never mix."""
        return fold.rpartition("-")[0] or self.scheme

    def expand_folds(self, words: Sequence[str]) -> list[str]:
        """Fold names from what the user typed; a scheme's name stands for all its folds."""
        names: list[str] = []
        for word in words:
            matches = [f for f in self.folds if f == word or f.rpartition("-")[0] == word]
            if not matches:
                raise BenchError(f"Dataset {self.card.name} has no fold '{word}'. Known: {', '.join(self.folds)}.")
            names += [m for m in matches if m not in names]
        return names


def check_manifest(manifest: Manifest) -> Manifest:
    """Checks what holds for every dataset and returns the manifest.

    Raises BenchError for a duplicate id, a label or split that does not exist, an empty split, a class missing from
    the training set (but for evaluation-only sets), a scored image without a mask though its class has a region of
    interest, or a missing file.
    """
    card = manifest.card
    where = f"{card.name}, fold {manifest.fold}"
    ids = Counter(i.id for i in manifest.items)
    if twice := [i for i, n in ids.items() if n > 1]:
        raise BenchError(f"{where}: the id '{twice[0]}' occurs {ids[twice[0]]} times ({len(twice)} such ids).")
    for item in manifest.items:
        if item.split not in SPLITS:
            raise BenchError(f"{where}: image '{item.id}' has split '{item.split}', not one of {', '.join(SPLITS)}.")
        if not 0 <= item.label < len(card.classes):
            raise BenchError(f"{where}: image '{item.id}' has label {item.label} of {len(card.classes)} classes.")
        scored = item.split == "test" or item.pixel_val
        if item.mask is None and card.region_classes[item.label] and scored:
            raise BenchError(
                f"{where}: {item.split} image '{item.id}' ({card.classes[item.label]}) has no mask, though its "
                "class has a region of interest and it is scored. Name its mask, or declare the class as background."
            )
    _check_files(manifest, where)
    manifest = _one_spelling(manifest)
    for split in ("test",) if card.evaluation_only else SPLITS:
        if not manifest.split(split):
            raise BenchError(f"{where}: the split '{split}' is empty. Give it images.")
    if card.evaluation_only:
        return manifest
    missing = set(range(len(card.classes))) - {i.label for i in manifest.split("train")}
    if missing:
        raise BenchError(f"{where}: no training image of class {card.classes[min(missing)]}.")
    return manifest


def unify_groups(items: Sequence[Item]) -> tuple[tuple[Item, ...], list[str]]:
    """The rows with one spelling for every group, and the note on it.

    Rows whose groups are spelt in one way are returned as they are, so that their keys stay the same.
    """
    names, notes = one_spelling(i.group for i in items)
    return tuple(replace(i, group=names.get(i.group, i.group)) for i in items) if names else tuple(items), notes


def _one_spelling(manifest: Manifest) -> Manifest:
    items, notes = unify_groups(manifest.items)
    return replace(manifest, items=items, notes=(*manifest.notes, *notes)) if notes else manifest


def missing_files(files: Sequence[Path]) -> list[Path]:
    """Those of `files` that are not there, in their order.

    Large folders are listed instead of asking file by file: one call for a thousand names, which matters on network
    disks. A name that no listing holds is still asked for, as disks may ignore case.
    """
    folders = Counter(os.path.dirname(p) for p in files)  # noqa: PTH120 - Path.parent takes three times as long
    listed: set[str] = set()
    for folder, n in folders.items():
        if n < LIST_FROM:
            continue
        try:
            with os.scandir(folder) as entries:
                listed.update(e.path for e in entries if e.is_file())
        except OSError:  # gone, or closed to listing though open to reading: each file is asked for below
            continue
    return [p for p in files if str(p) not in listed and not p.is_file()]


def _check_files(manifest: Manifest, where: str) -> None:
    files = [p for i in manifest.items for p in (i.image, i.mask) if p is not None]
    if gone := missing_files(files):
        some = "\n  ".join(str(p) for p in gone[:5])
        raise BenchError(
            f"{where}: {len(gone)} of {len(files)} files are missing, the first:\n  {some}\n"
            "The copy is incomplete or lies elsewhere: download it again, or correct --data-root or the list."
        )


def shared_groups(items: Sequence[Item], one: str, other: str) -> list[str]:
    """Groups that have images in both splits: a leak, to be reported."""
    first, second = ({i.group for i in items if i.split == s} for s in (one, other))
    return sorted(first & second)
