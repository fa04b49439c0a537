"""The errors a user sees, and the help for typing mistakes."""

import difflib
from collections.abc import Iterable
from pathlib import Path


class BenchError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with 2.
    """


class DamagedError(BenchError):
    """A stored file is missing, differs from its hash or cannot be read. It is never loaded; its stage is done again.

    path: the file. The harness takes the stage from the folder it lies in (`runs/<key>/…`).
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}. What it belongs to is made again by the same command.")
        self.path, self.what = path, what

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.what)


class MaskAccessError(BenchError):
    """A method asked for a mask it must never see."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean …?' for a near miss, else the list of known names (empty if there are none)."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=2, cutoff=0.6)
    if near:
        return f" Did you mean {' or '.join(near)}?"
    return f" Known: {', '.join(names)}." if names else ""
