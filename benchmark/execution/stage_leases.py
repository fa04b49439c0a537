"""Who does a stage: claims that vanish with their owner, on one machine and on many that share a folder.

On one machine a claim is a file lock of the kernel, which ends with its process whatever ends it. Other machines may
not see such locks (many shared file systems keep them to one machine), so each group of stages has a lease besides: a
small file with owner and host that its owner touches every few seconds. A lease whose owner is dead, or has not touched
it for LEASE_SECONDS by the waiting machine's own clock, passes to the one who waits. What the clocks show is no matter.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, SoftFileLease, Timeout

from ..core import shutdown
from ..core.results_store import Store, key_of
from ..planning.stage import Stage

LEASE_SECONDS = 60.0
GLANCE_SECONDS = 0.3  # how long a claim is tried for: enough to take over from a dead owner of this machine


class BusyError(Exception):
    """Another process does these stages now; its text says which."""


def lease_path(store: Store, stages: Sequence[Stage]) -> Path:
    """The lease of a group: of the stage itself, or of the pass its stages share, whoever asks for which of them."""
    first = stages[0]
    name = key_of(first.group) if first.group else first.key
    return store.root / "locks" / f"{first.kind}-{name}.lease"


@contextlib.contextmanager
def claim(store: Store, stages: Sequence[Stage], wait: bool) -> Iterator[None]:
    """Holds the stages while it lasts; if another takes the lease meanwhile, the process is asked to stop (stop.LOST).

    wait: stay until they are free instead of raising BusyError. Raises Stopped if a stop is requested while waiting.
    """
    lease = lease_path(store, stages)
    lease.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for key in sorted(s.key for s in stages):
            lock = FileLock(lease.parent / f"{key}.lock", fallback_to_soft=False)
            # A file system without locks (OSError, NotImplementedError) leaves it to the lease.
            with contextlib.suppress(NotImplementedError):
                _take(lock, wait, lease)
                held.callback(lock.release)
        own = _lease(lease)
        _take(own, wait, lease)
        held.callback(own.release)
        yield


@contextlib.contextmanager
def exclusive(store: Store, name: str) -> Iterator[None]:
    """Waits for something that one process at a time may change, on any machine, and holds it while it lasts."""
    path = store.root / "locks" / f"{name}.lease"
    lock, own = store.lock(name), _lease(path)
    with ExitStack() as held:
        for each in (lock, own):
            _take(each, True, path)
            held.callback(each.release)
        yield


def _lease(path: Path) -> SoftFileLease:
    return SoftFileLease(path, lease_duration=LEASE_SECONDS, on_compromise=lambda loss: shutdown.request(shutdown.LOST))


def _take(lock: FileLock | SoftFileLease, wait: bool, lease: Path) -> None:
    while True:
        try:
            lock.acquire(timeout=GLANCE_SECONDS)
            return
        except Timeout:
            if not wait:
                raise BusyError(owner(lease)) from None
        shutdown.check()


def owner(lease: Path) -> str:
    """Who holds a lease, in words: `process 4711 on node7`; `another process` where its file does not say."""
    record = SoftFileLease(lease, lease_duration=LEASE_SECONDS).owner
    return f"process {record.pid} on {record.hostname}" if record is not None else "another process"
