"""A request to stop: by a signal, or by a file that every worker of a run looks at.

Long work asks `requested()` between two steps, leaves what it needs to go on exactly there, and raises `Stopped`. So
nothing is lost when a cluster ends a job, and a file is never half written because somebody pressed Ctrl-C.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

INTERRUPTED, TERMINATED = 130, 3  # exit codes: Ctrl-C, and a cluster's time limit
LOST = -1  # no exit code: another process took over the stages, so this one must leave them
LOOK_SECONDS = 0.5  # between two looks at the file


class Stopped(BaseException):
    """The run was asked to stop and has left what it needs to go on. No Exception: a plug-in must not swallow it.

    code: the exit code of the request, read when it is raised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.code = _Request.code


class _Request:
    code = 0
    file: Path | None = None
    looked = 0.0


def request(code: int) -> None:
    """Request to this process to stop; the first gives the exit code, and one to end the run outdoes LOST."""
    if _Request.code == 0 or _Request.code < 0 < code:
        _Request.code = code


def requested() -> int:
    """The code of the request to stop, 0 without one. Cheap enough to ask at every step."""
    state = _Request
    if state.code <= 0 and state.file is not None and time.monotonic() - state.looked >= LOOK_SECONDS:
        state.looked = time.monotonic()
        with contextlib.suppress(OSError, ValueError):
            request(int(state.file.read_text(encoding="ascii")))
    return state.code


def check() -> None:
    """Raises Stopped if a stop was requested."""
    if requested():
        raise Stopped


def follow(file: Path | None) -> None:
    """Forgets earlier requests and looks at a file from now on: workers of one run share it through its folder."""
    if file != _Request.file:
        _Request.code, _Request.file, _Request.looked = 0, file, 0.0


def forget() -> None:
    """Forgets a request."""
    _Request.code = 0


@contextlib.contextmanager
def listening(tell: Callable[[int], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM become requests while this lasts; a second Ctrl-C raises KeyboardInterrupt at once.

    tell: called with the exit code at the first of them, from the signal handler. In another thread than the main one
    signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        if _Request.code > 0 and number == signal.SIGINT:
            raise KeyboardInterrupt
        if _Request.code <= 0:
            request(code)
            tell(code)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        forget()
