"""Tables as Markdown, LaTeX, CSV and plain text: one set of formatted numbers, escaped for each."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence

from ..benchmark.errors import plain
from .aggregate import SYNTHETIC, Block, Column, Line, Table, build_tables
from .escape import fit, latex_cell, latex_escape, latex_name, markdown_cell, markdown_escape, pipes, printable
from .grid_text import terminal_grid
from .ood import build_away
from .rows import Row
from .shifts import build_shifted
from .unfinished import Unfinished
from .unfinished_shown import terminal_unfinished

_TERMINAL_COLUMNS = (
    "pxap", "chance", "accuracy", "dice_tau_val", "iou_tau_val", "tau_val", "dice_oracle", "seconds_train",
    "seconds_score",
)  # fmt: skip


LABEL_TITLES = ("Method", "Backbone", "Map", "n")


def label_values(line: Line) -> list[str]:
    """What names a line, in the order of LABEL_TITLES."""
    return [line.marked, line.first.backbone, line.first.map_class, str(len(line.runs))]


# -- Markdown --------------------------------------------------------------------------------------------------------
def markdown_table(table: Table) -> str:
    """A heading, the caption, one Markdown table per block and the footnotes."""
    parts = [f"## {markdown_escape(table.title)}", markdown_escape(table.caption)]
    heads = [*LABEL_TITLES, *(c.title for c in table.columns)]
    aligned = ["---"] * (len(LABEL_TITLES) - 1) + ["---:"] * (1 + len(table.columns))
    for block in table.blocks:
        lines = [pipes(h.replace("_", r"\_") for h in heads), pipes(aligned)]
        for line in block.lines:
            cells = [markdown_cell(line.cells[c.key]) for c in table.columns]
            lines.append(pipes([*(markdown_escape(v) for v in label_values(line)), *cells]))
        parts += [f"**{markdown_escape(block.title)}**", "\n".join(lines)]
    parts.append("\n".join(f"- {markdown_escape(note)}" for note in table.footnotes))
    return "\n\n".join(parts) + "\n"


# -- LaTeX -----------------------------------------------------------------------------------------------------------
def latex_table(table: Table, number: int) -> str:
    """A floating booktabs table; needs the packages booktabs and graphicx."""
    spec = "l" * (len(LABEL_TITLES) - 1) + "r" * (1 + len(table.columns))
    heads = [latex_escape(t) for t in LABEL_TITLES] + [c.tex or latex_escape(c.title) for c in table.columns]
    body: list[str] = []
    for block in table.blocks:
        body.append(r"\midrule")
        body.append(rf"\multicolumn{{{len(spec)}}}{{l}}{{\textit{{{latex_escape(block.title)}}}}} \\")
        body += [_latex_line(table, line) for line in block.lines]
    notes = r" \\ ".join(latex_escape(note) for note in table.footnotes)
    return "\n".join([
        r"\begin{table}[t]", r"\centering", rf"\caption{{{latex_escape(table.caption)}}}",
        rf"\label{{tab:wsolbench-{number}}}", r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{spec}}}", r"\toprule",
        " & ".join(heads) + r" \\", *body, r"\bottomrule", r"\end{tabular}}",
        rf"\par\smallskip\begin{{minipage}}{{\textwidth}}\scriptsize\raggedright {notes}\end{{minipage}}",
        r"\end{table}",
    ]) + "\n"  # fmt: skip


def _latex_line(table: Table, line: Line) -> str:
    cells = [latex_name(v) for v in label_values(line)]
    cells += [latex_cell(line.cells[column.key]) for column in table.columns]
    return " & ".join(cells) + r" \\"


# -- CSV -------------------------------------------------------------------------------------------------------------
def rows_csv(rows: Iterable[Row], unfinished: Iterable[Unfinished] = ()) -> str:
    """Every run with all its fields in full precision; undefined is empty; lists and mappings are JSON.

    `status` is `finished`; what diverged or failed follows with its status, its error and no number.
    """
    values = [{**row.to_json(), "status": "finished", "error": ""} for row in rows]
    fields = list(values[0]) if values else []
    values += [{k: v for k, v in _unfinished_values(u).items() if k in fields} for u in unfinished]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=fields, lineterminator="\n")
    writer.writeheader()
    for value in values:
        writer.writerow({k: _csv_value(v) for k, v in value.items()})
    return out.getvalue()


def _unfinished_values(u: Unfinished) -> dict[str, object]:
    """What is known of a row that is not there."""
    return {
        "method": u.method, "options": u.options, "backbone": u.backbone, "train": u.train, "eval": ", ".join(u.eval),
        "fold": u.fold, "seed": u.seed, "protocol": ", ".join(u.protocols), "stage": u.stages[0],
        "status": u.status, "error": u.why,
    }  # fmt: skip


def _csv_value(value: object) -> object:
    if isinstance(value, list | tuple | Mapping):
        return json.dumps(value, ensure_ascii=False)
    # A spreadsheet runs a text that begins like a formula; names come from anybody's files.
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if re.match(r"\s*([=+@]|-.)", text) else text


# -- terminal --------------------------------------------------------------------------------------------------------
def terminal_table(rows: Sequence[Row], width: int = 120, unfinished: Sequence[Unfinished] = ()) -> str:
    """Compact aligned tables for the end of a run: in domain, out of domain, shifted, and what did not finish.

    Each shows the protocol's own selection and the baselines.

    Long names are cut to keep within `width` columns. Other selections are named below and stand in the report.
    """
    said = terminal_unfinished(unfinished, width)
    if not rows:
        return f"No finished row yet.\n\n{said}".rstrip()
    out = [_terminal_one(table, width) for table in build_tables(rows)]
    out += [terminal_grid(away.grid, width) for away in build_away(rows)]
    out += [terminal_grid(shifted.grid, width) for shifted in build_shifted(rows)]
    return "\n\n".join([*out, *([said] if said else [])])


def _terminal_one(table: Table, width: int) -> str:
    columns = [c for c in table.columns if c.key in _TERMINAL_COLUMNS]
    main = next((b for b in table.blocks if b.key != "-"), None)
    shown = [b for b in table.blocks if b is main or b.key == "-"]
    single = all(len(line.runs) == 1 for b in shown for line in b.lines)
    heads = ["Method", "Backbone", *([] if single else ["n"]), *(_short(c) for c in columns)]
    grid = [[_terminal_line(line, columns, single) for line in block.lines] for block in shown]
    widths = [max(len(r[k]) for r in [heads, *(r for lines in grid for r in lines)]) for k in range(len(heads))]
    for k in (0, 1):
        excess = max(0, sum(widths) + 2 * (len(widths) - 1) - width)
        widths[k] = min(widths[k], max(10, widths[k] - excess))
    out = [
        fit(table.title, width, True).rstrip(),
        "  ".join(fit(h, w, k < 2) for k, (h, w) in enumerate(zip(heads, widths, strict=True))).rstrip(),
    ]
    for block, lines in zip(shown, grid, strict=True):
        out.append(f"-- {block.title}")
        out += [
            "  ".join(fit(v, w, k < 2) for k, (v, w) in enumerate(zip(r, widths, strict=True))).rstrip() for r in lines
        ]
    return "\n".join([*out, *(printable(note) for note in _terminal_notes(table, shown))])


def _short(column: Column) -> str:
    return {"dice_oracle": "Dice†", "seconds_train": "train s", "seconds_score": "score s", "tau_val": "tau"}.get(
        column.key, column.title
    )


def _terminal_line(line: Line, columns: Iterable[Column], single: bool) -> list[str]:
    numbers = [line.cells[c.key].text if c.key == "pxap" else line.cells[c.key].value for c in columns]
    return [line.label, line.first.backbone, *([] if single else [str(len(line.runs))]), *numbers]


def _terminal_notes(table: Table, shown: Sequence[Block]) -> list[str]:
    notes = [n for n in table.footnotes if n[0] in "†‡!"]
    others = [b.key for b in table.blocks if b not in shown]
    if others:
        notes.append(f"Also scored: checkpoints {', '.join(others)} (see the report).")
    if table.synthetic:
        notes.append(f"{SYNTHETIC}: these numbers say nothing about real images.")
    return notes
