"""The errors a user sees, and the help for typing mistakes."""

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean …?' for a near miss, else the list of known names (empty if there are none)."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=2, cutoff=0.6)
    if near:
        return f" Did you mean {' or '.join(near)}?"
    return f" Known: {', '.join(names)}." if names else ""
