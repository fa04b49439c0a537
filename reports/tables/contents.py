"""What a report holds, in its order: in-domain tables, other and shifted sets, what is missing, published numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..rows.load import Findings
from .aggregate import Table, build_tables
from .cost import cost_grids
from .detail import class_grid, detail_grid
from .grid import Grid
from .ood import OodTables, build_ood
from .published_comparison import build_beside
from .shifts import Shifted, build_shifted
from .unfinished_tables import unfinished_grid, with_unfinished


@dataclass(frozen=True)
class Chapter:
    """Grids that belong together and what their figures are drawn from; `source` is None where there is none to draw.

    anchor: name of the place on the page. protocol: empty for what belongs to no single one.
    """

    anchor: str
    title: str
    synthetic: bool
    protocol: str
    grids: tuple[Grid, ...]
    source: OodTables | Shifted | None = None


class Contents:
    """All tables of a report, built once."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings

    @cached_property
    def tables(self) -> list[Table]:
        """In-domain tables."""
        tables = build_tables(self.findings.rows, self.findings.settings)
        return [with_unfinished(table, self.findings.unfinished) for table in tables]

    @cached_property
    def beside(self) -> list[tuple[Grid, ...]]:
        """Beside every in-domain table: its lines class by class, where their maps are saturated, what they cost and,
        where records say it, where the time went."""
        grids_of = []
        for table in self.tables:
            by_class = class_grid([table], f"{table.sets} class by class")
            grids = (by_class, detail_grid(table), *cost_grids(table, self.findings.records))
            grids_of.append(tuple(grid for grid in grids if grid))
        return grids_of

    @cached_property
    def chapters(self) -> list[Chapter]:
        """What follows the in-domain tables."""
        rows, settings = self.findings.rows, self.findings.settings
        ood, shifted = build_ood(rows, settings), build_shifted(rows, settings)
        chapters = [_ood_chapter(k, one) for k, one in enumerate(ood, 1)]
        chapters += [
            Chapter(f"shifted-{k}", f"Shifted {one.sets}", one.synthetic, one.protocol, (one.grid,), one)
            for k, one in enumerate(shifted, 1)
        ]
        everywhere: Sequence[Table] = [*self.tables, *(t for one in ood for t in one.tables)]
        if unfinished := unfinished_grid(self.findings.unfinished):
            chapters.append(Chapter("unfinished", unfinished.title, False, "", (unfinished,)))
        beside = build_beside(everywhere, self.findings.records)
        return [*chapters, Chapter("published", beside.title, False, "", (beside,))]


def _ood_chapter(number: int, ood: OodTables) -> Chapter:
    by_class = class_grid(ood.tables, "Out of domain, class by class")
    grids = (ood.grid, by_class) if by_class else (ood.grid,)
    return Chapter(f"ood-{number}", "Out of domain", ood.synthetic, ood.protocol, grids, ood)
