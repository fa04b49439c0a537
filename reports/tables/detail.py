"""Tables of detail: where maps are saturated, what a classifier calls positive, and results class by class."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from .aggregate import UNDEFINED, Line, Table, mean_cell
from .captions import FAR, span
from .cells import Cell, Column, make_cell
from .grid import Grid, Group, Place, make_blocks, place_of
from .ood import chance_block, heads_of

_GROUPS = {
    "Pixels": (
        Column("pxap", "PxAP", "Pixel average precision over 1,001 linear bins, in percent."),
        Column("ap", "AP exact", "Average precision without bins, from a sample of pixels."),
        Column("end_low", "< 0.001", "Share of all pixels in the lowest bin, in percent."),
        Column("end_high", "≥ 0.999", "Share of all pixels from 0.999 on, in percent."),
    ),
    "Classes": (
        Column("accuracy", "Accuracy", "Share of images classified right, in percent."),
        Column("majority", "largest class", "Accuracy of always saying the largest class.", sd=False),
        Column("balanced_accuracy", "balanced", "Mean of the shares classified right of each class."),
        Column("predicted_positive", "called positive", "Share of all images predicted as positive."),
    ),
}


def detail_grid(table: Table) -> Grid:
    """One group of columns on pixels and one on classes, for the lines that figures show."""
    runs: dict[Place, set[int]] = defaultdict(set)
    lines: list[Mapping[Place, tuple[Cell, ...]]] = [
        {place_of(x): tuple(make_cell(x.estimates, c) for c in columns) for x in table.shown}
        for columns in _GROUPS.values()
    ]
    for line in table.shown:
        runs[place_of(line)].add(len(line.runs))
    groups = tuple(Group(title, heads_of(columns)) for title, columns in _GROUPS.items())
    blocks = make_blocks(lines, runs, [g.heads for g in groups], table.protocol)
    pixels = max((r.sample_pixels for r in table.rows), default=0)
    sampled = f" The sample has {pixels:,} pixels of the test images, the same for every method." if pixels else ""
    notes = (
        "Where many pixels share an end bin, PxAP does not see their order; exact AP does. Where the two differ by "
        f"more than {FAR:g} points, the table says so.{sampled}",
        "AP exact: PxAP, plus what the sample gains when its own values are ranked without bins.",
    )
    caption = "The checkpoint the protocol selects. Means over the n runs."
    title = f"{table.sets}: saturation, and what is called positive · protocol {table.protocol}"
    return Grid("detail", title, table.protocol, table.synthetic, groups, blocks, caption, notes)


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
