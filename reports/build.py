"""`bench report`: from a results folder to Markdown, LaTeX, CSV, figures and the page."""

import datetime
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.core.errors import BenchError, did_you_mean
from ..benchmark.core.files import write_text
from ..benchmark.core.results_store import Store
from .drawing.render import FigureGroup, Pictures, no_figures, render_report_figures
from .rows.declared import SYNTHETIC
from .rows.load import collect, need_rows
from .tables.aggregate import tables_of
from .tables.captions import protocol_sentences
from .tables.contents import Contents
from .tables.cost import costed_frame
from .tables.escape import markdown_escape
from .tables.formats import latex_table, lines_csv, markdown_table, rows_csv
from .tables.grid_text import latex_grid, markdown_grid

if TYPE_CHECKING:
    from .page.gallery import Gallery

log = logging.getLogger(__name__)
FORMATS = ("md", "tex", "csv", "html")
_NO_FIGURES = frozenset({"csv", "tex"})


def build_report(store: Store, out: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Writes `report.md`, `report.tex`, `rows.csv`, `lines.csv`, `index.html` and `figures/`; returns their paths.

    formats: which of FORMATS; figures come with md and html. Every file is written atomically. Raises BenchError if
    there is nothing to report, if a format is unknown, or if `out` cannot be written.
    """
    for name in formats:
        if name not in FORMATS:
            raise BenchError(f"There is no report format '{name}'.{did_you_mean(name, FORMATS)}")
    findings = collect(store)
    for problem in findings.problems:
        log.warning("%s", problem)
    need_rows(findings, store)
    try:
        out.mkdir(parents=True, exist_ok=True)
        return _write(store, out, formats, Contents(findings))
    except OSError as problem:
        why = problem.strerror or problem
        raise BenchError(f"The report cannot be written to {out} ({why}). Choose another folder with --out.") from None


def _write(store: Store, out: Path, formats: Sequence[str], contents: Contents) -> list[Path]:
    drawing = bool(set(formats) - _NO_FIGURES)
    gallery = functools.cache(lambda: _gallery(store, contents))
    meanwhile = gallery if "html" in formats else None
    pictures = render_report_figures(store, out / "figures", contents, meanwhile) if drawing else no_figures(contents)
    writers: dict[str, tuple[str, Callable[[], str]]] = {
        "md": ("report.md", lambda: _markdown(contents, pictures)),
        "tex": ("report.tex", lambda: _latex(contents)),
        "csv": ("rows.csv", lambda: _csv(contents)),
        "html": ("index.html", lambda: _html(contents, pictures, gallery())),
    }
    paths = list(pictures.paths)
    for name in dict.fromkeys(formats):
        file, make = writers[name]
        write_text(out / file, make())
        paths.append(out / file)
        if name == "csv":
            findings = contents.findings
            write_text(out / "lines.csv", lines_csv(tables_of(findings.rows, findings.settings)))
            paths.append(out / "lines.csv")
    return paths


def _version() -> str:
    from .. import __version__

    return __version__


def _markdown(contents: Contents, pictures: Pictures) -> str:
    findings = contents.findings
    intro = (
        f"{len(findings.runs)} runs, wsolbench {_version()}. Tables of different protocols are never to be compared."
    )
    parts = ["# wsolbench report", intro]
    each = zip(contents.tables, contents.beside, pictures.tables, strict=True)
    for table, grids, drawn in each:
        parts += [markdown_table(table).rstrip(), f"Protocol: {markdown_escape(protocol_sentences(table.protocol))}"]
        parts += [markdown_grid(grid, 3).rstrip() for grid in grids]
        parts += _markdown_figures(drawn, table.synthetic)
    for chapter, drawn in zip(contents.chapters, pictures.chapters, strict=True):
        parts += [markdown_grid(grid, 2 if k == 0 else 3).rstrip() for k, grid in enumerate(chapter.grids)]
        parts += _markdown_figures(drawn, chapter.synthetic)
    if findings.problems:
        parts += ["## Not in these tables", "\n".join(f"- {markdown_escape(text)}" for text in findings.problems)]
    return "\n\n".join(parts) + "\n"


def _markdown_figures(drawn: FigureGroup, synthetic: bool) -> list[str]:
    stamp, parts = f"**{SYNTHETIC}.** " if synthetic else "", []
    for p in drawn.pictures:
        parts.append(f"![{markdown_escape(p.alt)}](figures/{p.name}.png)")
        parts.append(f"**{markdown_escape(p.title)}.** {stamp}{markdown_escape(p.how)}")
    return parts + [f"- Left out: {markdown_escape(reason)}" for reason in drawn.missing]


def _csv(contents: Contents) -> str:
    findings = contents.findings
    return rows_csv(costed_frame(findings.runs, findings.records), findings.unfinished)


def _latex(contents: Contents) -> str:
    head = "% Written by wsolbench. Needs \\usepackage{booktabs} and \\usepackage{graphicx}; \\input this file.\n"
    out = [latex_table(table, number) for number, table in enumerate(contents.tables, 1)]
    grids = [grid for beside in contents.beside for grid in beside]
    grids += [g for c in contents.chapters for g in c.grids if g.groups]
    out += [latex_grid(grid, f"{number}") for number, grid in enumerate(grids, len(out) + 1)]
    return head + "\n".join(out)


def _gallery(store: Store, contents: Contents) -> "Gallery":
    from .page.gallery import build_gallery

    findings = contents.findings
    return build_gallery(store, findings, tables_of(findings.rows, findings.settings))


def _html(contents: Contents, pictures: Pictures, gallery: "Gallery") -> str:
    from .page.page import ChapterSection, Page, Section, render_page

    findings = contents.findings
    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    sections = [
        Section(f"table-{number}", table, drawn.pictures, drawn.missing, grids)
        for number, (table, grids, drawn) in enumerate(
            zip(contents.tables, contents.beside, pictures.tables, strict=True), 1
        )
    ]
    chapters = [
        ChapterSection(chapter, drawn.pictures, drawn.missing)
        for chapter, drawn in zip(contents.chapters, pictures.chapters, strict=True)
    ]
    return render_page(Page(made, _version(), sections, findings, gallery, chapters))
