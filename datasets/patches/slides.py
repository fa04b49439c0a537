"""Inventory of slides: class, split and annotation of each, and which are left out and why."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ...benchmark.core.errors import BenchError
from ..parts.folds import divide_groups
from ..wsi.notes import name_some
from .files import find_annotations, find_slides
from .patients import group_slides, patient_of, shared_patients
from .splits import CLASSES, NORMAL, TUMOR, SplitRow, SplitsTable, read_splits

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
    """One slide to cut. `annotation` is None for a normal slide; `path` and `annotation` as found on disk.

    group: the patient where it is known, else the slide itself.
    """

    name: str
    path: Path
    label: str
    split: str
    annotation: Path | None
    group: str = ""

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

    options: how it was made, as a JSON value. notes: what was read in one of several ways. refusals: what forbids to
    cut anything at all, such as a patient in two splits.
    """

    jobs: tuple[SlideJob, ...]
    skipped: tuple[LeftOut, ...]
    problems: tuple[LeftOut, ...]
    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


def list_slides(
    slides: Path,
    annotations: Path | None,
    splits: Path | None = None,
    unannotated: str = "auto",
    include_bad: bool = False,
    test_share: float = 0.0,
) -> Listing:
    """Finds slides and annotations in both folders and those below, sorted by name.

    An annotation is NAME.xml (ASAP) or NAME.geojson (QuPath) of slide NAME, upper and lower case alike. Without a table
    `splits` the names of Camelyon16 tell class and split: normal_XXX, tumor_XXX (training), test_XXX (test).
    `unannotated` decides about slides of unknown class without an annotation: `normal`, `skip`, `error`, or `auto`,
    which knows from the challenge's reference which test slides of Camelyon16 have metastases and is `error` for all
    others. test_share: share of the patients (or slides) that become the test set, where the table has no splits.
    Raises BenchError for folders that do not exist or hold no slides, two files of one name, and a wrong table.
    """
    slide_paths, masks, notes = find_slides(slides)
    marks, orphans = find_annotations(annotations, [*slide_paths]) if annotations else ({}, [])
    table = read_splits(splits, [*slide_paths]) if splits else None
    _check_share(splits, table, test_share)
    jobs, rows = list[SlideJob](), dict[str, SplitRow]()
    skipped = [LeftOut(m, "the name says that it is a mask, not a slide") for m in masks]
    problems = list[LeftOut]()
    for name, path in slide_paths.items():
        if left := _left_out(name, table, include_bad):
            skipped.append(LeftOut(name, left))
            continue
        try:
            row = rows[name] = table.rows[name] if table else _from_name(name)
            judged = _judge(name, path, marks.get(name), row, unannotated)
        except BenchError as problem:
            problems.append(LeftOut(name, str(problem)))
            continue
        if isinstance(judged, SlideJob):
            jobs.append(judged)
        else:
            skipped.append(judged)
            del rows[name]
    _check_tags(jobs)
    notes = [*notes, *_doubtful(jobs)]
    if table:
        notes = [*notes, *table.notes]
        problems += [
            LeftOut(n, f"listed in {splits}, but there is no such slide below {slides}") for n in table.missing
        ]
    jobs, refusals, more = _grouped(jobs, rows, test_share)
    options = {"unannotated": unannotated, "include_bad": include_bad, "splits": splits.name if splits else None,
               "test_share": test_share}  # fmt: skip
    return Listing(tuple(jobs), tuple(skipped), tuple(problems), options, (*notes, *orphans, *more), tuple(refusals))


def _doubtful(jobs: Iterable[SlideJob]) -> list[str]:
    """What to say of slides that are normal by the user's word and have metastases by the challenge's reference."""
    names = [j.name for j in jobs if j.label == NORMAL and _test_number(j.name) in TEST_TUMOR]
    reason = "taken for normal as you say, though by the reference of Camelyon16 they have metastases"
    return [f"{reason}: {name_some(names)}"] * bool(names)


def _test_number(name: str) -> int:
    """The number of a test slide of Camelyon16, 0 for other slides."""
    match = _CAMELYON.fullmatch(name)
    return int(match[2]) if match and match[1].lower() == "test" else 0


def _check_share(splits: Path | None, table: SplitsTable | None, test_share: float) -> None:
    """Raises BenchError where it is not clear who makes the splits."""
    if not 0 <= test_share <= 0.5:
        raise BenchError(f"--test-share {test_share}: it must be in [0, 0.5].")
    split = table is None or any(r.split for r in table.rows.values())
    if test_share and split:
        where = splits or "the names of the slides"
        raise BenchError(f"--test-share {test_share}: {where} tells the splits already. Leave out one or the other.")
    if not split and not test_share and table and not table.stages:
        raise BenchError(f"{splits} has no column 'split'. Add it, or let --test-share set patients aside as the test.")


def _grouped(
    jobs: Sequence[SlideJob], rows: Mapping[str, SplitRow], test_share: float
) -> tuple[list[SlideJob], list[str], list[str]]:
    """The jobs with groups and splits; what forbids to cut them; notes. Slides with a problem count for leaks too."""
    kept = {j.name for j in jobs}
    groups, notes = group_slides(kept | set(rows), {n: r.patient for n, r in rows.items() if r.patient})
    jobs = [replace(j, group=groups[j.name]) for j in jobs]
    if shared := shared_patients((n, groups[n], r.split) for n, r in rows.items()):
        return jobs, [shared], notes
    if not any(j.split for j in jobs) and jobs:
        jobs, note = _divided(jobs, test_share)
        notes = [*notes, note]
    return jobs, [], notes


def _divided(jobs: Sequence[SlideJob], test_share: float) -> tuple[list[SlideJob], str]:
    """Jobs without splits: all test, or a share of the groups, equal in both classes of slides."""
    if not test_share:
        return [
            replace(j, split="test") for j in jobs
        ], "all slides are test, to score models of other sets; --test-share trains on the others"
    parts = round(1 / test_share)
    try:
        part = divide_groups(((CLASSES.index(j.label), j.group) for j in jobs), parts)
    except BenchError:
        raise BenchError(
            f"--test-share {test_share}: {len(jobs)} slides of {len({j.group for j in jobs})} patients cannot be "
            f"parted into {parts} sets with both classes in each. Give a larger share, or more slides."
        ) from None
    divided = [replace(j, split="test" if part[j.group] == 0 else "train") for j in jobs]
    tested = {j.group for j in divided if j.split == "test"}
    return divided, f"test: {len(tested)} of {len(part)} groups, one of {parts} parts equal in both classes"


def _left_out(name: str, table: SplitsTable | None, include_bad: bool) -> str:
    """Why a slide is not wanted, or nothing."""
    if not include_bad and (reason := BAD_SLIDES.get(name.lower())):
        return f"{reason}; --include-bad takes it all the same"
    return "not listed in the --splits file" if table and name not in table.rows else ""


def _judge(name: str, path: Path, marks: Path | None, row: SplitRow, unannotated: str) -> SlideJob | LeftOut:
    """What a slide is. Raises BenchError for one whose class or annotation cannot be right."""
    label = row.label or (TUMOR if marks else _without_marks(name, unannotated))
    if label == "skip":
        return LeftOut(name, "no annotation, and --unannotated skip")
    if label == TUMOR and marks is None and row.stage:
        return LeftOut(name, f"{row.stage}, but not annotated: Camelyon17 outlines the metastases of 50 slides only")
    if label == TUMOR and marks is None:
        raise BenchError(
            "a tumour slide without an annotation of its tumour: it would be taken for all background. Put "
            f"{name}.xml or {name}.geojson into the --annotations folder"
        )
    if label == NORMAL and marks is not None:
        raise BenchError(f"a normal slide, yet {marks} annotates it. Remove that file, or say what it is with --splits")
    return SlideJob(name, path, label, row.split, marks)


def _from_name(name: str) -> SplitRow:
    """Split and class (empty for test slides) by the names of Camelyon16."""
    match = _CAMELYON.fullmatch(name)
    if not match:
        known = "; for Camelyon17 its stage_labels.csv" if patient_of(name).startswith("patient") else ""
        raise BenchError(
            "not a name of Camelyon16 (normal_XXX, tumor_XXX, test_XXX): give a CSV file slide,split,label with "
            f"--splits{known}"
        )
    kind = match[1].lower()
    return SplitRow("test", "") if kind == "test" else SplitRow("train", kind)


def _without_marks(name: str, unannotated: str) -> str:
    """The class of a slide that has no annotation and no label, or `skip`."""
    if unannotated in (NORMAL, "skip"):
        return unannotated
    number = _test_number(name)
    if unannotated == "auto" and 1 <= number <= _TEST_SLIDES and number != _TEST_UNKNOWN:
        return TUMOR if number in TEST_TUMOR else NORMAL
    raise BenchError(
        f"no annotation {name}.xml or {name}.geojson and no label: normal, or is its annotation missing? Say which in "
        "a --splits file, or with --unannotated normal or skip"
    )


def is_camelyon16(name: str) -> bool:
    """Whether a slide has a name of Camelyon16."""
    return _CAMELYON.fullmatch(name) is not None


def _check_tags(jobs: Iterable[SlideJob]) -> None:
    seen: dict[str, str] = {}
    for job in jobs:
        if (other := seen.setdefault(_plain(job.name).lower(), job.name)) != job.name:
            raise BenchError(f"Slides '{other}' and '{job.name}' cannot be told apart in patch names; rename one.")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", name)
