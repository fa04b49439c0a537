"""Diagnosis of folders: disks, locks, data and their verification, and stages of a results folder."""

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import SoftFileLease

from ...datasets import DATASETS
from ...datasets.base import Manifest
from ...datasets.open import HASH_FILE, open_dataset
from ..core.errors import BenchError, many
from ..core.files import read_json
from ..core.locks import LEASE_SECONDS
from ..core.results_store import Store
from .findings import Finding, gib

LOW_DISK = 5 * 2**30  # bytes; a matrix of checkpoints of large backbones takes some GB
NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.", "9p", "afs", "pvfs")
SHOWN = 5


# -- disks -----------------------------------------------------------------------------------------------------------
def look_at_disks(results: Path, data_root: Path) -> Iterator[Finding]:
    """Room, kind of file system, whether files can be made and locked."""
    for name, folder in (("results", results), ("data", data_root)):
        there = nearest(folder)
        free, kind = shutil.disk_usage(there).free, file_system(there)
        remote = kind.startswith(NETWORK) and kind not in ("fuse.overlayfs", "fuse.fuse-overlayfs")
        where = f"{name} {folder}" + ("" if there == folder else f" (not there yet; {there})")
        text = f"{where}: {gib(free)} free, {kind or 'unknown file system'}{', over the network' if remote else ''}"
        low = name == "results" and free < LOW_DISK
        advice = "Make room, or choose another --results: a full disk fails runs." if low else ""
        yield Finding("disk", "warning" if low else "ok", text, advice, {"folder": str(folder), "free": free})
    yield from _writing(results)


def _writing(results: Path) -> Iterator[Finding]:
    try:
        Store(results).check_writable()
    except BenchError as problem:
        yield Finding("disk", "problem", str(problem), "Without it nothing can be stored.")
        return
    works = locks_work(nearest(results))
    if works:
        yield Finding("disk", "ok", f"{results} can be written, and locks work there")
        return
    advice = "Leases (claims that are renewed) still keep commands apart; of two on one host the clocks decide."
    yield Finding("disk", "warning", f"file locks have no effect in {results}: its file system ignores them", advice)


def nearest(folder: Path) -> Path:
    """The folder, or the nearest of those above it that exists."""
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())


def file_system(folder: Path) -> str:
    """The type of the file system a folder lies on, such as ext4 or nfs4; empty where the system does not tell."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return ""
    best, kind = -1, ""
    target = str(folder.resolve())
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        _, place, kind_here, *_ = line.split(" ")
        place = place.replace("\\040", " ")
        if (target == place or target.startswith(place.rstrip("/") + "/")) and len(place) >= best:
            best, kind = len(place), kind_here
    return kind


def locks_work(folder: Path) -> bool:
    """Whether a file lock taken twice in this folder is refused the second time."""
    if os.name == "nt":
        return True
    import fcntl

    with tempfile.NamedTemporaryFile(dir=folder) as one, open(one.name, "rb") as two:  # noqa: PTH123
        try:
            fcntl.flock(one.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            fcntl.flock(two.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


# -- who holds what --------------------------------------------------------------------------------------------------
def look_at_locks(results: Path) -> Iterator[Finding]:
    """Locks that are held, and leases with their owners. Free lock files are nothing."""
    folder, count = results / "locks", 0
    for path in sorted(folder.glob("*.lock")):
        if held(path):
            count += 1
            owners = holders(path)
            who = f" by process {', '.join(map(str, owners))}" if owners else ""
            text = f"{path.stem} is held{who}: {_what(results, path.stem)}"
            yield Finding("locks", "ok", text, facts={"lock": path.name, "pids": owners})
    for path in sorted(folder.glob("*.lease")):
        count += 1
        yield _lease(path)
    if not count:
        yield Finding("locks", "ok", "no stage is claimed by anybody")


def held(path: Path) -> bool:
    """Whether some process holds a file lock (asked with a shared one, let go at once)."""
    if os.name == "nt":
        return False
    import fcntl

    try:
        with path.open("rb") as handle:
            fcntl.flock(handle.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(handle.fileno(), fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:  # gone meanwhile, not ours to read, or a file system without locks
        return False
    return False


def holders(path: Path) -> list[int]:
    """Processes of this machine that hold a lock on a file, as far as the kernel tells."""
    table = Path("/proc/locks")
    if not table.is_file():
        return []
    number = str(path.stat().st_ino)
    lines = (line.split() for line in table.read_text(encoding="ascii", errors="replace").splitlines())
    rows = [words for words in lines if len(words) > 5 and words[1] == "FLOCK"]
    return sorted({int(w[4]) for w in rows if w[5].rpartition(":")[2] == number and w[4].isdecimal() and w[4] != "0"})


def _lease(path: Path) -> Finding:
    record = SoftFileLease(path, lease_duration=LEASE_SECONDS).owner
    try:
        age = max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        age = 0.0
    who = f"process {record.pid} on {record.hostname}" if record is not None else "an unknown process"
    details = {"lease": path.name, "age": age, "pid": record and record.pid, "host": record and record.hostname}
    if age < LEASE_SECONDS:
        return Finding("locks", "ok", f"{path.stem} is claimed by {who}, renewed {age:.0f} s ago", facts=details)
    advice = "Nothing to do: the next `bench run` takes it over, `bench clean` removes it."
    return Finding("locks", "note", f"{path.stem} is a stale claim of {who}, {age / 60:.0f} min old", advice, details)


def _what(results: Path, key: str) -> str:
    """A stage in words, as far as its folder tells."""
    for name in ("record.json", "failure.json"):
        path = results / "runs" / key / name
        if path.is_file():
            try:
                content = read_json(path)
                return f"{content['kind']} {content['labels']['method']}"
            except (BenchError, KeyError, TypeError):
                break
    return "a stage at work"


# -- what a results folder holds -------------------------------------------------------------------------------------
def look_at_stages(results: Path) -> Iterator[Finding]:
    """Finished, failed and interrupted stages."""
    store, runs = Store(results), results / "runs"
    names = sorted(p.name for p in runs.iterdir() if p.is_dir()) if runs.is_dir() else []
    if not names:
        yield Finding("stages", "ok", f"nothing is stored in {results} yet")
        return
    damaged = store.unreadable(k for k in names if store.is_done(k))
    done = [k for k in names if store.is_done(k) and k not in damaged]
    failed, begun = [], []
    for key in names:
        if not store.is_done(key):
            (failed if (runs / key / "failure.json").is_file() else begun).append(key)
    yield Finding("stages", "ok", f"{len(done)} of {len(names)} stages are finished")
    if damaged:
        text = f"{many(len(damaged), 'record')} cannot be used, the first: {next(iter(damaged.values()))}"
        yield Finding("stages", "warning", text, "The same `bench run` makes them again; `bench clean` removes them.")
    if failed:
        some = ", ".join(f"{k} ({_what(results, k)})" for k in failed[:SHOWN])
        text = f"{many(len(failed), 'stage')} failed: {some}"
        yield Finding("stages", "warning", text, "`bench status` says why; the same `bench run` tries them again.")
    idle = [k for k in begun if not held(results / "locks" / f"{k}.lock")]
    if idle:
        text = (
            f"{many(len(idle), 'stage')} {'was' if len(idle) == 1 else 'were'} interrupted: {', '.join(idle[:SHOWN])}"
        )
        yield Finding("stages", "note", text, "The same `bench run` continues them.")


# -- data ------------------------------------------------------------------------------------------------------------
def look_at_data(data_root: Path, results: Path) -> Iterator[Finding]:
    """For every registered dataset: whether it is there, and when its copy was last read to the last pixel."""
    for entry in DATASETS.entries():
        if entry.error:
            yield Finding(
                "data", "warning", f"{entry.name}: its plug-in is broken: {entry.error}", "Mend or remove it."
            )
            continue
        try:
            manifest = (dataset := open_dataset(entry.name, data_root)).manifest(dataset.folds[0])
        except BenchError as problem:
            whole = " ".join(str(problem).split())  # where it was looked for, too
            yield Finding("data", "note", f"{entry.name}: {whole}", facts={"dataset": entry.name, "there": False})
            continue
        yield _verified(entry.name, manifest, results, data_root)


def _verified(name: str, manifest: Manifest, results: Path, data_root: Path) -> Finding:
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in manifest.card.name)
    path = results / "data" / f"{safe}-verify.json"
    kind = " (SYNTHETIC)" if manifest.synthetic else ""
    text = f"{name}{kind}: {len(manifest.items)} images in fold {manifest.fold}"
    places = (("--data-root", data_root, "data"), ("--results", results, "results"))
    more = "".join(f" {option} {shlex.quote(str(path))}" for option, path, usual in places if str(path) != usual)
    advice, details = f"`bench data verify {name}{more}` reads every file.", {"dataset": name, "there": True}
    try:
        report = read_json(path)
        hashes, problems = dict(report["sha256"]), len(report["problems"])
    except (OSError, BenchError, KeyError, TypeError, ValueError):
        return Finding("data", "note", f"{text}, never verified", advice, {**details, "verified": None})
    date = time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))
    details = {**details, "verified": date, "problems": problems}
    if problems:
        return Finding("data", "problem", f"{text}, verified {date} with {many(problems, 'problem')}", advice, details)
    if changed := changed_since(manifest, hashes, results, path.stat().st_mtime):
        more = f"{text}, verified {date}; {len(changed)} files changed since, the first {changed[0]}"
        return Finding("data", "warning", more, advice, {**details, "changed": len(changed)})
    return Finding("data", "ok", f"{text}, verified {date}, unchanged since", facts={**details, "changed": 0})


def changed_since(manifest: Manifest, hashes: dict[str, Any], results: Path, when: float) -> Sequence[Path]:
    """Files that are not those of a verification: by the index of hashes where it knows them, else by their time."""
    try:
        index = read_json(results / "cache" / HASH_FILE)["files"]
    except (OSError, BenchError, KeyError, TypeError):
        index = {}
    changed = []
    for item in manifest.items:
        for path, expected in ((item.image, "image"), (item.mask, "mask")):
            if path is None:
                continue
            status = path.stat()
            known = index.get(str(path.absolute()))
            wanted = (hashes.get(item.id) or {}).get(expected)
            if known and known[:2] == [status.st_size, status.st_mtime_ns]:
                same = known[2] == wanted
            else:
                same = wanted is not None and status.st_mtime <= when
            if not same:
                changed.append(path)
    return changed
