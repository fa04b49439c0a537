"""Parallel drawing of figures as PNG and PDF, with a cache: a figure is drawn again only when its data have changed.

`cache/figures.json` holds a hash of the data of each figure; it may be deleted any time.
"""

import base64
import contextlib
import hashlib
import importlib
import importlib.metadata
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...benchmark.core import metrics
from ...benchmark.core.files import atomic_path
from ...benchmark.core.results_store import Store
from ..rows.cache import read_kept, write_kept
from ..tables.aggregate import Table
from ..tables.contents import Chapter, Contents
from ..tables.cost import Records, stages_behind
from ..tables.ood import OodTables
from ..tables.shifts import Shifted

if TYPE_CHECKING:
    from .base import Drawn, OodScene, Palette, Scene, ShiftScene
    from .jobs import DrawingJob
    from .picture import Picture

log = logging.getLogger(__name__)
NOTES = "figures.json"
FORMS = ("png", "pdf")
PNG = "data:image/png;base64,"
FEW = 6  # jobs up to which starting processes takes longer than they save
_LONG = ("convergence", "qualitative", "score_histograms", "per_image")  # begun first, as all wait for the last
_STAMPED = ("record.json", "scores.npz", "examples.npz", "history.jsonl")
_LIBRARIES = ("matplotlib", "seaborn", "numpy", "pillow")
_jobs_to_fork: list[tuple["DrawingJob", Path]] = []  # inherited by forked processes: scenes are too large to be sent


@dataclass
class RenderedFigures:
    """The figures of one job, and `title: reason` for each that was left out. drawn: as noted for the next time.

    damaged: whether a file proved damaged though its size and time are those of the cache; then nothing is cached.
    """

    pictures: list["Picture"] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    damaged: bool = False
    paths: list[Path] = field(default_factory=list)
    drawn: list[dict[str, Any]] = field(default_factory=list)


def render_jobs(
    jobs: Sequence["DrawingJob"],
    folder: Path,
    store: Store,
    records: Records,
    meanwhile: Callable[[], object] | None = None,
) -> list[RenderedFigures]:
    """Draws and saves the figures of some jobs, in their order; unchanged ones are read from the cache.

    meanwhile: something else to do in this process where others draw.
    """
    sources = _Sources(store, records)
    hashes = [sources.of(job) for job in jobs]
    notes = read_kept(store.cache_dir / NOTES, "")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        reused = list(pool.map(lambda h: _reused(notes.get(h), folder), hashes))
    fresh = iter(_render_all([job for job, made in zip(jobs, reused, strict=True) if made is None], folder, meanwhile))
    out = [made or next(fresh) for made in reused]
    each = [(h, made) for h, made in zip(hashes, out, strict=True) if not made.damaged]
    known = {h: {"drawn": made.drawn, "missing": made.missing} for h, made in each}
    if known != notes:
        write_kept(store.cache_dir / NOTES, "", known)
    return out


def _render_all(
    jobs: Sequence["DrawingJob"], folder: Path, meanwhile: Callable[[], object] | None = None
) -> list[RenderedFigures]:
    """Every job drawn, in processes where that is safe: Linux, no other thread, no torch with its own.

    meanwhile: something else to do in this process while others draw; left undone where it draws itself.
    """
    workers = min(os.cpu_count() or 1, len(jobs))
    alone = sys.platform != "linux" or threading.active_count() > 1 or "torch" in sys.modules
    if alone or workers < 2 or len(jobs) <= FEW:
        return [_render_job(job, folder) for job in jobs]
    for module in ("matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf"):
        importlib.import_module(module)  # once here, not once a process
    _jobs_to_fork[:] = [(job, folder) for job in jobs]
    made: dict[int, RenderedFigures] = {}
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _end_with, (os.getpid(),)) as pool:
            order = sorted(range(len(jobs)), key=lambda k: jobs[k].module not in _LONG)
            futures = {k: pool.submit(_forked, k) for k in order}
            if meanwhile:
                meanwhile()
            for k, future in futures.items():
                made[k] = future.result()
    except BrokenProcessPool:
        log.warning("A process that drew figures was killed, perhaps for its memory; the rest is drawn one by one.")
    finally:
        _jobs_to_fork.clear()
    return [made.get(k) or _render_job(job, folder) for k, job in enumerate(jobs)]


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent: those that wait for work hold each other's pipes open for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _forked(index: int) -> RenderedFigures:
    return _render_job(*_jobs_to_fork[index])


def _render_job(job: "DrawingJob", folder: Path) -> RenderedFigures:
    made, drawings = RenderedFigures(), job.draw()
    made.missing, made.damaged = drawings.missing, drawings.damaged
    for drawn in drawings.drawn:
        _save(drawn, folder, made)
    return made


def _save(drawn: "Drawn", folder: Path, made: RenderedFigures) -> None:
    from .base import render
    from .picture import picture

    note: dict[str, Any] = {}
    files = {form: render(drawn.figure, form) for form in FORMS}
    for form, data in files.items():
        path = folder / f"{drawn.name}.{form}"
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
        made.paths.append(path)
        note[form] = hashlib.sha256(data).hexdigest()
    shown = picture(drawn, files["png"])
    reduced = not shown.source.startswith(PNG)  # made smaller for the page, which took as long as reading many
    note["picture"] = shown._replace(source=shown.source if reduced else "")._asdict()
    made.pictures.append(shown)
    made.drawn.append(note)


def _reused(note: Mapping[str, Any] | None, folder: Path) -> RenderedFigures | None:
    """The cached figures of a job, if all their files are unchanged."""
    from .picture import Picture

    if note is None:
        return None
    made = RenderedFigures(missing=list(note["missing"]))
    for one in note["drawn"]:
        shown = Picture(**one["picture"])
        for form in FORMS:
            path = folder / f"{shown.name}.{form}"
            try:
                data = path.read_bytes()
            except OSError:
                return None
            if hashlib.sha256(data).hexdigest() != one[form]:
                return None
            made.paths.append(path)
            if form == "png" and not shown.source:
                shown = shown._replace(source=PNG + base64.b64encode(data).decode())
        made.pictures.append(shown)
        made.drawn.append(one)
    return made


class _Sources:
    """Hashes of the data of figures: code, rows, colours, and the files of their stages."""

    def __init__(self, store: Store, records: Records) -> None:
        self.store, self.records = store, records
        self._tables: dict[int, str] = {}
        self._shared = f"{_code()} {_stamps(sorted((store.root / 'examples').glob('*')))}"

    def of(self, job: "DrawingJob") -> str:
        """The hash of a job."""
        scene = job.scene
        parts = [job.module, *scene.stem, *(self._table(table, scene.palette) for table in scene.tables)]
        return hashlib.sha256("\0".join([self._shared, *parts]).encode()).hexdigest()[:20]

    def _table(self, table: Table, palette: "Palette") -> str:
        if id(table) not in self._tables:
            looks = [(x.label, x.marked, palette.look(x), [r.stage for r in x.runs]) for x in table.lines]
            shown = [line.first.stage for line in table.shown]
            # the cost is that of all stages behind
            stages = dict.fromkeys(s for r in table.rows for s in (r.stage, *stages_behind(r, self.records)))
            files = _stamps(self.store.run_dir(stage) / name for stage in stages for name in _STAMPED)
            text = f"{table.title}{table.rows}{looks}{shown}{sorted(palette.names)}{list(stages)}{files}"
            self._tables[id(table)] = hashlib.sha256(text.encode()).hexdigest()
        return self._tables[id(table)]


def _stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, size and time of the files that are there."""
    stamps = []
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            stamps.append((path.name, status.st_size, status.st_mtime_ns))
    return stamps


@cache
def _code() -> str:
    """A hash of all code that draws."""
    paths = [*sorted(Path(__file__).parents[1].rglob("*.py")), Path(str(metrics.__file__))]
    versions = [importlib.metadata.version(name) for name in _LIBRARIES]
    return hashlib.sha256(b"\0".join([*(p.read_bytes() for p in paths), *map(str.encode, versions)])).hexdigest()


@dataclass
class FigureGroup:
    """The figures of one table or chapter, and `title: reason` for each that was left out."""

    pictures: list["Picture"] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass
class Pictures:
    """The figures of a whole report, in the order of its tables and chapters. paths: the files written."""

    tables: list[FigureGroup]
    chapters: list[FigureGroup]
    paths: list[Path] = field(default_factory=list)


def no_figures(contents: Contents) -> Pictures:
    """A report without figures."""
    return Pictures([FigureGroup() for _ in contents.tables], [FigureGroup() for _ in contents.chapters])


def render_report_figures(
    store: Store, folder: Path, contents: Contents, meanwhile: Callable[[], object] | None = None
) -> Pictures:
    """Draws and saves all figures in a folder, but for those that are there already.

    meanwhile: something else to do in this process where others draw.
    """
    from .base import Palette, Scene
    from .jobs import jobs_of

    findings, ood = contents.findings, [c.source for c in contents.chapters if isinstance(c.source, OodTables)]
    shifted = [t for c in contents.chapters if isinstance(c.source, Shifted) for x in c.source.ladders
               for t in x.levels.values()]  # fmt: skip
    every = [*contents.tables, *(t for one in ood for t in one.tables), *shifted]
    palette = Palette(line for table in every for line in table.lines)

    def scene_of(table: Table) -> Scene:
        return Scene(table, findings.evidence, findings.records, store, palette)

    home = [scene_of(table) for table in contents.tables]
    pictures = no_figures(contents)
    scenes: list[tuple[Scene | OodScene | ShiftScene, FigureGroup]] = list(zip(home, pictures.tables, strict=True))
    for chapter, group in zip(contents.chapters, pictures.chapters, strict=True):
        scene = _chapter(chapter, home, scene_of)
        if scene:
            scenes.append((scene, group))
    jobs = [(job, group) for scene, group in scenes for job in jobs_of(scene)]
    each = render_jobs([job for job, _ in jobs], folder, store, findings.records, meanwhile)
    for (_, group), made in zip(jobs, each, strict=True):
        group.pictures += made.pictures
        group.missing += made.missing
        pictures.paths += made.paths
    return pictures


def _chapter(
    chapter: Chapter, home: Sequence["Scene"], scene_of: Callable[[Table], "Scene"]
) -> "OodScene | ShiftScene | None":
    from .base import OodScene, ShiftScene

    source = chapter.source
    if isinstance(source, Shifted):
        table = next(iter(source.ladders[0].levels.values()))
        return ShiftScene(source, scene_of(table).palette)
    if source is None:
        return None
    pairs = tuple(scene_of(table) for table in source.tables)
    in_domain = tuple(s for s in home if s.table.protocol == source.protocol and s.synthetic == source.synthetic)
    return OodScene(source, pairs, in_domain, pairs[0].palette)
