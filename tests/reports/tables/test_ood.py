"""Other sets and shifted ones: which rows stand where, what is lost, and what the notes must say."""

import math
import statistics
from dataclasses import replace

import pytest

from wsolbench.reports.rows.load import with_drops
from wsolbench.reports.tables.aggregate import build_tables
from wsolbench.reports.tables.detail import class_grid
from wsolbench.reports.tables.grid import place_of
from wsolbench.reports.tables.grid_text import latex_grid, markdown_grid, terminal_grid
from wsolbench.reports.tables.ood import build_ood
from wsolbench.reports.tables.shifts import build_shifted


@pytest.fixture(scope="module")
def rows(wide_found):
    return wide_found.rows


@pytest.fixture(scope="module")
def away(rows):
    return build_ood(rows)[0]


@pytest.fixture(scope="module")
def shifted(rows):
    return build_shifted(rows)[0]


def cell(grid, group, head, method, block="cl"):
    """The cell of a method under a heading."""
    at = 0
    for g in grid.groups:
        for h in g.heads:
            if (g.title.partition(" (")[0], h.title) == (group, head):
                lines = next(b for b in grid.blocks if b.key == block).lines
                return next(line for line in lines if line.names[0] == method).cells[at]
            at += 1
    raise AssertionError((group, head))


def pick(rows, **wanted):
    return [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]


def test_in_domain_tables_hold_in_domain_rows_alone(rows):
    tables = build_tables(rows)
    assert [(t.train, t.eval) for t in tables] == [("camelyon16", "camelyon16"), ("glas", "glas")]
    assert all(r.eval == r.train == r.dataset for t in tables for r in t.rows)


def test_every_row_stands_in_exactly_one_kind_of_table(rows, away, shifted):
    at_home = [r.stage for t in build_tables(rows) for r in t.rows]
    other = [r.stage for t in away.tables for r in t.rows]
    changed = [r.stage for x in shifted.ladders for level, t in x.levels.items() if level for r in t.rows]
    assert sorted([*at_home, *other, *changed]) == sorted(r.stage for r in rows)
    assert len(build_ood(rows)) == len(build_shifted(rows)) == 1


def test_pairs_of_sets(away):
    assert [g.title for g in away.grid.groups] == [
        "camelyon16 → glas", "glas → camelyon16", "glas → camelyon17:centre-2",
    ]  # fmt: skip
    titles = [[h.title for h in g.heads] for g in away.grid.groups]
    assert "PxAP pos." not in titles[0]  # every GlaS image has a region
    assert titles[1] == [
        "PxAP", "PxAP pos.", "Dice", "Dice † oracle", "false area", "Accuracy", "bal. Acc.", "called pos.", "drop PxAP",
        "drop skill", "drop Acc.",
    ]  # fmt: skip


def test_numbers_of_other_sets(rows, away):
    runs = pick(rows, train="glas", eval="camelyon16", method="layercam", selection="cl", gated=False)
    home = pick(rows, train="glas", eval="glas", method="layercam", selection="cl", gated=False)
    assert [r.seed for r in runs] == [r.seed for r in home] == [0, 1]
    group, grid = "glas → camelyon16", away.grid
    mean = statistics.fmean(r.pxap for r in runs)
    assert cell(grid, group, "PxAP", "layercam").number == pytest.approx(mean)
    drops = [h.pxap - r.pxap for h, r in zip(home, runs, strict=True)]
    found = cell(grid, group, "drop PxAP", "layercam")
    assert found.text == f"{statistics.fmean(drops):.1f} ± {statistics.stdev(drops):.1f}"
    drops = [h.accuracy - r.accuracy for h, r in zip(home, runs, strict=True)]
    assert cell(grid, group, "drop Acc.", "layercam").number == pytest.approx(statistics.fmean(drops))
    assert cell(grid, "camelyon16 → glas", "drop PxAP", "layercam").spread == ""  # one run has no deviation
    skill = [(r.pxap - r.chance) / (100 - r.chance) * 100 for r in (*home, *runs)]
    lost = statistics.fmean(skill[:2]) - statistics.fmean(skill[2:])
    assert cell(grid, group, "drop skill", "layercam").number == pytest.approx(lost)


def test_chance_of_every_set_stands_first(rows, away):
    block = away.grid.blocks[0]
    assert block.key == "chance"
    row = pick(rows, train="glas", eval="camelyon16", method="constant")[0]
    assert cell(away.grid, "glas → camelyon16", "PxAP", "chance", "chance").text == f"{row.chance:.1f}"
    pos = cell(away.grid, "glas → camelyon16", "PxAP pos.", "chance", "chance")
    assert pos.text == f"{row.chance_positives:.1f}"
    assert row.chance_positives > row.chance
    constant = cell(away.grid, "glas → camelyon16", "PxAP", "constant", "-")
    assert constant.value == f"{row.chance:.1f}"  # a constant map is at chance, whatever the set


def test_chance_that_differs_between_folds_is_a_span(rows):
    some = pick(rows, train="glas", eval="camelyon16", method="cam", selection="cl")
    grid = build_ood([some[0], replace(some[1], chance=some[0].chance + 5)])[0].grid
    assert cell(grid, "glas → camelyon16", "PxAP", "chance", "chance").text == (
        f"{some[0].chance:.1f} to {some[0].chance + 5:.1f}"
    )


def test_selections_and_best(away):
    assert [b.key for b in away.grid.blocks] == ["chance", "cl", "loc", "last", "-"]
    block = away.grid.blocks[1]
    for k, head in enumerate(h for g in away.grid.groups for h in g.heads):
        best = [line for line in block.lines if line.cells[k].best]
        assert all(line.look == "" for line in best)
        if head.title == "PxAP":
            fair = [x for x in block.lines if not x.look and not math.isnan(x.cells[k].number)]
            assert best == [max(fair, key=lambda x: x.cells[k].number)]
        if head.title.startswith("drop"):
            assert not best


def test_notes_say_what_a_mask_marks_on_both_sides(rows, away):
    notes = " ".join(away.grid.footnotes)
    assert "a mask of glas marks every gland, a mask of camelyon16 tumour tissue, nothing else" in notes
    assert "camelyon16 → glas" not in notes or "a mask of camelyon16 marks every gland" not in notes
    told = [
        replace(r, label_map="normal as benign, tumor as malignant", train_foreground="every crypt")
        for r in rows if r.pair and r.train == "glas"
    ]  # fmt: skip
    notes = " ".join(build_ood(told)[0].grid.footnotes)
    assert "glas → camelyon16: classes are matched, normal as benign, tumor as malignant." in notes
    assert "a mask of glas marks every crypt" in notes
    same = [replace(r, foreground="every gland", train_foreground="every gland") for r in told]
    assert "marks" not in " ".join(build_ood(same)[0].grid.footnotes)


def test_without_a_row_at_home_there_is_no_drop(rows):
    orphans = with_drops([replace(r, drop_pxap=math.nan, drop_accuracy=math.nan) for r in rows if r.pair])
    grid = build_ood(orphans)[0].grid
    assert cell(grid, "glas → camelyon16", "drop PxAP", "layercam").text == "n/a"
    assert cell(grid, "glas → camelyon16", "PxAP", "layercam").text != "n/a"


def test_protocols_and_synthetic_data_stay_apart(rows):
    pairs = [r for r in rows if r.pair]
    mixed = [*pairs, *(replace(r, protocol="paper") for r in pairs), *(replace(r, synthetic=False) for r in pairs)]
    found = build_ood(mixed)
    assert [(a.protocol, a.synthetic) for a in found] == [("fair", False), ("fair", True), ("paper", True)]
    assert [("SYNTHETIC DATA" in a.grid.stamped_caption) for a in found] == [False, True, True]


# -- shifts ----------------------------------------------------------------------------------------------------------
def test_levels_are_columns_in_order(shifted):
    assert (shifted.train, shifted.dataset) == ("glas", "glas")
    assert [x.shift for x in shifted.ladders] == ["blur", "restain", "stain"]
    for group in shifted.grid.groups:
        assert [h.title for h in group.heads] == ["0", "1", "2", "3", "mean"]
    assert shifted.grid.groups[0].heads[3].hint == "PxAP, level 3 (sigma [px]: 2; RMS change of the pixels: 9.0)"
    assert "blur: sigma [px] 0.5, 1, 2; stain: standard" in shifted.grid.caption


def test_target_stains_are_never_called_a_severity(shifted):
    (restain,) = (x for x in shifted.ladders if x.shift == "restain")
    assert not restain.graded
    assert all(x.graded for x in shifted.ladders if x is not restain)
    group = next(g for g in shifted.grid.groups if g.title.startswith("restain"))
    assert group.title == "restain · PxAP (target stain 1, 2, …)"
    assert group.heads[2].hint == "PxAP, target stain 2 (RMS change of the pixels: 32.7)"
    assert group.heads[-1].hint == "PxAP, mean over the target stains"
    assert [h.brief for h in group.heads] == ["0", "", "", "", "mean"]  # the last target is no worst case
    assert "restain has target stains, in no order of severity." in shifted.grid.caption
    for text in (shifted.grid.caption, *shifted.grid.footnotes):
        for said in text.replace(";", ".").split("."):
            assert "restain" not in said or "severity" not in said or "no " in said


def test_the_change_of_the_pixels_stands_in_the_table(rows, shifted):
    for head, text in zip(("0", "1", "2", "3", "mean"), ("0.0", "18.5", "32.7", "9.2", ""), strict=True):
        for metric in ("PxAP", "Accuracy"):
            found = cell(shifted.grid, f"restain · {metric}", head, "RMS change of the pixels", "chance")
            assert found.value == text
    assert cell(shifted.grid, "blur · PxAP", "2", "RMS change of the pixels", "chance").value == "6.0"
    assert "18.5  " in markdown_grid(shifted.grid).replace("|", " ")
    assert not any("before it was measured" in n for n in shifted.grid.footnotes)
    old = build_shifted([replace(r, pixel_change=math.nan) for r in rows])[0].grid
    assert cell(old, "restain · PxAP", "2", "RMS change of the pixels", "chance").value == "n/a"
    assert any("n/a: scored before it was measured" in n for n in old.footnotes)
    assert all(r.pixel_change == 32.7 for r in pick(rows, eval="glas:restain-2"))
    assert all(math.isnan(r.pixel_change) for r in rows if not r.shift)


def test_level_ten_comes_after_level_two(rows):
    one = pick(rows, eval="glas:blur-1", method="cam")[0]
    many = [replace(one, eval=f"glas:blur-{k}", level=k, severity=float(k)) for k in (10, 2, 1)]
    assert [h.title for h in build_shifted(many)[0].grid.groups[0].heads] == ["0", "1", "2", "10", "mean"]


def test_level_0_is_the_in_domain_row_and_no_part_of_the_mean(rows, shifted):
    def mean(level):
        name = f"glas:blur-{level}" if level else "glas"
        return statistics.fmean(r.pxap for r in pick(rows, train="glas", eval=name, method="pixelcam", selection="cl"))

    found = [cell(shifted.grid, "blur · PxAP", head, "pixelcam").number for head in ("0", "1", "2", "3", "mean")]
    levels = [mean(k) for k in range(4)]
    assert found == pytest.approx([*levels, statistics.fmean(levels[1:])])


def test_a_level_that_was_not_scored_is_empty_and_counted(rows):
    some = [r for r in rows if not (r.eval == "glas:blur-2" and r.method == "cam")]
    grid = build_shifted(some)[0].grid
    assert cell(grid, "blur · PxAP", "2", "cam").text == ""
    assert cell(grid, "blur · PxAP", "mean", "cam").text.endswith("(2 of 3)")
    without = [r for r in rows if r.eval != "glas"]
    assert cell(build_shifted(without)[0].grid, "blur · PxAP", "0", "cam").text == ""


def test_shifts_of_another_set_have_a_table_of_their_own(rows):
    moved = [replace(r, train="camelyon16") for r in rows if r.dataset == "glas"]
    found = build_shifted([*rows, *moved])
    assert [s.sets for s in found] == ["camelyon16 → glas", "glas"]


def test_images_that_could_not_be_changed_are_told(rows):
    told = [replace(r, unshifted=4 if r.shift == "restain" else 0) for r in rows]
    notes = " ".join(build_shifted(told)[0].grid.footnotes)
    assert "restain: up to 4 images" in notes


# -- classes ---------------------------------------------------------------------------------------------------------
def test_classes_of_a_set(rows):
    table = next(t for t in build_tables(rows) if t.eval == "camelyon16")
    grid = class_grid([table], "camelyon16")
    assert [g.title for g in grid.groups] == ["benign (6 images)", "malignant (6 images)"]
    row = pick(rows, train="camelyon16", eval="camelyon16", method="cam", selection="cl")[0]
    assert cell(grid, "malignant", "PxAP", "cam").number == pytest.approx(row.pxap_positives)
    assert cell(grid, "benign", "PxAP", "cam").text == "n/a"
    assert cell(grid, "malignant", "PxAP", "chance", "chance").text == f"{row.chance_positives:.1f}"
    together = [cell(grid, name, "Accuracy", "cam").number for name in ("benign", "malignant")]
    assert statistics.fmean(together) == pytest.approx(row.accuracy)  # as many images in either
    assert [b.key for b in grid.blocks] == ["chance", "cl", "-"]
    assert class_grid([], "nothing") is None


def test_classes_of_many_sets_are_named_with_their_sets(away):
    grid = class_grid(away.tables, "other sets")
    assert [g.title.partition(" (")[0] for g in grid.groups][:4] == [
        "camelyon16 → glas: benign", "camelyon16 → glas: malignant", "glas → camelyon16: normal",
        "glas → camelyon16: tumor",
    ]  # fmt: skip
    assert {place_of(x).block for t in away.tables for x in t.shown} == {"cl", "-"}


def test_constant_maps_are_counted_set_by_set(wide_found):
    flat = {"camelyon16": 3, "glas:stain-2": 2, "glas": 1}
    rows = [
        replace(r, degenerate=flat.get(r.eval, 0)) if (r.method, r.train) == ("cam", "glas") else r
        for r in wide_found.rows
    ]
    (away,) = [a for a in build_ood(rows) if "glas → camelyon16" in {t.sets for t in a.tables}]
    images = next(r.images for r in rows if r.eval == "camelyon16" and r.train == "glas")
    assert f"cam: 3 of {images} maps are constant on camelyon16." in away.grid.footnotes
    (shifted,) = [s for s in build_shifted(rows) if s.dataset == "glas"]
    assert f"cam: 2 of {images} maps are constant on glas:stain-2." in shifted.grid.footnotes
    home = next(t for t in build_tables(rows) if t.eval == "glas")
    assert [n for n in home.footnotes if "maps are constant" in n] == [f"cam: 1 of {images} maps are constant."]


# -- what a threshold does elsewhere -----------------------------------------------------------------------------------
def test_dice_at_the_threshold_of_home_stands_beside_its_oracle_and_chance(rows, away):
    group, grid = "glas → camelyon16", away.grid
    runs = pick(rows, train="glas", eval="camelyon16", method="layercam", selection="cl", gated=False)
    assert cell(grid, group, "Dice", "layercam").number == pytest.approx(statistics.fmean(r.dice_tau_val for r in runs))
    oracle = statistics.fmean(r.dice_oracle for r in runs)
    assert cell(grid, group, "Dice † oracle", "layercam").number == pytest.approx(oracle)
    share = runs[0].chance / 100
    assert runs[0].chance_dice == pytest.approx(100 * 2 * share / (1 + share))
    assert cell(grid, group, "Dice", "chance", "chance").value == f"{runs[0].chance_dice:.1f}"
    assert cell(grid, group, "Accuracy", "chance", "chance").value == f"{runs[0].majority:.1f}"
    assert runs[0].majority == 50


def test_a_collapsed_threshold_is_flagged_and_never_bold(wide_found):
    """A detector that calls almost nothing foreground elsewhere, though its maps rank well."""
    there = ("camelyon16", "glas", "pixelcam")
    rows = [
        replace(r, pxap=99.0, dice_tau_val=2.1, dice_oracle=55.0) if (r.eval, r.train, r.method) == there else r
        for r in wide_found.rows
    ]
    (away,) = build_ood(rows)
    found = cell(away.grid, "glas → camelyon16", "Dice", "pixelcam")
    assert found.text.startswith("2.1 ¶")
    assert not found.best
    assert any(n.startswith("¶ collapse") for n in away.grid.footnotes)
    assert " 2.1¶" in terminal_grid(away.grid, 150)
    assert "¶ collapse" in terminal_grid(away.grid, 150)
    assert r"2.1\,\P{}" in latex_grid(away.grid, "1")
    mild = [replace(r, dice_tau_val=40.0) if (r.eval, r.train, r.method) == there else r for r in rows]
    assert "¶" not in cell(build_ood(mild)[0].grid, "glas → camelyon16", "Dice", "pixelcam").text


def test_nothing_at_chance_is_bold_elsewhere(wide_found):
    rows = [replace(r, chance=100.0, chance_dice=100.0, majority=100.0) for r in wide_found.rows]
    grid = build_ood(rows)[0].grid
    bold = {head.title for block in grid.blocks for line in block.lines
            for c, head in zip(line.cells, grid.heads, strict=True) if c.best}  # fmt: skip
    assert not bold & {"PxAP", "Dice", "Accuracy"}
