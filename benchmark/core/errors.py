"""The errors a user sees, and the help for typing mistakes."""

import difflib
import unicodedata
from collections.abc import Iterable
from pathlib import Path

MOST_PARTS = 4  # names that share a word, in a suggestion
_STEERING = {"Cc", "Cs", "Zl", "Zp"}  # Unicode categories: controls, halves of characters, line separators
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # text written backwards


def plain(text: object) -> str:
    r"""Text that cannot steer a terminal: control characters but line breaks are written out, as in `\x1b`.

    Names come from anybody's files, and an escape sequence in one could hide or forge what is printed. Characters that
    turn the direction of writing around count as such; letters of any script do not.
    """
    text = str(text)
    return text if text.isprintable() else "".join(map(_plain, text))


def _plain(c: str) -> str:
    steers = c in _TURNING or unicodedata.category(c) in _STEERING
    return ascii(c)[1:-1] if steers and c != "\n" else c


class BenchError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with 2. It is safe to print (see `plain`).
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(plain(message))


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


class LabelAccessError(MaskAccessError):
    """A method asked for the label of an image of a target, to which it is to adapt without labels."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean …?' for a near miss, else the list of known names (empty if there are none).

    Papers write Grad-CAM++, PixelCAM, F-CAM and U-Net: case and punctuation play no part, and `+` is a `p`. What a name
    has after its colon counts as well as the whole, so that `scorecam` finds `gradcam:ScoreCAM`.
    """
    names = sorted(known, key=lambda name: (":" in name, name))
    forms: dict[str, list[str]] = {}
    for name in names:
        for form in dict.fromkeys((bare(name), bare(name.rpartition(":")[2]))):
            forms.setdefault(form, []).append(name)
    parts = [name for name in names if word in name.split("_")][:MOST_PARTS]
    if parts:  # `size` of image_size and load_size
        return f" Did you mean {' or '.join(parts)}?"
    near = [bare(word)] if bare(word) in forms else difflib.get_close_matches(bare(word), forms, n=2, cutoff=0.6)
    nearest = list(dict.fromkeys(name for form in near for name in forms[form][: 3 - len(near)]))
    if nearest:
        return f" Did you mean {' or '.join(nearest)}?"
    return f" Known: {', '.join(names)}." if names else ""


def bare(name: str) -> str:
    """A name as its letters and digits alone, lower case; `+` becomes p, as in gradcampp."""
    return "".join(c for c in name.casefold().replace("+", "p") if c.isalnum())


def many(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun: `1 training`, `2 trainings`, `1,204 images`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
