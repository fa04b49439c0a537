"""What `bench data patches` says of its patches: patches.csv (every file), dataset.csv (to run on), patches.json."""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..benchmark.store import write_json, write_text
from .base import SPLITS
from .folds import choose_pixel_val, divide_groups
from .patches_cut import Cut, Scan
from .patches_settings import VERSION, PatchSettings
from .patches_slides import CLASSES, NORMAL, TUMOR, LeftOut, Listing, SlideJob
from .wsi_slide import versions

PIXEL_VAL = 5  # validation images of each class whose masks may be read, as in the published folds
_COLUMNS = ("image", "mask", "slide", "label", "split", "x", "y", "mpp", "tissue", "tumor", "image_sha256",
            "mask_sha256")  # fmt: skip


def write_tables(
    out: Path,
    settings: PatchSettings,
    listing: Listing,
    chosen: Mapping[str, Scan],
    cuts: Sequence[Cut],
    failed: Sequence[LeftOut],
    offered: Mapping[str, int],
) -> dict[str, Any]:
    """Writes the three tables and returns the content of patches.json.

    chosen: facts and chosen places by slide. offered: places that tumour slides had before the draw. Unless some slide
    is in `val` already, the validation set is made of training slides, so that both classes come near `val_share`.
    """
    jobs = {j.name: j for j in listing.jobs}
    cuts = [c for c in cuts if c.patches]
    jobs, notes = _with_validation(jobs, cuts, settings.val_share)
    rows = [_row(jobs[c.slide], chosen[c.slide].facts["mpp"], p) for c in cuts for p in c.patches]
    rows.sort(key=lambda r: r["image"])
    notes += [
        f"no {name} patch in split {split}: dataset.csv cannot be run like this"
        for split in SPLITS
        for name in CLASSES
        if not any(r["split"] == split and r["label"] == name for r in rows)
    ]
    write_text(out / "patches.csv", _csv(_COLUMNS, rows))
    write_text(out / "dataset.csv", _dataset(settings, rows, [*jobs.values()]))
    summary = {
        "version": VERSION,
        "settings": {**asdict(settings), **listing.options},
        "software": {"wsolbench": __version__, **versions()},
        "counts": _counts(rows),
        "notes": notes,
        "skipped": [s._asdict() for s in listing.skipped],
        "failed": [f._asdict() for f in failed],
        "slides": {c.slide: _slide_facts(jobs[c.slide], c, chosen[c.slide], offered) for c in cuts},
        "slides_without_patches": sorted(set(chosen) - {c.slide for c in cuts} - {f.slide for f in failed}),
    }
    write_json(out / "patches.json", summary)
    return summary


def _with_validation(
    jobs: Mapping[str, SlideJob], cuts: Sequence[Cut], share: float
) -> tuple[dict[str, SlideJob], list[str]]:
    """The jobs with some training slides moved to `val`, and what a reader must know."""
    used = {c.slide: len(c.patches) for c in cuts}
    if any(j.split == "val" for j in jobs.values()):
        return dict(jobs), []
    training = [jobs[s] for s in used if jobs[s].split == "train"]
    slides = Counter(j.label for j in training)
    parts = min(round(1 / share), *(slides[name] for name in CLASSES))
    if parts < 2:
        return dict(jobs), [
            "no validation set: it needs two training slides of each class with patches; list one in split val with "
            "--splits"
        ]
    part = divide_groups(((CLASSES.index(j.label), j.name) for j in training for _ in range(used[j.name])), parts)
    moved = {j.name for j in training if part[j.name] == 0}
    note = f"validation: {len(moved)} of {len(training)} training slides, one of {parts} parts equal in both classes"
    return {n: replace(j, split="val") if n in moved else j for n, j in jobs.items()}, [note]


def _row(job: SlideJob, mpp: float | None, patch: Any) -> dict[str, Any]:
    place = patch.place
    return {
        "image": patch.image,
        "mask": patch.mask or "",
        "slide": job.name,
        "label": job.label,
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
    validation = [(r["image"], CLASSES.index(r["label"]), r["slide"]) for r in rows if r["split"] == "val"]
    marked = choose_pixel_val(validation, PIXEL_VAL)
    lines = [
        f"# name: {settings.name}-patches",
        f"# classes: {', '.join(CLASSES)}",
        f"# background: {NORMAL}",
        f"# positive: {TUMOR}",
        "# foreground: tumour inside the annotated polygons",
    ]
    if all(re.fullmatch(r"(normal|tumor|test)_\d{3}", j.name, re.IGNORECASE) for j in jobs):
        lines += ["# licence: CC0 1.0", "# citation: Ehteshami Bejnordi et al., JAMA 318 (2017) 2199-2210"]
    table = [{**r, "group": r["slide"], "pixel_val": "1" if r["image"] in marked else ""} for r in rows]
    return "\n".join(lines) + "\n" + _csv(("image", "mask", "label", "group", "split", "pixel_val"), table)


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Patches and slides by split and class."""
    found: dict[str, Any] = {}
    for split in SPLITS:
        for label in CLASSES:
            slides = [r["slide"] for r in rows if (r["split"], r["label"]) == (split, label)]
            found.setdefault(split, {})[label] = {"patches": len(slides), "slides": len(set(slides))}
    return found


def _slide_facts(job: SlideJob, cut: Cut, scan: Scan, offered: Mapping[str, int]) -> dict[str, Any]:
    annotation = job.annotation.name if job.annotation else None
    places = {"places": offered[job.name]} if job.name in offered else {}
    return {
        "file": job.path.name, "annotation": annotation, "label": job.label, "split": job.split,
        "patches": len(cut.patches), **places, **scan.facts,
    }  # fmt: skip


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return buffer.getvalue()
