"""From slides to patches: the whole job of `bench data patches`, in processes, to be continued by the same command.

1. Tumour slides are searched for places with enough tumour and tissue. 2. A draw over all slides of a split decides
which of them become patches. 3. Normal slides are searched for as many. 4. Patches are written, slide by slide.
5. The tables are written. The result depends on the slides and the settings alone, not on the number of processes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..benchmark.errors import BenchError
from ..benchmark.store import read_json, write_json
from .patches_choose import calibrate, normal_quotas
from .patches_cut import Cut, Scan, cut_slide, scan_slide
from .patches_sample import Found
from .patches_settings import PatchSettings
from .patches_slides import NORMAL, TUMOR, LeftOut, Listing, SlideJob
from .patches_tables import write_tables
from .wsi_slide import import_openslide

SETTINGS_FILE, STATE_FOLDER = "settings.json", "slides"
Progress = Callable[[str, int, int], None]  # what is done, slides done, slides in all
_T = TypeVar("_T")


@dataclass(frozen=True)
class Outcome:
    """What was written. summary: the content of patches.json. failed: slides that ought to have been cut."""

    summary: dict[str, Any]
    failed: tuple[LeftOut, ...]


def make_patches(
    listing: Listing,
    settings: PatchSettings,
    out: Path,
    jobs: int = 1,
    progress: Progress = lambda *_: None,
) -> Outcome:
    """Cuts the slides of a listing into patches under `out` and writes patches.csv, dataset.csv and patches.json there.

    jobs: worker processes, -1 for one a core. Slides that cannot be used are in the outcome; the others are cut.
    Raises BenchError without openslide, where `out` holds patches of other settings or somebody else's files, where
    another process is at work, and if no patch came out though no slide failed.
    """
    import_openslide()
    with _claimed(out, settings):
        run = _Run(listing, settings, out, jobs, progress)
        chosen = run.choose()
        cuts = run.cut(chosen)
        failed = tuple(sorted([*listing.problems, *run.failed]))
        if not any(c.patches for c in cuts) and not failed:
            raise BenchError(
                f"No slide gave a patch (tumour share {settings.tumor_share}, tissue share {settings.tissue_share}). "
                "There must be tumour slides with annotations; lower the shares or look at the slides."
            )
        summary = write_tables(out, settings, listing, chosen, cuts, failed, run.offered)
        return Outcome(summary, failed)


class _Run:
    """One call: who failed so far, and how many places tumour slides had before the draw."""

    def __init__(self, listing: Listing, settings: PatchSettings, out: Path, jobs: int, progress: Progress) -> None:
        self.jobs = {j.name: j for j in listing.jobs}
        self.settings, self.out, self.state = settings, out, out / STATE_FOLDER
        self.processes, self.progress = jobs, progress
        self.failed: list[LeftOut] = []
        self.offered: dict[str, int] = {}

    def choose(self) -> dict[str, Scan]:
        """The places to cut, by slide."""
        chosen: dict[str, Scan] = {}
        scans = self._scan({j.name: 0 for j in self.jobs.values() if j.label == TUMOR}, "tumour slides searched")
        self.offered = {name: len(s.found.places) for name, s in scans.items()}
        for test in (False, True):
            split = "test" if test else "train"
            places = {n: s.found.places for n, s in scans.items() if _in(self.jobs[n], test)}
            kept = calibrate(places, self.settings, split)
            chosen |= {name: _only(scans[name], kept[name]) for name in kept}
            chosen |= self._choose_normal(sum(map(len, kept.values())), test, split)
        return dict(sorted(chosen.items()))

    def cut(self, chosen: dict[str, Scan]) -> list[Cut]:
        """Writes the patches of every slide."""
        calls = [(self.jobs[n], self.settings, self.out, self.state, scan) for n, scan in chosen.items()]
        return self._sound(self._parallel(cut_slide, calls, "slides cut"))

    def _choose_normal(self, total: int, test: bool, split: str) -> dict[str, Scan]:
        slides = [n for n, j in self.jobs.items() if j.label == NORMAL and _in(j, test)]
        known: dict[str, Scan] = {}

        def offer(quota: dict[str, int]) -> dict[str, int]:
            asked = {n: q for n, q in quota.items() if q and (n not in known or len(known[n].found.places) < q)}
            known.update(self._scan(asked, f"normal slides of {split} searched"))
            return {n: min(q, len(known[n].found.places)) if n in known else 0 for n, q in quota.items()}

        quota = normal_quotas(total, slides, self.settings, split, offer)
        return {n: _only(scan, scan.found.places[: quota[n]]) for n, scan in known.items()}

    def _scan(self, wanted: dict[str, int], what: str) -> dict[str, Scan]:
        gone = {f.slide for f in self.failed}
        calls = [(self.jobs[n], self.settings, self.state, k) for n, k in sorted(wanted.items()) if n not in gone]
        scans = self._sound(self._parallel(scan_slide, calls, what))
        return {s.slide: s for s in scans}

    def _sound(self, results: Iterable[_T | LeftOut]) -> list[_T]:
        sound: list[_T] = []
        for result in results:
            if isinstance(result, LeftOut):
                self.failed.append(result)
            else:
                sound.append(result)
        return sound

    def _parallel(self, function: Callable[..., _T], calls: Sequence[tuple[Any, ...]], what: str) -> list[_T]:
        from joblib import Parallel, delayed

        results: list[_T] = []
        work: Any = Parallel(n_jobs=self.processes, return_as="generator")(delayed(function)(*c) for c in calls)
        for result in work:
            results.append(result)
            self.progress(what, len(results), len(calls))
        return results


def _in(job: SlideJob, test: bool) -> bool:
    return (job.split == "test") == test


def _only(scan: Scan, places: Sequence[Any]) -> Scan:
    return replace(scan, found=Found(tuple(places), scan.found.exhausted, scan.found.trials))


@contextmanager
def _claimed(out: Path, settings: PatchSettings) -> Iterator[None]:
    """Holds the output folder for one process, after making sure that it is new or of the same settings."""
    from filelock import FileLock, Timeout

    record = out / SETTINGS_FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            if record.is_file():
                _check_same(out, read_json(record), settings)
            elif strangers := sorted(p.name for p in out.iterdir() if not p.name.startswith(".")):
                raise BenchError(
                    f"{out} is not empty (it holds {', '.join(strangers[:3])}) and was not made by this command. "
                    "Choose a new folder as --out."
                )
            else:
                write_json(record, settings.identity())
            for torn in [*out.glob(".*.tmp"), *(out / STATE_FOLDER).glob(".*.tmp")]:
                torn.unlink()  # left by a killed process; whoever writes here holds the lock
            yield
    except Timeout:
        raise BenchError(f"Another process is writing to {out}. Wait for it, or choose another --out.") from None


def _check_same(out: Path, stored: Any, settings: PatchSettings) -> None:
    wanted = settings.identity()
    differ = sorted(k for k in {*stored, *wanted} if stored.get(k) != wanted.get(k))
    if differ:
        some = ", ".join(f"{k} {stored.get(k)} (now {wanted.get(k)})" for k in differ)
        raise BenchError(f"{out} holds patches of other settings: {some}. Use the same ones, or another --out.")
