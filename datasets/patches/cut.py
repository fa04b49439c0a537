"""Search and cutting of one slide, in worker processes: places, then patches; the record of each is written last.

Both steps keep their record in the state folder and are skipped when it is there and still true, so that an interrupted
run goes on where it stopped. What is wrong with one slide is returned, not raised: the others go on.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...benchmark.core.errors import BenchError
from ...benchmark.core.files import atomic_path, file_sha256, key_of, read_json, write_json
from ..parts.camelyon_lists import PatchName
from ..wsi.tissue import TissueRule
from .sample import PatchPlace, SearchResult, SlideScan, places_from_json
from .settings import PatchSettings
from .slides import LeftOut, SlideJob


@dataclass(frozen=True)
class Scan:
    """What the search of a slide gave: its places, whether there are no more, and facts of the slide (a JSON value)."""

    slide: str
    result: SearchResult
    facts: dict[str, Any]


class PatchFiles(NamedTuple):
    """One patch on disk: paths below the output folder (mask None on a normal slide), SHA-256 and bytes of each."""

    place: PatchPlace
    image: str
    image_sha256: str
    image_bytes: int
    mask: str | None
    mask_sha256: str | None
    mask_bytes: int


@dataclass(frozen=True)
class Cut:
    """The patches of a slide."""

    slide: str
    patches: tuple[PatchFiles, ...]


def scan_slide(job: SlideJob, settings: PatchSettings, state: Path, label: str, wanted: int = 0) -> Scan | LeftOut:
    """Places of one class on a slide: all of tumour, at least `wanted` normal ones if it has them."""
    record = state / f"{job.plain}.{'scan' if label == job.label else f'{label}-scan'}.json"
    try:
        key = _key(job, settings)
        known = _read_scan(record, key, job.name)
        if known and (known.result.exhausted or len(known.result.places) >= wanted):
            return known
        rule = TissueRule(**known.facts["thresholds"]) if known else None
        with SlideScan(job, settings, rule) as scan:
            chosen = scan.search(label, wanted, known.result if known else None)
            facts = scan.facts()
        places = [asdict(p) for p in chosen.places]
        rest = {"exhausted": chosen.exhausted, "trials": chosen.trials, "facts": facts}
        write_json(record, {"key": key, "places": places, **rest})
        return Scan(job.name, chosen, facts)
    except (BenchError, OSError) as problem:
        return LeftOut(job.name, str(problem))


def inspect_slide(job: SlideJob, settings: PatchSettings) -> Scan | LeftOut:
    """What `scan_slide` finds wrong with a slide before it searches it: its file, resolution, overview, annotation."""
    try:
        with SlideScan(job, settings) as scan:
            return Scan(job.name, SearchResult((), exhausted=False), scan.facts())
    except (BenchError, OSError) as problem:
        return LeftOut(job.name, str(problem))


def cut_slide(job: SlideJob, settings: PatchSettings, out: Path, state: Path, scan: Scan) -> Cut | LeftOut:
    """Writes the patches at the places of `scan` (those chosen) under `out`, in the published layout, under its names.

    Files of the slide that an earlier call left and that are not among them are removed.
    """
    record = state / f"{job.plain}.json"
    try:
        key = key_of([_key(job, settings), job.split, [asdict(p) for p in scan.result.places]])
        root = out / settings.name / f"w-{settings.size}xh-{settings.size}"
        known = _read_cut(record)
        if known and known[0] == key and all(_intact(out, p) for p in known[1].patches):
            return known[1]
        names = [patch_name(job, settings, p) for p in scan.result.places]
        record.unlink(missing_ok=True)
        _remove_others(job, root, names, [] if known is None else [out / f for p in known[1].patches for f in files(p)])
        patches: list[PatchFiles] = []
        if names:
            with SlideScan(job, settings, TissueRule(**scan.facts["thresholds"])) as opened:
                patches = [
                    _write(opened, out, root, name, place)
                    for name, place in zip(names, scan.result.places, strict=True)
                ]
        write_json(record, {"key": key, "slide": job.name, "patches": [_as_json(p) for p in patches]})
        return Cut(job.name, tuple(patches))
    except (BenchError, OSError) as problem:
        return LeftOut(job.name, str(problem))


def patch_name(job: SlideJob, settings: PatchSettings, place: PatchPlace) -> PatchName:
    """The published name of a patch."""
    return PatchName(
        slide=job.tag, patch=place.patch, x=place.x, y=place.y, tissue=place.tissue, metastatic=place.tumor,
        region=place.region, row=place.row, width=settings.size, height=settings.size,
        suffix=job.path.suffix.lower().lstrip("."),
    )  # fmt: skip


def files(patch: PatchFiles) -> list[str]:
    """The files of a patch, relative to the output folder."""
    return [patch.image, *([patch.mask] if patch.mask else [])]


def _key(job: SlideJob, settings: PatchSettings) -> str:
    """What the places of a slide depend on; a slide counts as another one when its size or time has changed."""
    status = job.path.stat()
    xml = file_sha256(job.annotation) if job.annotation else None
    return key_of([settings.identity(), job.name, job.label, status.st_size, status.st_mtime_ns, xml])


def _read_scan(path: Path, key: str, slide: str) -> Scan | None:
    if not path.is_file():
        return None
    stored = read_json(path)
    if stored["key"] != key:
        return None
    stored_places = SearchResult(places_from_json(stored["places"]), stored["exhausted"], stored["trials"])
    return Scan(slide, stored_places, stored["facts"])


def _read_cut(path: Path) -> tuple[str, Cut] | None:
    if not path.is_file():
        return None
    stored = read_json(path)
    patches = [PatchFiles(**{**p, "place": PatchPlace(**p["place"])}) for p in stored["patches"]]
    return stored["key"], Cut(stored["slide"], tuple(patches))


def _as_json(patch: PatchFiles) -> dict[str, Any]:
    return {**patch._asdict(), "place": asdict(patch.place)}


def _intact(out: Path, patch: PatchFiles) -> bool:
    """Whether the files are there at their size; `bench data verify` reads them."""
    sizes = {patch.image: patch.image_bytes, **({patch.mask: patch.mask_bytes} if patch.mask else {})}
    return all((out / f).is_file() and (out / f).stat().st_size == n for f, n in sizes.items())


def _remove_others(job: SlideJob, root: Path, names: Sequence[PatchName], known: Sequence[Path]) -> None:
    """Removes the slide's files but for those that will be written: of an earlier choice, or of an interrupted run."""
    keep = {path for name in names for path in _paths(job, root, name)}
    folders = {_paths(job, root, PatchName(job.tag, 0, 0, 0, 0.0, share))[0].parent for share in (None, 1.0)}
    strays = [
        path for folder in folders if folder.is_dir()
        for path in [*folder.glob(f"*_file_{job.tag}.*.png"), *folder.glob(f".*_file_{job.tag}.*.tmp")]
    ]  # fmt: skip
    for path in {*known, *strays} - keep:
        path.unlink(missing_ok=True)


def _paths(job: SlideJob, root: Path, name: PatchName) -> tuple[Path, Path]:
    """Image and mask of a patch."""
    folder = root / name.folder(job.split == "test")
    return folder / name.image_name, folder / name.mask_name


def _write(scan: SlideScan, out: Path, root: Path, name: PatchName, place: PatchPlace) -> PatchFiles:
    image_file, mask_file = _paths(scan.job, root, name)
    image, mask = scan.patch(place)
    image_hash, image_bytes = _save(image_file, image)
    image_path = image_file.relative_to(out).as_posix()
    if place.tumor is None:
        return PatchFiles(place, image_path, image_hash, image_bytes, None, None, 0)
    mask_hash, mask_bytes = _save(mask_file, mask.astype(np.uint8) * 255)
    return PatchFiles(
        place, image_path, image_hash, image_bytes, mask_file.relative_to(out).as_posix(), mask_hash, mask_bytes
    )


def _save(path: Path, pixels: np.ndarray) -> tuple[str, int]:
    """Writes a PNG atomically and returns its SHA-256 and size in bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    content = buffer.getvalue()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest(), len(content)
