"""Figures drawn, saved as PNG and PDF, and made ready for the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...benchmark.core.results_store import Store
from ..tables.aggregate import Table
from ..tables.contents import Chapter, Contents
from ..tables.ood import Away
from ..tables.shifts import Shifted
from .studio import make

if TYPE_CHECKING:
    from ..page.page import Picture
    from .base import AwayScene, Scene, ShiftScene


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


def make_art(store: Store, folder: Path, contents: Contents, meanwhile: Callable[[], object] | None = None) -> Pictures:
    """Draws and saves all figures in a folder, but for those that are there already.

    meanwhile: something else to do in this process where others draw.
    """
    from .base import Palette, Scene
    from .draw import jobs_of

    findings, away = contents.findings, [c.source for c in contents.chapters if isinstance(c.source, Away)]
    shifted = [t for c in contents.chapters if isinstance(c.source, Shifted) for x in c.source.ladders
               for t in x.levels.values()]  # fmt: skip
    every = [*contents.tables, *(t for one in away for t in one.tables), *shifted]
    palette = Palette(line for table in every for line in table.lines)

    def scene_of(table: Table) -> Scene:
        return Scene(table, findings.evidence, findings.records, store, palette)

    home = [scene_of(table) for table in contents.tables]
    found = no_art(contents)
    scenes: list[tuple[Scene | AwayScene | ShiftScene, Art]] = list(zip(home, found.tables, strict=True))
    for chapter, art in zip(contents.chapters, found.chapters, strict=True):
        scene = _chapter(chapter, home, scene_of)
        if scene:
            scenes.append((scene, art))
    jobs = [(job, art) for scene, art in scenes for job in jobs_of(scene)]
    each = make([job for job, _ in jobs], folder, store, findings.records, meanwhile)
    for (_, art), made in zip(jobs, each, strict=True):
        art.pictures += made.pictures
        art.missing += made.missing
        found.paths += made.paths
    return found


def _chapter(
    chapter: Chapter, home: Sequence["Scene"], scene_of: Callable[[Table], "Scene"]
) -> "AwayScene | ShiftScene | None":
    from .base import AwayScene, ShiftScene

    source = chapter.source
    if isinstance(source, Shifted):
        table = next(iter(source.ladders[0].levels.values()))
        return ShiftScene(source, scene_of(table).palette)
    if source is None:
        return None
    pairs = tuple(scene_of(table) for table in source.tables)
    own = tuple(s for s in home if s.table.protocol == source.protocol and s.synthetic == source.synthetic)
    return AwayScene(source, pairs, own, pairs[0].palette)
