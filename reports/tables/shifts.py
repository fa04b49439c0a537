"""Shifted copies of a test set: one table per data set and protocol, a group of columns a shift and metric."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..rows.declared import bound_notes, marked_sets, normalisation_notes, seen_notes
from ..rows.row import Row
from .aggregate import Line, Settings, Table, named_sets, tables_of
from .captions import constant_notes
from .cells import UNDEFINED, Cell, Column, make_cell, mean_cell
from .grid import BLANK, NAMES, Grid, GridBlock, GridLine, Group, Head, Place, make_blocks, place_of
from .ood import chance_cell

METRICS = (
    Column("pxap", "PxAP", "Pixel average precision in percent, the pixels of all images pooled.", sd=False, best=True),
    Column("accuracy", "Accuracy", "Share of images classified right, in percent.", sd=False, best=True),
)  # fmt: skip


@dataclass(frozen=True)
class Ladder:
    """The levels of one shift of one data set for models of one training set under one protocol.

    axis: what the severity of a level is a number of, or what a level is called if none has a severity. levels: level
    -> its table; level 0 is the unchanged set, and missing where that was not scored.
    """

    shift: str
    axis: str
    levels: Mapping[int, Table]

    @property
    def severities(self) -> dict[int, float]:
        """Level above 0 -> its number on the axis; NaN where it has none."""
        return {k: next((r.severity for r in t.rows), math.nan) for k, t in self.levels.items() if k}

    @property
    def graded(self) -> bool:
        """Whether its levels are levels of severity."""
        return not any(math.isnan(v) for v in self.severities.values())

    @property
    def step(self) -> str:
        """What one of its levels is called."""
        return "level" if self.graded else self.axis or "level"

    def change(self, level: int) -> Cell:
        """RMS change of the pixels at a level, in grey levels; both ends where runs or folds differ."""
        if not level:
            return Cell("0.0", number=0.0)
        return chance_cell(self.levels[level].estimates, "pixel_change")

    def lines(self, level: int) -> dict[Place, Line]:
        """The lines of a level by place; none where the level was not scored."""
        table = self.levels.get(level)
        return {place_of(line): line for line in table.lines} if table else {}


@dataclass(frozen=True)
class Shifted:
    """All shifts of one data set for models of one training set under one protocol."""

    train: str
    dataset: str
    scheme: str
    protocol: str
    synthetic: bool
    ladders: tuple[Ladder, ...]
    grid: Grid

    @property
    def sets(self) -> str:
        """The data set; for models trained on another one, both."""
        return named_sets(self.train, self.dataset, self.scheme)


def build_shifted(rows: Iterable[Row], settings: Settings | None = None) -> list[Shifted]:
    """One `Shifted` per training set, data set, protocol and kind of data."""
    tables: dict[tuple[str, str, str, str, bool], dict[tuple[str, int], Table]] = defaultdict(dict)
    rows = list(rows)
    there = {(r.train, r.dataset) for r in rows if r.shift}  # the unchanged set is needed beside its shifts alone
    for table in tables_of((r for r in rows if (r.train, r.dataset) in there), settings):
        first = table.rows[0]
        tables[table.train, first.dataset, table.scheme, table.protocol, table.synthetic][first.shift, first.level] = (
            table
        )
    out = []
    for (train, dataset, scheme, protocol, synthetic), by_level in sorted(tables.items()):
        ladders = tuple(_ladder(shift, by_level) for shift in sorted({s for s, _ in by_level} - {""}))
        if ladders:
            grid = _grid(train, dataset, scheme, protocol, synthetic, ladders)
            out.append(Shifted(train, dataset, scheme, protocol, synthetic, ladders, grid))
    return out


def _ladder(shift: str, found: Mapping[tuple[str, int], Table]) -> Ladder:
    levels = {level: table for (name, level), table in sorted(found.items()) if name in (shift, "")}
    axis = next(r.axis for level, t in levels.items() if level for r in t.rows)
    return Ladder(shift, axis, levels)


def _grid(train: str, dataset: str, scheme: str, protocol: str, synthetic: bool, ladders: Sequence[Ladder]) -> Grid:
    groups: list[Group] = []
    lines: list[Mapping[Place, tuple[Cell, ...]]] = []
    runs: dict[Place, set[int]] = defaultdict(set)
    for ladder in ladders:
        # Lines of the unchanged set that were not scored on any level of the shift say nothing here.
        places = dict.fromkeys(p for level in ladder.levels if level for p in ladder.lines(level))
        for place in places:
            runs[place] |= {len(ladder.lines(k)[place].runs) for k in ladder.levels if place in ladder.lines(k)}
        for metric in METRICS:
            kind = "" if ladder.graded else f" ({ladder.step} 1, 2, …)"
            groups.append(Group(f"{ladder.shift} · {metric.title}{kind}", _heads(ladder, metric)))
            lines.append({place: _cells(ladder, place, metric) for place in places})
    blocks = make_blocks(lines, runs, [g.heads for g in groups], protocol)
    rows = [row for ladder in ladders for table in ladder.levels.values() for row in table.rows]
    sets = named_sets(train, dataset, scheme)
    changes = tuple(cell for x in ladders for _ in METRICS for cell in (*map(x.change, _levels(x)), BLANK))
    text = "The same test images, changed on purpose; 0 is the images as they are."
    if any(x.graded for x in ladders):
        text += " A level changes them more than the level before."
    title = f"Shifted {marked_sets(sets, rows)} · protocol {protocol}"
    return Grid("shift", title, protocol, synthetic, tuple(groups), (_change_block(changes), *blocks),
                _caption(train, dataset, ladders), _footnotes(ladders), text=text, wide=2)  # fmt: skip


def _heads(ladder: Ladder, metric: Column) -> tuple[Head, ...]:
    heads = []
    for level in _levels(ladder):
        hint = f"{ladder.step} {level} ({_hint(ladder, level)})" if level else "the images as they are"
        # of target stains the last is no more telling than any other
        brief = str(level) if not level or (ladder.graded and level == max(ladder.levels)) else ""
        heads.append(Head(str(level), f"{metric.title}, {hint}", metric.best, brief=brief))
    over = "shifted levels" if ladder.graded else f"{ladder.step}s"
    return (*heads, Head("mean", f"{metric.title}, mean over the {over}", metric.best, brief="mean"))


def _levels(ladder: Ladder) -> list[int]:
    """The columns: 0, scored or not, and the levels that were."""
    return sorted({0, *ladder.levels})


def _hint(ladder: Ladder, level: int) -> str:
    """The severity of a level, if it has one, and how much it changes the pixels."""
    change = f"RMS change of the pixels: {ladder.change(level).value}"
    return f"{ladder.axis}: {ladder.severities[level]:g}; {change}" if ladder.graded else change


def _change_block(cells: tuple[Cell, ...]) -> GridBlock:
    """The line that says how much the pixels were changed; it stands first."""
    line = GridLine(("RMS change of the pixels", *("-",) * (len(NAMES) - 1)), cells, "chance")
    return GridBlock("chance", "How much the images were changed, in grey levels 0 to 255", (line,))


def _cells(ladder: Ladder, place: Place, metric: Column) -> tuple[Cell, ...]:
    levels = _levels(ladder)
    lines = [ladder.lines(level).get(place) for level in levels]
    cells = [make_cell(line.estimates, metric) if line else BLANK for line in lines]
    shifted = [cell.number for cell, level in zip(cells, levels, strict=True) if level]
    return (*cells, mean_cell(shifted, metric))


def _caption(train: str, dataset: str, ladders: Sequence[Ladder]) -> str:
    scales = [f"{x.shift}: {x.axis} {_scale(x)}" for x in ladders if x.graded]
    sentences = [f"Trained on {train}, scored on shifted test images of {dataset}."]
    if scales:
        sentences.append(f"Severity of levels 1, 2, …: {'; '.join(scales)}.")
    sentences += [f"{x.shift} has {x.step}s, in no order of severity." for x in ladders if not x.graded]
    sentences.append("RMS change of the pixels: in grey levels 0 to 255, over the images scored.")
    sentences.append("Means over the n runs; the spread of each stands in rows.csv. mean: over all but 0.")
    return " ".join(sentences)


def _scale(ladder: Ladder) -> str:
    return ", ".join(f"{v:.3g}" for _, v in sorted(ladder.severities.items()))


def _footnotes(ladders: Sequence[Ladder]) -> tuple[str, ...]:
    graded, others = [x for x in ladders if x.graded], [x for x in ladders if not x.graded]
    notes = []
    if graded:
        notes.append("Levels run from 0, the images as they are, to the most severe; mean: over the shifted levels.")
    notes += [
        f"{ladder.shift}: mean over the {ladder.step}s; their numbers are no severity. They are ordered by the "
        "distance of stain matrices, and the pixels may change less from one to the next."
        for ladder in others
    ]
    notes.append(
        "The chance level is the same throughout, because the masks are. "
        "tau_val and the scale of the maps come from the unchanged validation images."
    )
    if any(math.isnan(ladder.change(k).number) for ladder in ladders for k in ladder.levels):
        notes.append(f"RMS change of the pixels {UNDEFINED}: scored before it was measured.")
    for ladder in ladders:
        left = max((r.unshifted for t in ladder.levels.values() for r in t.rows), default=0)
        if left:
            notes.append(
                f"{ladder.shift}: up to {left} images a {ladder.step} could not be changed and were scored as they are."
            )
    rows = [r for x in ladders for t in x.levels.values() for r in t.rows]
    notes += bound_notes(rows)
    notes.append(f"{UNDEFINED}: not defined, because the method makes no map or classifies no image.")
    notes += [*seen_notes(rows), *constant_notes(r for r in rows if r.shift), *normalisation_notes(rows)]
    return tuple(notes)
