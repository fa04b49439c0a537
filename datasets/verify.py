"""Verification of a dataset on disk: cheap checks before every run, and `bench data verify`, which reads everything."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..benchmark.core.errors import BenchError
from ..benchmark.core.files import read_json, write_json
from .base import SPLITS, Dataset, Item, Manifest
from .masks.decode import image_size
from .masks.reader import MaskPixels, mask_size
from .masks.sets import SizedMask, mask_notes, sized_mask
from .open import BadFile, FileFacts, bad_files_error, manifest_identity, scan_files
from .parts.leaks import find_leaks

SCHEMA = 1  # of the report on disk
SCORE_SIZE = 224  # px; the size at which the protocols compare maps and masks, unless mask_remarks otherwise


@dataclass(frozen=True)
class FoldReport:
    """One fold: images by split and class, its notes, and what identifies its rows (None if files are bad)."""

    fold: str
    counts: dict[str, dict[str, int]]
    notes: tuple[str, ...]
    identity: dict[str, Any] | None


@dataclass(frozen=True)
class Report:
    """What `verify` found; `problems` is empty for a sound copy.

    changed: ids of images that are not, or whose masks are not, what the report before this one found; None without
    such a report. before: what is to be said of it.
    """

    dataset: str
    synthetic: bool
    files: int
    folds: tuple[FoldReport, ...]
    problems: tuple[str, ...]
    changed: tuple[str, ...] | None = None
    before: str = ""

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON value."""
        return {"schema": SCHEMA, **asdict(self), "ok": not self.problems}


def quick_checks(manifest: Manifest, facts: Mapping[Path, FileFacts] | None = None) -> None:
    """Checks that every image and mask is readable and that they fit, before anything trains.

    Uses `facts` (from `content_hashes`) where given, else reads only the header of each file.
    Raises one BenchError with the first five offenders.
    """
    bad: list[BadFile] = []
    for item in manifest.items:
        try:
            if problem := _misfit(item, facts):
                bad.append(BadFile(item.image, problem))
        except BenchError as problem:
            bad.append(BadFile(item.image, str(problem)))
    if bad:
        raise bad_files_error(f"{manifest.card.name}, fold {manifest.fold}", bad, len(manifest.items))


def verify(dataset: Dataset, folds: Sequence[str], cache_file: Path, report_file: Path | None = None) -> Report:
    """Reads every file of the folds: decodes, compares sizes, hashes, counts; writes the report with all hashes.

    Raises BenchError where a fold cannot be listed at all (files missing, counts wrong); anything wrong inside files is
    in `problems`. `report_file`, if given, gets the report and the SHA-256 of every file by image id, as JSON.
    """
    manifests = [dataset.manifest(f) for f in folds]
    items = list(dict.fromkeys(i for m in manifests for i in m.items))
    masks: dict[str, SizedMask] = {}

    def read(item: Item) -> MaskPixels:
        mask = dataset.read_mask(item)
        masks[item.id] = sized_mask(mask, SCORE_SIZE)
        return mask

    facts, bad = scan_files(items, cache_file, read)
    problems = [b.reason for b in bad]
    known = {b.path for b in bad}
    sound = [i for i in items if i.image not in known and i.mask not in known]
    problems += [f"fold {m.fold}: {leak.text}" for m in manifests for leak in find_leaks(m, facts)]
    problems += [problem for i in sound if (problem := _misfit(i, facts))]
    mask_remarks: dict[str, list[str]] = {}
    for m in manifests:
        try:
            mask_remarks[m.fold] = mask_notes(m, masks, SCORE_SIZE)
        except BenchError as problem:
            problems.append(str(problem))
    hashes = {i.id: {"image": _sha(facts, i.image), "mask": _sha(facts, i.mask) if i.mask else None} for i in items}
    earlier, before = _earlier(report_file) if report_file else (None, "")
    report = Report(
        dataset=dataset.card.name,
        synthetic=any(m.synthetic for m in manifests),
        files=len(facts) + len(bad),
        folds=tuple(
            FoldReport(
                m.fold,
                count_images(m),
                (*m.notes, *mask_remarks.get(m.fold, ())),
                None if bad else manifest_identity(m, facts),
            )
            for m in manifests
        ),
        problems=tuple(dict.fromkeys(problems)),
        changed=None if earlier is None else tuple(i for i in hashes if i in earlier and earlier[i] != hashes[i]),
        before=before,
    )
    if report_file:
        write_json(report_file, {**report.as_json(), "sha256": hashes})
    return report


def _earlier(report_file: Path) -> tuple[dict[str, Any] | None, str]:
    """Hashes by image id of an earlier report, and what is to be said of one that cannot be used."""
    if not report_file.is_file():
        return None, ""
    try:
        report = read_json(report_file)
        if report.get("schema") == SCHEMA:
            return dict(report["sha256"]), ""
        return None, f"{report_file}: old schema ({report.get('schema', 'none')}), ignored and written anew"
    except (BenchError, RecursionError, KeyError, TypeError, ValueError, AttributeError):
        return None, f"{report_file}: damaged, ignored and written anew"


def count_images(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Images by split (`valpx` included) and class name."""
    counts = {}
    for split in (*SPLITS, "valpx"):
        labels = Counter(i.label for i in manifest.split(split))
        counts[split] = {name: labels[k] for k, name in enumerate(manifest.card.classes)}
    return counts


def _sha(facts: Mapping[Path, FileFacts], path: Path) -> str | None:
    return facts[path].sha256 if path in facts else None


def _misfit(item: Item, facts: Mapping[Path, FileFacts] | None) -> str:
    """What is wrong between an image and its mask, empty if nothing."""
    image = facts[item.image][1:] if facts else image_size(item.image)
    if item.mask is None:
        return ""
    mask = facts[item.mask][1:] if facts else mask_size(item.mask)
    if image == mask:
        return ""
    return (
        f"{item.mask} is {mask[1]} x {mask[0]} px, its image {item.image.name} {image[1]} x {image[0]}. "
        "Masks are never resized to fit: export the mask at the size of its image."
    )
