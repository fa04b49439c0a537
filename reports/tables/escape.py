"""Text made safe for each format, and the pieces of tables that all of them share."""

import re
from collections.abc import Iterable

from ...benchmark.core.errors import plain
from .cells import Cell


def pipes(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def markdown_cell(cell: Cell) -> str:
    """A number as Markdown, the best in bold."""
    value = f"**{cell.value}**{cell.mark}" if cell.best else cell.marked
    return f"{value} {cell.spread}".rstrip()


def markdown_escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, one line."""
    text = plain(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\"": "''{}", "±": r"$\pm$", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "·": r"$\cdot$",
    "§": r"\S{}", "¶": r"\P{}", "×": r"$\times$",
    "≥": r"$\geq$", "≤": r"$\leq$", "τ": r"$\tau$", "µ": r"$\mu$", "→": r"$\rightarrow$", "…": r"\dots{}",
}  # fmt: skip


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    return "".join(_LATEX.get(c, c) for c in plain(" ".join(text.split())))


def fit(text: str, width: int, left: bool) -> str:
    """Printable text of exactly `width` characters."""
    text = printable(text)
    text = text if len(text) <= width else text[: width - 1] + "…"
    return text.ljust(width) if left else text.rjust(width)


def printable(text: str) -> str:
    """Text without control characters, which could rewrite the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def latex_cell(cell: Cell) -> str:
    """A number as LaTeX, the best in bold, its spread in small type."""
    value = latex_escape(cell.value)
    value = rf"\textbf{{{value}}}" if cell.best and value else value
    value += rf"\,{latex_escape(cell.mark)}" if cell.mark else ""
    return value + (rf" {{\scriptsize {latex_escape(cell.spread)}}}" if cell.spread else "")


def latex_name(text: str) -> str:
    """Text that may begin a table line: a leading bracket would be read as an option of the line break above."""
    return "{}" * (text[:1] in ("[", "*")) + latex_escape(text)
