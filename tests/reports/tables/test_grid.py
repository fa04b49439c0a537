"""Tables with grouped columns: cut into parts, and the same numbers in every format."""

import re
from dataclasses import replace

import pytest

from wsolbench.reports.tables.aggregate import Cell
from wsolbench.reports.tables.formats import terminal_table
from wsolbench.reports.tables.grid import Grid, GridBlock, GridLine, Group, Head, mark_best
from wsolbench.reports.tables.grid_text import latex_grid, markdown_grid, terminal_grid
from wsolbench.reports.tables.ood import build_ood
from wsolbench.reports.tables.shifts import build_shifted

HOSTILE = '<script>alert(1)</script>|*x*_y_&[a](b)\n# z${}~^\\%"'


@pytest.fixture(scope="module")
def grids(wide_found):
    return [build_ood(wide_found.rows)[0].grid, build_shifted(wide_found.rows)[0].grid]


def numbers(grid):
    return [[*line.names, *(c.text for c in line.cells)] for b in grid.blocks for line in b.lines]


def test_parts_hold_everything_once(grids):
    for grid in grids:
        parts = grid.parts(1)
        assert [g for p in parts for g in p.groups] == list(grid.groups)
        assert parts[0].title == f"{grid.title} (part 1 of {len(grid.groups)})"
        assert [bool(p.footnotes) for p in parts] == [False] * (len(parts) - 1) + [True]
        for block in grid.blocks:
            for line in block.lines:
                found = [
                    c for p in parts for b in p.blocks if b.key == block.key
                    for x in b.lines if x.names == line.names for c in x.cells
                ]  # fmt: skip
                kept = [c.text for c in found]
                assert [t for t in kept if t] == [c.text for c in line.cells if c.text]
        assert grid.parts(99) == [grid]


def test_a_part_leaves_out_lines_that_say_nothing_there(grids):
    away = grids[0]
    last = next(b for b in away.parts(1)[0].blocks if b.key == "cl")
    assert all(any(c.value for c in line.cells) for line in last.lines)
    empty = replace(away.blocks[1].lines[0], cells=tuple(Cell("") for _ in away.heads))
    grid = replace(away, blocks=(GridBlock("x", "x", (empty,)),))
    assert grid.parts(1)[0].blocks == ()


def test_markdown_holds_the_same_numbers(grids):
    for grid in grids:
        text = markdown_grid(grid)
        found = set()
        for line in text.splitlines():
            if line.startswith("| ") and "---" not in line:
                found |= {c.strip().replace("**", "").replace("\\", "") for c in re.split(r"(?<!\\)\|", line)[1:-1]}
        assert {c for row in numbers(grid) for c in row if c} <= found
        assert text.count("SYNTHETIC DATA") >= 2
        heads = [x for x in text.splitlines() if x.startswith("| Method")]
        assert all(x.count(" | ") == 3 + sum(len(g.heads) for g in grid.groups[: min(3, grid.wide)]) for x in heads[:1])


def test_latex_is_well_formed(grids):
    for grid in grids:
        text = latex_grid(grid, "7")
        assert text.count(r"\begin{table}") == text.count(r"\end{table}") == -(-len(grid.groups) // min(grid.wide, 3))
        for table in text.split(r"\begin{table}")[1:]:
            spec = re.search(r"\\begin\{tabular\}\{(\w+)\}", table)
            body = table.split(r"\toprule")[1].split(r"\bottomrule")[0]
            lines = [x for x in body.splitlines() if x.endswith(r"\\") and not x.startswith(r"\multicolumn")]
            groups, heads, *rest = lines
            assert {x.count(" & ") for x in [heads, *rest]} == {len(spec[1]) - 1}
            spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}\{c\}", groups)]
            assert sum(spans) == len(spec[1]) - 4
            rules = [tuple(map(int, x)) for x in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", body)]
            assert [b - a + 1 for a, b in rules] == spans
            assert rules[0][0] == 5
            assert rules[-1][1] == len(spec[1])
        bare = text.replace(r"\{", "").replace(r"\}", "")
        assert bare.count("{") == bare.count("}")
        assert len(set(re.findall(r"\\label\{(.*?)\}", text))) == text.count(r"\label")
        assert "SYNTHETIC DATA" in text


def test_terminal_is_compact_and_keeps_to_its_width(wide_found):
    for width in (110, 120, 140):
        text = terminal_table(wide_found.rows, width)
        assert max(map(len, text.splitlines())) <= width
    assert text.index("glas · protocol fair") < text.index("Out of domain") < text.index("Shifted glas")
    part = text[text.index("Out of domain") : text.index("Shifted glas")]
    assert "Checkpoint cl" in part
    assert "Checkpoint loc" not in part
    assert "SYNTHETIC DATA" in part
    assert part.count("drop") >= 3
    grid = build_ood(wide_found.rows)[0].grid
    line = next(x for x in part.splitlines() if x.startswith("pixelcam"))
    own = next(x for x in grid.blocks[1].lines if x.names[0] == "pixelcam")
    assert line.split()[2:5] == [own.cells[k].value for k in (0, 1, 2)]
    assert terminal_table([]) == "No finished row yet."


def test_nothing_prints_nan_and_hostile_names_stay_text(wide_found):
    evil = [replace(r, method=HOSTILE, dataset=HOSTILE, eval=HOSTILE) for r in wide_found.rows if r.pair][:4]
    grid = build_ood(evil)[0].grid
    text, tex, plain = markdown_grid(grid), latex_grid(grid, "1"), terminal_grid(grid, 120)
    assert "<script" not in text
    assert "\n# z" not in text + tex + plain
    assert r"\textless{}script" in tex
    for block in (text, tex, plain):
        assert not re.search(r"\bnan\b", block, re.IGNORECASE)
    rows = [x for x in text.splitlines() if x.startswith("| &lt;script")]
    heads = next(x for x in text.splitlines() if x.startswith("| Method"))
    assert {len(re.split(r"(?<!\\)\|", x)) for x in rows} == {len(re.split(r"(?<!\\)\|", heads))}


def test_best_is_never_an_upper_bound_or_a_tie_of_all():
    heads = (Head("a", best=True), Head("b"))

    def line(value, look=""):
        cell = Cell(f"{value:.1f}", number=value)
        return GridLine(("m",), (cell, cell), look)

    marked = mark_best([line(3.0, "bound"), line(2.0), line(1.0)], heads)
    assert [[c.best for c in x.cells] for x in marked] == [[False, False], [True, False], [False, False]]
    assert not any(c.best for x in mark_best([line(1.0), line(1.0)], heads) for c in x.cells)


def test_a_table_of_words():
    cells = (Cell("1.0", number=1.0), Cell("see p. 3 | [x]"))
    block = GridBlock("same", "Same", (GridLine(("cam",), cells),))
    grid = Grid(
        "published", "T", "paper", False, (Group("", (Head("n"), Head("w", text=True))),), (block,), names=("M",)
    )
    assert r"see p. 3 \| \[x\]" in markdown_grid(grid)
    tex = latex_grid(grid, "1")
    assert r"\begin{tabular}{lrp{8cm}}" in tex
    assert r"\cmidrule" not in tex


def test_terminal_tells_gated_lines_apart(wide_found):
    rows = [r for r in wide_found.rows if r.method == "cam" and not r.shift and r.train == "glas"]
    text = terminal_table(rows)
    assert text.count("cam (gated)") == 1  # in the tables of the other sets, which have a background class
    assert text.count("cam ") > 2
