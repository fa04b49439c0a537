"""The files of `bench data patches`: slides and annotations by name, and what lies beside them unread."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...benchmark.core.errors import BenchError
from ..wsi.annotations import SUFFIXES as MARKS
from ..wsi.notes import name_some
from ..wsi.slide import SUFFIXES as SLIDES

# Formats that hold slides or pictures of them and are not read: found among slides, they are named in a note.
_UNREAD = (".czi", ".dcm", ".isyntax", ".jp2", ".jpeg", ".jpg", ".lif", ".png", ".qptiff", ".vsi", ".zip", ".zvi")


def find_slides(folder: Path) -> tuple[dict[str, Path], list[str], list[str]]:
    """Slides by name, names of mask files that lie among them, and notes on files that are passed over.

    Raises BenchError for a folder that does not exist or holds no slides, and for two slides of one name.
    """
    paths = [p for p in _files(folder, "--slides") if _suffix(p, SLIDES)]
    hidden = [p for p in paths if p.name.startswith(".")]
    paths = [p for p in paths if not p.name.startswith(".")]
    masks = [p.stem for p in paths if re.search(r"[_-]mask$", p.stem, re.IGNORECASE)]
    slide_paths = {p.stem: p for p in paths if p.stem not in masks}
    other = Counter(p.suffix.lower() for p in _files(folder, "--slides") if _unread(p, slide_paths))
    notes = []
    if hidden:
        notes.append(f"hidden files passed over, such as those of macOS: {name_some([p.name for p in hidden], 3)}")
    if other:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(other.items()))
        notes.append(f"files of other formats below {folder}, not read: {kinds}")
    if not slide_paths:
        remarks = "".join(f" {n[0].upper()}{n[1:]}." for n in notes)
        raise BenchError(f"{folder} holds no slides ({', '.join(SLIDES)}). Point --slides at their folder.{remarks}")
    _refuse_clashes(folder, [(p.stem, p) for p in paths if p.stem in slide_paths])
    return slide_paths, masks, notes


def find_annotations(folder: Path, slides: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Annotations by the name of their slide, and notes on those that belong to none.

    NAME.xml, NAME.geojson, and the slide's own suffix may stand between. Raises BenchError for a folder that does not
    exist, and for two annotations of one slide.
    """
    known = {s.lower(): s for s in slides}
    annotations: list[tuple[str, Path]] = []
    orphans: list[str] = []
    for path in _files(folder, "--annotations"):
        if path.name.startswith(".") or not (suffix := _suffix(path, MARKS)):
            continue
        stem = path.name[: -len(suffix)]
        names = (stem, stem[: -len(_suffix(Path(stem), SLIDES)) or None])
        slide = next((known[n.lower()] for n in names if n.lower() in known), None)
        if slide:
            annotations.append((slide, path))
        elif suffix != ".json":  # many things are
            orphans.append(path.name)
    _refuse_clashes(folder, annotations)
    notes = [f"annotations of no slide, not read: {len(orphans)} ({name_some(orphans)})"] * bool(orphans)
    return dict(annotations), notes


def _files(folder: Path, option: str) -> list[Path]:
    if not folder.is_dir():
        raise BenchError(f"There is no folder {folder}. Correct {option}.")
    return sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p.stem, str(p)))


def _suffix(path: Path, known: Iterable[str]) -> str:
    """The suffix of a file as it is written, if it is one of those known."""
    name = path.name.lower()
    return next((path.name[-len(s) :] for s in sorted(known, key=len, reverse=True) if name.endswith(s)), "")


def _unread(path: Path, slides: Mapping[str, Path]) -> bool:
    """Whether a file may be a slide that somebody expects to be cut; parts of a slide of several files are not."""
    if path.name.startswith(".") or path.suffix.lower() not in _UNREAD:
        return False
    return not any(
        p.suffix.lower() in (".vms", ".vmu", ".mrxs") and path.is_relative_to(p.parent) for p in slides.values()
    )


def _refuse_clashes(folder: Path, files: Iterable[tuple[str, Path]]) -> None:
    by_name: dict[str, list[str]] = defaultdict(list)
    for name, path in files:
        by_name[name.lower()].append(str(path))
    clashes = [" and ".join(sorted(paths)) for paths in by_name.values() if len(paths) > 1]
    if clashes:
        raise BenchError(f"{folder}: {name_some(clashes, 5)} have the same name. Keep one of them.")
