"""Figures drawn, saved as PNG and PDF, and made ready for the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.store import Store, atomic_path
from .aggregate import Table
from .contents import Chapter, Contents
from .ood import Away
from .shifts import Shifted

if TYPE_CHECKING:
    from .figures.base import Drawn, Scene
    from .figures.draw import Drawings
    from .page import Picture


@dataclass
class Art:
    """The figures of one table or chapter, and `title: reason` for each that was left out."""

    pictures: list["Picture"] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass
class Pictures:
    """The figures of a whole report, in the order of its tables and chapters. paths: the files written."""

    tables: list[Art]
    chapters: list[Art]
    paths: list[Path] = field(default_factory=list)


def no_art(contents: Contents) -> Pictures:
    """A report without figures."""
    return Pictures([Art() for _ in contents.tables], [Art() for _ in contents.chapters])


def make_art(store: Store, folder: Path, contents: Contents) -> Pictures:
    """Draws and saves all figures in a folder; every file is written atomically."""
    from .figures.base import Palette, Scene
    from .figures.draw import draw_figures

    findings, away = contents.findings, [c.source for c in contents.chapters if isinstance(c.source, Away)]
    shifted = [t for c in contents.chapters if isinstance(c.source, Shifted) for x in c.source.ladders
               for t in x.levels.values()]  # fmt: skip
    every = [*contents.tables, *(t for one in away for t in one.tables), *shifted]
    palette = Palette(line for table in every for line in table.lines)

    def scene_of(table: Table) -> Scene:
        return Scene(table, findings.evidence, findings.records, store, palette)

    home = [scene_of(table) for table in contents.tables]
    found = no_art(contents)
    for scene, art in zip(home, found.tables, strict=True):
        _keep(draw_figures(scene), art, folder, found.paths)
    for chapter, art in zip(contents.chapters, found.chapters, strict=True):
        drawings = _chapter(chapter, home, scene_of)
        if drawings:
            _keep(drawings, art, folder, found.paths)
    return found


def _chapter(chapter: Chapter, home: Sequence["Scene"], scene_of: Callable[[Table], "Scene"]) -> "Drawings | None":
    from .figures.base import AwayScene, ShiftScene
    from .figures.draw import draw_away, draw_shifted

    source = chapter.source
    if isinstance(source, Shifted):
        table = next(iter(source.ladders[0].levels.values()))
        return draw_shifted(ShiftScene(source, scene_of(table).palette))
    if source is None:
        return None
    pairs = tuple(scene_of(table) for table in source.tables)
    own = tuple(s for s in home if s.table.protocol == source.protocol and s.synthetic == source.synthetic)
    return draw_away(AwayScene(source, pairs, own, pairs[0].palette))


def _keep(drawings: "Drawings", art: Art, folder: Path, paths: list[Path]) -> None:
    art.missing += drawings.missing
    art.pictures += [_save(drawn, folder, paths) for drawn in drawings.drawn]


def _save(drawn: "Drawn", folder: Path, paths: list[Path]) -> "Picture":
    from .figures.base import render
    from .page import picture

    png = render(drawn.figure, "png")
    for form, data in (("png", png), ("pdf", render(drawn.figure, "pdf"))):
        path = folder / f"{drawn.name}.{form}"
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
        paths.append(path)
    return picture(drawn, png)
