"""Tables: what is averaged, what is kept apart, and the same numbers in every format."""

import csv
import io
import json
import math
import re
import statistics
from dataclasses import replace

import pytest

from wsolbench.benchmark.core.results_store import Store
from wsolbench.reports.rows.frame import rows_frame
from wsolbench.reports.rows.load import collect, load_rows
from wsolbench.reports.statistics.spreads import spread_over_groups
from wsolbench.reports.tables.aggregate import COLUMNS, build_tables, make_cell
from wsolbench.reports.tables.formats import (
    label_values,
    latex_escape,
    latex_table,
    markdown_escape,
    markdown_table,
    rows_csv,
    terminal_table,
)

HOSTILE = '<script>alert(1)</script>|*x*_y_&[a](b)\n# z${}~^\\%"'


@pytest.fixture(scope="module")
def rows(found):
    return found.rows


@pytest.fixture(scope="module")
def tables(rows):
    return build_tables(rows)


def line_of(table, method, block=0):
    return next(line for line in table.blocks[block].lines if line.first.method == method)


def test_one_table_a_protocol_and_nothing_lost(rows, tables):
    assert [(t.eval, t.protocol) for t in tables] == [("glas", "fair"), ("glas", "paper")]
    for table in tables:
        inside = [run for line in table.lines for run in line.runs]
        assert {r.protocol for r in inside} == {table.protocol}
        assert sorted(r.stage for r in inside) == sorted(r.stage for r in rows if r.protocol == table.protocol)


def test_a_changed_protocol_is_another_table(rows):
    changed = [replace(r, protocol="fair(size=112)") for r in rows[:3]]
    assert [t.protocol for t in build_tables([*rows, *changed])] == ["fair", "fair(size=112)", "paper"]


def test_synthetic_and_real_data_never_share_a_table(rows):
    real = [replace(r, synthetic=False) for r in rows if r.protocol == "fair"]
    tables = build_tables([*rows, *real])
    assert [(t.protocol, t.synthetic) for t in tables] == [("fair", False), ("fair", True), ("paper", True)]
    assert all(("SYNTHETIC DATA" in t.caption) == t.synthetic for t in tables)


def test_blocks_start_with_the_protocols_own_selection(tables):
    assert [b.key for b in tables[0].blocks] == ["cl", "loc", "last", "-"]
    assert [b.key for b in tables[1].blocks] == ["loc", "cl", "last", "-"]


def test_mean_and_deviation(rows, tables):
    runs = [r for r in rows if (r.method, r.protocol, r.selection) == ("cam", "fair", "cl")]
    assert [r.seed for r in runs] == [0, 1]
    values = [r.pxap for r in runs]
    cell = line_of(tables[0], "cam").cells["pxap"]
    ends = spread_over_groups(runs, "pxap")
    between = f"[{ends.low:.1f}, {ends.high:.1f}]"
    assert cell.text == f"{sum(values) / 2:.1f} {between} ± {statistics.stdev(values):.1f}"
    assert ends.low < cell.number < ends.high
    assert cell.number == pytest.approx(sum(values) / 2)


def test_a_single_run_has_its_interval(tables):
    line = line_of(tables[0], "darkness", -1)
    run = line.first
    assert line.cells["pxap"].text == f"{run.pxap:.1f} [{run.pxap_low:.1f}, {run.pxap_high:.1f}]"


def test_undefined_runs_are_counted_out(rows):
    column = next(c for c in COLUMNS if c.key == "accuracy")
    runs = [replace(rows[0], accuracy=v) for v in (80.0, math.nan, 90.0)]
    assert make_cell(runs, column).text == "85.0 [n/a] ± 7.1 (2 of 3)"
    assert make_cell([replace(rows[0], accuracy=math.nan)], column).text == "n/a"


def test_best_is_the_best_weakly_supervised(tables):
    for block in tables[0].blocks:
        best = {line.first.method for line in block.lines if line.cells["pxap"].best}
        fair = [x for x in block.lines if not x.first.upper_bound and not x.first.baseline]
        fair = [x for x in fair if not math.isnan(x.cells["pxap"].number)]
        top = max(fair, key=lambda x: x.cells["pxap"].number).first.method if fair else ""
        assert best == ({top} if top else set())
        assert not any(line.cells["dice_oracle"].best for line in block.lines)
    unet = line_of(tables[0], "unet")
    assert unet.cells["pxap"].number > line_of(tables[0], "pixelcam").cells["pxap"].number
    assert unet.marked == "unet ‡"


def test_different_settings_are_never_averaged(tmp_path, write_results, recipe):
    for setting in (20, 50):
        write_results(tmp_path, recipe(seeds=(0,), protocols=("fair",), train_setting=setting))
    both = collect(Store(tmp_path))
    table = build_tables(both.rows, both.settings)[0]
    names = [line.name for line in table.blocks[0].lines if line.first.method == "cam"]
    assert names == ["cam (epochs=20)", "cam (epochs=50)"]
    assert all(len(line.runs) == 1 for line in table.lines)


def test_runs_that_fold_and_seed_do_not_tell_apart_stand_alone(rows):
    twins = [
        replace(r, stage=f"{k}{r.stage[1:]}") for k in "xy" for r in rows if r.method == "cam" and r.protocol == "fair"
    ]
    lines = list(build_tables(twins)[0].blocks[0].lines)
    assert [len(line.runs) for line in lines] == [1] * 4
    assert len({line.name for line in lines}) == 4


def test_columns(tables):
    keys = [c.key for c in tables[0].columns]
    assert keys[:2] == ["pxap", "chance"]
    assert "pxap_positives" not in keys  # every image has a region: the column would say nothing new
    assert all("†" in c.title and "oracle" in c.title for c in tables[0].columns if "oracle" in c.key)
    assert "6 validation masks" in tables[0].caption
    assert any("share patients" in note for note in tables[0].footnotes)


def test_positives_have_their_columns_where_they_differ(tmp_path, write_results, recipe):
    store = write_results(tmp_path, recipe(seeds=(0,), protocols=("fair",), region_classes=(False, True)))
    keys = [c.key for c in build_tables(load_rows(store))[0].columns]
    assert keys[:5] == ["pxap", "chance", "pxap_image", "pxap_positives", "chance_positives"]
    assert "false_area" in keys


# -- formats ---------------------------------------------------------------------------------------------------------
def expected_grid(table):
    return [
        [*label_values(line), *(line.cells[c.key].text for c in table.columns)] for line in table.lines
    ]  # fmt: skip


def test_markdown_holds_the_same_numbers(tables):
    for table in tables:
        text = markdown_table(table)
        lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
        grid = [[c.strip().replace("**", "").replace("\\", "") for c in line[1:-1].split("|")] for line in lines]
        assert [g for g in grid if g[0] != "Method"] == expected_grid(table)
        assert text.count("SYNTHETIC DATA") >= 2  # heading and caption


def test_latex_holds_the_same_numbers(tables):
    for number, table in enumerate(tables, 1):
        text = latex_table(table, number)
        body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
        lines = [x for x in body.splitlines() if x.count(" & ") > 3]
        assert len({x.count(" & ") for x in lines}) == 1
        grid = []
        for line in lines[1:]:
            plain = re.sub(r"\\textbf\{(.*?)\}", r"\1", line.removesuffix(r" \\"))
            plain = re.sub(r" \{\\scriptsize (.*?)\}", r" \1", plain)
            for tex, sign in ((r"$\pm$", "±"), (r"$^\ddagger$", "‡"), (r"\_", "_")):
                plain = plain.replace(tex, sign)
            grid.append(plain.split(" & "))
        assert grid == expected_grid(table)
        assert text.replace(r"\{", "").replace(r"\}", "").count("{") == text.replace(r"\{", "").replace(
            r"\}", ""
        ).count("}")
        assert r"SYNTHETIC DATA" in text.split(r"\caption")[1].split("\n")[0]


def test_csv_holds_every_run_in_full(rows):
    read = list(csv.DictReader(io.StringIO(rows_csv(rows_frame(rows)))))
    assert len(read) == len(rows)
    for line, row in zip(read, rows, strict=True):
        assert line["stage"] == row.stage
        assert line["pxap"] == ("" if math.isnan(row.pxap) else repr(row.pxap))
        assert json.loads(line["notes"]) == list(row.notes)


def test_nothing_prints_nan(rows, tables):
    texts = [
        rows_csv(rows_frame(rows)),
        terminal_table(rows),
        *(markdown_table(t) for t in tables),
        *(latex_table(t, 1) for t in tables),
    ]
    for text in texts:
        assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    assert "n/a" in texts[1]


def test_hostile_names_stay_text(rows):
    evil = [
        replace(r, method=HOSTILE, train=HOSTILE, eval=HOSTILE, backbone="-=cmd", notes=(HOSTILE,)) for r in rows[:4]
    ]
    table = build_tables(evil)[0]
    text = markdown_table(table)
    assert "<script" not in text
    header = next(x for x in text.splitlines() if x.startswith("| Method"))
    cells = re.split(r"(?<!\\)\|", next(x for x in text.splitlines() if x.startswith("| &lt;script")))
    assert len(cells) == len(header.split("|"))
    tex = latex_table(table, 1)
    assert r"\textless{}script\textgreater{}" in tex
    assert "\n# z" not in tex
    assert r"\%''" in tex
    assert "<script>alert(1)</script>" in rows_csv(rows_frame(evil))  # as data, quoted by the CSV writer
    assert all(len(line) <= 120 for line in terminal_table(evil).splitlines()[1:4])
    assert "\n#" not in terminal_table(evil)
    assert "\x1b" not in terminal_table([replace(r, method="\x1b[2J") for r in rows])


def test_formulas_do_not_reach_a_spreadsheet(rows):
    line = next(csv.DictReader(io.StringIO(rows_csv(rows_frame([replace(rows[0], method="=1+1", backbone="-")])))))
    assert line["method"] == "'=1+1"
    assert line["backbone"] == "-"


@pytest.mark.parametrize(
    "text, tex",
    [
        ("a_b", r"a\_b"),
        ("50%", r"50\%"),
        ("{x}", r"\{x\}"),
        ("a\\b", r"a\textbackslash{}b"),
        ("$&#", r"\$\&\#"),
        ("~^", r"\textasciitilde{}\textasciicircum{}"),
    ],
)
def test_latex_escape(text, tex):
    assert latex_escape(text) == tex


def test_markdown_escape():
    assert markdown_escape("a|b_c*d`<e>\n&") == r"a\|b\_c\*d\`&lt;e&gt; &amp;"


def test_terminal_table_is_compact(rows):
    text = terminal_table(rows)
    assert max(map(len, text.splitlines())) <= 120
    assert "SYNTHETIC DATA" in text
    assert "Checkpoint cl" in text
    assert "Checkpoint last" not in text
    assert "checkpoints loc, last" in text
    assert terminal_table([]) == "No finished row yet."
    pixel = next(line for line in text.splitlines() if line.startswith("pixelcam"))
    cell = line_of(build_tables(rows)[0], "pixelcam").cells
    assert cell["pxap"].text in pixel
    assert cell["dice_tau_val"].value in pixel


def test_terminal_table_cuts_long_names(rows):
    long = [replace(r, method="m" * 200, backbone="b" * 200) for r in rows]
    assert max(len(x) for x in terminal_table(long).splitlines() if x.startswith("m")) <= 120


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120, 200])
def test_terminal_table_fits_and_cuts_no_number(rows, width):
    text = terminal_table(rows, width)
    table = build_tables(rows)[0]
    shown = text.split("\n\n")[0].splitlines()
    assert max(map(len, shown)) <= width
    value = line_of(table, "pixelcam").cells["pxap"].text
    assert any(line.startswith("pixelcam") and value in line for line in shown)
    names = {"Accuracy", "Dice", "chance D.", "Dice/image", "IoU", "tau", "train s", "score s"}
    gone = names - set(re.split(r"  +", shown[1]))
    assert bool(gone) == (width < 150)
    if gone:
        told = " ".join(" ".join(shown).partition("No room here for ")[2].split())
        assert all(name in told for name in gone)
