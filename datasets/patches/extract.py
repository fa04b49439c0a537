"""Extraction of patches from slides, as `bench data patches` does it: in processes, resumed by the same command.

1. Tumour slides are searched for places with enough tumour and tissue. 2. A draw over all slides of a split decides
which of them become patches. 3. Normal slides are searched for as many. 4. Patches are written, slide by slide.
5. The tables are written. The result depends on the slides and the settings alone, not on the number of processes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ...benchmark.core.errors import BenchError
from ...benchmark.core.files import read_json, write_json
from ..wsi.notes import merge_notes, name_some
from ..wsi.slide import import_openslide
from .choose import calibrate, normal_quotas
from .cut import Cut, Scan, cut_slide, inspect_slide, scan_slide
from .sample import SearchResult
from .settings import PatchSettings
from .slides import NORMAL, TUMOR, LeftOut, Listing, SlideJob
from .tables import WrittenPatches, notes_of, write_tables

SETTINGS_FILE, STATE_FOLDER = "settings.json", "slides"
Progress = Callable[[str, int, int], None]  # what is done, slides done, slides in all
_T = TypeVar("_T")


@dataclass(frozen=True)
class ExtractionOutcome:
    """What was written. summary: the content of patches.json. failed: slides that ought to have been cut."""

    summary: dict[str, Any]
    failed: tuple[LeftOut, ...]


def make_patches(
    listing: Listing,
    settings: PatchSettings,
    out: Path,
    jobs: int = 1,
    progress: Progress = lambda *_: None,
) -> ExtractionOutcome:
    """Cuts the slides of a listing into patches under `out` and writes patches.csv, dataset.csv and patches.json there.

    jobs: worker processes, -1 for one a core. Slides that cannot be used are in the outcome; the others are cut.
    Raises BenchError without openslide, for a listing with refusals, where `out` holds patches of other settings or
    somebody else's files, where another process is at work, and if no patch came out though no slide failed.
    """
    import_openslide()
    _check_listing(listing)
    with _claimed(out, settings):
        run = _Run(listing, settings, out, jobs, progress)
        chosen, unused = run.choose()
        cuts = run.cut(chosen)
        failed = tuple(sorted([*listing.problems, *run.failed]))
        if not any(c.patches for c in cuts) and not failed:
            reasons = "".join(f"\n  {slide}: {reason}" for slide, reason in [*listing.skipped, *unused])
            raise BenchError(
                f"No slide gave a patch (tumour share {settings.tumor_share}, tissue share {settings.tissue_share}). "
                f"There must be tumour slides with annotations; lower the shares or look at the slides.{reasons}"
            )
        result = WrittenPatches(listing, chosen, tuple(cuts), failed, unused, run.offered)
        return ExtractionOutcome(write_tables(out, settings, result), failed)


@dataclass(frozen=True)
class Preview:
    """What a dry run found without searching the slides: those that fail, notes, what refuses the run."""

    failed: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    refusals: tuple[str, ...]


def preview(
    listing: Listing,
    settings: PatchSettings,
    out: Path,
    jobs: int = 1,
    progress: Progress = lambda *_: None,
) -> Preview:
    """Opens every slide and annotation as `make_patches` does and writes nothing.

    What only the pixels of a patch show (a damaged tile, too little tissue) is left to the run.
    Raises BenchError without openslide.
    """
    import_openslide()
    calls = [(j, settings) for j in listing.jobs]
    results = _parallel(jobs, inspect_slide, calls, "slides opened", progress)
    failed = tuple(sorted([*listing.problems, *(r for r in results if isinstance(r, LeftOut))]))
    notes = merge_notes({r.slide: notes_of(r) for r in results if isinstance(r, Scan)})
    twins = _twins({j.name: j for j in listing.jobs}, {r.slide: r for r in results if isinstance(r, Scan)})
    refusals = [*listing.refusals, *([twins] if twins else [])]
    for check in (lambda: _check_tumor(listing, failed), lambda: _check_out(out, settings)):
        try:
            check()
        except BenchError as problem:
            refusals.append(str(problem))
    return Preview(failed, (*listing.notes, *notes), tuple(refusals))


class _Run:
    """One call: who failed so far, and how many places tumour slides had before the draw."""

    def __init__(self, listing: Listing, settings: PatchSettings, out: Path, jobs: int, progress: Progress) -> None:
        self.jobs = {j.name: j for j in listing.jobs}
        self.settings, self.out, self.state = settings, out, out / STATE_FOLDER
        self.processes, self.progress = jobs, progress
        self.failed: list[LeftOut] = []
        self.offered: dict[str, int] = {}
        self.searched: dict[str, SearchResult] = {}  # normal places, as far as they were searched

    def choose(self) -> tuple[dict[str, Scan], tuple[LeftOut, ...]]:
        """The places to cut, by slide, and the slides that are sound but give no patch, with the reason."""
        chosen: dict[str, Scan] = {}
        scans = self._scan({n: 0 for n, j in self.jobs.items() if j.label == TUMOR}, TUMOR, "tumour slides searched")
        self.offered = {name: len(s.result.places) for name, s in scans.items()}
        unused: list[LeftOut] = []
        for test in (False, True):
            split = "test" if test else "train"
            places = {n: s.result.places for n, s in scans.items() if _in(self.jobs[n], test)}
            kept = calibrate(places, self.settings, split)
            total = sum(map(len, kept.values()))
            tumor = {name: _only(scans[name], kept[name]) for name in kept}
            normal = self._choose_normal(total, test, split)
            chosen |= {n: _joined(tumor.get(n), normal.get(n)) for n in {**tumor, **normal}}
            unused += [LeftOut(n, self._why_unused(n, chosen, total, split)) for n in self.jobs
                       if _in(self.jobs[n], test) and n in chosen and not chosen[n].result.places]  # fmt: skip
        gone = {f.slide for f in self.failed}
        if twins := _twins(self.jobs, chosen):
            raise BenchError(twins)
        return {n: s for n, s in sorted(chosen.items()) if n not in gone}, tuple(
            u for u in unused if u.slide not in gone
        )

    def _why_unused(self, name: str, chosen: Mapping[str, Scan], total: int, split: str) -> str:
        """Why no patch is cut from a slide that was opened."""
        settings = self.settings
        tissue = f"tissue on at least {settings.tissue_share:g} of it"
        if self.jobs[name].label == TUMOR:
            places = self.offered[name]
            if places:
                return f"none of its {places} places was drawn: all are more than half tumour (see --dense-share)"
            return f"no place for a patch with tumour on at least {settings.tumor_share:g} and {tissue}"
        if not total:
            return f"no normal patch is wanted, for no tumour patch came out of split {split}"
        if self.searched[name].exhausted and not self.searched[name].places:
            return f"no place for a patch with {tissue}"
        return f"the {total} normal patches of split {split} came out of other slides"

    def cut(self, chosen: dict[str, Scan]) -> list[Cut]:
        """Writes the patches of every slide."""
        calls = [(self.jobs[n], self.settings, self.out, self.state, scan) for n, scan in chosen.items()]
        return self._sound(_parallel(self.processes, cut_slide, calls, "slides cut", self.progress))

    def _choose_normal(self, total: int, test: bool, split: str) -> dict[str, Scan]:
        """Normal places of a split. Slides that none is asked of are opened all the same, so that faults are named."""
        every = [n for n, j in self.jobs.items() if _in(j, test) and self._gives_normal(j)]
        slides = [n for n in every if n not in {f.slide for f in self.failed}]
        known: dict[str, Scan] = {}

        def offer(quota: dict[str, int]) -> dict[str, int]:
            open_quota = {n: q for n, q in quota.items() if q and (n not in known or len(known[n].result.places) < q)}
            known.update(self._scan(open_quota, NORMAL, f"normal slides of {split} searched"))
            return {n: min(q, len(known[n].result.places)) if n in known else 0 for n, q in quota.items()}

        quota = normal_quotas(total, slides, self.settings, split, offer)
        rest = {n: 0 for n in slides if n not in known and self.jobs[n].label == NORMAL}
        known |= self._scan(rest, NORMAL, f"other normal slides of {split} opened")
        self.searched |= {n: s.result for n, s in known.items()}
        return {n: _only(scan, scan.result.places[: quota[n]]) for n, scan in known.items()}

    def _gives_normal(self, job: SlideJob) -> bool:
        return job.label == NORMAL or self.settings.normal_from_tumor is not None

    def _scan(self, wanted: dict[str, int], label: str, what: str) -> dict[str, Scan]:
        gone = {f.slide for f in self.failed}
        calls = [
            (self.jobs[n], self.settings, self.state, label, k) for n, k in sorted(wanted.items()) if n not in gone
        ]
        scans = self._sound(_parallel(self.processes, scan_slide, calls, what, self.progress))
        return {s.slide: s for s in scans}

    def _sound(self, results: Iterable[_T | LeftOut]) -> list[_T]:
        sound: list[_T] = []
        for result in results:
            if isinstance(result, LeftOut):
                self.failed.append(result)
            else:
                sound.append(result)
        return sound


def _parallel(
    processes: int, function: Callable[..., _T], calls: Sequence[tuple[Any, ...]], what: str, progress: Progress
) -> list[_T]:
    from joblib import Parallel, delayed

    results: list[_T] = []
    work: Any = Parallel(n_jobs=processes, return_as="generator")(delayed(function)(*c) for c in calls)
    for result in work:
        results.append(result)
        progress(what, len(results), len(calls))
    return results


def _in(job: SlideJob, test: bool) -> bool:
    return (job.split == "test") == test


def _only(scan: Scan, places: Sequence[Any]) -> Scan:
    return replace(scan, result=SearchResult(tuple(places), scan.result.exhausted, scan.result.trials))


def _joined(tumor: Scan | None, normal: Scan | None) -> Scan:
    """The places of both classes on one slide."""
    if tumor is None or normal is None:
        return tumor or normal  # pyright: ignore[reportReturnType]
    return _only(tumor, (*tumor.result.places, *normal.result.places))


def _twins(jobs: Mapping[str, SlideJob], scans: Mapping[str, Scan]) -> str:
    """What to say of one slide under two names in sets that must not share any; empty if there is none.

    openslide's quickhash is made of a slide's directories and its smallest level.
    """
    by_hash: dict[str, list[SlideJob]] = {}
    for name in sorted(scans):
        if quickhash := scans[name].facts["quickhash"]:
            by_hash.setdefault(quickhash, []).append(jobs[name])
    twins = [" = ".join(f"{j.name} ({j.split})" for j in same) for same in by_hash.values()
             if len({j.group for j in same}) > 1 and {j.split for j in same} != {"test"}]  # fmt: skip
    if not twins:
        return ""
    return (
        f"The same slide under several names, which may come into several splits: {name_some(twins)}. Leave out all "
        "but one, or give them one patient in the --splits file."
    )


def _check_listing(listing: Listing) -> None:
    if listing.refusals:
        raise BenchError(" ".join(listing.refusals))
    _check_tumor(listing, listing.problems)


def _check_tumor(listing: Listing, failed: Sequence[LeftOut]) -> None:
    """Raises BenchError where no slide can give a tumour patch though nothing is wrong with any."""
    if not failed and not any(j.label == TUMOR for j in listing.jobs):
        raise BenchError(
            f"No slide gave a patch: none of the {len(listing.jobs)} slides to cut has an annotation of tumour. Give "
            "--annotations the folder of their XML or GeoJSON files."
        )


@contextmanager
def _claimed(out: Path, settings: PatchSettings) -> Iterator[None]:
    """Holds the output folder for one process, after making sure that it is new or of the same settings."""
    from filelock import FileLock, Timeout

    record = out / SETTINGS_FILE
    if out.exists() and not out.is_dir():
        _check_out(out, settings)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            _check_out(out, settings)
            if not record.is_file():
                write_json(record, settings.identity())
            for torn in [*out.glob(".*.tmp"), *(out / STATE_FOLDER).glob(".*.tmp")]:
                torn.unlink()  # left by a killed process; whoever writes here holds the lock
            yield
    except Timeout:
        raise BenchError(f"Another process is writing to {out}. Wait for it, or choose another --out.") from None


def stored_name(out: Path) -> str:
    """The name of the set that an earlier call wrote to this folder, or nothing."""
    record = out / SETTINGS_FILE
    return str(read_json(record).get("name", "")) if record.is_file() else ""


def _check_out(out: Path, settings: PatchSettings) -> None:
    """Raises BenchError where `out` cannot be written to: patches of other settings, somebody else's files, a file."""
    record = out / SETTINGS_FILE
    if record.is_file():
        _check_same(out, read_json(record), settings)
    elif out.is_dir() and (strangers := sorted(p.name for p in out.iterdir() if not p.name.startswith("."))):
        raise BenchError(
            f"{out} is not empty (it holds {', '.join(strangers[:3])}) and was not made by this command. "
            "Choose a new folder as --out."
        )
    elif out.exists() and not out.is_dir():
        raise BenchError(f"{out} is a file. Choose a folder as --out.")


def _check_same(out: Path, stored: Any, settings: PatchSettings) -> None:
    wanted = settings.identity()
    differ = sorted(k for k in {*stored, *wanted} if stored.get(k) != wanted.get(k))
    if differ:
        some = ", ".join(f"{k} {stored.get(k)} (now {wanted.get(k)})" for k in differ)
        raise BenchError(f"{out} holds patches of other settings: {some}. Use the same ones, or another --out.")
