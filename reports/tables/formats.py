"""Tables as Markdown, LaTeX, CSV and plain text: one set of formatted numbers, escaped for each.

The CSV files are data frames. The printed tables are not left to pandas' Styler: it has no headings inside a table, no
notes below it and no page width, so its LaTeX would have to be cut open again, and Markdown it does not write.
"""

import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ...benchmark.core.errors import plain
from ..rows.declared import SEEN, SYNTHETIC
from ..rows.row import Row, json_value
from ..rows.unfinished import Unfinished
from .aggregate import Block, Line, Table, build_tables
from .cells import Column
from .escape import fit, latex_cell, latex_escape, latex_name, markdown_cell, markdown_escape, pipes, printable
from .grid_text import terminal_grid
from .ood import build_ood
from .shifts import build_shifted
from .unfinished_tables import terminal_unfinished

if TYPE_CHECKING:
    import pandas as pd

_FIRST_TO_GO = (
    "seconds_score", "seconds_train", "iou_tau_val", "tau_val", "dice_oracle", "dice_image", "chance_dice",
    "dice_tau_val", "accuracy",
)  # fmt: skip
_WIDE = 120  # columns from which on the backbone has one of its own
_TERMINAL_COLUMNS = (
    "pxap", "chance", "accuracy", "dice_tau_val", "chance_dice", "dice_image", "iou_tau_val", "tau_val", "dice_oracle",
    "seconds_train", "seconds_score",
)  # fmt: skip


LABEL_TITLES = ("Method", "Backbone", "Map", "n")


def label_values(line: Line) -> list[str]:
    """What names a line, in the order of LABEL_TITLES."""
    return [line.marked, line.first.backbone, line.map, str(len(line.runs))]


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
def rows_csv(frame: "pd.DataFrame", unfinished: Iterable[Unfinished] = ()) -> str:
    """`rows_frame` with all its columns in full precision; undefined is empty; lists and mappings are JSON.

    `status` is `finished`; what diverged or failed follows with its status, its error and no number.
    """
    import pandas as pd

    status = pd.DataFrame({"status": "finished", "error": ""}, index=frame.index)
    finished = frame.join(status).astype(object)
    others = pd.DataFrame([_unfinished_values(u) for u in unfinished], columns=finished.columns, dtype=object)
    return _csv(pd.concat([finished, others]))


def lines_csv(tables: Iterable[Table]) -> str:
    """Every line of every table: what its cells print, in full precision, from the same cells.

    Of each column the value, of those with an interval its ends (`_low`, `_high`), and of several runs their standard
    deviation (`_sd`); undefined is empty.
    """
    import pandas as pd

    values = [_line_values(table, block, line) for table in tables for block in table.blocks for line in block.lines]
    return _csv(pd.DataFrame(values, dtype=object))


def _csv(frame: "pd.DataFrame") -> str:
    return frame.map(_csv_value).to_csv(index=False, lineterminator="\n")


def _line_values(table: Table, block: Block, line: Line) -> dict[str, object]:
    values: dict[str, object] = {
        "train": table.train, "eval": table.eval, "scheme": table.scheme, "protocol": table.protocol,
        "selection": block.key, "method": line.marked, "backbone": line.first.backbone, "map": line.map,
        "runs": len(line.runs), "groups": max(r.groups for r in line.estimates),
        "groups_effective": max(r.groups_effective for r in line.estimates), "synthetic": table.synthetic,
        "weights_seen": list(dict.fromkeys(name for r in line.runs for name in r.weights_seen)),
        "notes": list(dict.fromkeys(note for r in line.runs for note in r.notes)),
    }  # fmt: skip
    for column in table.columns:
        cell = line.cells[column.key]
        ends = ("low", "high", "sd") if column.interval else ("sd",)
        values |= {column.key: cell.number, **{f"{column.key}_{end}": getattr(cell, end) for end in ends}}
    return values


def _unfinished_values(u: Unfinished) -> dict[str, object]:
    """What is known of a row that is not there."""
    return {
        "method": u.method, "options": u.options, "backbone": u.backbone, "train": u.train, "eval": ", ".join(u.eval),
        "fold": u.fold, "seed": u.seed, "protocol": ", ".join(u.protocols), "stage": u.stages[0],
        "status": u.status, "error": u.why,
    }  # fmt: skip


def _csv_value(value: object) -> object:
    if isinstance(value, list | tuple | Mapping):
        return json.dumps(json_value(value), ensure_ascii=False)
    # A spreadsheet runs a text that begins like a formula; names come from anybody's files.
    if not isinstance(value, str):
        return None if isinstance(value, float) and math.isinf(value) else value
    text = plain(value)
    return f"'{text}" if re.match(r"\s*([=+@]|-.)", text) else text


# -- terminal --------------------------------------------------------------------------------------------------------
def terminal_table(rows: Sequence[Row], width: int = 120, unfinished: Sequence[Unfinished] = ()) -> str:
    """Compact aligned tables for the end of a run: in domain, out of domain, shifted, and what did not finish.

    Each shows the protocol's own selection and the baselines.

    Long names are cut to keep within `width` columns. Other selections are named below and stand in the report.
    """
    failures = terminal_unfinished(unfinished, width)
    if not rows:
        return f"No finished row yet.\n\n{failures}".rstrip()
    out = [_terminal_one(table, width) for table in build_tables(rows)]
    out += [terminal_grid(ood.grid, width) for ood in build_ood(rows)]
    out += [terminal_grid(shifted.grid, width) for shifted in build_shifted(rows)]
    return "\n\n".join([*out, *([failures] if failures else [])])


def _terminal_one(table: Table, width: int) -> str:
    columns = [c for c in table.columns if c.key in _TERMINAL_COLUMNS]
    main = next((b for b in table.blocks if b.key != "-"), None)
    shown = [b for b in table.blocks if b is main or b.key == "-"]
    lines = [line for b in shown for line in b.lines]
    single = all(len(line.runs) == 1 for line in lines)
    networks = sorted({line.first.backbone for line in lines} - {"-"})
    same = len(networks) == 1 and width < _WIDE  # then its name stands in the heading
    names = [("Method", lambda x: x.label), *([] if same else [("Backbone", lambda x: x.first.backbone)])]
    names += [] if single else [("n", lambda x: str(len(x.runs)))]
    kept = _columns_that_fit(columns, lines, [max(len(h), *(len(f(x)) for x in lines)) for h, f in names], width)
    heads = [h for h, _ in names] + [_short(c) for c in kept]
    grid = [[[f(x) for _, f in names] + [_number(x, c) for c in kept] for x in b.lines] for b in shown]
    widths = [max(len(r[k]) for r in [heads, *(r for rows in grid for r in rows)]) for k in range(len(heads))]
    texts = 1 if same else 2  # columns of names: these may be cut
    for k in range(texts):
        excess = max(0, sum(widths) + 2 * (len(widths) - 1) - width)
        widths[k] = min(widths[k], max(10, widths[k] - excess))

    def row(values: Sequence[str]) -> str:
        return "  ".join(fit(v, w, k < texts) for k, (v, w) in enumerate(zip(values, widths, strict=True))).rstrip()

    out = [fit(f"{table.title} · {networks[0]}" if same else table.title, width, True).rstrip(), row(heads)]
    for block, rows in zip(shown, grid, strict=True):
        out += [f"-- {block.title}", *map(row, rows)]
    if dropped := [_short(c) for c in columns if c not in kept]:
        out.append(_wrapped(f"No room here for {', '.join(dropped)}: see the report, or a wider terminal.", width))
    return "\n".join([*out, *(_wrapped(printable(note), width) for note in _terminal_notes(table, shown))])


def _columns_that_fit(
    columns: Sequence[Column], lines: Sequence[Line], names: Sequence[int], width: int
) -> list[Column]:  # fmt: skip
    """The columns for which there is room: a number is never cut, a whole column goes. names: widths of the others."""
    kept = list(columns)
    widths = {c.key: max(len(_short(c)), *(len(_number(x, c)) for x in lines)) for c in columns}
    least = sum(min(n, 22) for n in names)  # names may be cut down to this, numbers not
    for key in _FIRST_TO_GO:
        if least + sum(widths[c.key] for c in kept) + 2 * (len(kept) + len(names) - 1) <= width:
            break
        kept = [c for c in kept if c.key != key]
    return kept


def _number(line: Line, column: Column) -> str:
    cell = line.cells[column.key]
    return cell.text if column.key == "pxap" else cell.marked


def _wrapped(note: str, width: int) -> str:
    """A note over as many lines as it needs, the later ones indented."""
    return textwrap.fill(note, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


_SHORT = {
    "dice_oracle": "Dice†", "chance_dice": "chance D.", "seconds_train": "train s", "seconds_score": "score s",
    "tau_val": "tau",
}  # fmt: skip


def _short(column: Column) -> str:
    return _SHORT.get(column.key, column.title)


def _terminal_notes(table: Table, shown: Sequence[Block]) -> list[str]:
    notes = [n for n in table.footnotes if n[0] in f"†‡!{SEEN}"]
    others = [b.key for b in table.blocks if b not in shown]
    if others:
        notes.append(f"Also scored: checkpoints {', '.join(others)} (see the report).")
    if table.synthetic:
        notes.append(f"{SYNTHETIC}: these numbers say nothing about real images.")
    return notes
