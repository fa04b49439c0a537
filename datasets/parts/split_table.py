"""`bench data split`: a table of images divided into train, val and test, no patient in two, classes in proportion."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...benchmark.core.errors import BenchError, many
from ...benchmark.core.files import atomic_path, file_sha256
from ...benchmark.core.seeds import seed_for
from ..base import SPLITS, Item, missing_files
from ..csv_manifest import YES, CsvDataset
from .csv_table import GAPS, TableRow, split_cells
from .folds import divide_by_weight
from .identity import normal_group, spellings

SHARE = 0.2
_SHOWN = 5


@dataclass(frozen=True)
class SplitRequest:
    """What to divide, and how. Rows that name a split keep it; only the others are divided.

    val, test: shares of the rows to divide in [0, 1), None for 0.2, or 0 where the table has such rows. folds: None for
    one division, else the number of parts, each of which is evaluated once. out: None for TABLE-split.csv beside it.
    """

    table: Path
    data_root: Path
    val: float | None = None
    test: float | None = None
    folds: int | None = None
    seed: int = 0
    out: Path | None = None


@dataclass(frozen=True)
class FoldCounts:
    """One fold: images by split and class name, and groups by split."""

    fold: str
    images: Mapping[str, Mapping[str, int]]
    groups: Mapping[str, int]


@dataclass(frozen=True)
class SplitReport:
    """The file written, what each of its folds holds, and what must be known of it."""

    path: Path
    folds: tuple[FoldCounts, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The facts as a JSON value."""
        return {"path": str(self.path), "folds": [asdict(f) for f in self.folds], "notes": list(self.notes)}


@dataclass(frozen=True)
class _Row:
    """A row with its image; `unit` names what must stay together, `fixed` the split the table names, or nothing."""

    line: int
    item: Item
    unit: str
    fixed: str


def split_table(request: SplitRequest) -> SplitReport:
    """Divides the rows of a CSV manifest that name no split, and writes a new manifest beside it.

    Rows of one group (as `normal_group` compares them) and byte-identical images stay together. The same table and seed
    give the same file. Raises BenchError for a table that breaks a rule of docs/datasets.md, rows that contradict each
    other, a class with too few groups, and a file that is there already; then nothing is written.
    """
    out = _target(request)
    dataset = CsvDataset(request.table, request.data_root, may_lack=("split",))
    rows, notes = _rows(dataset)
    free, followed = _free(rows)
    if followed:
        notes.append(f"{many(followed, 'row')} without a split in a group, or of an image, that has one: put there too")
    folds = _divide(request, dataset, rows, free)
    text = _written(request.table, rows, folds, request.folds is not None)
    report = _store(out, text, request.data_root)
    if dataset.groups_unknown:
        notes.append(
            "patients or slides are unknown, so images were divided one by one: a patient may be in several splits"
        )
    return SplitReport(out, tuple(_count(report, fold) for fold in report.folds), tuple(notes))


def _target(request: SplitRequest) -> Path:
    table = request.table
    out = request.out or table.with_name(f"{table.stem}-split.csv")
    if out.suffix.lower() != ".csv":
        raise BenchError(f"--out {out}: the name of a manifest ends in .csv.")
    if out.absolute().parent.resolve() != table.absolute().parent.resolve():
        raise BenchError(
            f"--out {out} lies in another folder than {table}, whose paths are relative to its own folder. Write the "
            "new table beside it."
        )
    if out.exists():
        raise BenchError(f"{out} is there already, and nothing is overwritten. Remove it, or give another --out.")
    return out


def _rows(dataset: CsvDataset) -> tuple[list[_Row], list[str]]:
    """All rows with their images, and notes on what was taken for one."""
    readable = [_as_train(row, str(dataset.path)) for row in dataset.rows]
    items = [dataset.item(row) for row, _ in readable]
    ids = Counter(item.id for item in items)
    if twice := [name for name, n in ids.items() if n > 1]:
        raise BenchError(f"{dataset.path}: the id '{twice[0]}' occurs {ids[twice[0]]} times.")
    if any(row.cells["fold"] for row in dataset.rows):
        raise BenchError(f"{dataset.path} has folds already. Take the column 'fold' out, and the rows that repeat.")
    files = [p for i in items for p in (i.image, i.mask) if p is not None]
    if gone := missing_files(files):
        raise BenchError(f"{dataset.path}: {len(gone)} of {len(files)} files are missing, the first: {gone[0]}.")
    notes = []
    several = [] if dataset.groups_unknown else list(spellings(item.group for item in items).values())
    if several:
        some = "; ".join(", ".join(f"'{s}'" for s in spelled) for spelled in several[:_SHOWN])
        notes.append(f"groups spelt in several ways are taken for one each: {some}{'; …' * (len(several) > _SHOWN)}")
    units, joined = _units(dataset, items)
    notes += joined
    known = zip(readable, items, strict=True)
    return [_Row(row.line, item, units[item.id], named) for (row, named), item in known], notes


def _as_train(row: TableRow, where: str) -> tuple[TableRow, str]:
    """The row with a split that the reader accepts, and the split that the table names for it, or nothing.

    A row to divide counts as a training row, of which least is asked; what it becomes is checked when it is written.
    """
    named = row.cells["split"].lower()
    if named in ("", *GAPS):
        if row.cells["pixel_val"].lower() in YES:
            raise BenchError(f"{where}, line {row.line}: pixel_val is set, but no split. Write 'val', or empty it.")
        return replace(row, cells={**row.cells, "split": "train", "pixel_val": ""}), ""
    return replace(row, cells={**row.cells, "split": named}), named


def _units(dataset: CsvDataset, items: Sequence[Item]) -> tuple[dict[str, str], list[str]]:
    """Image id -> what stays together: groups, joined where they hold the same image byte for byte."""
    group = {i.id: i.id if dataset.groups_unknown else normal_group(i.group) for i in items}
    parent = {g: g for g in group.values()}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    first: dict[str, Item] = {}
    joined = []
    for item in items:
        same = first.setdefault(file_sha256(item.image), item)
        one, other = root(group[same.id]), root(group[item.id])
        if one != other:
            parent[max(one, other)] = min(one, other)
            joined.append(f"{item.id} = {same.id}")
    notes = []
    if joined:
        some = ", ".join(joined[:_SHOWN]) + (", …" if len(joined) > _SHOWN else "")
        notes.append(f"images of different groups that are the same byte for byte stay together: {some}")
    return {name: root(g) for name, g in group.items()}, notes


def _free(rows: Sequence[_Row]) -> tuple[dict[str, str], int]:
    """Unit -> the split its rows name, empty for those to divide; and how many rows follow others."""
    named: dict[str, _Row] = {}
    for row in rows:
        if not row.fixed:
            continue
        other = named.setdefault(row.unit, row)
        if other.fixed != row.fixed:
            raise BenchError(
                f"line {other.line} ({other.item.id}, {other.fixed}) and line {row.line} ({row.item.id}, {row.fixed}) "
                "belong together, as one group or the same image, but name two splits. Empty the split of one."
            )
    splits = {row.unit: named[row.unit].fixed if row.unit in named else "" for row in rows}
    followed = sum(not row.fixed and bool(splits[row.unit]) for row in rows)
    if all(splits.values()):
        raise BenchError("Every row belongs to a split already. Empty the column 'split' of the rows to divide.")
    return splits, followed


def _divide(
    request: SplitRequest, dataset: CsvDataset, rows: Sequence[_Row], splits: Mapping[str, str]
) -> list[dict[str, str]]:
    """For each fold: unit -> split."""
    held = {split for split in splits.values() if split}
    weights = _weights(request, held)
    if "test" in weights or (request.folds and "test" not in held):
        _need_masks(dataset, [r for r in rows if not splits[r.unit]])
    free = [r for r in rows if not splits[r.unit]]
    # a hash before the name: groups of equal size are placed in an order that has nothing to do with their names
    key = {r.unit: f"{seed_for('split', request.seed, r.unit):020d}" for r in free}
    part, complete = divide_by_weight(((r.item.label, key[r.unit]) for r in free), list(weights.values()))
    if not complete:
        raise _too_few(dataset, free, list(weights))
    placed = {unit: list(weights)[part[k]] for unit, k in key.items()}
    if request.folds is None:
        return [{unit: split or placed[unit] for unit, split in splits.items()}]
    return [
        {unit: split or _in_fold(int(placed[unit]), k, request.folds, "test" in held) for unit, split in splits.items()}
        for k in range(request.folds)
    ]


def _weights(request: SplitRequest, held: set[str]) -> dict[str, float]:
    """Name of each part -> its share of what is divided: splits, or with `folds` the numbers of equal parts."""
    if request.folds is not None:
        if request.val is not None or request.test is not None:
            raise BenchError("--folds makes equal parts: leave out --val and --test.")
        if others := held - {"test"}:
            raise BenchError(f"--folds divides rows anew, but some name the split {min(others)}. Empty it there.")
        if request.folds < 3 - bool(held):
            raise BenchError("--folds needs at least 3 parts: one for test, one for val, the rest to train on.")
        return {str(k): 1 for k in range(request.folds)}
    shares = {}
    for split, given in (("val", request.val), ("test", request.test)):
        if given and split in held:
            raise BenchError(f"The table has {split} rows already, and they are the {split} set: leave out --{split}.")
        if given == 0 and split not in held:
            raise BenchError(f"--{split} 0 leaves no {split} set: the table has no {split} rows of its own.")
        shares[split] = (0 if split in held else SHARE) if given is None else given
    train = 1 - sum(shares.values())
    if train < 1e-9 or min(shares.values()) < 0:
        raise BenchError("--val and --test are shares of the rows, such as 0.2, that leave some to train on.")
    return {split: share for split, share in {"train": train, **shares}.items() if share > 0}


def _in_fold(part: int, fold: int, folds: int, test_is_fixed: bool) -> str:
    """Each part is the test set once and the next one is then the validation set, or, beside a fixed test set, each
    is the validation set once."""
    if part == fold:
        return "val" if test_is_fixed else "test"
    return "val" if not test_is_fixed and part == (fold + 1) % folds else "train"


def _need_masks(dataset: CsvDataset, rows: Sequence[_Row]) -> None:
    bare = [r for r in rows if r.item.mask is None and dataset.card.region_classes[r.item.label]]
    if bare:
        name = dataset.card.classes[bare[0].item.label]
        raise BenchError(
            f"{dataset.path}: {many(len(bare), 'image')} without a mask, the first in line {bare[0].line} ({name}), "
            "and whatever may become a test image needs one. Give them masks, or write 'train' as their split, or, if "
            f"images of class {name} have no region of interest, add '# background: {name}'."
        )


def _too_few(dataset: CsvDataset, rows: Iterable[_Row], parts: Sequence[str]) -> BenchError:
    held = {(r.item.label, r.unit) for r in rows}
    what = ", ".join(parts) if parts[0] in SPLITS else f"{len(parts)} parts"
    counts = Counter(label for label, _ in held)
    some = ", ".join(f"{name} {counts[k]}" for k, name in enumerate(dataset.card.classes))
    return BenchError(
        f"{dataset.path}: no division gives every class to each of {what}; groups (patients or slides) with images of "
        f"each class: {some}. Use fewer parts, or data of more patients."
    )


def _written(table: Path, rows: Sequence[_Row], folds: Sequence[Mapping[str, str]], with_folds: bool) -> str:
    """The new table: every line as it was, but for split and fold."""
    lines = table.read_text(encoding="utf-8-sig").splitlines()
    first = next(k for k, text in enumerate(lines) if not text.startswith("#") and text.strip().strip(","))
    header = split_cells(lines[first], str(table))
    names = [name.strip().lower() for name in header]
    kept = [k for k, name in enumerate(names) if name not in ("split", "fold")]
    out = io.StringIO()
    out.writelines(f"{text}\n" for text in lines if text.startswith("#"))
    out.write("# divided by bench data split\n")
    plain, quoted = (csv.writer(out, lineterminator="\n", quoting=q) for q in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    plain.writerow([*(header[k] for k in kept), "split", *(["fold"] if with_folds else [])])
    for k, division in enumerate(folds):
        for row in rows:
            stays = with_folds and len({d[row.unit] for d in folds}) == 1
            if k and stays:
                continue  # an empty fold stands for all
            cells = split_cells(lines[row.line - 1], f"{table}, line {row.line}")
            fold = ["" if stays else str(k)] if with_folds else []
            writer = quoted if cells[kept[0]].startswith("#") else plain
            writer.writerow([*(cells[j] for j in kept), division[row.unit], *fold])
    return out.getvalue()


def _store(path: Path, text: str, data_root: Path) -> CsvDataset:
    """Writes the table, once what reads it has accepted every fold."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        try:
            written = CsvDataset(temporary, data_root)
            for fold in written.folds:
                written.manifest(fold)
        except BenchError as problem:
            text = str(problem).replace(str(temporary), str(path)).replace(temporary.stem, path.stem)
            raise BenchError(f"The division was not written, as it would be no dataset: {text}") from None
    return CsvDataset(path, data_root)


def _count(dataset: CsvDataset, fold: str) -> FoldCounts:
    manifest = dataset.manifest(fold)
    by_split = {split: manifest.split(split) for split in SPLITS}
    names = manifest.card.classes
    return FoldCounts(
        fold,
        {s: {name: sum(i.label == k for i in rows) for k, name in enumerate(names)} for s, rows in by_split.items()},
        {s: len({i.group for i in rows}) for s, rows in by_split.items()},
    )
