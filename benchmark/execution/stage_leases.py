"""Claims of stages: whoever holds one does the stages, and no other process on any machine does.

A claim is a file lock for each stage and one lease for the group (core/locks.py says why both).
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock

from ..core.files import key_of
from ..core.locks import make_lease, take
from ..core.results_store import Store
from ..planning.stage import Stage


def lease_path(store: Store, stages: Sequence[Stage]) -> Path:
    """The lease of a group: of the stage itself, or of the pass its stages share, whoever asks for which of them."""
    first = stages[0]
    name = key_of(first.group) if first.group else first.key
    return store.root / "locks" / f"{first.kind}-{name}.lease"


@contextlib.contextmanager
def claim(store: Store, stages: Sequence[Stage], wait: bool) -> Iterator[None]:
    """Holds the stages while it lasts; if another takes the lease meanwhile, this process is asked to stop.

    wait: stay until they are free instead of raising BusyError. Raises Stopped if a stop is requested while waiting.
    """
    lease = lease_path(store, stages)
    lease.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for key in sorted(s.key for s in stages):
            lock = FileLock(lease.parent / f"{key}.lock", fallback_to_soft=False)
            # A file system without locks (OSError, NotImplementedError) leaves it to the lease.
            with contextlib.suppress(NotImplementedError):
                take(lock, wait, lease)
                held.callback(lock.release)
        own = make_lease(lease)
        take(own, wait, lease)
        held.callback(own.release)
        yield
