"""Who is averaged and who is pooled: folds, seeds, gated lines, earlier versions; and how sure the numbers are."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from wsolbench.benchmark.core.files import read_npz, write_npz
from wsolbench.benchmark.core.intervals import accuracy_interval, pxap_interval
from wsolbench.benchmark.core.metrics import Histograms, at_tau, dice_rows, pxap, pxap_rows
from wsolbench.benchmark.core.protocols import FAIR, HARNESS_VERSION
from wsolbench.benchmark.core.results_store import Store
from wsolbench.reports.rows.load import collect
from wsolbench.reports.statistics.spreads import Clusters, spread_over_groups
from wsolbench.reports.tables.aggregate import build_tables


def arrays(store, stage):
    return read_npz(store.run_dir(stage) / "scores.npz")


def renamed(store: Store) -> None:
    """Grouped folds that test different patients, as they do: the folder's writer gives every fold the same."""
    for key, record in store.records().items():
        fold = record["labels"].get("fold", "")
        if record["kind"] == "score" and fold.startswith("grouped"):
            data = dict(arrays(store, key))
            data["ids"] = np.array([f"{fold}/{name}" for name in data["ids"]])
            data["groups"] = np.array([f"{fold}/{name}" for name in data["groups"]])
            write_npz(store.run_dir(key) / "scores.npz", data)


@pytest.fixture(scope="module")
def folds(tmp_path_factory, write_results, recipe):
    """Two published and three grouped folds, two seeds."""
    made = recipe(folds=("0", "1", "grouped-0", "grouped-1", "grouped-2"), protocols=("fair",), images=8)
    store = write_results(tmp_path_factory.mktemp("folds"), made)
    renamed(store)
    return store, collect(store)


@pytest.fixture(scope="module")
def tables(folds):
    return build_tables(folds[1].rows, folds[1].settings)


def line(table, method):
    return next(x for x in table.blocks[0].lines if x.first.method == method)


def test_schemes_of_folds_never_share_a_table(tables):
    assert [t.title.partition(" ·")[0] for t in tables] == ["glas", "glas (grouped folds)"]
    for table, scheme in zip(tables, ("published", "grouped"), strict=True):
        assert {r.scheme for r in table.rows} == {scheme}
    assert "(published folds 0, 1)" in tables[0].caption
    assert "(grouped folds grouped-0, grouped-1, grouped-2)" in tables[1].caption


def test_published_folds_are_runs_on_the_same_patients(folds, tables):
    store, _ = folds
    cam = line(tables[0], "cam")
    assert len(cam.runs) == len(cam.estimates) == 4  # two folds, two seeds
    cell = cam.cells["pxap"]
    values = [r.pxap for r in cam.runs]
    assert cell.number == pytest.approx(statistics.fmean(values))
    assert cell.sd == pytest.approx(statistics.stdev(values))
    assert "± standard deviation over 2 seeds and 2 folds" in tables[0].caption
    assert all(len(arrays(store, r.stage)["labels"]) == 8 for r in cam.runs)


def test_grouped_folds_pool_their_histograms(folds, tables):
    store, _ = folds
    cam = line(tables[1], "cam")
    assert (len(cam.runs), len(cam.estimates)) == (6, 2)  # one estimate a seed, over the patients of three folds
    for estimate in cam.estimates:
        runs = [r for r in cam.runs if r.seed == estimate.seed]
        assert estimate.pooled_of == tuple(r.run for r in runs)
        found = [arrays(store, r.stage) for r in runs]
        maps = Histograms(*(np.concatenate([f[k] for f in found]) for k in ("foreground", "background")))
        groups = np.concatenate([f["groups"] for f in found])
        assert estimate.pxap == pytest.approx(pxap(maps), rel=1e-12)
        assert (estimate.pxap_low, estimate.pxap_high) == pytest.approx(pxap_interval(maps, groups), rel=1e-12)
        assert (estimate.images, estimate.groups) == (24, 12)
        # each fold at its own threshold
        counts = [
            at_tau(Histograms(f["foreground"], f["background"]), r.tau_val) for f, r in zip(found, runs, strict=True)
        ]
        assert min(c["dice"] for c in counts) <= estimate.dice_tau_val <= max(c["dice"] for c in counts)
        right = np.concatenate([f["logits"].argmax(1) == f["labels"] for f in found])
        assert estimate.accuracy == pytest.approx(100 * right.mean())
    assert all(math.isnan(r.pxap_low) for r in cam.runs)  # four patients a fold
    assert cam.cells["pxap"].low < cam.cells["pxap"].number < cam.cells["pxap"].high
    assert "3 folds of a seed test different patients and are pooled" in tables[1].caption
    assert "24 test images of 12 patients (12.0 effective)" in tables[1].caption


def test_the_threshold_of_each_fold_is_its_own(folds, tables):
    store, _ = folds
    estimate = line(tables[1], "cam").estimates[0]
    runs = [r for r in line(tables[1], "cam").runs if r.run in estimate.pooled_of]
    hit = called = wanted = 0.0
    each = []
    for run in runs:
        data = arrays(store, run.stage)
        at = math.ceil(run.tau_val * 1000 - 1e-6)
        fg, bg = data["foreground"].astype(float), data["background"].astype(float)
        hit, called, wanted = hit + fg[:, at:].sum(), called + fg[:, at:].sum() + bg[:, at:].sum(), wanted + fg.sum()
        each += dice_rows(Histograms(fg, bg), run.tau_val).reshape(4, 2).mean(1).tolist()  # two images a patient
    assert estimate.dice_tau_val == pytest.approx(100 * 2 * hit / (called + wanted))
    assert estimate.dice_image == pytest.approx(statistics.fmean(each))


def test_a_fold_alone_has_too_few_patients_for_an_interval(folds):
    rows = [r for r in folds[1].rows if r.fold == "grouped-0" and not r.pooled_of]
    table = build_tables(rows)[0]
    assert "[n/a]" in line(table, "cam").cells["pxap"].text
    assert "fewer than 5 patients" in table.caption


def test_per_image_numbers_are_means_over_patients(found, results):
    row = next(r for r in found.rows if (r.method, r.protocol, r.selection) == ("cam", "fair", "cl"))
    data = arrays(results, row.stage)
    maps = Histograms(data["foreground"], data["background"])
    by_patient = pxap_rows(maps).reshape(-1, 2).mean(1)
    assert row.pxap_image == pytest.approx(by_patient.mean())
    assert row.dice_image == pytest.approx(dice_rows(maps, row.tau_val).reshape(-1, 2).mean())
    assert math.isnan(row.false_area)  # every image has a region
    constant = next(r for r in found.rows if (r.method, r.protocol) == ("constant", "fair"))
    assert row.chance_image == pytest.approx(constant.pxap_image)  # what a constant map reaches image by image
    part = maps.foreground.sum(1) / (maps.foreground.sum(1) + maps.background.sum(1))
    assert row.chance_dice_image == pytest.approx((200 * part / (1 + part)).reshape(-1, 2).mean())
    without = row.clusters.without["pxap_image"]
    assert without == pytest.approx([(by_patient.sum() - v) / 5 for v in by_patient])


def test_the_area_called_foreground_in_images_without_region(wide, wide_found):
    row = next(
        r for r in wide_found.rows if (r.method, r.eval, r.selection, r.gated) == ("cam", "camelyon16", "cl", False)
    )
    data = arrays(wide, row.stage)
    at = math.ceil(row.tau_val * 1000 - 1e-6)
    normal = data["labels"] == 0
    assert data["foreground"][normal].sum() == 0
    share = data["background"][normal][:, at:].sum(1) / data["background"][normal].sum(1)
    assert row.false_area == pytest.approx(100 * share.mean())  # one normal image a patient


def test_gated_rows_are_those_of_maps_set_to_zero(wide, wide_found):
    rows = [r for r in wide_found.rows if (r.eval, r.selection, r.train) == ("camelyon16", "cl", "glas")]
    for method in ("cam", "pixelcam"):  # also a map that knows no class
        plain, gated = (next(r for r in rows if r.method == method and r.gated == g) for g in (False, True))
        data = arrays(wide, plain.stage)
        maps = [data["foreground"].astype(int), data["background"].astype(int)]
        off = data["logits"].argmax(1) == 0
        assert off.any()
        for counts in maps:
            counts[off, 0] = counts[off].sum(1)
            counts[off, 1:] = 0
        assert gated.pxap == pytest.approx(pxap(Histograms(*maps)))
        assert (gated.stage, gated.accuracy, gated.map_class) == (plain.stage, plain.accuracy, plain.map_class)
        assert gated.pxap != plain.pxap
        assert gated.false_area <= plain.false_area
    assert not any(r.gated for r in wide_found.rows if r.eval == "glas")  # every class has a region
    assert not any(r.gated for r in wide_found.rows if r.baseline)  # nothing predicts a class


def test_gated_thresholds_are_chosen_on_gated_validation_maps(wide, wide_found):
    from wsolbench.benchmark.core.metrics import best_tau

    rows = [
        r
        for r in wide_found.rows
        if (r.train, r.eval, r.method, r.selection) == ("camelyon16", "camelyon16", "cam", "cl")
    ]
    plain, gated = sorted(rows, key=lambda r: r.gated)
    data = arrays(wide, plain.stage_val)
    maps = [data["foreground"].astype(int), data["background"].astype(int)]
    assert plain.tau_val == best_tau(Histograms(*maps))
    off = data["logits"].argmax(1) == 0
    for counts in maps:
        counts[off, 0] = counts[off].sum(1)
        counts[off, 1:] = 0
    assert gated.tau_val == best_tau(Histograms(*maps))


def test_one_run_and_the_mean_of_equal_runs_have_the_same_interval(found):
    row = next(r for r in found.rows if r.method == "cam")
    for key in ("pxap", "dice_tau_val", "pxap_image", "dice_image", "accuracy"):
        one, two = spread_over_groups([row], key), spread_over_groups([row, row], key)
        assert two == pytest.approx(one, rel=1e-12)
        assert (getattr(row, f"{key}_low"), getattr(row, f"{key}_high")) == pytest.approx(one, rel=1e-12)
        assert one.low < getattr(row, key) <= one.high


def test_the_mean_of_two_runs_is_jackknifed_patient_by_patient(found):
    rows = [r for r in found.rows if (r.method, r.protocol, r.selection) == ("cam", "fair", "cl")]
    assert len(rows) == 2
    without = np.mean([r.clusters.without["pxap"] for r in rows], 0) / 100
    mean = np.mean([r.pxap for r in rows]) / 100
    logits = np.log(without / (1 - without))
    error = math.sqrt(5 / 6 * ((logits - logits.mean()) ** 2).sum())
    centre, reach = math.log(mean / (1 - mean)), stats.t.ppf(0.975, 5) * error
    wanted = [100 / (1 + math.exp(-x)) for x in (centre - reach, centre + reach)]
    assert spread_over_groups(rows, "pxap") == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("change", ["one patient", "two patients", "all right", "all wrong", "one class", "no region",
                                    "nan logits"])  # fmt: skip
def test_inputs_that_say_nothing(small, change):
    """An interval is n/a, or finite, of some width and around the estimate; nothing ends in an error."""
    for key, record in small.records().items():
        if record["kind"] != "score":
            continue
        data = dict(arrays(small, key))
        count = len(data["labels"])
        if change.endswith(("patient", "patients")):
            data["groups"] = np.array([f"p{k % (1 if change == 'one patient' else 2)}" for k in range(count)])
        elif change in ("all right", "all wrong"):
            data["logits"] = np.eye(2, dtype=np.float32)[
                data["labels"] if change == "all right" else 1 - data["labels"]
            ]
        elif change == "one class":
            data["logits"] = np.tile(np.array([1, 0], np.float32), (count, 1))
        elif change == "nan logits":
            data["logits"] = np.full((count, 2), np.nan, np.float32)
        else:
            data["background"] = data["background"] + data["foreground"]
            data["foreground"] = np.zeros_like(data["foreground"])
        write_npz(small.run_dir(key) / "scores.npz", data)
    rows = collect(small).rows
    assert len(rows) > 10
    for row in rows:
        for key in ("pxap", "dice_tau_val", "pxap_image", "dice_image", "accuracy"):
            value, low, high = (getattr(row, name) for name in (key, f"{key}_low", f"{key}_high"))
            assert math.isnan(low) == math.isnan(high)
            assert math.isnan(low) or low < high
            assert math.isnan(low) or low <= value <= high
    accuracy = next(r for r in rows if r.method == "cam")
    if change in ("all right", "all wrong"):
        assert accuracy.accuracy_high - accuracy.accuracy_low > 5
    if change in ("one patient", "two patients", "nan logits"):
        assert math.isnan(accuracy.accuracy_low)
    build_tables(rows)


def test_rows_of_earlier_versions_are_listed_as_such(small):
    before = collect(small).rows
    old = next(r for r in before if r.method == "cam" and r.selection == "cl")
    trained = small.record(old.stage_train)
    trained["identity"]["harness"] = HARNESS_VERSION - 1
    trained["identity"]["selection"] = {"protocols": [{"name": "fair", "version": FAIR.version - 1}], "metrics": 1}
    (small.run_dir(old.stage_train) / "record.json").write_text(json.dumps(trained))
    found = collect(small)
    earlier = {r.stage for r in found.rows if r.earlier}
    assert earlier == {r.stage for r in before if r.stage_train == old.stage_train or old.stage_train in
                       small.records()[r.stage_train or r.stage]["parents"].values()}  # fmt: skip
    tables = build_tables(found.rows, found.settings)
    assert [bool(t.rows[0].earlier) for t in tables] == [False, True]
    assert f"harness {HARNESS_VERSION - 1}" in tables[1].title
    assert any(n.startswith("! Rows of an earlier version") for n in tables[1].footnotes)


def test_nothing_at_or_below_chance_is_bold(found):
    rows = [replace(r, chance_dice=99.0, chance_dice_image=99.0) for r in found.rows]
    table = build_tables(rows)[0]
    assert not any(x.cells[key].best for x in table.lines for key in ("dice_tau_val", "dice_image"))
    assert any(x.cells["pxap"].best for x in table.lines)
    assert any(x.cells["dice_tau_val"].best for x in build_tables(found.rows)[0].lines)
    keys = [c.key for c in table.columns]
    assert keys.index("chance_dice") == keys.index("dice_tau_val") + 1
    assert {r.method for x in table.lines for r in x.runs} >= {"constant", "darkness", "random"}


def test_hidden_order_is_a_warning(found):
    rows = [replace(r, ap=r.pxap + 0.7) if r.method == "pixelcam" else r for r in found.rows]
    table = build_tables(rows)[0]
    (note,) = [n for n in table.footnotes if "linear bins" in n]
    assert note.startswith("! pixelcam: 1,001 linear bins hide the order")
    assert "ap" in [c.key for c in table.columns]


def test_clusters_survive_json():
    clusters = Clusters(("a", "b"), (3.0, 1.0), (3.0, 0.0), (2.0, 1.0), {"pxap": (51.5, math.nan)})
    value = json.loads(json.dumps(clusters.to_json()).replace("NaN", "null"))
    again = Clusters.from_json(value)
    assert again.names == clusters.names
    assert again.without["pxap"] == pytest.approx((51.5, math.nan), nan_ok=True)
    assert clusters.effective == 1.0


def test_accuracy_of_a_row_is_wilson(found, results):
    row = next(r for r in found.rows if r.method == "cam")
    data = arrays(results, row.stage)
    wanted = accuracy_interval(data["logits"], data["labels"], data["groups"])
    assert (row.accuracy_low, row.accuracy_high) == pytest.approx(wanted)
