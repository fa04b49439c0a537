"""A user's own dataset: a CSV file with one row an image. The format is described in docs/datasets.md."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..benchmark.core.errors import BenchError, did_you_mean
from .base import SPLITS, Dataset, DatasetCard, Item, Manifest, check_manifest
from .masks.reader import declared_rule
from .parts.csv_table import GAPS, MASK_SETTINGS, TableRow, checked, read_table, whole
from .parts.folds import PIXEL_VAL_PER_CLASS, choose_pixel_val

YES, _NO = ("1", "true", "yes"), ("", "0", "false", "no")
_UNKNOWN_GROUPS = (
    "! patients or slides are unknown (# groups: unknown): each image counts as a group of its own, so intervals may "
    "be too narrow, and nobody can tell whether a patient is in several splits"
)


class CsvDataset(Dataset):
    """A dataset declared by a CSV file: images, masks, labels, groups, splits and perhaps folds."""

    scheme = "declared"

    def __init__(self, path: Path, data_root: Path, may_lack: Collection[str] = ()) -> None:
        """Reads and checks the table itself, not the files it names. Raises BenchError naming the line at fault.

        may_lack: required columns that may be missing, for whoever fills them in (`bench data split`).
        """
        super().__init__(data_root)
        self.path = path
        bases = (path.parent, data_root)
        self._allowed = {Path(form(base)) for base in bases for form in (os.path.abspath, os.path.realpath)}
        table = read_table(path, may_lack)
        settings, self.rows, self._notes = table.settings, table.rows, list(table.notes)
        self.groups_unknown = settings.get("groups") == "unknown"
        # Unlike a dataset with a class of its own, this one learns its card and folds from the file.
        self.card, notes = _card(path, settings, self.rows)  # pyright: ignore[reportAttributeAccessIssue]
        self._notes += notes
        self._synthetic = _flag(settings.get("synthetic", ""), f"{path}: '# synthetic'")
        self.weights_seen = tuple(w.strip() for w in settings.get("weights_seen", "").split(",") if w.strip())
        named = sorted({r.cells["fold"] for r in self.rows} - {""})
        self.folds = tuple(named) or ("0",)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def ignores(self) -> bool:
        """Whether the file declares values to be ignored, for all masks or for some."""
        return super().ignores or any(r.cells["mask_ignore"] for r in self.rows)

    def manifest(self, fold: str) -> Manifest:
        """The rows of a fold, sorted by id. Raises BenchError for a row, path or group that breaks a rule."""
        if fold not in self.folds:
            raise BenchError(f"{self.path} has no fold '{fold}'. Known: {', '.join(self.folds)}.")
        rows = [r for r in self.rows if r.cells["fold"] in ("", fold)]
        items = sorted((self.item(r) for r in rows), key=lambda i: i.id)
        notes = list(self._notes)
        if not self.card.evaluation_only and not any(i.pixel_val for i in items):
            regions = self.card.region_classes
            masked = [i for i in items if i.split == "val" and (i.mask or not regions[i.label])]
            chosen = choose_pixel_val((i.id, i.label, i.group) for i in masked)
            items = [replace(i, pixel_val=i.split == "val" and i.id in chosen) for i in items]
            notes.append(
                f"no row is marked pixel_val: masks of {len(chosen)} validation images (up to {PIXEL_VAL_PER_CLASS} a "
                "class, chosen by a hash of their ids) serve selection and tau_val"
            )
        about = (_UNKNOWN_GROUPS,) if self.groups_unknown else ()
        return check_manifest(Manifest(self.card, fold, tuple(items), self._synthetic, (*notes, *about), about))

    def item(self, row: TableRow) -> Item:
        """The image of a row. Raises BenchError, naming the line, for a cell that breaks a rule."""
        where, cells = f"{self.path}, line {row.line}", row.cells
        if not cells["image"]:
            raise BenchError(f"{where}: the image is empty. Every row needs one.")
        group = cells["id"] or cells["image"] if self.groups_unknown else cells["group"]
        if group.lower() in ("", *GAPS):
            raise BenchError(
                f"{where}: the group is {repr(group) if group else 'empty'}. It names the patient or slide, whose "
                "images must not be divided among splits. Where nobody knows it, add the line '# groups: unknown': "
                "each image is then a group of its own, and every table says so."
            )
        if cells["split"] not in SPLITS:
            hint = "" if cells["split"] else " To have such rows divided: bench data split."
            raise BenchError(f"{where}: split '{cells['split']}' is not one of {', '.join(SPLITS)}.{hint}")
        label = _label(cells["label"], self.card.classes, where)
        pixel_val = _flag(cells["pixel_val"], f"{where}: pixel_val")
        if pixel_val and cells["split"] != "val":
            raise BenchError(f"{where}: pixel_val is set in split '{cells['split']}'; only val rows may be marked.")
        if cells["mask"] and not self.card.region_classes[label]:
            raise BenchError(
                f"{where}: class {self.card.classes[label]} is declared background, yet the row names a mask. "
                "Leave the mask empty or change '# background'."
            )
        rule = declared_rule({k: cells[k] for k in MASK_SETTINGS}, where, self.card.mask_rule)
        return Item(
            id=cells["id"] or cells["image"],
            image=self._resolve(cells["image"], where),
            mask=self._resolve(cells["mask"], where) if cells["mask"] else None,
            label=label,
            group=group,
            split=cells["split"],
            pixel_val=pixel_val,
            meta=row.extra,
            mask_rule=None if rule == self.card.mask_rule else rule,
        )

    def _resolve(self, text: str, where: str) -> Path:
        """A path of the table, relative to the folder of the CSV file; it stays in there or in the data root.

        Dots are taken away as text, so that `a/../b` is `b` whatever `a` is; links are followed.
        """
        inside = Path(os.path.normpath(text))
        if not inside.is_absolute():
            if inside.parts[:1] == ("..",):
                raise BenchError(
                    f"{where}: the path '{text}' leaves the folder of the CSV file. Move the CSV file up, or write an "
                    "absolute path below --data-root."
                )
            return self.path.parent / inside
        if not any(inside.is_relative_to(base) for base in self._allowed):
            raise BenchError(
                f"{where}: the path '{text}' lies neither in the folder of the CSV file nor below --data-root "
                f"({self.data_root}), and a table can name nothing else. Give --data-root the folder that holds the "
                "images."
            )
        return inside


def _card(path: Path, settings: Mapping[str, str], rows: Sequence[TableRow]) -> tuple[DatasetCard, list[str]]:
    classes, notes = _classes(path, settings, rows)
    background = _class_index(path, settings, "background", classes)
    positive = _class_index(path, settings, "positive", classes)
    with_region = [k for k in range(len(classes)) if k != background]
    if positive is None and len(with_region) == 1:
        positive = with_region[0]
    if positive is None:
        raise BenchError(
            f"{path} does not say which of its classes is the positive one: {', '.join(classes)}. Add a line "
            "'# positive: NAME' with the class to find, and '# background: NAME' if the images of a class have no "
            "region and no mask."
        )
    if positive == background:
        raise BenchError(f"{path}: '{classes[positive]}' cannot be both positive and background.")
    rule = declared_rule({k: settings.get(k, "") for k in MASK_SETTINGS}, str(path))
    card = DatasetCard(
        mask_rule=rule,
        name=settings.get("name") or checked(path.stem, "name", str(path)),
        version=1,
        classes=classes,
        positive_class=positive,
        region_classes=tuple(k != background for k in range(len(classes))),
        foreground=settings.get("foreground", rule.words),
        group="image" if settings.get("groups") == "unknown" else "group",
        licence=settings.get("licence", "not stated"),
        citation=settings.get("citation", "not stated"),
        evaluation_only={r.cells["split"] for r in rows} == {"test"},
    )
    return card, notes


def _classes(path: Path, settings: Mapping[str, str], rows: Iterable[TableRow]) -> tuple[tuple[str, ...], list[str]]:
    """Declared names, else the labels themselves: numbers in their order, names in that of the alphabet."""
    notes: list[str] = []
    if "classes" in settings:
        names = [checked(n, "name of a class", str(path)) for n in settings["classes"].split(",")]
        if len(set(names)) != len(names) or not all(names):
            raise BenchError(f"{path}: '# classes' must list different names, separated by commas.")
    else:
        names, notes = _names_in(path, rows)
    if len(names) < 2:
        raise BenchError(
            f"{path}: at least two classes are needed; found {', '.join(names) or 'none'}. Where a table, such as a "
            "test set, holds one of several, list all that its models know: '# classes: normal, tumour'."
        )
    if len(names) > 1000:
        raise BenchError(f"{path}: {len(names)} classes. Labels must be few numbers, or names.")
    return tuple(names), notes


def _names_in(path: Path, rows: Iterable[TableRow]) -> tuple[list[str], list[str]]:
    """Names of the classes from the labels, and what must be said of them."""
    labels = set[str]()
    for row in rows:
        text = row.cells["label"]
        if text.lower() in ("", *GAPS):
            raise BenchError(
                f"{path}, line {row.line}: the label is {repr(text) if text else 'empty'}. Every row needs one; if it "
                "is the name of a class, list all of them: '# classes: …'."
            )
        labels.add(whole(text))
    folded = defaultdict[str, set[str]](set)
    for label in labels:
        folded[" ".join(label.casefold().replace("_", " ").replace("-", " ").split())].add(label)
    if alike := next((sorted(v) for v in folded.values() if len(v) > 1), None):
        raise BenchError(
            f"{path}: are the labels {' and '.join(map(repr, alike))} one class? Spell it in one way, or list all "
            "classes: '# classes: …'."
        )
    if not all(label.isdecimal() for label in labels):
        return sorted(labels), []
    names = sorted(labels, key=int)
    if names == [str(k) for k in range(len(names))]:
        return names, []
    return names, [f"the labels {', '.join(names)} are taken for the names of {len(names)} classes"]


def _class_index(path: Path, settings: Mapping[str, str], key: str, classes: Sequence[str]) -> int | None:
    return _label(settings[key], classes, f"{path}: '# {key}'") if settings.get(key) else None


def _label(text: str, classes: Sequence[str], where: str) -> int:
    """The index of a class: by its name, or by its number from 0 where no name is a number itself."""
    for spelling in (text, whole(text)):
        if spelling in classes:
            return list(classes).index(spelling)
    number = whole(text)
    if number.isdecimal() and int(number) < len(classes) and not any(c.isdecimal() for c in classes):
        return int(number)
    hint = ""
    if number.isdecimal():
        hint = f" Numbers count from 0 ({', '.join(f'{k}: {c}' for k, c in enumerate(classes[:9]))}); names work too."
    raise BenchError(f"{where}: there is no class '{text}'.{did_you_mean(text, classes)}{hint}")


def _flag(text: str, where: str) -> bool:
    if text.lower() not in YES + _NO:
        raise BenchError(f"{where}: '{text}' is neither of {', '.join(filter(None, YES + _NO))}.")
    return text.lower() in YES
