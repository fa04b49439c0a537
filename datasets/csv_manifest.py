"""A user's own dataset: a CSV file with one row an image. The format is described in docs/datasets.md."""

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..benchmark.errors import BenchError, did_you_mean, plain
from .base import SPLITS, Dataset, DatasetCard, Item, Manifest, check_manifest, shared_groups
from .folds import PIXEL_VAL_PER_CLASS, choose_pixel_val
from .masks import read_mask

REQUIRED = ("image", "mask", "label", "group", "split")
OPTIONAL = ("id", "pixel_val", "fold")
SETTINGS = ("name", "classes", "positive", "background", "foreground", "licence", "citation", "synthetic")
LONGEST, LONGEST_PATH = 300, 4096  # characters of a cell or setting, and of a path
_YES, _NO = ("1", "true", "yes"), ("", "0", "false", "no")


@dataclass(frozen=True)
class _Row:
    """One row as text, with the line it stands on."""

    line: int
    cells: Mapping[str, str]


class CsvDataset(Dataset):
    """A dataset declared by a CSV file: images, masks, labels, groups, splits and perhaps folds."""

    def __init__(self, path: Path, data_root: Path) -> None:
        """Reads and checks the table itself, not the files it names. Raises BenchError naming the line at fault."""
        super().__init__(data_root)
        self.path = path
        bases = (path.parent, data_root)
        self._allowed = {Path(form(base)) for base in bases for form in (os.path.abspath, os.path.realpath)}
        settings, self._rows = _read_table(path)
        # Unlike a dataset with a class of its own, this one learns its card and folds from the file.
        self.card = _card(path, settings, self._rows)  # pyright: ignore[reportAttributeAccessIssue]
        self._synthetic = _flag(settings.get("synthetic", ""), f"{path}: '# synthetic'")
        named = sorted({r.cells["fold"] for r in self._rows} - {""})
        self.folds = tuple(named) or ("0",)  # pyright: ignore[reportAttributeAccessIssue]

    def manifest(self, fold: str) -> Manifest:
        """The rows of a fold, sorted by id. Raises BenchError for a row, path or group that breaks a rule."""
        if fold not in self.folds:
            raise BenchError(f"{self.path} has no fold '{fold}'. Known: {', '.join(self.folds)}.")
        rows = [r for r in self._rows if r.cells["fold"] in ("", fold)]
        items = sorted((self._item(r) for r in rows), key=lambda i: i.id)
        notes: list[str] = []
        if not self.card.evaluation_only and not any(i.pixel_val for i in items):
            regions = self.card.region_classes
            masked = [i for i in items if i.split == "val" and (i.mask or not regions[i.label])]
            chosen = choose_pixel_val((i.id, i.label, i.group) for i in masked)
            items = [replace(i, pixel_val=i.split == "val" and i.id in chosen) for i in items]
            notes.append(
                f"no row is marked pixel_val: masks of {len(chosen)} validation images (up to {PIXEL_VAL_PER_CLASS} a "
                "class, chosen by a hash of their ids) serve selection and tau_val"
            )
        manifest = check_manifest(Manifest(self.card, fold, tuple(items), self._synthetic, tuple(notes)))
        _check_groups(self.path, manifest)
        return manifest

    def read_mask(self, path: Path) -> np.ndarray:
        """(H, W) bool, value > 0 is foreground; the mask must have one grey channel."""
        return read_mask(path).foreground

    def _item(self, row: _Row) -> Item:
        where, cells = f"{self.path}, line {row.line}", row.cells
        if not cells["image"] or not cells["group"]:
            raise BenchError(f"{where}: the {'group' if cells['image'] else 'image'} is empty. Every row needs one.")
        if cells["split"] not in SPLITS:
            raise BenchError(f"{where}: split '{cells['split']}' is not one of {', '.join(SPLITS)}.")
        label = _label(cells["label"], self.card.classes, where)
        pixel_val = _flag(cells["pixel_val"], f"{where}: pixel_val")
        if pixel_val and cells["split"] != "val":
            raise BenchError(f"{where}: pixel_val is set in split '{cells['split']}'; only val rows may be marked.")
        if cells["mask"] and not self.card.region_classes[label]:
            raise BenchError(
                f"{where}: class {self.card.classes[label]} is declared background, yet the row names a mask. "
                "Leave the mask empty or change '# background'."
            )
        return Item(
            id=cells["id"] or cells["image"],
            image=self._resolve(cells["image"], where),
            mask=self._resolve(cells["mask"], where) if cells["mask"] else None,
            label=label,
            group=cells["group"],
            split=cells["split"],
            pixel_val=pixel_val,
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


def _read_table(path: Path) -> tuple[dict[str, str], list[_Row]]:
    """Settings from the '# key: value' lines, and the rows, every optional column present."""
    if not path.is_file():
        raise BenchError(f"There is no file {path}. Give the path of a CSV manifest (see docs/datasets.md).")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise BenchError(f"{path} is not UTF-8 text. Save it as 'CSV UTF-8'.") from None
    settings: dict[str, str] = {}
    table: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#"):
            _add_setting(settings, line, f"{path}, line {number}")
        elif line.strip():
            table.append((number, line))
    if len(table) < 2:
        raise BenchError(f"{path} holds no rows. Its header must be: {', '.join(REQUIRED)}.")
    header = _header(path, table[0][1])
    rows = []
    for number, line in table[1:]:
        where = f"{path}, line {number}"
        values = _cells(line, where)
        if len(values) != len(header):
            raise BenchError(f"{where}: {len(values)} fields, the header has {len(header)}. Quote commas.")
        given = {name: _checked(value, name, where) for name, value in zip(header, values, strict=True)}
        rows.append(_Row(number, {**dict.fromkeys(OPTIONAL, ""), **given}))
    return settings, rows


def _cells(line: str, where: str) -> list[str]:
    """The cells of one line; a quoted cell that goes on in the next line is refused."""
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as problem:
        raise BenchError(f"{where} cannot be read ({problem}). A row stands on one line, quotes in pairs.") from None


def _checked(text: str, what: str, where: str) -> str:
    """A cell or setting without blanks around it. Raises BenchError for what nobody writes by hand."""
    text = text.strip()
    longest = LONGEST_PATH if what in ("image", "mask") else LONGEST
    if len(text) > longest:
        raise BenchError(f"{where}: the {what} has {len(text)} characters, more than {longest}. Shorten it.")
    if plain(text) != text or "\n" in text:
        raise BenchError(f"{where}: the {what} '{text}' holds control characters. Remove them.")
    return text


def _add_setting(settings: dict[str, str], line: str, where: str) -> None:
    key, colon, value = line.lstrip("# ").partition(":")
    key = key.strip().lower()
    if not colon:
        return  # a remark
    if key not in SETTINGS:
        raise BenchError(f"{where}: there is no setting '{key}'.{did_you_mean(key, SETTINGS)} A remark needs no colon.")
    if key in settings:
        raise BenchError(f"{where}: '{key}' is set twice.")
    # spreadsheet programs pad a line with commas
    settings[key] = _checked(value.strip().rstrip(","), key, where) if key != "classes" else value.strip().rstrip(",")


def _header(path: Path, line: str) -> list[str]:
    names = [n.strip().lower() for n in next(csv.reader([line]))]
    names = ["pixel_val" if n == "valpx" else n for n in names]
    known = REQUIRED + OPTIONAL
    if len(names) == 1 and (";" in line or "\t" in line):
        raise BenchError(f"{path}: the fields must be separated by commas. Export it as comma-separated.")
    for name in names:
        if name not in known:
            raise BenchError(f"{path}: there is no column '{name}'.{did_you_mean(name, known)}")
        if names.count(name) > 1:
            raise BenchError(f"{path}: the column '{name}' occurs twice.")
    if missing := [n for n in REQUIRED if n not in names]:
        raise BenchError(
            f"{path}: the column{'s' * (len(missing) > 1)} {', '.join(missing)} is missing. See docs/datasets.md."
        )
    return names


def _card(path: Path, settings: Mapping[str, str], rows: Sequence[_Row]) -> DatasetCard:
    classes = _classes(path, settings, rows)
    background = _class_index(path, settings, "background", classes)
    positive = _class_index(path, settings, "positive", classes)
    with_region = [k for k in range(len(classes)) if k != background]
    if positive is None and len(with_region) == 1:
        positive = with_region[0]
    if positive is None:
        raise BenchError(
            f"{path} does not say which of {', '.join(classes)} is the positive class. Add a line '# positive: "
            f"{classes[-1]}', and '# background: {classes[0]}' if images of that class have no region and no mask."
        )
    if positive == background:
        raise BenchError(f"{path}: '{classes[positive]}' cannot be both positive and background.")
    return DatasetCard(
        name=settings.get("name") or _checked(path.stem, "name", str(path)),
        version=1,
        classes=classes,
        positive_class=positive,
        region_classes=tuple(k != background for k in range(len(classes))),
        foreground=settings.get("foreground", "mask value above 0"),
        group="group",
        licence=settings.get("licence", "not stated"),
        citation=settings.get("citation", "not stated"),
        evaluation_only={r.cells["split"] for r in rows} == {"test"},
    )


def _classes(path: Path, settings: Mapping[str, str], rows: Iterable[_Row]) -> tuple[str, ...]:
    """Declared names, else the labels themselves: numbers 0, 1, … in order, names in alphabetical order."""
    if "classes" in settings:
        names = [_checked(n, "name of a class", str(path)) for n in settings["classes"].split(",")]
        if len(set(names)) != len(names) or not all(names):
            raise BenchError(f"{path}: '# classes' must list different names, separated by commas.")
    else:
        labels = {r.cells["label"] for r in rows}
        if labels and all(x.isdecimal() for x in labels):
            names = [str(k) for k in range(max(int(x) for x in labels) + 1)]
        else:
            names = sorted(labels)
    if len(names) < 2 or "" in names:
        raise BenchError(f"{path}: at least two classes are needed and every row must have a label; found {names}.")
    if len(names) > 1000:
        raise BenchError(f"{path}: {len(names)} classes. Labels must count from 0, or be names.")
    return tuple(names)


def _class_index(path: Path, settings: Mapping[str, str], key: str, classes: Sequence[str]) -> int | None:
    return _label(settings[key], classes, f"{path}: '# {key}'") if settings.get(key) else None


def _label(text: str, classes: Sequence[str], where: str) -> int:
    if text in classes:
        return list(classes).index(text)
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    raise BenchError(f"{where}: there is no class '{text}'.{did_you_mean(text, classes)}")


def _flag(text: str, where: str) -> bool:
    if text.lower() not in _YES + _NO:
        raise BenchError(f"{where}: '{text}' is neither of {', '.join(filter(None, _YES + _NO))}.")
    return text.lower() in _YES


def _check_groups(path: Path, manifest: Manifest) -> None:
    """A patient or slide in two splits makes every score too good; for one's own data that is an error."""
    found = defaultdict(list)
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        for group in shared_groups(manifest.items, one, other):
            found[group].append(f"{one} and {other}")
    if found:
        some = "; ".join(f"'{g}' is in {' and in '.join(pairs)}" for g, pairs in list(found.items())[:5])
        raise BenchError(
            f"{path}, fold {manifest.fold}: {len(found)} groups are in more than one split: {some}. "
            "Keep all images of a patient or slide in one split."
        )
