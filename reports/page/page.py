"""HTML page of a report: one file that needs no network, every text in it escaped."""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...benchmark.core.errors import plain
from ..drawing.picture import Picture
from ..rows.load import Findings, Row
from ..tables.aggregate import Line, Table
from ..tables.captions import protocol_sentences
from ..tables.contents import Chapter
from ..tables.formats import LABEL_TITLES, label_values
from ..tables.grid import Grid
from .gallery import Gallery

_PARTS = {"css": ("report", "gallery"), "js": ("report", "overlay", "gallery")}  # joined in this order


class Card(NamedTuple):
    """One headline number of a table."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Section:
    """One in-domain table of the page with its figures. grids: tables beside it, such as its cost."""

    anchor: str
    table: Table
    pictures: Sequence[Picture]
    missing: Sequence[str]
    grids: Sequence[Grid] = ()

    @property
    def protocol_text(self) -> str:
        """Description of the protocol."""
        return protocol_sentences(self.table.protocol)

    @property
    def labels(self) -> tuple[str, ...]:
        """Headings of the columns that name a line."""
        return LABEL_TITLES

    def names(self, line: Line) -> list[str]:
        """Values of the columns that name a line."""
        return label_values(line)

    @property
    def cards(self) -> list[Card]:
        """The numbers to see first."""
        return headline(self.table)


@dataclass(frozen=True)
class ChapterSection:
    """One chapter of the page with its figures."""

    chapter: Chapter
    pictures: Sequence[Picture]
    missing: Sequence[str]

    @property
    def protocol_text(self) -> str:
        """What the protocol means; empty for a chapter that belongs to no single protocol."""
        return protocol_sentences(self.chapter.protocol) if self.chapter.protocol else ""


@dataclass(frozen=True)
class Page:
    """Content of the page. made: date and time as text; version: of this package."""

    made: str
    version: str
    sections: Sequence[Section]
    findings: Findings
    gallery: Gallery | None = None
    chapters: Sequence[ChapterSection] = ()

    @property
    def environments(self) -> list[tuple[dict[str, str], int]]:
        """Distinct environments with the number of rows made in each."""
        counts: dict[tuple[tuple[str, str], ...], int] = {}
        for row in self.findings.runs:
            place = tuple(sorted((k, str(v)) for k, v in row.versions.items()))
            counts[place] = counts.get(place, 0) + 1
        return [(dict(place), n) for place, n in counts.items()]

    @property
    def datasets(self) -> list[dict[str, Any]]:
        """Facts of every evaluation set."""
        row_of_set: dict[tuple[str, bool], Row] = {(r.dataset, r.synthetic): r for r in self.findings.rows}
        return [{"name": name, "synthetic": synthetic, "row": row} for (name, synthetic), row in row_of_set.items()]


def headline(table: Table) -> list[Card]:
    """Best weakly supervised method, chance, upper bound and best baseline, as far as they exist."""
    shown = [line for line in table.shown if not math.isnan(line.cells["pxap"].number)]
    kinds = {
        "Best weakly supervised PxAP": [x for x in shown if not x.first.upper_bound and not x.first.baseline],
        "Upper bound PxAP (masks in training)": [x for x in shown if x.first.upper_bound],
        "Best baseline PxAP": [x for x in shown if x.first.baseline],
    }
    cards = []
    for label, lines in kinds.items():
        if lines:
            top = max(lines, key=lambda line: line.cells["pxap"].number)
            backbone = f" · {top.first.backbone}" if top.first.backbone != "-" else ""
            cards.append(Card(label, top.cells["pxap"].text, f"{top.name}{backbone}"))
    if shown:
        cards.append(Card("Chance level", shown[0].cells["chance"].value, "PxAP of a constant map"))
    return cards


def render_page(page: Page) -> str:
    """The page as HTML. Names, notes and errors are shown as text, whatever they contain."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or "wsolbench.reports", "templates"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip
    css, script = (
        "\n".join(_template_text(environment, f"{n}.{kind}") for n in names) for kind, names in _PARTS.items()
    )
    # Only the script of this hash may run: a script that came in with a name would be refused by the browser too.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        page=page, css=Markup(css), script=Markup(script), script_hash=digest,
        isnan=math.isnan,
    )  # fmt: skip


def _template_text(environment: Any, name: str) -> str:
    """Our own style sheet or script, without the line break that would change its hash."""
    text, _, _ = environment.loader.get_source(environment, name)
    return text.strip()
