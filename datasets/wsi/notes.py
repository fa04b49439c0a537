"""Notes on the slides and annotations that `bench data patches` reads, by slide and over all slides."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

SHOWN = 6  # slides that a line names; patches.json has all


class Note(NamedTuple):
    """A fact of one slide. number: how many of `what` there are, 0 where there is nothing to count."""

    number: int
    what: str

    @property
    def text(self) -> str:
        """The note of one slide in words."""
        return f"{self.what}: {self.number}" if self.number else self.what


def some(number: int, what: str) -> str:
    """A number of things: `1 slide`, `2 slides`."""
    return f"{number} {what}{'s' * (number != 1)}"


def merge_notes(by_slide: Mapping[str, Sequence[Note]]) -> list[str]:
    """One line for each kind of note, with the slides that it holds for and how many each has."""
    by_text: dict[str, list[tuple[str, int]]] = {}
    for slide, notes in by_slide.items():
        for note in notes:
            by_text.setdefault(note.what, []).append((slide, note.number))
    return [_line(what, rows) for what, rows in sorted(by_text.items())]


def name_some(names: Sequence[str], most: int = SHOWN) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _line(what: str, rows: Sequence[tuple[str, int]]) -> str:
    total = sum(n for _, n in rows)
    if not total:
        return f"{what}: {name_some([slide for slide, _ in rows])}"
    if len(rows) == 1:
        return f"{what}: {total} ({rows[0][0]})"
    return f"{what}: {total} ({name_some([f'{slide} {n}' for slide, n in rows])})"
