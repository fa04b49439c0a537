"""Locks on one machine and on many that share a folder; they vanish with their owner.

On one machine a file lock of the kernel ends with its process, whatever ends it. Other machines may not see such locks
(many shared file systems keep them to one machine), so a lease stands beside them: a small file with owner and host
that its owner touches every few seconds. A lease whose owner is dead, or has not touched it for LEASE_SECONDS by the
waiting machine's own clock, passes to the one who waits. What the clocks show is no matter.
"""

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, SoftFileLease, Timeout

from . import shutdown

LEASE_SECONDS = 60.0
ATTEMPT_SECONDS = 0.3  # how long a lock is tried for: enough to take over from a dead owner of this machine


class BusyError(Exception):
    """Another process holds the lock; the text says which."""


@contextlib.contextmanager
def exclusive(root: Path, name: str) -> Iterator[None]:
    """Waits for something that one process at a time may change, on any machine, and holds it while the block lasts.

    root: the results folder. Raises Stopped if a stop is requested while waiting.
    """
    path = root / "locks" / f"{name}.lease"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for lock in (FileLock(path.with_suffix(".lock")), make_lease(path)):
            take(lock, True, path)
            held.callback(lock.release)
        yield


def make_lease(path: Path) -> SoftFileLease:
    """A lease of this process; if another takes it over, this process is asked to stop (shutdown.LOST)."""
    return SoftFileLease(path, lease_duration=LEASE_SECONDS, on_compromise=lambda loss: shutdown.request(shutdown.LOST))


def take(lock: FileLock | SoftFileLease, wait: bool, lease: Path) -> None:
    """Acquires a lock. lease: the file that names its owner.

    Raises BusyError if it is held and `wait` is false, Stopped if a stop is requested while waiting.
    """
    while True:
        try:
            lock.acquire(timeout=ATTEMPT_SECONDS)
            return
        except Timeout:
            if not wait:
                raise BusyError(owner(lease)) from None
        shutdown.check()


def owner(lease: Path) -> str:
    """Holder of a lease in words: `process 4711 on node7`; `another process` where its file does not say."""
    record = SoftFileLease(lease, lease_duration=LEASE_SECONDS).owner
    return f"process {record.pid} on {record.hostname}" if record is not None else "another process"
