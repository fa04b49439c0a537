"""The table of a CSV manifest as text: settings, header and cells, as people, spreadsheets and pandas write them."""

import csv
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...benchmark.core.errors import BenchError, did_you_mean, plain

REQUIRED = ("image", "mask", "label", "group", "split")
MASK_SETTINGS = ("mask_foreground", "mask_ignore", "mask_threshold")  # for all masks, and as columns for each
OPTIONAL = ("id", "pixel_val", "fold", *MASK_SETTINGS)
SETTINGS = (
    "name", "classes", "positive", "background", "foreground", "groups", *MASK_SETTINGS, "licence", "citation",
    "synthetic", "weights_seen",
)  # fmt: skip
LONGEST, LONGEST_PATH = 300, 4096  # characters of a cell or setting, and of a path
GAPS = ("nan", "none", "na", "n/a", "null", "<na>", "nat")  # what programs write for an empty cell
MAY_BE_EMPTY = ("mask", *OPTIONAL)
GROUP_WORDS = ("patient", "patient_id", "patientid", "case", "case_id", "slide", "slide_id", "subject", "wsi", "donor")
_SPLIT_ADVICE = " To have the images divided, without a patient in two splits: bench data split."
_WHOLE = re.compile(r"([0-9]+)\.0*")


@dataclass(frozen=True)
class TableRow:
    """One row as text, with the line it stands on. extra: columns that only the user knows, by name."""

    line: int
    cells: Mapping[str, str]
    extra: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class CsvTable:
    """settings: the '# key: value' lines; rows: every known column present; notes: how ambiguous cells were read."""

    settings: Mapping[str, str]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]


def read_table(path: Path, may_lack: Collection[str] = ()) -> CsvTable:
    """Reads a CSV manifest. Raises BenchError, naming the line, for whatever is not as docs/datasets.md says.

    may_lack: required columns that this reader does without; their cells are empty.
    """
    settings, table = _lines(path)
    groups = settings.get("groups", "")
    if groups not in ("", "unknown"):
        raise BenchError(f"{path}: '# groups: {groups}' is not known. Only 'unknown' may be declared there.")
    header = _header(path, table[0][1], {*may_lack, *(("group",) if groups == "unknown" else ())})
    rows, gaps = [], Counter[str]()
    for number, line in table[1:]:
        where = f"{path}, line {number}"
        values = split_cells(line, where)
        if len(values) != len(header):
            raise BenchError(f"{where}: {len(values)} fields, the header has {len(header)}. Quote commas.")
        rows.append(_row(number, header, values, where, gaps))
    notes = []
    if nameless := sum(not name for name in header):
        notes.append(f"{nameless} column{'s' * (nameless > 1)} without a name left out, as pandas and spreadsheets add")
    notes += [f"column {name}: {n} cells that say {word} were taken for empty" for (name, word), n in gaps.items()]
    return CsvTable(settings, tuple(rows), tuple(notes))


def split_cells(line: str, where: str) -> list[str]:
    """The cells of one line; a quoted cell that goes on in the next line is refused."""
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as problem:
        raise BenchError(f"{where} cannot be read ({problem}). A row stands on one line, quotes in pairs.") from None


def checked(text: str, what: str, where: str) -> str:
    """A cell or setting without blanks around it. Raises BenchError for what nobody writes by hand."""
    text = text.strip()
    longest = LONGEST_PATH if what in ("image", "mask") else LONGEST
    if len(text) > longest:
        raise BenchError(f"{where}: the {what} has {len(text)} characters, more than {longest}. Shorten it.")
    if plain(text) != text or "\n" in text:
        raise BenchError(f"{where}: the {what} '{text}' holds control characters. Remove them.")
    return text


def whole(text: str) -> str:
    """A number without the decimal part that pandas adds to columns with gaps, '1' for '1.0'; other text as it is."""
    match = _WHOLE.fullmatch(text)
    return match[1] if match else text


def _lines(path: Path) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """Settings, and the lines of the table with their numbers, the header first."""
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
        elif line.strip().strip(","):
            table.append((number, line))
    if len(table) < 2:
        raise BenchError(f"{path} holds no rows. Its header must be: {', '.join(REQUIRED)}.")
    return settings, table


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
    settings[key] = checked(value.strip().rstrip(","), key, where) if key != "classes" else value.strip().rstrip(",")


def _header(path: Path, line: str, may_lack: Collection[str]) -> list[str]:
    """Names of the columns, lower case where known; empty for those that only hold a running number, or nothing."""
    typed = [n.strip() for n in split_cells(line, str(path))]
    if len(typed) == 1 and (";" in line or "\t" in line):
        raise BenchError(f"{path}: the fields must be separated by commas. Export it as comma-separated.")
    names = ["" if re.fullmatch(r"(?i)unnamed: ?\d+|index_?", n) else n for n in typed]
    known = REQUIRED + OPTIONAL
    names = [n.lower() if n.lower() in known else n for n in names]
    names = ["pixel_val" if n.lower() == "valpx" else n for n in names]
    missing = [n for n in REQUIRED if n not in names and n not in may_lack]
    _refuse_near_misses(path, names, missing)
    for name in names:
        if name and names.count(name) > 1:
            raise BenchError(f"{path}: the column '{name}' occurs twice.")
        if name and name not in known:
            checked(name, "name of a column", str(path))
    if missing:
        raise BenchError(
            f"{path}: the column{'s' * (len(missing) > 1)} {', '.join(missing)} is missing."
            f"{_group_advice(names) if 'group' in missing else ''}{_SPLIT_ADVICE if 'split' in missing else ''} See "
            "docs/datasets.md."
        )
    return names


def _refuse_near_misses(path: Path, names: Sequence[str], missing: Collection[str]) -> None:
    """A column that is all but one of ours is a slip of the pen, not somebody's metadata."""
    for name in names:
        if not name or name in REQUIRED + OPTIONAL:
            continue
        bare = re.sub(r"[\W_]", "", name.lower())
        meant = next((k for k in REQUIRED + OPTIONAL if k not in names and bare == k.replace("_", "")), None)
        if meant:
            raise BenchError(f"{path}: there is no column '{name}'. Did you mean {meant}?")
        near = did_you_mean(name.lower(), missing)
        if near and not near.startswith(" Known"):
            raise BenchError(f"{path}: there is no column '{name}', and {', '.join(missing)} is missing.{near}")


def _group_advice(names: Sequence[str]) -> str:
    held = [n for n in names if re.sub(r"[\W]", "_", n.lower()) in GROUP_WORDS]
    if held:
        return f" There is a column '{held[0]}': if that is what must not be divided among splits, call it 'group'."
    return " It names the patient or slide; where nobody knows it, add the line '# groups: unknown'."


def _row(number: int, header: Sequence[str], values: Sequence[str], where: str, gaps: "Counter") -> TableRow:
    cells: dict[str, str] = dict.fromkeys((*REQUIRED, *OPTIONAL), "")
    extra: list[tuple[str, str]] = []
    for name, value in zip(header, values, strict=True):
        if not name:
            continue
        text = checked(value, name, where)
        if name not in cells:
            extra.append((name, text))
            continue
        if text.lower() in GAPS and name in MAY_BE_EMPTY:
            gaps[name, text] += 1
            text = ""
        cells[name] = whole(text) if name in ("fold", "pixel_val") else text
    return TableRow(number, cells, tuple(extra))
