"""Tables with grouped columns as Markdown, LaTeX and plain text."""

from collections.abc import Sequence

from ..rows.declared import COLLAPSED, SEEN
from .aggregate import GATED, Cell
from .escape import fit, latex_cell, latex_escape, latex_name, markdown_cell, markdown_escape, pipes, printable
from .grid import Grid, GridLine, Group, Head

_PER_PAPER = 3  # groups side by side on a sheet of paper


def _columns(grid: Grid) -> list[tuple[Group, Head]]:
    return [(group, head) for group in grid.groups for head in group.heads]


def _said(cell: Cell, head: Head) -> str:
    """A cell as Markdown: words are escaped, numbers are ours."""
    return markdown_escape(cell.value) if head.text else markdown_cell(cell)


# -- Markdown --------------------------------------------------------------------------------------------------------
def markdown_grid(grid: Grid, level: int = 2) -> str:
    """A heading, what it is, the table in parts that fit a page, the footnotes."""
    parts = [f"{'#' * level} {markdown_escape(grid.heading)}", markdown_escape(f"{grid.text} {grid.stamped_caption}")]
    for part in grid.parts(min(grid.wide, _PER_PAPER)):
        columns = _columns(part)
        heads = [*part.names, *(f"{g.title} {h.title}".strip() for g, h in columns)]
        aligned = ["---"] * len(part.names) + ["---" if h.text else "---:" for _, h in columns]
        chance = [line for block in part.blocks if block.key == "chance" for line in block.lines]
        for block in (b for b in part.blocks if b.key != "chance"):
            lines = [pipes(markdown_escape(h) for h in heads), pipes(aligned)]
            for line in (*chance, *block.lines):
                cells = [_said(cell, head) for cell, (_, head) in zip(line.cells, columns, strict=True)]
                lines.append(pipes([*(markdown_escape(name) for name in line.names), *cells]))
            parts += [f"**{markdown_escape(block.title)}**", "\n".join(lines)]
    if grid.footnotes:
        parts.append("\n".join(f"- {markdown_escape(note)}" for note in grid.footnotes))
    return "\n\n".join(p for p in parts if p.strip()) + "\n"


# -- LaTeX -----------------------------------------------------------------------------------------------------------
def latex_grid(grid: Grid, number: str) -> str:
    """Floating booktabs tables, as many as keep it readable; need the packages booktabs and graphicx."""
    parts = grid.parts(min(grid.wide, _PER_PAPER))
    return "\n".join(
        _latex_part(part, f"{number}-{k}" if len(parts) > 1 else number) for k, part in enumerate(parts, 1)
    )


def _latex_part(grid: Grid, number: str) -> str:
    columns = _columns(grid)
    # Words are broken into lines of a fixed width, since a table of long sentences would shrink to nothing.
    spec = "l" * len(grid.names) + "".join(r"p{8cm}" if h.text else "r" for _, h in columns)
    body = []
    for block in grid.blocks:
        body.append(r"\midrule")
        body.append(
            rf"\multicolumn{{{len(grid.names) + len(columns)}}}{{l}}{{\textit{{{latex_escape(block.title)}}}}} \\"
        )
        for line in block.lines:
            names = [latex_name(name) for name in line.names]
            body.append(" & ".join([*names, *(latex_cell(cell) for cell in line.cells)]) + r" \\")
    notes = r" \\ ".join(latex_escape(note) for note in grid.footnotes)
    foot = rf"\par\smallskip\begin{{minipage}}{{\textwidth}}\scriptsize\raggedright {notes}\end{{minipage}}"
    heads = [latex_escape(t) for t in grid.names] + [latex_escape(h.title) for _, h in columns]
    caption = latex_escape(f"{grid.title}. {grid.stamped_caption}")
    return "\n".join([
        r"\begin{table}[t]", r"\centering", rf"\caption{{{caption}}}", rf"\label{{tab:wsolbench-{number}}}",
        r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{{spec}}}", r"\toprule", *_latex_groups(grid),
        " & ".join(heads) + r" \\", *body, r"\bottomrule", r"\end{tabular}}", *([foot] if notes else []),
        r"\end{table}",
    ]) + "\n"  # fmt: skip


def _latex_groups(grid: Grid) -> list[str]:
    """The line of group headings and the rules under it; none where no group has one."""
    if not any(group.title for group in grid.groups):
        return []
    at = len(grid.names) + 1
    cells, rules = [""] * len(grid.names), []
    for group in grid.groups:
        cells.append(rf"\multicolumn{{{len(group.heads)}}}{{c}}{{{latex_escape(group.title)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + len(group.heads) - 1}}}")
        at += len(group.heads)
    return [" & ".join(cells) + r" \\", " ".join(rules)]


# -- terminal --------------------------------------------------------------------------------------------------------
def terminal_grid(grid: Grid, width: int) -> str:
    """Plain aligned text without spreads, cut into parts of at most `width` columns: own selection and baselines.

    Of every group, only the columns marked as brief. Footnotes and all else stand in the report.
    """
    grid = grid.brief()
    names = _name_widths(grid, width)
    parts, start = [], 0
    while start < len(grid.groups):
        size = 1
        while (
            start + size < len(grid.groups) and _terminal_width(grid.groups[start : start + size + 1], names) <= width
        ):
            size += 1
        parts.append(_terminal_part(grid, start, size, names, width))
        start += size
    notes = [fit(grid.footnotes[0], width, True).rstrip()] if grid.footnotes else []
    notes += [printable(note) for note in grid.footnotes[1:] if note.startswith((SEEN, COLLAPSED))]
    return "\n".join([fit(grid.heading, width, True).rstrip(), *parts, *notes])


def _named(line: GridLine) -> tuple[str, str]:
    """Method and backbone; the map stands in no column of its own, so a gated line is told by the name."""
    return line.names[0] + (GATED if "gated" in "".join(line.names[2:3]) else ""), line.names[1]


def _name_widths(grid: Grid, width: int) -> list[int]:
    """Widths of method and backbone, at most a good third of what there is."""
    lines = [_named(line) for block in grid.blocks for line in block.lines]
    widths = [max([len(grid.names[k]), *(len(names[k]) for names in lines)]) for k in (0, 1)]
    return [min(widths[0], max(12, width // 4)), min(widths[1], max(8, width // 7))]


def _cell_widths(group: Group) -> list[int]:
    return [max(len(head.title), 5) for head in group.heads]


def _terminal_width(groups: Sequence[Group], names: Sequence[int]) -> int:
    return sum(names) + 2 + sum(_room(group) + 4 for group in groups)


def _room(group: Group) -> int:
    """Width of a group: its columns, or a title that is not too long."""
    widths = _cell_widths(group)
    return max(sum(widths) + 2 * (len(widths) - 1), min(len(group.title), 28))


def _terminal_part(grid: Grid, start: int, size: int, names: Sequence[int], width: int) -> str:
    groups = grid.groups[start : start + size]
    first = sum(len(g.heads) for g in grid.groups[:start])
    pad = " " * (sum(names) + 2)
    above, heads = [pad], ["  ".join(fit(grid.names[k], w, True) for k, w in enumerate(names))]
    for group in groups:
        room = _room(group)
        above.append(fit(group.title, room, True))
        heads.append("  ".join(fit(h.title, w, False) for h, w in zip(group.heads, _cell_widths(group), strict=True)))
        heads[-1] = heads[-1].ljust(room)
    out = ["    ".join(above).rstrip()] if any(g.title for g in groups) else []
    out.append("    ".join(heads).rstrip())
    for block in grid.blocks:
        rows = [_terminal_line(line, first, groups, names) for line in block.lines]
        rows = [row for row in rows if row]
        out += [f"-- {block.title}", *rows] if rows and block.key != "chance" else rows
    return "\n".join(line[:width] for line in out)


def _terminal_line(line: GridLine, first: int, groups: Sequence[Group], names: Sequence[int]) -> str:
    """One line, or nothing where it has no number in these groups."""
    cells, at = [], first
    named = False
    for group in groups:
        widths = _cell_widths(group)
        values = [line.cells[at + k].marked.replace(" ", "") for k in range(len(widths))]
        named = named or any(values)
        text = "  ".join(fit(v, w, False) for v, w in zip(values, widths, strict=True))
        cells.append(text.ljust(_room(group)))
        at += len(widths)
    name = "  ".join(fit(text, w, True) for text, w in zip(_named(line), names, strict=True))
    return "    ".join([name, *cells]).rstrip() if named else ""
