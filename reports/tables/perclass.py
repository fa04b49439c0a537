"""Class by class: the same rows, cut by the class of the images."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from .aggregate import UNDEFINED, Cell, Column, Line, Table, mean_cell
from .captions import span
from .grid import Grid, Group, Place, make_blocks, place_of
from .ood import chance_block, heads_of

COLUMNS = (
    Column("pxap", "PxAP", "Pixel average precision in percent of the images of this class, pixels pooled.", best=True),
    Column("accuracy", "Accuracy", "Share of the images of this class that were classified right: recall.", best=True),
)  # fmt: skip


def class_grid(tables: Sequence[Table], title: str) -> Grid | None:
    """One group of columns per set and class, for the lines that figures show. None without tables."""
    if not tables:
        return None
    groups: list[Group] = []
    lines: list[Mapping[Place, tuple[Cell, ...]]] = []
    chance: list[Cell] = []
    runs: dict[Place, set[int]] = defaultdict(set)
    for table in tables:
        for line in table.shown:
            runs[place_of(line)].add(len(line.runs))
        for index, name in enumerate(table.rows[0].classes):
            images = span(r.by_class[index].images for r in table.estimates)
            head = name if len(tables) == 1 else f"{table.sets}: {name}"
            groups.append(Group(f"{head} ({images} images)", heads_of(COLUMNS)))
            lines.append({place_of(line): _cells(line, index) for line in table.shown})
            chance += [_chance(table, index), Cell("")]
    protocol, synthetic = tables[0].protocol, tables[0].synthetic
    blocks = make_blocks(lines, runs, [g.heads for g in groups], protocol)
    notes = (
        "Accuracy of a class is its recall; the chance level is the share of foreground in the images of that class.",
        f"{UNDEFINED}: not defined, because images of the class have no foreground, or the method makes no map or "
        "classifies no image.",
    )
    caption = "The checkpoint the protocol selects, class by class. Means over the n runs."
    return Grid("class", f"{title} · protocol {protocol}", protocol, synthetic, tuple(groups),
                (chance_block(tuple(chance)), *blocks), caption, notes)  # fmt: skip


def class_values(line: Line, index: int, key: str) -> list[float]:
    """`pxap`, `accuracy` or `chance` of one class, a value an estimate."""
    return [float(getattr(run.by_class[index], key)) for run in line.estimates]


def _cells(line: Line, index: int) -> tuple[Cell, ...]:
    return tuple(mean_cell(class_values(line, index, c.key), c) for c in COLUMNS)


def _chance(table: Table, index: int) -> Cell:
    values = [v for r in table.estimates if not math.isnan(v := r.by_class[index].chance)]
    return mean_cell(values, Column("chance", "", "", sd=False)) if values else Cell(UNDEFINED)
