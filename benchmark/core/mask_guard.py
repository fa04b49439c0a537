"""Mask guard: a method that reads a ground-truth mask while a stage runs gets an error, and its run fails.

Two layers. `WITHHELD` stands where a batch would hold masks, and `WITHHELD_LABELS` where the batch of a target would
hold labels. And while a stage is watched, an audit hook of the interpreter refuses to open a mask file, or a store of
decoded masks, unless the thread is inside `reading_masks()`, which only the readers of the harness enter. Code that
opens files without Python (cv2.imread, another program) is out of its sight, and so is a method that sets out to
deceive: this guards against mistakes, not against malice.
"""

import contextlib
import fnmatch
import glob
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import LabelAccessError, MaskAccessError

CONTRACT = "line 10 of the contract, docs/methods.md"
SOURCES = {"open", "os.link", "os.symlink", "os.rename"}  # events whose first argument is a file to be read or named
_CODE = (".py", ".pyc", ".so")


class Withheld:
    """Stand-in for `batch.masks` of a method that is not declared to see masks: any use raises MaskAccessError."""

    what, constant = "batch.masks", "WITHHELD"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        self._deny(self.what)

    def _deny(self, what: str) -> NoReturn:
        refuse(what)

    __getitem__ = __iter__ = __len__ = __bool__ = __array__ = __float__ = __int__ = __index__ = __call__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __matmul__ = _refuse
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = __neg__ = __eq__ = __ne__ = _refuse
    __pow__ = __rpow__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __rmatmul__ = __abs__ = __pos__ = _refuse
    __iadd__ = __isub__ = __imul__ = __itruediv__ = __setitem__ = __delitem__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _refuse
    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> NoReturn:
        # what Python itself asks of an object when it is copied, compared or printed is no question for a mask
        if name.startswith("__"):
            raise AttributeError(name)
        self._deny(f"{self.what}.{name}")

    @classmethod
    def __torch_function__(cls, _function: Any, _types: Any, given: Sequence[Any] = (), named: Any = None) -> NoReturn:
        """Hook of torch for an argument of this class, alone or in a list."""
        every = [*given, *(named or {}).values()]
        every += [part for one in every if isinstance(one, list | tuple) for part in one]
        next(one for one in every if isinstance(one, cls))._refuse()

    def __repr__(self) -> str:
        return f"<{self.what}, withheld>"

    def __copy__(self) -> "Withheld":
        return self

    def __deepcopy__(self, memo: Any) -> "Withheld":
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self.constant


class WithheldLabels(Withheld):
    """Stand-in for the labels of images of a target: any use raises LabelAccessError."""

    what, constant = "batch.target.labels", "WITHHELD_LABELS"

    def _deny(self, what: str) -> NoReturn:
        refuse_label(what)


WITHHELD = Withheld()
WITHHELD_LABELS = WithheldLabels()


class _Watch:
    """Files that may not be opened during a stage, and the refusals so far."""

    def __init__(self, masks: Callable[[], Iterable[Path]], results: Path) -> None:
        self._masks, self._files = masks, None
        root = os.path.realpath(results)
        safe = glob.escape(root)
        self._patterns = [f"*/cache/images/*-masks-*.{end}" for end in ("bin", "facts")]
        self._patterns.append(f"{safe}/examples/[!.]*.npz")
        self._ours = (f"{root}{os.sep}runs{os.sep}", f"{root}{os.sep}cache{os.sep}", f"{root}{os.sep}locks{os.sep}")
        self.refusals: list[MaskAccessError] = []

    def denies(self, path: Any) -> bool:
        """Whether a path, however it is spelt, is that of a mask."""
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # the number of a file that is open already
        text = os.fsdecode(path)
        if text.endswith(_CODE):
            return False
        folder, name = os.path.split(text)
        full = f"{os.path.realpath(folder or '.')}{os.sep}{name}"
        if any(fnmatch.fnmatchcase(full, pattern) for pattern in self._patterns):
            return True
        if full.startswith(self._ours):
            return False
        if self._files is None:
            self._files = frozenset(_resolved(self._masks()))
        return full in self._files or os.path.realpath(text) in self._files


class _Guard:
    watch: _Watch | None = None
    method = ""
    installed = False


_reader = threading.local()


@contextlib.contextmanager
def watching(method: str, masks: Callable[[], Iterable[Path]], results: Path) -> Iterator[None]:
    """Refuses masks while this lasts, in all threads of the process; watches may be nested.

    method: who is at work, for the message. masks: their files, asked for at the first file that is not the harness's
    own. results: its decoded masks are refused too. Raises MaskAccessError at the end if a refusal was swallowed, by
    the method or by the end of a thread.
    """
    if not _Guard.installed:
        sys.addaudithook(_hook)  # it stays until the process ends
        _Guard.installed = True
    before, name = _Guard.watch, _Guard.method
    _Guard.watch, _Guard.method = _Watch(masks, results), method
    try:
        yield
        check()
    finally:
        _Guard.watch, _Guard.method = before, name


@contextlib.contextmanager
def at_work(method: str) -> Iterator[None]:
    """Names the method whose code runs now, for the messages."""
    before, _Guard.method = _Guard.method, method
    try:
        yield
    finally:
        _Guard.method = before


@contextlib.contextmanager
def reading_masks() -> Iterator[None]:
    """Lets this thread read masks: for the harness's own readers alone."""
    before = getattr(_reader, "allowed", False)
    _reader.allowed = True
    try:
        yield
    finally:
        _reader.allowed = before


def check() -> None:
    """Raises the MaskAccessError of the first refusal of this watch, however the method dealt with it."""
    if _Guard.watch is not None and _Guard.watch.refusals:
        raise _Guard.watch.refusals[0]


def refuse(what: str) -> NoReturn:
    """Raises MaskAccessError naming the method at work, and notes it, so that `check` raises it again."""
    _raise(
        MaskAccessError(
            f"Method '{_Guard.method or 'at work'}' asked for {what}: masks are for scoring, and no method sees one "
            'unless it declares supervision="pixel", or "partial" for some; batch.masks then holds those of training '
            f"images ({CONTRACT})."
        )
    )


def refuse_label(what: str) -> NoReturn:
    """Raises LabelAccessError naming the method at work, and notes it as `refuse` does."""
    _raise(
        LabelAccessError(
            f"Method '{_Guard.method or 'at work'}' asked for {what}: a method adapts to a target without its labels, "
            f"which are for scoring ({CONTRACT}). An adapter declared source_images=True has labels of the source, in "
            "batch.labels."
        )
    )


def _raise(problem: MaskAccessError) -> NoReturn:
    if _Guard.watch is not None:
        _Guard.watch.refusals.append(problem)
    raise problem


def _hook(event: str, arguments: Sequence[Any]) -> None:
    watch = _Guard.watch
    if watch is None or event not in SOURCES or getattr(_reader, "allowed", False):
        return
    with reading_masks():  # what is asked here about files is no question of the method's
        denied = watch.denies(arguments[0])
    if denied:
        refuse(f"the mask file {os.fsdecode(arguments[0])}")


def _resolved(masks: Iterable[Path]) -> Iterator[str]:
    """Real paths of files: as named in their real folder, and where links among them lead."""
    names: dict[str, set[str]] = {}
    for path in masks:
        folder, name = os.path.split(path)
        names.setdefault(folder, set()).add(name)
    for folder, inside in names.items():
        real = os.path.realpath(folder or ".")
        yield from (f"{real}{os.sep}{name}" for name in inside)
        with contextlib.suppress(OSError), os.scandir(real) as entries:  # one listing instead of a question a file
            yield from (os.path.realpath(e.path) for e in entries if e.name in inside and e.is_symlink())
