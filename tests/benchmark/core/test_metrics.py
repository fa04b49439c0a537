"""Metrics against brute force written from the definition, scikit-learn, and cases with known answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from wsolbench.benchmark.core import metrics
from wsolbench.benchmark.core.metrics import BINS, THRESHOLDS, Histograms


def count(maps: list[np.ndarray], masks: list[np.ndarray]) -> Histograms:
    """Histograms of maps whose values are bin numbers 0..1000."""
    rows = [
        [np.bincount(m[k == side], minlength=BINS) for side in (True, False)] for m, k in zip(maps, masks, strict=True)
    ]
    return Histograms(*np.array(rows).transpose(1, 0, 2))


def random_set(seed: int, images: int = 4, pixels: int = 300, levels: int = 40) -> tuple[list, list]:
    rng = np.random.default_rng(seed)
    maps = [rng.choice(rng.choice(BINS, levels, replace=False), pixels) for _ in range(images)]
    masks = [rng.random(pixels) < 0.2 + 0.5 * m / 1000 for m in maps]
    return maps, masks


def brute_force_pxap(maps: list[np.ndarray], masks: list[np.ndarray]) -> float:
    """PxAP from its definition: every pixel, every threshold from high to low, right-rectangle sum."""
    scores = THRESHOLDS[np.concatenate(maps)]
    truth = np.concatenate(masks)
    total, recall_before = 0.0, 0.0
    for tau in sorted(THRESHOLDS, reverse=True):
        called = scores >= tau
        if not called.any():
            continue
        hits = int((called & truth).sum())
        recall = hits / int(truth.sum())
        total += hits / int(called.sum()) * (recall - recall_before)
        recall_before = recall
    return 100 * total


@pytest.mark.parametrize("seed", range(5))
def test_pxap_equals_brute_force_and_scikit_learn(seed):
    maps, masks = random_set(seed)
    value = metrics.pxap(count(maps, masks))
    assert value == pytest.approx(brute_force_pxap(maps, masks), abs=1e-9)
    # the scores are the bins' own edges, so that binning loses nothing and the two definitions coincide
    oracle = average_precision_score(np.concatenate(masks), THRESHOLDS[np.concatenate(maps)])
    assert value == pytest.approx(100 * oracle, abs=1e-9)


def test_pxap_rows_are_each_images_own():
    maps, masks = random_set(1)
    rows = metrics.pxap_rows(count(maps, masks))
    assert rows == pytest.approx([brute_force_pxap([m], [k]) for m, k in zip(maps, masks, strict=True)])


@pytest.mark.parametrize("value", [0, 1, 500, 1000])
def test_a_constant_map_scores_the_share_of_foreground(value):
    masks = [np.arange(1000) < 232, np.arange(1000) < 100]
    histograms = count([np.full(1000, value)] * 2, masks)
    assert metrics.pxap(histograms) == pytest.approx(16.6)
    assert metrics.chance_level(histograms) == pytest.approx(16.6)


def test_ground_truth_as_map_scores_100():
    _, masks = random_set(2)
    histograms = count([1000 * m.astype(int) for m in masks], masks)
    assert metrics.pxap(histograms) == 100
    assert metrics.at_tau(histograms, 0.5) == dict.fromkeys(
        ("dice", "iou", "miou", "sensitivity", "specificity"), 100.0
    )
    assert metrics.dice_rows(histograms, 0.5).tolist() == [100.0] * 4


def test_inverted_ground_truth_scores_below_chance():
    _, masks = random_set(2)
    histograms = count([1000 * (~m).astype(int) for m in masks], masks)
    assert metrics.pxap(histograms) == pytest.approx(
        metrics.chance_level(histograms)
    )  # all foreground comes last, at once
    assert metrics.at_tau(histograms, 0.5)["dice"] == 0


def test_best_tau_is_a_threshold_of_the_score_not_its_mirror():
    # foreground at 0.267, background at 0.1: the published evaluator printed about 1.001 - tau for such a case
    histograms = count([np.array([267] * 10 + [100] * 30)], [np.array([True] * 10 + [False] * 30)])
    tau = metrics.best_tau(histograms)
    assert 0.1 < tau <= 0.267
    assert tau == pytest.approx(0.101)  # the lowest of equals
    assert metrics.at_tau(histograms, tau)["miou"] == 100
    assert metrics.at_tau(histograms, 0.268)["dice"] == 0


@pytest.mark.parametrize("tau", [0.0, 0.001, 0.3, 0.5, 0.7, 0.999, 1.0, 0.12345])
def test_values_at_tau_equal_direct_counts(tau):
    maps, masks = random_set(3)
    scores, truth = np.concatenate(maps) / 1000, np.concatenate(masks)
    called = scores >= tau - 1e-12
    tp, fp, fn = (called & truth).sum(), (called & ~truth).sum(), (~called & truth).sum()
    tn = truth.size - tp - fp - fn
    found = metrics.at_tau(count(maps, masks), tau)
    assert found["dice"] == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn))
    assert found["iou"] == pytest.approx(100 * tp / (tp + fp + fn))
    assert found["miou"] == pytest.approx(50 * (tp / (tp + fp + fn) + tn / (tn + fp + fn)))
    assert found["sensitivity"] == pytest.approx(100 * tp / (tp + fn))
    assert found["specificity"] == pytest.approx(100 * tn / (tn + fp))
    per_image = metrics.dice_rows(count(maps, masks), tau)
    for got, m, k in zip(per_image, maps, masks, strict=True):
        hit = m / 1000 >= tau - 1e-12
        assert got == pytest.approx(100 * 2 * (hit & k).sum() / (hit.sum() + k.sum()))


def test_every_threshold_finds_itself_however_it_is_typed():
    histograms = count([np.arange(BINS)], [np.ones(BINS, bool)])
    for i in range(BINS):
        for tau in (THRESHOLDS[i], i / 1000, float(f"{i / 1000:.3f}")):
            assert metrics.at_tau(histograms, tau)["sensitivity"] == pytest.approx(100 * (BINS - i) / BINS)


@pytest.mark.parametrize("tau", [-0.1, 1.1])
def test_a_threshold_outside_the_range_is_refused(tau):
    with pytest.raises(ValueError, match="outside"):
        metrics.at_tau(count(*random_set(0)), tau)


def test_undefined_is_nan_never_zero():
    nothing = count([np.arange(100)], [np.zeros(100, bool)])
    for value in (metrics.pxap(nothing), metrics.chance_level(nothing), metrics.best_tau(nothing)):
        assert np.isnan(value)
    assert np.isnan(metrics.at_tau(nothing, 0.5)["dice"])
    assert np.isnan(metrics.dice_rows(nothing, 0.5)).all()
    assert metrics.at_tau(nothing, 0.5)["specificity"] == 100
    assert np.isnan(list(metrics.at_tau(count(*random_set(0)), float("nan")).values())).all()
    everything = metrics.at_tau(count([np.arange(100)], [np.ones(100, bool)]), 0.05)
    assert np.isnan(everything["specificity"])
    assert everything["sensitivity"] == 50
    assert np.isnan(metrics.accuracy(np.full((3, 2), np.nan), np.zeros(3, int)))
    assert np.isnan(metrics.accuracy(np.zeros((0, 2)), np.zeros(0, int)))


def test_accuracy_counts_argmax():
    assert metrics.accuracy(np.array([[2.0, 1], [0, 1], [5, 4], [1, 3]]), np.array([0, 1, 1, 1])) == 75


sets = st.integers(0, 10**6).map(lambda seed: random_set(seed, images=5, pixels=60, levels=12))


@given(sets, st.permutations(range(5)))
@settings(max_examples=40, deadline=None)
def test_pxap_ignores_image_order_and_sharding(data, order):
    maps, masks = data
    whole = count(maps, masks)
    value = metrics.pxap(whole)
    assert metrics.pxap(whole.select(np.array(order))) == value
    shards = [whole.select(np.array(order[:2])).pooled(), whole.select(np.array(order[2:])).pooled()]
    merged = Histograms(*(np.concatenate(part) for part in zip(*shards, strict=True)))
    assert metrics.pxap(merged) == value
    assert metrics.best_tau(merged) == metrics.best_tau(whole)


@given(sets, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_pxap_ignores_increasing_transforms_that_respect_the_bins(data, random):
    maps, masks = data
    used = np.unique(np.concatenate(maps))
    targets = np.array(sorted(random.sample(range(BINS), len(used))))
    moved = [targets[np.searchsorted(used, m)] for m in maps]
    assert metrics.pxap(count(moved, masks)) == pytest.approx(metrics.pxap(count(maps, masks)), abs=1e-9)


@given(sets)
@settings(max_examples=40, deadline=None)
def test_curves_fall_with_the_threshold_and_stay_in_range(data):
    curve = metrics.curve(count(*data))
    for values in (curve.tp, curve.fp, curve.recall):
        assert (np.diff(values) <= 0).all()
    assert curve.recall[0] == 1
    for values in (curve.precision, curve.recall, curve.dice, curve.iou, curve.iou_background, curve.miou):
        known = values[~np.isnan(values)]
        assert len(known)
        assert known.min() >= 0
        assert known.max() <= 1
    assert (curve.iou <= curve.dice).all()
    assert curve.miou.max() == pytest.approx(metrics.at_tau(count(*data), metrics.best_tau(count(*data)))["miou"] / 100)


def test_group_sums_follow_sorted_groups():
    values = np.array([[1, 2], [3, 4], [5, 6]])
    assert metrics.group_sums(values, np.array(["b", "a", "b"])).tolist() == [[3, 4], [6, 8]]
