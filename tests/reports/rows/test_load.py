"""Rows against numbers computed in another way, and what happens to damaged results."""

import json
import logging
import math
import shutil
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.files import write_json, write_npz
from wsolbench.benchmark.core.metrics import THRESHOLDS, Histograms
from wsolbench.benchmark.core.results_store import Store
from wsolbench.reports.rows.load import collect, load_report_rows, load_rows, with_drops
from wsolbench.reports.statistics.quality import Scores, by_class

WANTED = {
    "method", "backbone", "train", "eval", "fold", "seed", "selection", "protocol", "map_class", "pxap", "chance",
    "accuracy", "dice_tau_val", "iou_tau_val", "tau_val", "seconds_train", "seconds_score", "stage", "pxap_low",
    "pxap_high", "miou_tau_val", "dice_oracle", "iou_oracle", "tau_oracle", "dice_half", "images", "degenerate",
    "validation_masks",
    "parameters", "epoch", "synthetic", "supervision", "kind", "groups", "seconds_parents", "notes",
    "weights_sha256", "versions",
}  # fmt: skip


def arrays(store: Store, key: str) -> dict[str, np.ndarray]:
    with np.load(store.run_dir(key) / "scores.npz") as data:
        return dict(data)


def pick(rows, **wanted):
    found = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    assert found, wanted
    return found[0]


def counts_at(data, tau):
    """True positives, false positives and false negatives, pixel counts of all images, by summing the upper bins."""
    upper = tau - 1e-9 <= THRESHOLDS
    tp, fp = (int(data[n][:, upper].sum(dtype=np.int64)) for n in ("foreground", "background"))
    return tp, fp, int(data["foreground"].sum(dtype=np.int64)) - tp


def test_pxap_and_chance_agree_with_scikit_learn(results, found):
    row = pick(found.rows, method="layercam", protocol="fair", selection="cl", seed=0)
    data = arrays(results, row.stage)
    scores = np.concatenate([THRESHOLDS, THRESHOLDS])
    truth = np.repeat([1, 0], len(THRESHOLDS))
    weights = np.concatenate([data["foreground"].sum(0), data["background"].sum(0)])
    assert row.pxap == pytest.approx(100 * average_precision_score(truth, scores, sample_weight=weights))
    assert row.chance == pytest.approx(100 * data["foreground"].sum() / weights.sum())
    assert row.pxap_low < row.pxap < row.pxap_high


def test_thresholds_come_from_the_right_images(results, found):
    rows = found.rows
    row = pick(rows, method="cam", protocol="paper", selection="loc", seed=1)
    test = arrays(results, row.stage)
    val = arrays(results, results.record(row.stage)["parents"]["val"])

    def miou(data, tau):
        tp, fp, fn = counts_at(data, tau)
        tn = int(data["background"].sum(dtype=np.int64)) - fp
        return (tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2

    assert row.tau_val == max(THRESHOLDS, key=lambda t: miou(val, t))
    assert row.tau_oracle == max(THRESHOLDS, key=lambda t: miou(test, t))
    assert row.tau_val != row.tau_oracle
    for suffix, tau in (("tau_val", row.tau_val), ("oracle", row.tau_oracle)):
        tp, fp, fn = counts_at(test, tau)
        assert getattr(row, f"dice_{suffix}") == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn))
        assert getattr(row, f"iou_{suffix}") == pytest.approx(100 * tp / (tp + fp + fn))
        assert getattr(row, f"miou_{suffix}") == pytest.approx(100 * miou(test, tau))
    assert row.miou_oracle >= row.miou_tau_val
    tp, fp, fn = counts_at(test, 0.5)
    assert row.dice_half == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn))
    assert row.validation_masks == len(val["labels"]) == 6


def test_accuracy_and_counts(results, found):
    row = pick(found.rows, method="cam", protocol="fair", selection="last", seed=0)
    data = arrays(results, row.stage)
    right = sum(int(np.argmax(z) == y) for z, y in zip(data["logits"], data["labels"], strict=True))
    assert row.accuracy == pytest.approx(100 * right / 12)
    assert (row.images, row.groups, row.degenerate, row.parameters, row.epoch) == (12, 6, 0, 11_177_538, 8)


def test_undefined_is_nan_and_null(found):
    rows = found.rows
    classifier, constant = pick(rows, method="classifier"), pick(rows, method="constant")
    assert math.isnan(classifier.pxap)
    assert math.isnan(classifier.chance)
    assert math.isnan(classifier.tau_val)
    assert classifier.accuracy > 0
    assert math.isnan(constant.accuracy)
    assert constant.pxap == pytest.approx(constant.chance)
    text = json.dumps([r.to_json() for r in rows], allow_nan=False)  # raises if a NaN is left
    value = next(v for v in json.loads(text) if v["method"] == "classifier")
    assert value["pxap"] is None
    assert set(value) >= WANTED


def test_times_of_parents_are_apart(found):
    rows = found.rows
    cam, pixel, base = (pick(rows, method=m, seed=s) for m, s in (("cam", 1), ("pixelcam", 1), ("random", 0)))
    assert (cam.seconds_train, cam.seconds_parents) == (11.0, 0.0)
    assert (pixel.seconds_train, pixel.seconds_parents) == (11.0, 11.0)
    assert (base.seconds_train, base.seconds_parents, base.stage_train) == (0.0, 0.0, "")


def test_only_images_with_a_region(tmp_path, write_results, recipe):
    store = write_results(tmp_path, recipe(seeds=(0,), protocols=("fair",), region_classes=(False, True)))
    row = pick(load_rows(store), method="cam", selection="cl")
    data = arrays(store, row.stage)
    positive = data["labels"] == 1
    share = data["foreground"][positive].sum() / (data["foreground"] + data["background"])[positive].sum()
    assert row.images_positive == positive.sum() == 6
    assert row.chance_positives == pytest.approx(100 * share)
    assert row.chance_positives > row.chance
    assert row.pxap_positives > row.pxap


def test_folds_and_keys(tmp_path, write_results, recipe):
    store = write_results(tmp_path, recipe(seeds=(0,), protocols=("fair",), folds=("10", "2", "grouped-1")))
    rows = load_rows(store)
    assert list(dict.fromkeys(r.fold for r in rows if r.method == "cam" and r.selection == "cl")) == [
        2,
        10,
        "grouped-1",
    ]
    wanted = {rows[3].stage, rows[5].stage}
    assert {r.stage for r in load_rows(store, wanted)} == wanted


def test_missing_parents_leave_out_the_row_alone(small, caplog):
    before = load_rows(small)
    victim = pick(before, method="cam", selection="cl")
    (small.run_dir(victim.stage_val) / "record.json").unlink()
    with caplog.at_level(logging.WARNING):
        after = load_rows(small)
    assert [r for r in before if r.stage != victim.stage] == pytest.approx(after, nan_ok=True) or len(after) == len(
        before
    ) - 1
    assert {r.stage for r in before} - {r.stage for r in after} == {victim.stage}
    assert victim.stage_val in caplog.text
    assert "bench run" in caplog.text


def test_missing_training_leaves_out_all_that_read_it(small):
    before = load_rows(small)
    trained = pick(before, method="cam").stage_train
    small.remove(trained)
    found = collect(small)
    gone = {r.stage for r in before} - {r.stage for r in found.rows}
    assert gone == {r.stage for r in before if r.stage_train == trained}
    assert len(found.problems) == len(gone)
    student = pick(found.rows, method="pixelcam")
    assert math.isnan(student.seconds_parents)  # not 0: its classifier did take time


@pytest.mark.parametrize("damage", ["cut", "absent", "no field", "shape", "labels", "empty", "pickle", "claims"])
def test_damaged_arrays_never_become_numbers(small, damage):
    row = pick(load_rows(small), method="cam", selection="cl")
    path = small.run_dir(row.stage) / "scores.npz"
    data = arrays(small, row.stage)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-900])
    elif damage == "absent":
        path.unlink()
    elif damage == "no field":
        write_npz(path, {k: v for k, v in data.items() if k != "groups"})
    elif damage == "shape":
        write_npz(path, {**data, "foreground": data["foreground"][:-1]})
    elif damage == "labels":
        write_npz(path, {**data, "labels": data["labels"] + 1})
    elif damage == "empty":
        write_npz(path, {k: v[:0] for k, v in data.items()})
    elif damage == "claims":  # to hold more than any memory does
        head = b"{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(117) + b"\n"
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("labels.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)
    else:
        np.savez(path, **{**data, "labels": np.array([object()] * 12)}, allow_pickle=True)
    found = collect(small)
    assert row.stage not in {r.stage for r in found.rows}
    assert any(row.stage in problem for problem in found.problems)


def test_record_without_a_field_is_named(small):
    row = pick(load_rows(small), method="cam", selection="cl")
    path = small.run_dir(row.stage) / "record.json"
    record = json.loads(path.read_text())
    del record["facts"]["region_classes"]
    write_json(path, record)
    found = collect(small)
    assert "region_classes" in found.problems[0]
    rows = len(found.rows)
    for damage in ("{", "[1]", "null", "[" * 100_000):
        path.write_text(damage)
        found = collect(small)
        assert (len(found.rows), len(found.problems)) == (rows, 1)  # no other row suffers
        assert f"{path} is damaged" in found.problems[0]


def test_nothing_to_report_says_what_to_do(tmp_path):
    with pytest.raises(BenchError, match="bench run"):
        load_report_rows(Store(tmp_path / "absent"))
    Store(tmp_path).fail("k" * 20, {"kind": "train", "labels": {"method": "cam"}, "error": "boom"})
    with pytest.raises(BenchError, match="Of what was begun, 1 failed: `bench status"):
        load_report_rows(Store(tmp_path))


# -- other sets ------------------------------------------------------------------------------------------------------
def test_what_was_scored_stands_in_fields(wide_found):
    seen = {(r.train, r.eval): r for r in wide_found.rows if r.method == "cam" and r.selection == "cl"}
    own, other, shifted = seen["glas", "glas"], seen["glas", "camelyon17:centre-2"], seen["glas", "glas:stain-3"]
    assert (own.dataset, own.shift, own.level, own.ood, own.pair) == ("glas", "", 0, False, False)
    assert math.isnan(own.severity)
    assert math.isnan(own.pixel_change)
    assert (other.dataset, other.shift, other.ood, other.pair) == ("camelyon17:centre-2", "", True, True)
    assert (shifted.dataset, shifted.shift, shifted.level, shifted.severity) == ("glas", "stain", 3, 0.1)
    assert (shifted.axis, shifted.ood, shifted.pair) == ("standard deviation of the HED shift", True, False)
    assert other.validation_masks == own.validation_masks
    assert (other.tau_val, other.stage_val) == (own.tau_val, own.stage_val)  # chosen at home, never on the other set


def test_a_record_that_called_target_stains_severities_does_so_no_more(wide, tmp_path):
    shutil.copytree(wide.root, tmp_path / "old")
    axis = "mean Frobenius distance of the target's stain matrix to those of the own set"
    for path in (tmp_path / "old").glob("runs/*/record.json"):
        record = json.loads(path.read_text())
        evaluation = record["facts"].get("evaluation", {})
        if evaluation.get("shift") == "restain":
            del evaluation["pixel_change"]
            evaluation |= {"severity": 0.2, "axis": axis}
            write_json(path, record)
    rows = [r for r in collect(Store(tmp_path / "old")).rows if r.shift == "restain"]
    assert rows
    for row in rows:
        assert math.isnan(row.severity)
        assert math.isnan(row.pixel_change)
        assert row.axis == "target stain"


def test_a_record_without_evaluation_is_its_eval_set_unshifted(small):
    for path in small.root.glob("runs/*/record.json"):
        record = json.loads(path.read_text())
        record["facts"].pop("evaluation", None)
        write_json(path, record)
    for row in load_rows(small):
        assert (row.dataset, row.shift, row.level, row.ood) == ("glas", "", 0, False)


def test_drops_are_against_the_same_checkpoint_at_home(wide_found):
    rows = wide_found.rows
    for eval_set in ("camelyon16", "glas:blur-2"):
        for seed in (0, 1):
            place = {"train": "glas", "method": "pixelcam", "selection": "cl", "seed": seed}
            home, away = pick(rows, eval="glas", **place), pick(rows, eval=eval_set, **place)
            assert away.drop_pxap == pytest.approx(home.pxap - away.pxap)
            assert away.drop_accuracy == pytest.approx(home.accuracy - away.accuracy)
            assert away.drop_skill == pytest.approx(home.skill - away.skill)
            assert away.skill == pytest.approx(100 * (away.pxap - away.chance) / (100 - away.chance))
            assert math.isnan(home.drop_pxap)
    back = pick(rows, train="camelyon16", eval="glas", method="cam", selection="cl", seed=0)
    assert back.drop_pxap == pytest.approx(
        pick(rows, train="camelyon16", eval="camelyon16", method="cam", selection="cl", seed=0).pxap - back.pxap
    )
    orphan = with_drops([replace(back, drop_pxap=math.nan)])
    assert math.isnan(orphan[0].drop_pxap)  # its in-domain row is not there


def test_results_by_class(wide, wide_found):
    row = pick(wide_found.rows, train="glas", eval="camelyon16", method="layercam", selection="cl", seed=0)
    data = arrays(wide, row.stage)
    assert [c.name for c in row.by_class] == ["normal", "tumor"]
    assert sum(c.images for c in row.by_class) == row.images
    for index, found in enumerate(row.by_class):
        own = data["labels"] == index
        assert found.images == own.sum()
        right = data["logits"][own].argmax(1) == index
        assert found.accuracy == pytest.approx(100 * right.mean())
    normal, tumour = row.by_class
    assert math.isnan(normal.pxap)
    assert math.isnan(normal.chance)
    assert (tumour.pxap, tumour.chance) == pytest.approx((row.pxap_positives, row.chance_positives))
    value = row.to_json()
    assert value["by_class"][0] == {"name": "normal", "images": 4, "accuracy": normal.accuracy} | dict.fromkeys(
        ("pxap", "chance")
    )


def test_a_class_without_images(found):
    row = pick(found.rows, method="cam", selection="cl", protocol="fair", seed=0)
    names, maps = np.array(["a", "b", "b"]), Histograms(*np.ones((2, 3, 1001)))
    scores = Scores(np.array(["x", "y", "z"]), np.zeros(3, int), names, np.eye(2)[[0, 0, 1]], maps)
    filled, empty = by_class(scores, row.classes)
    assert (filled.images, empty.images) == (3, 0)
    assert filled.accuracy == pytest.approx(200 / 3)
    assert filled.pxap == pytest.approx(50)
    assert all(math.isnan(v) for v in (empty.accuracy, empty.pxap, empty.chance))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kind",), None), (("labels",), []), (("labels", "selection"), ["cl"]), (("labels", "train"), 3),
        (("labels", "seed"), "0"), (("facts",), [1]), (("facts", "synthetic"), "yes"), (("facts", "degenerate"), None),
        (("facts", "region_classes"), 7), (("parents",), {"val": 3}), (("environment",), "torch"), (("seconds",), "1"),
        (("identity",), None),
    ],
)  # fmt: skip
def test_a_record_of_the_wrong_types_costs_its_own_row_alone(small, path, value):
    before = load_rows(small)
    row = pick(before, method="cam", selection="cl")
    file = small.run_dir(row.stage) / "record.json"
    record = json.loads(file.read_text())
    place = record
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    write_json(file, record)
    found = collect(small)
    assert {r.stage for r in before} - {r.stage for r in found.rows} == {row.stage}
    assert len(found.problems) == 1
    assert row.stage in found.problems[0]
