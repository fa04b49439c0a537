"""Intervals over groups: closed forms, the package scipy, invariances, and inputs that say nothing."""

import math

import numpy as np
import pytest
from scipy import stats

from wsolbench.benchmark.core.intervals import (
    accuracy_interval,
    degrees_of_freedom,
    effective_groups,
    foreground_images,
    jackknife_interval,
    pxap_interval,
    pxap_without_each,
    wilson_interval,
)
from wsolbench.benchmark.core.metrics import BINS, Histograms, pxap

GLAS = np.array([16, 14, 12, 8, 8, 5, 4, 4, 4, 2, 2, 1])  # test images a patient


def scene(groups, rng, pixels=400, spread=0.5):
    """Histograms of images whose maps are better in some groups than in others."""
    better = dict(zip(np.unique(groups), rng.normal(0.3, spread, len(np.unique(groups))), strict=True))
    counts = np.zeros((2, len(groups), BINS), np.int64)
    for image, group in enumerate(groups):
        inside = rng.random(pixels) < rng.uniform(0.2, 0.6)
        values = 1 / (1 + np.exp(-rng.normal(0, 1, pixels) - better[group] * inside))
        for kind, chosen in ((0, inside), (1, ~inside)):
            counts[kind, image] = np.bincount((values[chosen] * 1000).astype(int), minlength=BINS)
    return Histograms(*counts)


def test_effective_groups_of_glas():
    assert effective_groups(GLAS) == pytest.approx(80**2 / 806)  # 7.9
    assert effective_groups(np.full(12, 5)) == pytest.approx(12)
    assert effective_groups(np.array([[7, 0, 0], [0, 0, 0]])).tolist() == [1, 0]
    assert degrees_of_freedom(np.array([9, 0])) == 1


def test_the_jackknife_of_a_mean_of_equal_groups_is_the_t_interval():
    """Without a group that reaches 0 or 1 the error is taken on the logit; for values close together the two agree."""
    rng = np.random.default_rng(0)
    values = 50 + rng.normal(0, 0.5, 20)
    without = (values.sum() - values) / 19
    found = jackknife_interval(values.mean(), without, np.ones(20))
    reach = stats.t.ppf(0.975, 19) * values.std(ddof=1) / math.sqrt(20)
    assert found.low == pytest.approx(values.mean() - reach, abs=1e-3)
    assert found.high == pytest.approx(values.mean() + reach, abs=1e-3)


def test_the_jackknife_of_pxap_by_hand():
    groups = np.repeat(np.arange(12), GLAS)
    histograms = scene(groups, np.random.default_rng(1))
    without = np.array([pxap(histograms.select(groups != g)) for g in range(12)])
    assert pxap_without_each(histograms, groups) == pytest.approx(without, rel=1e-12)
    logits = np.log(without / (100 - without))
    error = math.sqrt(11 / 12 * ((logits - logits.mean()) ** 2).sum())
    centre = math.log(pxap(histograms) / (100 - pxap(histograms)))
    reach = stats.t.ppf(0.975, 80**2 / 806 - 1) * error
    wanted = [100 / (1 + math.exp(-x)) for x in (centre - reach, centre + reach)]
    assert pxap_interval(histograms, groups) == pytest.approx(wanted, rel=1e-12)


def test_clusters_widen_and_order_and_copies_change_nothing():
    groups = np.repeat(np.arange(12), GLAS)
    histograms = scene(groups, np.random.default_rng(2))
    low, high = pxap_interval(histograms, groups)
    assert low < pxap(histograms) < high
    alone = pxap_interval(histograms, np.arange(len(groups)))
    assert high - low > 1.5 * (alone[1] - alone[0])
    order = np.random.default_rng(3).permutation(len(groups))
    assert pxap_interval(histograms.select(order), groups[order]) == pytest.approx((low, high), rel=1e-12)
    twice = Histograms(*(np.concatenate([h, h]) for h in histograms))  # every image twice: no new patient
    assert pxap_interval(twice, np.concatenate([groups, groups])) == pytest.approx((low, high), rel=1e-12)


def test_wilson_is_scipys_on_the_effective_number():
    right = (np.random.default_rng(0).random(400) < 0.8).astype(float)
    found = wilson_interval(right, np.ones(400))
    share = right.mean()
    effect = 400 / 399  # of independent images the design effect is n / (n - 1)
    count = 400 / effect * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 399)) ** 2
    wanted = stats.binomtest(round(share * 400), 400).proportion_ci(method="wilson")  # n = 400
    assert found.low == pytest.approx(100 * wanted.low, abs=0.06)
    z = stats.norm.ppf(0.975)
    ends = np.roots([1 + z**2 / count, -(2 * share + z**2 / count), share**2])  # (p - share)^2 = z^2 p (1 - p) / n
    assert [found.low, found.high] == pytest.approx(sorted(100 * ends), rel=1e-10)


def test_clustered_mistakes_widen_the_accuracy():
    total = np.full(20, 10.0)
    spread = wilson_interval(np.full(20, 9.0), total)
    packed = wilson_interval(np.array([0.0, 0.0] + [10.0] * 18), total)  # the same 90%: two patients all wrong
    assert packed.high - packed.low > 2 * (spread.high - spread.low)
    assert packed.low < 90 < packed.high


@pytest.mark.parametrize("share", [0, 1])
def test_an_accuracy_of_all_or_none_has_a_width(share):
    found = wilson_interval(share * GLAS, GLAS)
    assert found.high - found.low > 3
    assert found.low <= 100 * share <= found.high


def test_many_rows_at_once_are_rows_one_by_one():
    rng = np.random.default_rng(5)
    without, sizes = rng.uniform(40, 60, (7, 9)), rng.integers(1, 9, (7, 9)).astype(float)
    without[2, 4:] = np.nan  # a row of fewer groups
    estimate = np.nanmean(without, 1)
    found = jackknife_interval(estimate, without, sizes)
    for row in range(7):
        one = jackknife_interval(estimate[row], without[row], sizes[row])
        assert np.array_equal([found.low[row], found.high[row]], [one.low, one.high], equal_nan=True)
    assert np.isnan(found.low[2]) == (np.isfinite(without[2]).sum() < 5)


def test_groups_without_foreground_take_part_but_do_not_count():
    """Normal slides: leaving one out changes PxAP, but six of them beside four with tumour are no ten groups."""
    groups = np.repeat(np.arange(10), 3)
    whole = scene(groups, np.random.default_rng(6))
    normal = groups >= 4
    background = whole.background.copy()
    background[normal] += whole.foreground[normal]
    foreground = np.where(normal[:, None], 0, whole.foreground)
    assert np.isnan(pxap_interval(Histograms(foreground, background), groups)).all()
    assert foreground_images(Histograms(foreground, background), groups).tolist() == [3] * 4 + [0] * 6
    normal = groups >= 5
    background, foreground = whole.background.copy(), np.where(normal[:, None], 0, whole.foreground)
    background[normal] += whole.foreground[normal]
    low, high = pxap_interval(Histograms(foreground, background), groups)
    assert low < pxap(Histograms(foreground, background)) < high


PERFECT = Histograms(np.eye(BINS, dtype=int)[[BINS - 1] * 12] * 50, np.eye(BINS, dtype=int)[[0] * 12] * 50)
CONSTANT = Histograms(np.eye(BINS, dtype=int)[[0] * 12] * 50, np.eye(BINS, dtype=int)[[0] * 12] * 50)
NOTHING = Histograms(np.zeros((12, BINS), int), np.eye(BINS, dtype=int)[[0] * 12] * 50)


@pytest.mark.parametrize(("histograms", "count"), [
    (PERFECT, 12), (CONSTANT, 12), (NOTHING, 12), (scene(np.arange(12), np.random.default_rng(7)), 1),
    (scene(np.arange(12), np.random.default_rng(7)), 2), (scene(np.arange(12), np.random.default_rng(7)), 4),
])  # fmt: skip
def test_no_interval_where_nothing_is_known_of_the_spread(histograms, count):
    assert np.isnan(pxap_interval(histograms, np.arange(12) % count)).all()


def test_one_group_that_hides_a_perfect_rest_has_an_interval():
    """Without its only imperfect patient a map is perfect: the logit of 1 is infinite, the interval is not."""
    fg, bg = (h.copy() for h in PERFECT)
    bg[3] = 0
    bg[3, BINS - 1] = 50
    low, high = pxap_interval(Histograms(fg, bg), np.arange(12))
    assert 0 < low < pxap(Histograms(fg, bg)) < high <= 100


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_no_accuracy_interval_of_few_groups(groups):
    labels = np.arange(12) % 2
    assert np.isnan(accuracy_interval(np.eye(2)[labels], labels, np.arange(12) % groups)).all()
    assert np.isnan(accuracy_interval(np.full((12, 2), np.nan), labels, np.arange(12))).all()
    assert np.isnan(accuracy_interval(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))).all()


def test_one_class_predicted_throughout_has_an_accuracy_interval():
    labels = np.repeat([0, 1], 6)
    low, high = accuracy_interval(np.tile([1.0, 0.0], (12, 1)), labels, np.arange(12))
    assert 0 < low < 50 < high < 100
