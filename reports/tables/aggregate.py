"""From rows to tables: runs of one kind averaged, protocols and data sets kept apart, every number formatted once."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...benchmark.core.protocols import PROTOCOLS, named_protocol
from ..rows.declared import BOUND, SEEN, SYNTHETIC
from ..rows.frame import alike
from ..rows.load import sort_key
from ..rows.pooling import MODEL
from ..rows.row import USUAL, Row
from .captions import caption_of, footnotes_of
from .cells import COLUMNS, UNDEFINED, Cell, Column, chance_of, make_cell, mark_best_cells, mean_cell

__all__ = [
    "COLUMNS", "SYNTHETIC", "UNDEFINED", "USUAL", "Block", "Cell", "Column", "Line", "Settings", "Table",
    "build_tables", "make_cell", "mean_cell", "tables_of",
]  # fmt: skip
GATED = " (gated)"


@dataclass(frozen=True)
class Line:
    """A line of a table: runs that differ in fold and seed only.

    estimates: what its numbers are the mean of: a row a run, or one for all folds of a seed whose images are pooled.
    extra: what tells it from a line of the same name.
    """

    runs: tuple[Row, ...]
    estimates: tuple[Row, ...]
    cells: dict[str, Cell]
    extra: str = ""

    @property
    def first(self) -> Row:
        """The run of the lowest fold and seed: the one figures show."""
        return self.runs[0]

    @property
    def name(self) -> str:
        """The method with the options that differ from its defaults."""
        inner = ", ".join(t for t in (self.first.options, self.extra) if t)
        return self.first.method + (f" ({inner})" if inner else "")

    @property
    def marked(self) -> str:
        """The name, marked if masks were seen in training, or these images by the starting weights."""
        return f"{self.bounded} {SEEN}" if any(r.weights_seen for r in self.runs) else self.bounded

    @property
    def bounded(self) -> str:
        """The name, marked if masks were seen in training."""
        return f"{self.name} {BOUND}" if self.first.upper_bound else self.name

    @property
    def label(self) -> str:
        """The name in a figure, where no column tells a gated line from the other."""
        return self.marked + (GATED if self.first.gated else "")

    @property
    def map(self) -> str:
        """Whose map is scored."""
        return self.first.map_class + (", gated" if self.first.gated else "")

    @property
    def evidence(self) -> str:
        """The key of what figures that show pixels need: of all folds of the first seed, or of the first run."""
        return self.estimates[0].evidence


@dataclass(frozen=True)
class Block:
    """Lines that may be compared with each other: one selection, or the baselines."""

    key: str
    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """All runs on one evaluation set under one protocol, of models trained on one data set, folds of one scheme.

    rows: the runs. estimates: rows behind the numbers, as of `Line`.
    """

    train: str
    eval: str
    scheme: str
    protocol: str
    synthetic: bool
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    caption: str
    footnotes: tuple[str, ...]
    rows: tuple[Row, ...] = field(repr=False)

    @property
    def estimates(self) -> list[Row]:
        """The rows behind the numbers of all lines."""
        return [row for line in self.lines for row in line.estimates]

    @property
    def lines(self) -> list[Line]:
        """The lines of all blocks."""
        return [line for block in self.blocks for line in block.lines]

    @property
    def shown(self) -> list[Line]:
        """The lines figures show: the protocol's own selection (the first there is) and the baselines."""
        main = next((b for b in self.blocks if b.key != "-"), None)
        return [line for b in self.blocks if b is main or b.key == "-" for line in b.lines]

    @property
    def title(self) -> str:
        """Evaluation set and protocol, and whether the data are real."""
        return f"{self.sets} · protocol {self.protocol}" + (f" · {SYNTHETIC}" if self.synthetic else "")

    @property
    def sets(self) -> str:
        """The evaluation set; for models trained on another one, both. A scheme of folds that is not the usual one."""
        return named_sets(self.train, self.eval, self.scheme)


def named_sets(train: str, scored: str, scheme: str) -> str:
    """What was trained on and scored, once where it is the same, with a scheme of folds that is not the usual one."""
    folds = "" if scheme in USUAL else f" ({scheme} folds)"
    return f"{scored}{folds}" if train == scored else f"{train}{folds} → {scored}"


Settings = Mapping[str, Mapping[str, str]]
TABLE = ("dataset", "shift", "level", "eval", "train", "scheme", "synthetic", "protocol")


def build_tables(rows: Iterable[Row], settings: Settings | None = None) -> list[Table]:
    """In-domain tables: one per data set and protocol; synthetic and real data never share one.

    settings: stage key -> flat settings (`Findings.settings`), used to say in what two lines of one name differ.
    """
    return tables_of((r for r in rows if not r.ood), settings)


def tables_of(rows: Iterable[Row], settings: Settings | None = None) -> list[Table]:
    """One table per evaluation set, data set trained on, scheme of folds and protocol, whatever the sets are."""
    members = [runs for _, runs in alike(sorted(rows, key=sort_key), TABLE)]
    return [_table(tuple(runs), settings or {}) for runs in sorted(members, key=lambda runs: _table_order(runs[0]))]


def _table_order(row: Row) -> tuple[Any, ...]:
    """The shift and its level come before the name, so that level 10 does not stand before level 2."""
    about = (row.eval, row.train, row.scheme, row.synthetic, row.protocol)
    return (f"{row.dataset}:{row.shift}", row.level, row.scheme not in USUAL, *about)


def _table(rows: tuple[Row, ...], settings: Settings) -> Table:
    first = rows[0]
    runs = tuple(r for r in rows if not r.pooled_of)
    columns = tuple(c for c in COLUMNS if not c.optional or _says_something(c, runs))
    lines = [Line(own, means, _cells(own, means, columns)) for own, means in _groups(rows)]
    by_selection: dict[str, list[Line]] = defaultdict(list)
    for line in _told_apart(lines, settings):
        by_selection["-" if line.first.baseline else line.first.selection].append(line)
    blocks = tuple(_block(s, by_selection[s], columns) for s in block_order(by_selection, first.protocol))
    caption = caption_of(
        f"Evaluated on {first.eval}, protocol {first.protocol}", runs, [(x.runs, x.estimates) for x in lines]
    )
    notes = footnotes_of(runs, [row for line in lines for row in line.estimates])
    return Table(first.train, first.eval, first.scheme, first.protocol, first.synthetic, columns, blocks, caption,
                 notes, runs)  # fmt: skip


def block_order(selections: Iterable[str], protocol: str) -> list[str]:
    """Selections in the order of a table: the protocol's own first, baselines last."""
    known, own = list(BLOCK_TITLES), _own_selection(protocol)
    return sorted(selections, key=lambda s: (s == "-", s != own, known.index(s) if s in known else len(known), s))


def _own_selection(protocol: str) -> str:
    known = PROTOCOLS.get(named_protocol(protocol))
    return known.selection if known else ""


def _says_something(column: Column, rows: Iterable[Row]) -> bool:
    if column.key == "seconds_parents":
        return any(r.seconds_parents > 0 for r in rows)
    if column.key == "ap":
        return any(not math.isnan(r.ap) for r in rows)
    return any(r.images_positive != r.images for r in rows)


def _groups(rows: Sequence[Row]) -> list[tuple[tuple[Row, ...], tuple[Row, ...]]]:
    """Runs that differ in fold and seed only, with their estimates; where those do not tell runs apart, each run
    stands alone."""
    groups: list[tuple[tuple[Row, ...], tuple[Row, ...]]] = []
    for _, same in alike(rows, ("train", *MODEL)):
        runs, pooled = ([r for r in same if bool(r.pooled_of) is several] for several in (False, True))
        if len({(r.fold, r.seed) for r in runs}) < len(runs):
            groups += [((r,), (r,)) for r in runs]
            continue
        inside = {run for row in pooled for run in row.pooled_of}
        alone = [r for r in runs if r.run not in inside]
        groups.append((tuple(runs), tuple(sorted([*pooled, *alone], key=lambda r: r.seed))))
    return groups


def _told_apart(lines: Sequence[Line], settings: Settings) -> list[Line]:
    """Lines of one name get what they differ in: changed settings, or failing that the stage."""
    by_name: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in lines:
        r = line.first
        by_name[r.train, r.backbone, line.name, line.map, r.selection].append(line)
    out = []
    for twins in by_name.values():
        if len(twins) == 1:
            out += twins
            continue
        flat = [settings.get(line.first.stage, {}) for line in twins]
        names = sorted(k for k in set().union(*flat) if len({f.get(k, "") for f in flat}) > 1)
        differences = [", ".join(f"{k.rpartition('.')[2]}={f.get(k, 'none')}" for k in names[:2]) for f in flat]
        if len(set(differences)) < len(twins):
            differences = [f"run {line.first.stage[:8]}" for line in twins]
        out += [replace(line, extra=text) for line, text in zip(twins, differences, strict=True)]
    return sorted(out, key=lambda line: (line.first.backbone, line.first.upper_bound, line.name, line.map))


BLOCK_TITLES = {  # in the order of the table, but for the protocol's own selection, which comes first
    "cl": "Checkpoint cl: best validation accuracy",
    "loc": "Checkpoint loc: best PxAP on the validation masks",
    "last": "Checkpoint last: end of training",
    "-": "Baselines: nothing learned",
}


def _block(selection: str, lines: Sequence[Line], columns: Sequence[Column]) -> Block:
    marked = list(lines)
    for column in columns:
        if column.best and selection != "-":
            marked = _mark_best(marked, column)
    return Block(selection, block_title(selection), tuple(marked))


def block_title(selection: str) -> str:
    """The heading of the lines of one selection, `-` for the baselines."""
    return BLOCK_TITLES.get(selection, f"Checkpoint {selection}")


def _mark_best(lines: list[Line], column: Column) -> list[Line]:
    """Marks the highest defined value of the lines trained without masks, unless all are equal as printed.

    Lines whose weights had seen the images are left out, and so is what a constant map or answer reaches as well.
    """
    key = column.key
    fair = [not line.first.upper_bound and not any(r.weights_seen for r in line.runs) for line in lines]
    floors = [chance_of(line.estimates, column) for line in lines]
    cells = mark_best_cells([line.cells[key] for line in lines], fair, floors)
    return [replace(line, cells={**line.cells, key: cell}) for line, cell in zip(lines, cells, strict=True)]


_OF_RUNS = frozenset({"seconds_train", "seconds_parents", "seconds_score", "parameters"})


def _cells(runs: Sequence[Row], estimates: Sequence[Row], columns: Iterable[Column]) -> dict[str, Cell]:
    return {c.key: make_cell(runs if c.key in _OF_RUNS else estimates, c) for c in columns}
