"""Beside a table: where its maps are saturated, and what its classifier calls positive."""

from collections import defaultdict
from collections.abc import Mapping

from .aggregate import Table
from .captions import FAR
from .cells import Cell, Column, make_cell
from .grid import Grid, Group, Place, make_blocks, place_of
from .ood import heads_of

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
