"""Which slides there are, what each one is (normal or tumour, split, annotation), and which are left out and why."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..benchmark.errors import BenchError, did_you_mean
from .base import SPLITS
from .wsi_slide import SUFFIXES

NORMAL, TUMOR = "normal", "tumor"
CLASSES = (NORMAL, TUMOR)
UNANNOTATED = ("auto", "normal", "skip", "error")
_CAMELYON = re.compile(r"(normal|tumor|test)_(\d{3})", re.IGNORECASE)

# Slides that the README of Camelyon16 names, by the number that slides carry there.
BAD_SLIDES: dict[str, str] = {
    "normal_086": "first classified wrongly: it holds a metastasis, and Camelyon16 renamed it to tumor_111",
    "test_049": "duplicate of another slide, removed by the organisers of Camelyon16",
    "test_114": "not annotated exhaustively (a tumour slide whose XML is missing or partial); not in the published set",
}
# The test slides with metastases according to the reference of the challenge. Where XML files of these are missing,
# the slides must not be taken for normal.
TEST_TUMOR = frozenset(
    (1, 2, 4, 8, 10, 11, 13, 16, 21, 26, 27, 29, 30, 33, 38, 40, 46, 48, 51, 52, 61, 64, 65, 66, 68, 69, 71, 73, 74, 75,
     79, 82, 84, 90, 92, 94, 97, 99, 102, 104, 105, 108, 110, 113, 114, 116, 117, 121, 122)
)  # fmt: skip
_TEST_SLIDES = 130
_TEST_UNKNOWN = 49  # the removed duplicate: the reference does not list it


@dataclass(frozen=True)
class SlideJob:
    """One slide to cut. `annotation` is None for a normal slide; `path` and `annotation` as found on disk."""

    name: str
    path: Path
    label: str
    split: str
    annotation: Path | None

    @property
    def tag(self) -> str:
        """The slide in patch names: the published path with `-` for `/`, other characters than letters as `_`."""
        folder = "testing-images" if self.split == "test" else f"training-{self.label}"
        return f"{folder}-{self.plain}"

    @property
    def plain(self) -> str:
        """The name with other characters than letters and digits as `_`."""
        return _plain(self.name)


class LeftOut(NamedTuple):
    """A slide that is not cut, and why."""

    slide: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What is in the folders: slides to cut, slides left out on purpose, and slides that ought to be cut but cannot.

    options: how it was made, as a JSON value.
    """

    jobs: tuple[SlideJob, ...]
    skipped: tuple[LeftOut, ...]
    problems: tuple[LeftOut, ...]
    options: Mapping[str, Any]


class _Row(NamedTuple):
    split: str
    label: str


def list_slides(
    slides: Path,
    annotations: Path | None,
    splits: Path | None = None,
    unannotated: str = "auto",
    include_bad: bool = False,
) -> Listing:
    """Finds slides and annotations in both folders and those below, sorted by name.

    An annotation is NAME.xml of slide NAME, upper and lower case alike. Without `splits`, the names of Camelyon16 tell
    class and split: normal_XXX, tumor_XXX (training), test_XXX (test). `unannotated` decides about slides of unknown
    class without an XML file: `normal`, `skip`, `error`, or `auto`, which knows from the challenge's reference which
    test slides of Camelyon16 have metastases and is `error` for all others.
    Raises BenchError for folders that do not exist or hold no slides, two files of one name, and a wrong `splits` file.
    """
    found, masks = _find_slides(slides)
    xml = _find_annotations(annotations) if annotations else {}
    table = _read_splits(splits, [*found]) if splits else None
    jobs: list[SlideJob] = []
    skipped = [LeftOut(m, "the name says that it is a mask, not a slide") for m in masks]
    problems: list[LeftOut] = []
    for name, path in found.items():
        try:
            judged = _judge(name, path, xml.get(name.lower()), table, unannotated, include_bad)
        except BenchError as problem:
            problems.append(LeftOut(name, str(problem)))
            continue
        if isinstance(judged, SlideJob):
            jobs.append(judged)
        else:
            skipped.append(judged)
    _check_tags(jobs)
    missing = [] if table is None else sorted(set(table) - {n.lower() for n in found})
    problems += [LeftOut(name, f"listed in {splits}, but there is no such slide below {slides}") for name in missing]
    options = {"unannotated": unannotated, "include_bad": include_bad, "splits": splits.name if splits else None}
    return Listing(tuple(jobs), tuple(skipped), tuple(problems), options)


def _judge(
    name: str, path: Path, xml: Path | None, table: Mapping[str, _Row] | None, unannotated: str, include_bad: bool
) -> SlideJob | LeftOut:
    """What a slide is. Raises BenchError for one whose class, split or annotation cannot be right."""
    if not include_bad and (reason := BAD_SLIDES.get(name.lower())):
        return LeftOut(name, f"{reason}; --include-bad takes it all the same")
    if table is not None and name.lower() not in table:
        return LeftOut(name, "not listed in the --splits file")
    split, label = table[name.lower()] if table is not None else _from_name(name)
    if not label:
        label = TUMOR if xml else _without_xml(name, unannotated)
    if label == "skip":
        return LeftOut(name, "no XML file, and --unannotated skip")
    if label == TUMOR and xml is None:
        raise BenchError(
            "a tumour slide without an XML file of its polygons: it would be taken for all background. Put "
            f"{name}.xml into the --annotations folder"
        )
    if label == NORMAL and xml is not None:
        raise BenchError(f"a normal slide, yet {xml} annotates it. Remove that file, or say what it is with --splits")
    return SlideJob(name, path, label, split, xml)


def _from_name(name: str) -> _Row:
    """Split and class (empty for test slides) by the names of Camelyon16."""
    match = _CAMELYON.fullmatch(name)
    if not match:
        raise BenchError(
            "not a name of Camelyon16 (normal_XXX, tumor_XXX, test_XXX): give a CSV file slide,split,label with "
            "--splits"
        )
    kind = match[1].lower()
    return _Row("test", "") if kind == "test" else _Row("train", kind)


def _without_xml(name: str, unannotated: str) -> str:
    """The class of a slide that has no XML file and no label, or `skip`."""
    if unannotated in (NORMAL, "skip"):
        return unannotated
    match = _CAMELYON.fullmatch(name)
    number = int(match[2]) if match and match[1].lower() == "test" else 0
    if unannotated == "auto" and 1 <= number <= _TEST_SLIDES and number != _TEST_UNKNOWN:
        return TUMOR if number in TEST_TUMOR else NORMAL
    raise BenchError(
        f"no XML file {name}.xml and no label: normal, or is its annotation missing? Say which in a --splits file, or "
        "with --unannotated normal or skip"
    )


def _find_slides(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Slides by name, and the names of mask files that lie among them."""
    paths = _files(folder, SUFFIXES, "--slides")
    masks = [p.stem for p in paths if re.search(r"[_-]mask$", p.stem, re.IGNORECASE)]
    found = {p.stem: p for p in paths if p.stem not in masks}
    if not found:
        raise BenchError(f"{folder} holds no slides ({', '.join(SUFFIXES)}). Point --slides at their folder.")
    if len({n.lower() for n in found}) < len(paths) - len(masks):
        raise BenchError(f"{folder}: {_clash([p for p in paths if p.stem in found])}. Keep one of them.")
    return found, masks


def _find_annotations(folder: Path) -> dict[str, Path]:
    """XML files by name in lower case."""
    paths = _files(folder, (".xml",), "--annotations")
    found = {p.stem.lower(): p for p in paths}
    if len(found) < len(paths):
        raise BenchError(f"{folder}: {_clash(paths)}. Keep one of them.")
    return found


def _files(folder: Path, suffixes: Sequence[str], option: str) -> list[Path]:
    if not folder.is_dir():
        raise BenchError(f"There is no folder {folder}. Correct {option}.")
    return sorted(
        (p for p in folder.rglob("*") if p.suffix.lower() in suffixes and not p.name.startswith(".") and p.is_file()),
        key=lambda p: (p.stem, str(p)),
    )


def _clash(paths: Iterable[Path]) -> str:
    seen: dict[str, Path] = {}
    for path in paths:
        if (other := seen.setdefault(path.stem.lower(), path)) != path:
            return f"{other} and {path} have the same name"
    return ""


def _check_tags(jobs: Iterable[SlideJob]) -> None:
    seen: dict[str, str] = {}
    for job in jobs:
        if (other := seen.setdefault(_plain(job.name).lower(), job.name)) != job.name:
            raise BenchError(f"Slides '{other}' and '{job.name}' cannot be told apart in patch names; rename one.")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def _read_splits(path: Path, known: Sequence[str]) -> dict[str, _Row]:
    """The user's table by slide name in lower case. Columns slide, split and perhaps label."""
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except FileNotFoundError:
        raise BenchError(f"There is no file {path}. Correct --splits.") from None
    except UnicodeDecodeError:
        raise BenchError(f"{path} is not UTF-8 text. Save it as 'CSV UTF-8'.") from None
    header = [c.strip().lower() for c in rows[0]] if rows else []
    if header not in (["slide", "split"], ["slide", "split", "label"]):
        raise BenchError(f"{path}: the header must be slide,split or slide,split,label; it is '{','.join(header)}'.")
    suffixes = "|".join(re.escape(s) for s in SUFFIXES)
    found: dict[str, _Row] = {}
    for number, cells in enumerate(rows[1:], start=2):
        if not any(cells):
            continue
        where, values = f"{path}, line {number}", [c.strip() for c in cells]
        if len(values) != len(header):
            raise BenchError(f"{where}: {len(values)} fields, the header has {len(header)}.")
        slide, split, label = (*values, "")[:3]
        slide = re.sub(rf"({suffixes})$", "", slide, flags=re.IGNORECASE)
        if split not in SPLITS:
            raise BenchError(f"{where}: there is no split '{split}'.{did_you_mean(split, SPLITS)}")
        if label not in (*CLASSES, ""):
            raise BenchError(f"{where}: there is no label '{label}'.{did_you_mean(label, CLASSES)}")
        if slide.lower() in found:
            raise BenchError(f"{where}: slide '{slide}' is listed twice.")
        found[slide.lower()] = _Row(split, label)
    if not set(found) & {n.lower() for n in known}:
        raise BenchError(f"{path} lists none of the {len(known)} slides, such as '{known[0]}'.")
    return found
