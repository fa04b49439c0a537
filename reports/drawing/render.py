"""Figures drawn side by side on all cores, saved as PNG and PDF, and again only when what they show has changed.

What was drawn is noted in `cache/figures.json` with a hash of all that it was drawn from; it may be deleted any time.
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
from ..tables.ood import Away
from ..tables.shifts import Shifted

if TYPE_CHECKING:
    from .base import AwayScene, Drawn, Palette, Scene, ShiftScene
    from .jobs import DrawingJob
    from .picture import Picture

log = logging.getLogger(__name__)
NOTES = "figures.json"
FORMS = ("png", "pdf")
PNG = "data:image/png;base64,"
FEW = 6  # jobs up to which processes of their own cost more than they bring
_LONG = ("convergence", "qualitative", "score_histograms", "per_image")  # begun first, as all wait for the last
_STAMPED = ("record.json", "scores.npz", "examples.npz", "history.jsonl")
_LIBRARIES = ("matplotlib", "seaborn", "numpy", "pillow")
_todo: list[tuple["DrawingJob", Path]] = []  # what a forked process finds; scenes are too large to be sent


@dataclass
class Made:
    """The figures of one job, and `title: reason` for each that was left out. drawn: as noted for the next time.

    damaged: whether a file was no longer what its size and time say, so that nothing here may be noted.
    """

    pictures: list["Picture"] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    damaged: bool = False
    paths: list[Path] = field(default_factory=list)
    drawn: list[dict[str, Any]] = field(default_factory=list)


def make(
    jobs: Sequence["DrawingJob"],
    folder: Path,
    store: Store,
    records: Records,
    meanwhile: Callable[[], object] | None = None,
) -> list[Made]:
    """Draws and saves the figures of some jobs, in their order; what is there and still true is left as it is.

    meanwhile: something else to do in this process where others draw.
    """
    sources = _Sources(store, records)
    hashes = [sources.of(job) for job in jobs]
    notes = read_kept(store.cache_dir / NOTES, "")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = list(pool.map(lambda h: _again(notes.get(h), folder), hashes))
    fresh = iter(_all([job for job, made in zip(jobs, found, strict=True) if made is None], folder, meanwhile))
    out = [made or next(fresh) for made in found]
    each = [(h, made) for h, made in zip(hashes, out, strict=True) if not made.damaged]
    known = {h: {"drawn": made.drawn, "missing": made.missing} for h, made in each}
    if known != notes:
        write_kept(store.cache_dir / NOTES, "", known)
    return out


def _all(jobs: Sequence["DrawingJob"], folder: Path, meanwhile: Callable[[], object] | None = None) -> list[Made]:
    """Every job drawn, in processes where that is safe: Linux, no other thread, no torch with its own.

    meanwhile: something else to do in this process while others draw; left undone where it draws itself.
    """
    workers = min(os.cpu_count() or 1, len(jobs))
    alone = sys.platform != "linux" or threading.active_count() > 1 or "torch" in sys.modules
    if alone or workers < 2 or len(jobs) <= FEW:
        return [_make(job, folder) for job in jobs]
    for module in ("matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf"):
        importlib.import_module(module)  # once here, not once a process
    _todo[:] = [(job, folder) for job in jobs]
    made: dict[int, Made] = {}
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
        _todo.clear()
    return [made.get(k) or _make(job, folder) for k, job in enumerate(jobs)]


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent: those that wait for work hold each other's pipes open for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _forked(index: int) -> Made:
    return _make(*_todo[index])


def _make(job: "DrawingJob", folder: Path) -> Made:
    made, drawings = Made(), job.draw()
    made.missing, made.damaged = drawings.missing, drawings.damaged
    for drawn in drawings.drawn:
        _save(drawn, folder, made)
    return made


def _save(drawn: "Drawn", folder: Path, made: Made) -> None:
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
    own = not shown.source.startswith(PNG)  # made smaller for the page, which took as long as reading many
    note["picture"] = shown._replace(source=shown.source if own else "")._asdict()
    made.pictures.append(shown)
    made.drawn.append(note)


def _again(note: Mapping[str, Any] | None, folder: Path) -> Made | None:
    """What a job drew before, if every file of it is still there as it was."""
    from .picture import Picture

    if note is None:
        return None
    made = Made(missing=list(note["missing"]))
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
    """Hashes of all that figures are drawn from: code, rows, looks, and the files of their stages."""

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
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((path.name, status.st_size, status.st_mtime_ns))
    return found


@cache
def _code() -> str:
    """A hash of all code that draws."""
    paths = [*sorted(Path(__file__).parents[1].rglob("*.py")), Path(str(metrics.__file__))]
    versions = [importlib.metadata.version(name) for name in _LIBRARIES]
    return hashlib.sha256(b"\0".join([*(p.read_bytes() for p in paths), *map(str.encode, versions)])).hexdigest()


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
    from .jobs import jobs_of

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
