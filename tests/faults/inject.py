"""Faults put into a process from outside: at a named moment of its dealings with files it kills itself with SIGKILL.

The text of `die(…)` is run in the child before the command starts (see `warm.Bench.start`), so that the product needs
no hook. Moments are told by what is asked of the system and by the path, not by names of functions of the product:

made      a temporary file for this path exists and is empty
half      it was written, and half of it is gone (what a crash of the machine leaves; a killed writer may leave less)
written   it is whole and on disk, and has not got its name yet
renamed   it has its name, and nothing came after
opened    the file (or folder) at this path is about to be opened; `leave` is appended to it first
pwritten  half of the bytes of a `pwrite` to this path have arrived
flushed   the file at this path was flushed to disk, a whole one
cut       it was flushed, and its last 20 bytes are gone
unlinked  the file at this path was removed
"""

import ast
import os
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

MOMENTS = ("made", "half", "written", "renamed", "opened", "pwritten", "flushed", "cut", "unlinked")
DIED = "died at "


class Point(NamedTuple):
    """The nth such moment of a path in which the pattern is found."""

    moment: str
    pattern: str
    nth: int = 1
    leave: bytes = b""

    def __str__(self) -> str:
        return f"{self.moment} {self.pattern} {self.nth}"


def text(points: Sequence[Point]) -> str:
    """The code that arms a process: it dies at whichever of the points it meets first, and says so in its last line."""
    assert all(p.moment in MOMENTS for p in points)
    return f"from tests.faults.inject import die; die({[tuple(p) for p in points]!r})"


def met(said: str) -> Point | None:
    """The point at which a process died, by what it wrote to stderr."""
    last = said.rstrip("\n").rpartition("\n")[2]
    return Point(*ast.literal_eval(last.removeprefix(DIED))) if last.startswith(DIED) else None


def die(points: Sequence[tuple[Any, ...]]) -> None:
    """Arms this process."""
    for point in points:
        _Trap(Point(*point)).set()


class _Trap:
    def __init__(self, point: Point) -> None:
        self.point, self.moment, self.leave = point, point.moment, point.leave
        self.pattern, self.left = re.compile(point.pattern), point.nth

    def end(self) -> None:
        """SIGKILL to this process, which takes effect before this returns."""
        os.write(2, f"\n{DIED}{tuple(self.point)!r}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def due(self, path: object) -> bool:
        """Counts one more of these moments; whether it is the one to die at."""
        if not isinstance(path, str | bytes | os.PathLike) or not self.pattern.search(os.fsdecode(path)):
            return False
        self.left -= 1
        return self.left == 0

    def set(self) -> None:
        moment = self.moment
        if moment == "opened":
            sys.addaudithook(self._opened)
        elif moment == "made":
            tempfile.mkstemp = self._made(tempfile.mkstemp)
        elif moment in ("half", "cut", "flushed"):
            os.fsync = self._flushed(os.fsync)
        elif moment in ("written", "renamed"):
            os.replace = self._renamed(os.replace)
        elif moment == "pwritten":
            os.pwrite = self._pwritten(os.pwrite)
        else:
            os.unlink = self._unlinked(os.unlink)

    def _opened(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self.due(arguments[0]):
            if self.leave:
                handle = os.open(arguments[0], os.O_WRONLY | os.O_APPEND)
                os.write(handle, self.leave)
            self.end()

    def _made(self, honest: Any) -> Any:
        def mkstemp(*args: Any, **named: Any) -> Any:
            found = honest(*args, **named)
            if self.due(_meant(Path(found[1]))):
                self.end()
            return found

        return mkstemp

    def _flushed(self, honest: Any) -> Any:
        def fsync(handle: Any) -> None:
            honest(handle)
            number = handle if isinstance(handle, int) else handle.fileno()
            path = _open_file(number)
            if path.is_file() and self.due(_meant(path)):
                size = path.stat().st_size
                if self.moment != "flushed":
                    os.truncate(path, size // 2 if self.moment == "half" else max(0, size - 20))
                self.end()

        return fsync

    def _renamed(self, honest: Any) -> Any:
        def replace(source: Any, target: Any, **named: Any) -> None:
            due = self.due(target)
            if due and self.moment == "written":
                self.end()
            honest(source, target, **named)
            if due:
                self.end()

        return replace

    def _pwritten(self, honest: Any) -> Any:
        def pwrite(handle: int, data: Any, place: int) -> int:
            if self.due(_open_file(handle)):
                honest(handle, memoryview(data)[: len(data) // 2], place)
                self.end()
            return honest(handle, data, place)

        return pwrite

    def _unlinked(self, honest: Any) -> Any:
        def unlink(path: Any, **named: Any) -> None:
            honest(path, **named)
            if self.due(path):
                self.end()

        return unlink


def _open_file(number: int) -> Path:
    return Path(f"/proc/self/fd/{number}").readlink()


def _meant(path: Path) -> Path:
    """The path that a temporary file is to take: `folder/.name.random.tmp` stands for `folder/name`."""
    found = re.fullmatch(r"\.(.+)\.[^.]+\.tmp", path.name)
    return path.with_name(found[1]) if found else path
