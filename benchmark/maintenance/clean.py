"""Cleaning of a results folder: what it no longer needs, and its removal (`bench clean`).

What counts: temporary files and progress of dead runs, free lock files, snapshots of finished trainings, stages that no
plan refers to, records that cannot be used, pictures that no score shows. Left alone: whatever is claimed or younger
than an hour, `report/`, `data/`, decoded images, everything behind a link, and every name that is not ours.
"""

import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..core.errors import BenchError
from ..core.files import read_json
from ..core.locks import LEASE_SECONDS
from ..core.results_store import FAILURE, RECORD, Store
from .doctor_places import held

YOUNG = 3600.0  # seconds; what is younger may be at work on a machine whose locks are not seen here
KEY = re.compile(r"[0-9a-f]{20}")
STAGES = ("no plan refers to it", "no score refers to it", "unfinished, and no plan refers to it", "record of no use")


@dataclass(frozen=True)
class Removable:
    """Something to remove. why: the heading under which it is shown; size: bytes; what: in words, where it helps."""

    path: Path
    why: str
    size: int
    what: str = ""


@dataclass(frozen=True)
class _Tree:
    """Size in bytes and time of the newest file of a file or folder; nothing behind a link counts."""

    size: int
    newest: float

    @classmethod
    def of(cls, path: Path) -> "_Tree":
        status = path.lstat()
        size, newest = status.st_size if stat.S_ISREG(status.st_mode) else 0, status.st_mtime
        if stat.S_ISDIR(status.st_mode):
            for entry in os.scandir(path):
                below = cls.of(Path(entry.path))
                size, newest = size + below.size, max(newest, below.newest)
        return cls(size, newest)

    @property
    def young(self) -> bool:
        return time.time() - self.newest < YOUNG


def find_removable(
    results: Path, keys: set[str] | None = None, keep_failed: bool = False
) -> tuple[list[Removable], list[str]]:
    """Stages and files that may go, with notes on how that was decided. Nothing is changed.

    keys: the stages to keep; None asks the plans that `bench run` noted, and without any of them the stored scores.
    """
    root = results.resolve()
    notes: list[str] = []
    removable = [*_temporary(root), *_progress(root), *_locks(root)]
    claims = [p.stem for p in _inside(root, "locks", "*.lease") if _age(p) < LEASE_SECONDS]
    if claims:
        notes.append(f"{len(claims)} claims are alive ({', '.join(claims[:3])}): stages are left alone until they end.")
        return removable, notes
    store = Store(root)
    folders = [p for p in _inside(root, "runs", "*") if p.is_dir() and KEY.fullmatch(p.name)]
    records, useless = _records(store, folders)
    kept = keys if keys is not None else _planned(root, notes)
    stages = list(_stages(folders, records, useless, kept, keep_failed))
    removable += stages
    leaving = {s.path for s in stages}
    for folder in folders:
        if folder not in leaving and folder.name in records:
            removable += _needless_weights(folder, records[folder.name])
    shown = {r["facts"].get("examples") for k, r in records.items() if store.run_dir(k) not in leaving and "facts" in r}
    removable += [r for p in _inside(root, "examples", "*.npz") if p.stem not in shown
              for r in _old(p, "pictures that no score shows")]  # fmt: skip
    if keys is not None:
        removable += _other_plans(root, keys)
    return [one for one in removable if not one.path.is_symlink()], notes


def remove(results: Path, removable: list[Removable]) -> list[Removable]:
    """Removes what is listed and still free; returns what was removed. Raises OSError where the folder forbids it."""
    root, removed = results.resolve(), []
    for one in removable:
        if not one.path.parent.resolve().is_relative_to(root) or one.path.is_symlink() or not one.path.exists():
            continue  # it was removed, or became a link, since it was shown
        if one.path.suffix == ".lock":
            done = _locked(one.path, one.path.unlink)
        elif one.why in STAGES:
            lock = root / "locks" / f"{one.path.name}.lock"
            done = _locked(lock, lambda path=one.path, lock=lock: _remove_stage(path, lock))
        elif one.path.is_dir():
            shutil.rmtree(one.path)
            done = True
        else:
            one.path.unlink()
            done = True
        removed += [one] if done else []
    return removed


def _locked(lock: Path, act: Callable[[], None]) -> bool:
    """Calls `act` under a lock, unless it is held; returns whether it was free. A removed lock file is made anew."""
    lock.parent.mkdir(exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            act()
    except Timeout:
        return False
    return True


def _remove_stage(folder: Path, lock: Path) -> None:
    (folder / RECORD).unlink(missing_ok=True)  # first, so that half a stage never counts
    shutil.rmtree(folder)
    lock.unlink(missing_ok=True)


def _inside(root: Path, name: str, pattern: str) -> list[Path]:
    """Entries of one of our folders; none if it is a link to somewhere else, and no links."""
    folder = root / name
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(p for p in folder.glob(pattern) if not p.is_symlink())


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _old(path: Path, why: str, what: str = "") -> Iterator[Removable]:
    """The path as removable, if nothing in it is young; nothing if it vanishes meanwhile."""
    try:
        tree = _Tree.of(path)
    except FileNotFoundError:
        return
    if not tree.young:
        yield Removable(path, why, tree.size, what)


# -- what dead runs left ---------------------------------------------------------------------------------------------
def _temporary(root: Path) -> Iterator[Removable]:
    for folder, below, names in os.walk(root):  # links are not followed
        if Path(folder) == root:
            below[:] = [n for n in below if n != "report"]
        for name in names:
            if name.startswith(".") and name.endswith(".tmp"):
                yield from _old(Path(folder) / name, "half-written files")
    for path in _inside(root, "cache", "spill"):
        for spilled in _inside(path.parent, "spill", "*"):
            yield from _old(spilled, "half-written files")


def _progress(root: Path) -> Iterator[Removable]:
    for path in _inside(root, "progress", "*"):
        yield from _old(path, "progress of ended runs")


def _locks(root: Path) -> Iterator[Removable]:
    for path in _inside(root, "locks", "*.lock"):
        if not held(path):
            yield from _old(path, "free lock files")
    for path in _inside(root, "locks", "*.lease"):
        yield from _old(path, "stale claims")


# -- stages ----------------------------------------------------------------------------------------------------------
def _records(store: Store, folders: list[Path]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Records of finished stages by key, and why others cannot be used."""
    records, useless = {}, {}
    for folder in folders:
        if not store.is_done(folder.name):
            continue
        try:
            records[folder.name] = store.record(folder.name)
        except BenchError as problem:
            useless[folder.name] = str(problem)
    return records, useless


def _planned(root: Path, notes: list[str]) -> set[str] | None:
    """Keys of all stages that noted plans name; None without a plan."""
    keys: set[str] = set()
    paths = _inside(root, "plans", "*.json")
    for path in paths:
        try:
            keys |= {str(k) for k in read_json(path)["stages"]}
        except (BenchError, KeyError, TypeError):
            notes.append(f"{path} cannot be read, so no stage is called nobody's. Remove the file, or use --plan.")
            return {p.name for p in _inside(root, "runs", "*")}
    if paths:
        notes.append(f"{len(paths)} plans of `bench run` name {len(keys)} stages; these stay.")
        return keys
    notes.append(f"No plan is noted in {root / 'plans'}: what stored scores build on stays, and the scores themselves.")
    return None


def _stages(
    folders: list[Path], records: Mapping[str, Mapping[str, Any]], useless: Mapping[str, str], kept: set[str] | None,
    keep_failed: bool,
) -> Iterator[Removable]:  # fmt: skip
    why = "no plan refers to it" if kept is not None else "no score refers to it"
    keep = kept if kept is not None else _reachable(records)
    for folder in folders:
        key = folder.name
        if held(folder.parents[1] / "locks" / f"{key}.lock"):
            continue
        if key in useless:
            yield from _old(folder, "record of no use", useless[key])
        elif key in keep:
            continue
        elif key in records:
            yield from _old(folder, why, _words(records[key]))
        elif not keep_failed:
            yield from _old(folder, "unfinished, and no plan refers to it", _failure(folder))


def _reachable(records: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Finished test scores and everything behind them."""
    waiting = [k for k, r in records.items() if r["kind"] == "score" and r["labels"].get("split") == "test"]
    reachable: set[str] = set()
    while waiting:
        key = waiting.pop()
        if key not in reachable:
            reachable.add(key)
            waiting += list(records.get(key, {}).get("parents", {}).values())
    return reachable


def _words(record: Mapping[str, Any]) -> str:
    labels = record["labels"]
    return f"{record['kind']} {labels['method']}, {labels['train']} fold {labels['fold']} seed {labels['seed']}"


def _failure(folder: Path) -> str:
    try:
        failure = read_json(folder / FAILURE)
        return f"failed: {failure['kind']} {failure['labels']['method']}"
    except (OSError, BenchError, KeyError, TypeError):
        return "interrupted"


def _needless_weights(folder: Path, record: Mapping[str, Any]) -> Iterator[Removable]:
    """Snapshots and weights that a finished training no longer needs: a kill right after its record leaves them."""
    if (folder / "resume").is_dir():
        yield from _old(folder / "resume", "snapshots of finished trainings")
    if roles := record.get("roles"):
        needed = {r["weights"] for r in roles.values()}
        for path in sorted(folder.glob("epoch-*.safetensors")):
            if path.name not in needed:
                yield from _old(path, "weights that no selection picked")


def _other_plans(root: Path, keys: set[str]) -> Iterator[Removable]:
    for path in _inside(root, "plans", "*.json"):
        try:
            named = set(read_json(path)["stages"])
        except (BenchError, KeyError, TypeError):
            named = {""}
        if not named <= keys:
            yield from _old(path, "notes of other plans")
