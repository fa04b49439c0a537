"""`bench report`: from a results folder to Markdown, LaTeX, CSV, figures and the page."""

import datetime
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.errors import BenchError, did_you_mean
from ..benchmark.store import Store, atomic_path, write_text
from .aggregate import SYNTHETIC, Table, build_tables, tables_of
from .rows import Findings, collect, need_rows
from .tables import latex_table, markdown_escape, markdown_table, rows_csv
from .words import protocol_sentences

if TYPE_CHECKING:
    from .page import Picture

log = logging.getLogger(__name__)
FORMATS = ("md", "tex", "csv", "html")
_NO_FIGURES = frozenset({"csv", "tex"})


@dataclass
class _Art:
    """The figures of one table, saved and ready for the page."""

    pictures: list["Picture"] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def build_report(store: Store, out: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Writes `report.md`, `report.tex`, `rows.csv`, `index.html` and `figures/`; returns the paths written.

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
    tables = build_tables(findings.rows, findings.settings)
    try:
        out.mkdir(parents=True, exist_ok=True)
        return _write(store, out, formats, findings, tables)
    except OSError as problem:
        why = problem.strerror or problem
        raise BenchError(f"The report cannot be written to {out} ({why}). Choose another folder with --out.") from None


def _write(store: Store, out: Path, formats: Sequence[str], findings: Findings, tables: Sequence[Table]) -> list[Path]:
    paths: list[Path] = []
    art = [_Art() for _ in tables]
    if set(formats) - _NO_FIGURES:
        art = _figures(store, out / "figures", findings, tables, paths)
    writers: dict[str, tuple[str, Callable[[], str]]] = {
        "md": ("report.md", lambda: _markdown(findings, tables, art)),
        "tex": ("report.tex", lambda: _latex(tables)),
        "csv": ("rows.csv", lambda: rows_csv(findings.rows)),
        "html": ("index.html", lambda: _html(store, findings, tables, art)),
    }
    for name in dict.fromkeys(formats):
        file, make = writers[name]
        write_text(out / file, make())
        paths.append(out / file)
    return paths


def _figures(store: Store, folder: Path, findings: Findings, tables: Sequence[Table], paths: list[Path]) -> list[_Art]:
    """Draws and saves the figures of all tables, PNG and PDF."""
    from .figures.base import Palette, Scene, render
    from .figures.draw import draw_figures
    from .page import picture

    palette, out = Palette(line for table in tables for line in table.lines), []
    for table in tables:
        found = draw_figures(Scene(table, findings.evidence, findings.records, store, palette))
        art = _Art(missing=found.missing)
        for drawn in found.drawn:
            png = render(drawn.figure, "png")
            for form, data in (("png", png), ("pdf", render(drawn.figure, "pdf"))):
                path = folder / f"{drawn.name}.{form}"
                with atomic_path(path) as temporary:
                    temporary.write_bytes(data)
                paths.append(path)
            art.pictures.append(picture(drawn, png))
        out.append(art)
    return out


def _version() -> str:
    from .. import __version__

    return __version__


def _markdown(findings: Findings, tables: Sequence[Table], art: Sequence[_Art]) -> str:
    intro = (
        f"{len(findings.rows)} runs, wsolbench {_version()}. Tables of different protocols are never to be compared."
    )
    parts = ["# wsolbench report", intro]
    for table, drawn in zip(tables, art, strict=True):
        parts += [markdown_table(table).rstrip(), f"Protocol: {markdown_escape(protocol_sentences(table.protocol))}"]
        stamp = f"**{SYNTHETIC}.** " if table.synthetic else ""
        for p in drawn.pictures:
            parts.append(f"![{markdown_escape(p.alt)}](figures/{p.name}.png)")
            parts.append(f"**{markdown_escape(p.title)}.** {stamp}{markdown_escape(p.how)}")
        parts += [f"- Left out: {markdown_escape(reason)}" for reason in drawn.missing]
    left_out = [*findings.problems, *(f"Failed: {k}: {f.get('error', '')}" for k, f in findings.failures.items())]
    if left_out:
        parts += ["## Not in these tables", "\n".join(f"- {markdown_escape(text)}" for text in left_out)]
    return "\n\n".join(parts) + "\n"


def _latex(tables: Sequence[Table]) -> str:
    head = "% Written by wsolbench. Needs \\usepackage{booktabs} and \\usepackage{graphicx}; \\input this file.\n"
    return head + "\n".join(latex_table(table, number) for number, table in enumerate(tables, 1))


def _html(store: Store, findings: Findings, tables: Sequence[Table], art: Sequence[_Art]) -> str:
    from .gallery import build_gallery
    from .page import Page, Section, render_page

    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    sections = [
        Section(f"table-{number}", table, drawn.pictures, drawn.missing)
        for number, (table, drawn) in enumerate(zip(tables, art, strict=True), 1)
    ]
    gallery = build_gallery(store, findings, tables_of(findings.rows, findings.settings))
    return render_page(Page(made, _version(), sections, findings, gallery))
