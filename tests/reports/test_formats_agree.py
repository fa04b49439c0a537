"""Every number of the page, Markdown, LaTeX and CSV is one number: read back from each format, they agree."""

import csv
import html
import io
import math
import re

import pytest

from wsolbench.reports.build import build_report
from wsolbench.reports.drawing import jobs
from wsolbench.reports.rows.load import collect
from wsolbench.reports.tables.aggregate import tables_of
from wsolbench.reports.tables.contents import Contents


@pytest.fixture(scope="module")
def written(wide, tmp_path_factory):
    """A report of other sets, shifts, gated lines and several seeds, without figures; its findings and its texts."""
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FIGURES", "OOD_FIGURES", "SHIFT_FIGURES"):
            patch.setattr(jobs, name, {}, raising=False)
        build_report(wide, out)
    names = ("report.md", "report.tex", "index.html", "lines.csv")
    return collect(wide), {name: (out / name).read_text(encoding="utf-8") for name in names}


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def markdown_rows(text: str) -> set[tuple[str, ...]]:
    """The lines of all tables, without the bold of the best."""
    lines = (line for line in text.splitlines() if line.startswith("| ") and "---" not in line)
    return {tuple(squeezed(re.sub(r"[*\\]", "", cell)) for cell in line.strip()[1:-1].split("|")) for line in lines}


def latex_rows(text: str) -> set[tuple[str, ...]]:
    """The same of LaTeX."""
    found = set()
    for line in text.splitlines():
        if line.endswith(r" \\") and "&" in line and "multicolumn" not in line:
            plain = re.sub(r"\\textbf\{([^{}]*)\}", r"\1", line.removesuffix(r" \\"))
            plain = re.sub(r"\{\\scriptsize (.*?)\}(?= &|$)", r"\1", plain)
            plain = (
                plain.replace(r"$\pm$", "±").replace(r"$^\ddagger$", "‡").replace(r"\,\P{}", " ¶").replace(r"\_", "_")
            )
            found.add(tuple(squeezed(cell.replace("{}", "")) for cell in plain.split(" & ")))
    return found


def page_rows(text: str) -> set[tuple[str, ...]]:
    """The same of the page."""
    body = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    found = set()
    for line in re.findall(r"<tr.*?</tr>", body, flags=re.DOTALL):
        cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line, flags=re.DOTALL)
        found.add(tuple(squeezed(html.unescape(re.sub(r"<[^>]+>", "", cell))) for cell in cells))
    return found


def expected(findings):
    """All lines of the in-domain tables, as their cells say."""
    for table in Contents(findings).tables:
        for line in table.lines:
            names = (line.marked, line.first.backbone, line.map, str(len(line.runs)))
            yield (*names, *(line.cells[c.key].text for c in table.columns))


def expected_grids(findings):
    """All lines of other sets, as their cells say."""
    for chapter in Contents(findings).chapters:
        for grid in chapter.grids:
            if grid.kind in ("ood", "shift"):
                for part in grid.parts(min(grid.wide, 3)):
                    for block in part.blocks:
                        for line in block.lines:
                            yield (*line.names, *(cell.text for cell in line.cells))


def test_tables_agree(written):
    findings, texts = written
    wanted = {tuple(map(squeezed, line)) for line in expected(findings)}
    assert len(wanted) > 20
    assert any("gated" in cell for line in wanted for cell in line)
    assert any("±" in cell and "[" in cell for line in wanted for cell in line)
    assert wanted <= markdown_rows(texts["report.md"])
    assert wanted <= latex_rows(texts["report.tex"])
    assert wanted <= page_rows(texts["index.html"])


def test_grids_agree(written):
    findings, texts = written
    wanted = {tuple(map(squeezed, line)) for line in expected_grids(findings)}
    assert len(wanted) > 20
    assert wanted <= markdown_rows(texts["report.md"])
    assert {line for line in wanted if line[0] != "chance"} <= latex_rows(texts["report.tex"])


def test_lines_csv_rounds_to_what_tables_print(written):
    findings, texts = written
    lines = list(csv.DictReader(io.StringIO(texts["lines.csv"])))
    tables = tables_of(findings.rows, findings.settings)
    printed = [(t, block.key, line) for t in tables for block in t.blocks for line in block.lines]
    assert len(lines) == len(printed)
    for found, (table, key, line) in zip(lines, printed, strict=True):
        assert (found["eval"], found["selection"], found["method"]) == (table.eval, key, line.marked)
        assert found["map"] == line.map
        for column in table.columns:
            cell = line.cells[column.key]
            text = found[column.key]
            assert (text == "") == math.isnan(cell.number)
            if text and column.digits == 1 and column.scale == 1 and "seconds" not in column.key:
                assert f"{float(text):.1f}".removeprefix("-") == cell.value.removeprefix("-")
            if column.interval and not math.isnan(cell.low):
                ends = [float(found[f"{column.key}_{end}"]) for end in ("low", "high")]
                assert f"[{ends[0]:.1f}, {ends[1]:.1f}]" in cell.spread
            if column.interval and "±" in cell.spread:
                assert f"± {float(found[f'{column.key}_sd']):.1f}" in cell.spread
