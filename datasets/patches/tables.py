"""Tables of the extracted patches: patches.csv (every file), dataset.csv (to run on), patches.json."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import __version__
from ...benchmark.core.errors import BenchError
from ...benchmark.core.files import write_json, write_text
from ..base import SPLITS
from ..parts.folds import choose_pixel_val, divide_groups
from ..wsi.notes import Note, merge_notes
from ..wsi.slide import versions
from .cut import Cut, PatchFiles, Scan
from .patients import is_camelyon17
from .settings import VERSION, PatchSettings
from .slides import CLASSES, NORMAL, TUMOR, LeftOut, Listing, SlideJob, is_camelyon16

PIXEL_VAL = 5  # validation images of each class whose masks may be read, as in the published folds
PALE = 0.5  # a tumour patch is named where less than this share of its tumour can be tissue
_COLUMNS = ("image", "mask", "slide", "group", "label", "split", "x", "y", "mpp", "tissue", "tumor", "image_sha256",
            "mask_sha256")  # fmt: skip


@dataclass(frozen=True)
class WrittenPatches:
    """What came of a listing. chosen: facts and chosen places by slide. failed: slides that ought to have been cut.

    unused: sound slides that gave no patch, and why. offered: places that tumour slides had before the draw.
    """

    listing: Listing
    chosen: Mapping[str, Scan]
    cuts: tuple[Cut, ...]
    failed: tuple[LeftOut, ...]
    unused: tuple[LeftOut, ...]
    offered: Mapping[str, int]


def write_tables(out: Path, settings: PatchSettings, result: WrittenPatches) -> dict[str, Any]:
    """Writes the three tables and returns the content of patches.json.

    There every slide of the listing stands in one of `slides` (with its patches), `skipped` and `failed` (with the
    reason). Unless some slide is in `val` already, the validation set is made of training patients (or slides), so that
    both classes come near `val_share`.
    """
    listing, chosen = result.listing, result.chosen
    cuts = [c for c in result.cuts if c.patches]
    jobs, notes = _with_validation({j.name: j for j in listing.jobs}, cuts, settings.val_share)
    rows = [_row(jobs[c.slide], chosen[c.slide].facts["mpp"], p) for c in cuts for p in c.patches]
    rows.sort(key=lambda r: r["image"])
    notes = [*listing.notes, *merge_notes({n: notes_of(s) for n, s in chosen.items()}), *notes, *_pale(rows)]
    notes += _missing(rows)
    write_text(out / "patches.csv", _csv(_COLUMNS, rows))
    write_text(out / "dataset.csv", _dataset(settings, rows, [jobs[c.slide] for c in cuts]))
    summary = {
        "version": VERSION,
        "settings": {**settings.identity(), **listing.options},
        "software": {"wsolbench": __version__, **versions()},
        "counts": _counts(rows),
        "notes": notes,
        "skipped": [s._asdict() for s in sorted([*listing.skipped, *result.unused])],
        "failed": [f._asdict() for f in result.failed],
        "slides": {c.slide: _slide_facts(jobs[c.slide], c, chosen[c.slide], result.offered) for c in cuts},
    }
    write_json(out / "patches.json", summary)
    return summary


def notes_of(scan: Scan) -> list[Note]:
    """Notes on a slide and its annotation."""
    return [Note(*n) for n in scan.facts["notes"]]


def _missing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a split lacks; a table of test rows alone is a set to score models of others on."""
    present = {(r["split"], r["label"]) for r in rows}
    needed = [s for s in SPLITS if s == "test" or {split for split, _ in present} != {"test"}]
    return [f"no {name} patch in split {s}" for s in needed for name in CLASSES if (s, name) not in present]


def _pale(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tumour patches of little tissue for their tumour: an outline over glass, or thresholds that miss tissue."""
    pale = [r for r in rows if r["tumor"] and float(r["tissue"]) < PALE * float(r["tumor"])]
    if not pale:
        return []
    among = sum(bool(r["tumor"]) for r in rows)
    worst = min(pale, key=lambda r: float(r["tissue"]) / float(r["tumor"]))
    return [
        f"tumour patches with less than half as much tissue as tumour: {len(pale)} of {among} "
        f"(at most {float(worst['tissue']):.0%} tissue and {float(worst['tumor']):.0%} tumour in {worst['image']}); "
        "--tissue-share leaves them out"
    ]


def _label(patch: PatchFiles) -> str:
    """The class of a patch: a tumour slide may give normal ones."""
    return NORMAL if patch.place.tumor is None else TUMOR


def _with_validation(
    jobs: Mapping[str, SlideJob], cuts: Sequence[Cut], share: float
) -> tuple[dict[str, SlideJob], list[str]]:
    """The jobs with some training groups moved to `val`, and what a reader must know."""
    if any(j.split == "val" for j in jobs.values()) or not any(jobs[c.slide].split == "train" for c in cuts):
        return dict(jobs), []
    rows = [(CLASSES.index(_label(p)), jobs[c.slide].group) for c in cuts for p in c.patches
            if jobs[c.slide].split == "train"]  # fmt: skip
    groups = {label: {g for k, g in rows if k == label} for label in range(len(CLASSES))}
    for parts in range(min(round(1 / share), *map(len, groups.values())), 1, -1):
        try:
            part = divide_groups(rows, parts)
        except BenchError:
            continue  # some patients have both classes: fewer parts may hold both in each
        moved = {g for g, number in part.items() if number == 0}
        note = f"validation: {len(moved)} of {len(part)} training groups, one of {parts} parts equal in both classes"
        return {
            n: replace(j, split="val") if j.split == "train" and j.group in moved else j for n, j in jobs.items()
        }, [note]
    return dict(jobs), [
        "no validation set: it needs two training patients (or slides) of each class with patches; list one in split "
        "val with --splits"
    ]


def _row(job: SlideJob, mpp: float | None, patch: PatchFiles) -> dict[str, Any]:
    place = patch.place
    return {
        "image": patch.image,
        "mask": patch.mask or "",
        "slide": job.name,
        "group": job.group,
        "label": _label(patch),
        "split": job.split,
        "x": place.x,
        "y": place.y,
        "mpp": "" if mpp is None else f"{mpp:.6g}",
        "tissue": repr(place.tissue),
        "tumor": "" if place.tumor is None else repr(place.tumor),
        "image_sha256": patch.image_sha256,
        "mask_sha256": patch.mask_sha256 or "",
    }


def _dataset(settings: PatchSettings, rows: Sequence[Mapping[str, Any]], jobs: Sequence[SlideJob]) -> str:
    """The CSV manifest that `--datasets` reads (docs/datasets.md)."""
    validation = [(r["image"], CLASSES.index(r["label"]), r["group"]) for r in rows if r["split"] == "val"]
    marked = choose_pixel_val(validation, PIXEL_VAL)
    lines = [
        f"# name: {settings.name}-patches",
        f"# classes: {', '.join(CLASSES)}",
        f"# background: {NORMAL}",
        f"# positive: {TUMOR}",
        "# foreground: tumour inside the annotated polygons",
        "# mask_foreground: 255",  # so that patches which are tumour as a whole raise no doubt
    ]
    lines += _source([j.name for j in jobs])
    table = [{**r, "pixel_val": "1" if r["image"] in marked else ""} for r in rows]
    return "\n".join(lines) + "\n" + _csv(("image", "mask", "label", "group", "split", "pixel_val"), table)


def _source(slides: Sequence[str]) -> list[str]:
    """Licence and citation of sets whose slides have names of their own."""
    if slides and all(map(is_camelyon16, slides)):
        return ["# licence: CC0 1.0", "# citation: Ehteshami Bejnordi et al., JAMA 318 (2017) 2199-2210"]
    if slides and all(map(is_camelyon17, slides)):
        return [
            "# licence: CC0 1.0",
            "# citation: Bandi et al., IEEE Transactions on Medical Imaging 38 (2019) 550-560",
        ]
    return []


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Patches, slides and groups (patients where they are known) by split and class."""
    counts: dict[str, Any] = {}
    for split in SPLITS:
        for label in CLASSES:
            members = [r for r in rows if (r["split"], r["label"]) == (split, label)]
            numbers = {"slides": len({r["slide"] for r in members}), "groups": len({r["group"] for r in members})}
            counts.setdefault(split, {})[label] = {"patches": len(members), **numbers}
    return counts


def _slide_facts(job: SlideJob, cut: Cut, scan: Scan, offered: Mapping[str, int]) -> dict[str, Any]:
    annotation = job.annotation.name if job.annotation else None
    places = {"places": offered[job.name]} if job.name in offered else {}
    return {
        "file": job.path.name, "annotation": annotation, "label": job.label, "split": job.split,
        "group": job.group, "patches": len(cut.patches), **places, **scan.facts,
        "notes": [n.text for n in notes_of(scan)],
    }  # fmt: skip


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return buffer.getvalue()
