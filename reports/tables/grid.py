"""Tables whose columns come in groups (pairs of sets, shifts, classes), apart from how they are printed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .aggregate import GATED, SYNTHETIC, Cell, Line, block_order, block_title
from .captions import span
from .cells import mark_best_cells

BLANK = Cell("")  # not asked for, where UNDEFINED means asked for and not defined
NAMES = ("Method", "Backbone", "Map", "n")


class Head(NamedTuple):
    """One column. best: the highest value of a block is bold, unless it is no more than `chance`. text: words, no
    number. brief: its title in a terminal.

    A column without a brief title is left out there.
    """

    title: str
    hint: str = ""
    best: bool = False
    text: bool = False
    brief: str = ""
    chance: float = math.nan


@dataclass(frozen=True)
class Group:
    """Columns under one heading."""

    title: str
    heads: tuple[Head, ...]


@dataclass(frozen=True)
class GridLine:
    """A line: what names it, and a cell for every column. look: `bound`, `baseline`, `chance` or none."""

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    look: str = ""


@dataclass(frozen=True)
class GridBlock:
    """Lines that may be compared with each other. key: `chance` where they stand above all others instead."""

    key: str
    title: str
    lines: tuple[GridLine, ...]


@dataclass(frozen=True)
class Grid:
    """A table with grouped columns. kind: `ood`, `shift`, `class` or `published`; names: headings of what names a line.

    text: what it is, said before it. wide: how many groups a page can hold side by side.
    """

    kind: str
    title: str
    protocol: str
    synthetic: bool
    groups: tuple[Group, ...]
    blocks: tuple[GridBlock, ...]
    caption: str = ""
    footnotes: tuple[str, ...] = ()
    names: tuple[str, ...] = NAMES
    text: str = ""
    wide: int = 4

    @property
    def heads(self) -> tuple[Head, ...]:
        """The columns of all groups."""
        return tuple(head for group in self.groups for head in group.heads)

    @property
    def heading(self) -> str:
        """The title, stamped where the data are made up."""
        return self.title + (f" · {SYNTHETIC}" if self.synthetic else "")

    @property
    def stamped_caption(self) -> str:
        """The caption, stamped where the data are made up."""
        return f"{SYNTHETIC}. {self.caption}" if self.synthetic else self.caption

    def parts(self, size: int = 0) -> list["Grid"]:
        """The table cut into tables of at most `size` groups (0: `wide`), each with the lines that say something there.

        Footnotes stand under the last part.
        """
        size = size or self.wide
        starts = range(0, len(self.groups), size)
        return [self._part(k, size, f" (part {i} of {len(starts)})") for i, k in enumerate(starts, 1)]

    def brief(self) -> "Grid":
        """The brief columns of the first block and the baselines (and the chance level): what a terminal shows."""
        kept = [k for k, head in enumerate(self.heads) if head.brief]
        groups = [replace(g, heads=tuple(h._replace(title=h.brief) for h in g.heads if h.brief)) for g in self.groups]
        main = next((b for b in self.blocks if b.key not in ("-", "chance")), None)
        blocks = [
            replace(b, lines=tuple(replace(x, cells=tuple(x.cells[k] for k in kept)) for x in b.lines))
            for b in self.blocks
            if b is main or b.key in ("-", "chance")
        ]
        return replace(self, groups=tuple(g for g in groups if g.heads), blocks=tuple(blocks))

    def _part(self, start: int, size: int, number: str) -> "Grid":
        if len(self.groups) <= size:
            return self
        first = sum(len(g.heads) for g in self.groups[:start])
        groups = self.groups[start : start + size]
        last = first + sum(len(g.heads) for g in groups)
        blocks = []
        for block in self.blocks:
            lines = [replace(line, cells=line.cells[first:last]) for line in block.lines]
            lines = [line for line in lines if any(c.value for c in line.cells)]
            if lines:
                blocks.append(replace(block, lines=tuple(lines)))
        notes = self.footnotes if start + size >= len(self.groups) else ()
        return replace(self, title=self.title + number, groups=groups, blocks=tuple(blocks), footnotes=notes, wide=size)


class Place(NamedTuple):
    """What makes two lines of different tables one line of a grid."""

    block: str
    backbone: str
    bound: bool
    marked: str
    map: str

    @property
    def label(self) -> str:
        """The name in a figure, as of a line."""
        return self.marked + (GATED if self.map.endswith("gated") else "")


def place_of(line: Line) -> Place:
    """The place of a line of a table."""
    first = line.first
    block = "-" if first.baseline else first.selection
    return Place(block, first.backbone, first.upper_bound, line.bounded, line.map)


def make_blocks(
    lines: Sequence[Mapping[Place, tuple[Cell, ...]]],
    runs: Mapping[Place, set[int]],
    heads: Sequence[Sequence[Head]],
    protocol: str,
) -> tuple[GridBlock, ...]:
    """Blocks in the order of the other tables.

    lines: per group of columns, the cells of each place. runs: numbers of runs behind a place. heads: per group.
    """
    places = sorted(set().union(*lines)) if lines else []
    flat = [head for group in heads for head in group]
    blocks = []
    for key in block_order({p.block for p in places}, protocol):
        rows = []
        for place in (p for p in places if p.block == key):
            cells = [
                cell
                for group, cells_of in zip(heads, lines, strict=True)
                for cell in cells_of.get(place, (BLANK,) * len(group))
            ]
            look = "bound" if place.bound else "baseline" if key == "-" else ""
            names = (place.marked, place.backbone, place.map, span(runs[place]))
            rows.append(GridLine(names, tuple(cells), look))
        blocks.append(GridBlock(key, block_title(key), mark_best(rows, flat) if key != "-" else tuple(rows)))
    return tuple(blocks)


def mark_best(lines: Sequence[GridLine], heads: Sequence[Head]) -> tuple[GridLine, ...]:
    """Marks the highest value a column among lines trained without masks, unless all are equal as printed.

    A value that a constant map or answer reaches as well is not marked.
    """
    if not lines:
        return ()
    fair = [not line.look for line in lines]
    columns = [
        mark_best_cells(cells, fair, [head.chance] * len(lines)) if head.best else cells
        for head, cells in zip(heads, zip(*(line.cells for line in lines), strict=True), strict=True)
    ]
    rows = zip(*columns, strict=True) if columns else [()] * len(lines)
    return tuple(replace(line, cells=tuple(cells)) for line, cells in zip(lines, rows, strict=True))
