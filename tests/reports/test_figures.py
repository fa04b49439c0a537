"""Figures: drawn from what is there, left out with a reason where it is not, one colour a method."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from wsolbench.benchmark.core.results_store import Store
from wsolbench.reports.drawing import base, jobs
from wsolbench.reports.drawing.base import COLOURS, OodScene, Palette, Scene, ShiftScene, render, slug, spread_of
from wsolbench.reports.drawing.jobs import FIGURES, draw_figures, draw_ood, draw_shifted
from wsolbench.reports.figures import classes, qualitative
from wsolbench.reports.figures import ood as ood_figure
from wsolbench.reports.figures.convergence import read_history
from wsolbench.reports.figures.qualitative import outline
from wsolbench.reports.figures.score_histograms import BARS, rebin
from wsolbench.reports.rows.load import collect
from wsolbench.reports.statistics.spreads import spread_over_groups
from wsolbench.reports.tables.aggregate import build_tables
from wsolbench.reports.tables.ood import build_ood
from wsolbench.reports.tables.shifts import build_shifted


def scenes(store: Store, found=None, rows=None) -> list[Scene]:
    found = found or collect(store)
    tables = build_tables(found.rows if rows is None else rows(found.rows))
    palette = Palette(line for table in tables for line in table.lines)
    return [Scene(t, found.evidence, found.records, store, palette) for t in tables]


def texts(figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


@pytest.fixture(scope="module")
def drawings(results, found):
    return [(scene, draw_figures(scene)) for scene in scenes(results, found)]


def test_every_figure_is_drawn_and_marked(drawings):
    for scene, found in drawings:
        assert found.missing == []
        assert [d.name.partition("_")[0] for d in found.drawn] == [
            "maps",
            "maps",
            "pr",
            "threshold",
            "histograms",
            "images",
            "classes",
            "selection",
            "convergence",
            "cost",
        ]
        assert len(found.drawn) == len(FIGURES) + 1  # maps of malignant images and of benign ones
        for drawn in found.drawn:
            words = texts(drawn.figure)
            assert "SYNTHETIC DATA" in words
            assert scene.table.protocol in words
            assert drawn.how.endswith(".")
            assert drawn.alt


def test_files_hold_a_picture(drawings, monkeypatch):
    monkeypatch.setattr(base, "DPI", 130)
    _, found = drawings[0]
    for drawn in found.drawn[::3]:
        png, pdf = render(drawn.figure, "png"), render(drawn.figure, "pdf")
        assert pdf.startswith(b"%PDF-")
        assert render(drawn.figure, "png") == png
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 10


def test_the_same_results_give_the_same_bytes(results, found, monkeypatch):
    monkeypatch.setattr(jobs, "FIGURES", {"curves": "PR"})
    one, two = (draw_figures(scenes(results, found)[0]).drawn[0].figure for _ in range(2))
    assert render(one, "png") == render(two, "png")
    assert render(one, "pdf") == render(two, "pdf")


def test_legend_has_the_numbers_of_the_table(drawings):
    scene, found = drawings[0]
    words = texts(next(d for d in found.drawn if d.name.startswith("pr")).figure)
    for line in scene.table.shown:
        if line.first.kind != "none":
            assert f"{line.cells['pxap'].value}" in words
            assert line.marked in words
    chance = next(line for line in scene.table.shown if line.first.baseline).cells["chance"].value
    assert f"chance {chance}" in words


def test_precision_recall_line_is_the_pooled_curve(drawings):
    scene, found = drawings[0]
    figure = next(d for d in found.drawn if d.name.startswith("pr")).figure
    lines = [a for a in figure.axes[0].lines if a.get_label().endswith("layercam")]
    recall, precision = (np.asarray(v) for v in (lines[0].get_xdata(), lines[0].get_ydata()))
    known = ~np.isnan(precision)
    gain = np.diff(recall[::-1][known[::-1]], prepend=0)
    run = next(line for line in scene.table.shown if line.name == "layercam").first
    assert float((precision[::-1][known[::-1]] * gain).sum()) / 100 == pytest.approx(run.pxap)


def test_real_data_bear_no_stamp(results, found):
    scene = scenes(results, found, rows=lambda rows: [replace(r, synthetic=False) for r in rows])[0]
    assert all("SYNTHETIC" not in texts(d.figure) for d in draw_figures(scene).drawn)


def test_one_colour_a_method(results, found):
    one, two = scenes(results, found)
    shared = {x.name: x for x in one.table.lines if x.first.kind != "none"}
    for line in two.table.lines:
        if line.name in shared:
            assert two.palette.look(line) == one.palette.look(shared[line.name])
    looks = {name: one.palette.look(line) for name, line in shared.items()}
    assert len(set(looks.values())) == len(looks)
    assert looks["unet"].color == "#000000"


def test_many_methods_are_told_apart(found):
    rows = [r for r in found.rows if r.method == "cam" and r.protocol == "fair" and r.selection == "cl"]
    many = [replace(r, method=f"m{k}") for k in range(3 * len(COLOURS)) for r in rows]
    lines = build_tables(many)[0].lines
    palette = Palette(lines)
    assert len({palette.look(line) for line in lines}) == 3 * len(COLOURS)


def test_baselines_alone(results, found):
    scene = scenes(results, found, rows=lambda rows: [r for r in rows if r.baseline])[0]
    drawings = draw_figures(scene)
    assert {d.name.partition("_")[0] for d in drawings.drawn} == {"maps", "pr", "threshold", "histograms", "images"}
    assert {reason.partition(":")[0] for reason in drawings.missing} == {
        "Class by class",
        "Checkpoint selection",
        "Training curves",
        "Cost and quality",
    }
    assert all(reason.partition(":")[2] for reason in drawings.missing)


def test_a_classifier_alone_draws_its_training_and_nothing_else(results, found):
    scene = scenes(results, found, rows=lambda rows: [r for r in rows if r.method == "classifier"])[0]
    drawings = draw_figures(scene)
    assert [d.name.partition("_")[0] for d in drawings.drawn] == ["classes", "convergence"]  # accuracy has classes
    assert len(drawings.missing) == 7


def test_missing_files_leave_out_their_figure(small):
    for path in [*(small.root / "examples").iterdir(), *small.root.glob("runs/*/history.jsonl")]:
        path.unlink()
    found = draw_figures(scenes(small)[0])
    assert {m.partition(":")[0] for m in found.missing} == {"Maps", "Training curves"}
    assert len(found.drawn) == 7


def test_backbones_have_their_own_panels(tmp_path, write_results, recipe):
    store = write_results(tmp_path, recipe(seeds=(0,), protocols=("fair",), backbones=("resnet18", "vit_tiny")))
    found = draw_figures(scenes(store)[0])
    maps = [d for d in found.drawn if d.name.startswith("maps")]
    assert [d.name.partition("synthetic_")[2] for d in maps] == [
        "malignant_resnet18", "benign_resnet18", "malignant_vit_tiny", "benign_vit_tiny",
    ]  # fmt: skip
    curves = next(d for d in found.drawn if d.name.startswith("pr"))
    assert {"resnet18", "vit_tiny"} <= {a.get_title(loc="left") for a in curves.figure.axes}


def test_undefined_values_are_drawn_around(results, found):
    def undefined(rows):
        return [replace(r, tau_val=math.nan, chance=math.nan, pxap=math.nan) for r in rows]

    drawings = draw_figures(scenes(results, found, rows=undefined)[0])
    assert {d.name.partition("_")[0] for d in drawings.drawn} >= {"pr", "threshold", "histograms"}


def test_selection_leaves_out_upper_bounds(drawings):
    scene, found = drawings[0]
    axes = next(d for d in found.drawn if d.name.startswith("selection")).figure.axes[0]
    dots = {round(float(y), 6) for c in axes.collections for _, y in c.get_offsets()}
    wanted = {r.upper_bound: set() for r in scene.table.rows}
    for r in scene.table.rows:
        if r.epoch is not None and r.kind != "none":
            wanted[r.upper_bound].add(round(r.pxap, 6))
    assert wanted[False] <= dots
    assert not wanted[True] & dots


def test_training_curves_show_maps_of_the_report_only(results, found):
    def few(rows):
        return [r for r in rows if r.method in ("cam", "classifier")]

    figure = next(
        d for d in draw_figures(scenes(results, found, rows=few)[0]).drawn if d.name.startswith("conv")
    ).figure
    assert "PxAP cam" in texts(figure)
    assert "PxAP layercam" not in texts(figure)


def test_history_cut_short(tmp_path):
    folder = tmp_path / "runs" / "k"
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_text(json.dumps({"epoch": 0, "val": {}}) + '\n{"epoch": 1, "va')
    assert read_history(Store(tmp_path), "k") == [{"epoch": 0, "val": {}}]
    assert read_history(Store(tmp_path), "absent") == []


def test_rebinning_loses_nothing():
    shares = np.random.default_rng(0).random(1001)
    assert rebin(shares).sum() == pytest.approx(shares.sum())
    assert rebin(shares)[0] == pytest.approx(shares[:20].sum())
    assert len(rebin(shares)) == BARS
    assert rebin(np.full(1001, np.nan)).sum() == 0


def test_outline_of_a_square():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    border = outline(mask, 1)
    assert border.sum() == 16
    assert not border[3:6, 3:6].any()
    assert not outline(np.ones((4, 4), bool), 2).any()


def test_file_names_are_safe_and_distinct():
    names = [slug("pr", n) for n in ("glas", "a/b", "a b", "../../x", "<script>", "ä", "ö", "x" * 300)]
    assert len(set(names)) == len(names)
    assert all(n.isascii() and "/" not in n and len(n) < 100 and not n.startswith(".") for n in names)


def test_every_image_stands_in_the_figure_of_images(results, found):
    """Dots per method are the images with foreground, bars the medians of their own PxAP by class."""
    scene = scenes(results, found)[0]
    drawn = next(d for d in draw_figures(scene).drawn if d.name.startswith("images"))
    axes = drawn.figure.axes[0]
    dots = [v for c in axes.collections for v in c.get_offsets()[:, 1]]
    lines = [line for line in scene.with_maps() if line.first.backbone in (axes.get_title(loc="left"), "-")]
    values = [scene.evidence[line.first.stage].by_image for line in lines]
    expected = np.concatenate([v[~np.isnan(v)] for v in values])
    np.testing.assert_allclose(sorted(dots), sorted(expected))
    medians = [y for line in axes.lines for y in line.get_ydata() if not np.isnan(y)]
    one = scene.evidence[lines[0].first.stage]
    assert any(abs(m - np.nanmedian(one.by_image[one.labels == 0])) < 1e-9 for m in medians)


def test_images_of_one_class_alone_have_foreground(results, found):
    """Sets with a background class: only the other class has an image-wise PxAP."""
    scene = scenes(results, found)[0]
    evidence = {
        key: e._replace(by_image=np.where(e.labels == 0, np.nan, e.by_image)) for key, e in scene.evidence.items()
    }
    drawn = draw_figures(replace(scene, evidence=evidence)).drawn
    legend = next(d for d in drawn if d.name.startswith("images")).figure.axes[0].get_legend()
    assert len(legend.get_texts()) == 1


# -- other sets, shifts and classes ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def far(wide, wide_found):
    """Scenes of the wide folder: in domain, other sets, shifted."""
    away, shifted = build_ood(wide_found.rows)[0], build_shifted(wide_found.rows)[0]
    tables = [*build_tables(wide_found.rows), *away.tables]
    palette = Palette(line for table in tables for line in table.lines)
    made = [Scene(t, wide_found.evidence, wide_found.records, wide, palette) for t in tables]
    own = len(tables) - len(away.tables)
    return OodScene(away, tuple(made[own:]), tuple(made[:own]), palette), ShiftScene(shifted, palette)


@pytest.fixture(scope="module")
def ood_drawings(far):
    return draw_ood(far[0])


def test_figures_of_other_sets(far, ood_drawings):
    assert ood_drawings.missing == []
    names = [d.name for d in ood_drawings.drawn]
    assert names[:2] == ["ood_fair_synthetic", "ood-classes_fair_synthetic"]
    assert len(names) == len(set(names)) == 2 + 2 * 3  # positives and normals (or two classes) of three pairs
    assert sum("_normals_" in n for n in names) == sum("_positives_" in n for n in names) == 2
    assert all("SYNTHETIC DATA" in texts(d.figure) for d in ood_drawings.drawn)
    real = replace(far[0], ood=replace(far[0].ood, synthetic=False))
    assert "SYNTHETIC" not in texts(ood_figure.draw(real)[0].figure)


def test_points_of_other_sets_are_the_numbers_of_the_table(far, ood_drawings):
    scene = far[0]
    figure = ood_drawings.drawn[0].figure
    axes = next(a for a in figure.axes if a.get_title(loc="left") == "trained on glas · resnet18")
    assert [t.get_text() for t in axes.get_xticklabels()] == ["glas", "camelyon16", "camelyon17:centre-2"]
    drawn = {c.get_label(): c for c in axes.containers}
    tables = [s.table for s in (*scene.home, *scene.pairs) if s.table.train == "glas"]
    for method in ("cam", "pixelcam"):
        lines = [next(x for x in t.shown if x.name == method) for t in tables]
        heights = np.asarray(drawn[method].lines[0].get_ydata())
        assert heights == pytest.approx([np.mean([r.pxap for r in x.runs]) for x in lines])
    chance = sorted({round(float(s[0][1]), 6) for c in axes.collections for s in c.get_segments() if len(s) == 2
                     and s[0][1] == s[1][1] and s[0][0] < s[1][0]})  # fmt: skip
    assert chance == pytest.approx(sorted({round(t.rows[0].chance, 6) for t in tables}))


def test_intervals_of_one_run_and_of_several(found):
    table = build_tables(found.rows)[0]
    one = next(x for x in table.lines if x.name == "darkness")
    assert spread_of(one, "pxap") == (one.first.pxap, one.first.pxap_low, one.first.pxap_high)
    two = next(x for x in table.lines if x.name == "cam")
    values = [r.pxap for r in two.runs]
    assert spread_of(two, "pxap") == (pytest.approx(np.mean(values)), *spread_over_groups(two.runs, "pxap"))
    assert all(math.isnan(v) for v in spread_of(one, "accuracy"))


def test_shifts_are_drawn_from_their_table(far):
    scene = far[1]
    drawings = draw_shifted(scene)
    assert [d.name for d in drawings.drawn] == ["shift_glas_fair_synthetic_resnet18"]
    figure = drawings.drawn[0].figure
    assert "SYNTHETIC DATA" in texts(figure)
    axes = next(a for a in figure.axes if a.get_title(loc="left") == "blur")
    line = next(c for c in axes.containers if c.get_label() == "layercam").lines[0]
    grid = scene.shifted.grid
    cells = next(x for b in grid.blocks if b.key == "cl" for x in b.lines if x.names[0] == "layercam").cells
    assert list(line.get_xdata()) == [0, 1, 2, 3]
    assert line.get_linestyle() != "None"
    assert np.asarray(line.get_ydata()) == pytest.approx([c.number for c in cells[:4]])
    below = figure.axes[figure.axes.index(axes) + 3]  # the accuracy of the same shift, a row further down
    assert [t.get_text() for t in below.get_xticklabels()] == ["0", "1\n0.5", "2\n1", "3\n2"]
    assert below.get_xlabel() == "level, sigma [px]"


def test_target_stains_are_points_in_the_order_of_their_change(far):
    scene = far[1]
    figure = draw_shifted(scene).drawn[0].figure
    upper = next(a for a in figure.axes if a.get_title(loc="left") == "restain")
    lower = figure.axes[figure.axes.index(upper) + 3]
    assert [t.get_text() for t in lower.get_xticklabels()] == ["0\n0.0", "3\n9.2", "1\n18.5", "2\n32.7"]
    assert lower.get_xlabel().split() == [
        "target",
        "stain,",
        "RMS",
        "change",
        "of",
        "the",
        "pixels",
        "[grey",
        "levels]",
    ]
    cells = next(x for b in scene.shifted.grid.blocks if b.key == "cl" for x in b.lines if x.names[0] == "layercam")
    at = next(k for k, g in enumerate(scene.shifted.grid.groups) if g.title.startswith("restain · PxAP")) * 5
    values = [cells.cells[at + k].number for k in (0, 3, 1, 2)]
    line = next(c for c in upper.containers if c.get_label() == "layercam").lines[0]
    assert line.get_linestyle() == "None", "nothing rises from one to the next"
    assert np.asarray(line.get_ydata()) == pytest.approx(values)
    assert np.abs(np.asarray(line.get_xdata()) - range(4)).max() <= 0.3


def test_a_long_ladder_has_a_figure_of_its_own(wide_found):
    one = next(r for r in wide_found.rows if r.eval == "glas:restain-1" and r.method == "cam")
    many = [replace(one, eval=f"glas:restain-{k}", level=k, pixel_change=20.0 - k) for k in range(1, 11)]
    rows = [r for r in wide_found.rows if r.shift != "restain"] + many
    shifted = build_shifted(rows)[0]
    palette = Palette(line for x in shifted.ladders for t in x.levels.values() for line in t.lines)
    drawn = draw_shifted(ShiftScene(shifted, palette)).drawn
    assert [d.name for d in drawn] == [
        "shift_glas_fair_synthetic_resnet18",
        "shift_glas_fair_synthetic_restain_resnet18",
    ]
    assert [t.get_text() for t in drawn[1].figure.axes[1].get_xticklabels()][1:3] == ["10\n10.0", "9\n11.0"]
    old = [replace(r, pixel_change=math.nan) for r in rows]
    figure = draw_shifted(ShiftScene(build_shifted(old)[0], palette)).drawn[1].figure
    assert figure.axes[1].get_xlabel() == "target stain (no severity)"
    assert [t.get_text() for t in figure.axes[1].get_xticklabels()] == [str(k) for k in range(11)]


def test_bars_of_classes(far):
    pair = next(s for s in far[0].pairs if s.table.eval == "camelyon16")
    figure = classes.draw(pair)[0].figure
    _, accuracy = figure.axes
    normal, tumour = accuracy.containers
    assert (normal.get_label(), tumour.get_label()) == ("normal", "tumor")
    names = [t.get_text() for t in accuracy.get_xticklabels()]
    assert "constant" not in names
    lines = {x.label: x for x in pair.table.shown}
    for container, index in ((normal, 0), (tumour, 1)):
        heights = [bar.get_height() for bar in container]
        wanted = [np.mean([r.by_class[index].accuracy for r in lines[n].runs]) for n in names]
        assert heights == pytest.approx(wanted)
    assert texts(figure).count("n/a") == len(names) + 1  # no PxAP of normals, and none of the classifier at all


def test_maps_of_one_kind_hold_images_of_that_kind(far):
    pair = next(s for s in far[0].pairs if s.table.eval == "camelyon16")
    for drawn in qualitative.draw(pair):
        words = texts(drawn.figure)
        assert ("\nnormal" in words) == ("normals" in drawn.name)
        assert ("\ntumor" in words) == ("positives" in drawn.name)
    few = qualitative.draw(pair, images=1, first_only=True)
    assert len(few) == 2
    assert texts(few[0].figure).count("test_") == 1


def test_gated_lines_are_told_apart(found):
    rows = [r for r in found.rows if r.method == "cam" and r.protocol == "fair"]
    table = build_tables([*rows, *(replace(r, gated=True) for r in rows)])[0]
    labels = [x.label for x in table.blocks[0].lines]
    assert sorted(labels) == ["cam", "cam (gated)"]
    palette = Palette(table.lines)
    looks = [palette.look(x) for x in table.blocks[0].lines]
    assert looks[0].color == looks[1].color
    assert looks[0].linestyle != looks[1].linestyle


def test_colours_of_classes_are_seaborn_s():
    from seaborn import color_palette

    assert color_palette(base.CLASS_COLOURS) == color_palette("colorblind", 10)
