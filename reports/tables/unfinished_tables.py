"""What did not finish, as it stands in a report: a table of its own, footnotes of the others, lines on the terminal."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..rows.unfinished import DIVERGED, FAILED, Unfinished
from .aggregate import Cell, Table
from .escape import fit
from .grid import Grid, GridBlock, GridLine, Group, Head

_TITLES = {
    DIVERGED: "Diverged: the loss became NaN or infinite, and training stopped",
    FAILED: "Failed: stopped by an error",
}
_NAMES = ("Method", "Backbone", "Stage", "Data", "Fold", "Seed", "Status")
_WHY = Head("Why", "What stopped it; the traceback is in failure.json of the stage.", text=True)


def unfinished_grid(rows: Sequence[Unfinished]) -> Grid | None:
    """A table of what did not finish, None if all did."""
    blocks = []
    for status, title in _TITLES.items():
        lines = tuple(_line(u) for u in rows if u.status == status)
        if lines:
            blocks.append(GridBlock(status, title, lines))
    if not blocks:
        return None
    return Grid(
        kind="unfinished", title="Not finished", protocol="", synthetic=False,
        groups=(Group("", (_WHY,)),),
        blocks=tuple(blocks), names=_NAMES, caption="Stages without a result, by what became of them.",
        text="They have no numbers: they stand in no mean, no rank and no other table, and neither does what builds on "
        "them. The same `bench run` tries them again.",
    )  # fmt: skip


def _line(u: Unfinished) -> GridLine:
    first, *more = u.stages
    many = f" and {len(more)} more" if more else ""
    names = (u.name, u.backbone, f"{u.what} {first}{many}", u.data, u.fold, u.seed, u.outcome)
    return GridLine(names, (Cell(u.why),))


def with_unfinished(table: Table, rows: Iterable[Unfinished]) -> Table:
    """The table with a footnote on what is missing in it because it did not finish."""
    missing = [u for u in rows if _belongs(u, table)]
    if not missing:
        return table
    failures = "; ".join(f"{u.where}: {u.what} {u.outcome}" for u in missing)
    return replace(table, footnotes=(*table.footnotes, f"Not finished, so in no number here: {failures}."))


def _belongs(u: Unfinished, table: Table) -> bool:
    if u.train != table.train:
        return False
    return u.kind != "score" or (table.eval in u.eval and table.protocol in u.protocols)


def terminal_unfinished(rows: Sequence[Unfinished], width: int) -> str:
    """Plain lines for the end of a run; nothing if all finished."""
    if not rows:
        return ""
    lines = [f"Not finished: {len(rows)}, in no number above"]
    for u in rows:
        lines.append(fit(f"  {u.outcome}: {u.what} of {u.where}, {u.data}", width, True).rstrip())
        lines.append(fit(f"    {' '.join(u.why.split())}", width, True).rstrip())
    return "\n".join(lines)
