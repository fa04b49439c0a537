"""The exact average precision of sampled pixels, and bins that follow the ranks of validation maps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.metrics import Histograms, best_tau, pxap
from wsolbench.benchmark.core.protocols import get_protocol
from wsolbench.benchmark.scoring.map_scaling import LEVELS, MapScale, histogram, rank_levels, resize_maps, scale_later
from wsolbench.benchmark.scoring.pixel_sample import (
    Sample,
    binned_pxap,
    codes_at,
    exact_ap,
    interpolated,
    on_device,
    pixels_of_each,
    positions,
    sample_facts,
)

CPU = torch.device("cpu")


def by_brute_force(values, truth):
    """Precision times gain of recall, threshold by threshold."""
    found, before = 0.0, 0.0
    for threshold in sorted(set(values.tolist()), reverse=True):
        called = values >= threshold
        recall = (called & truth).sum() / truth.sum()
        found += (called & truth).sum() / called.sum() * (recall - before)
        before = recall
    return 100 * found


@given(st.integers(0, 2**32), st.integers(2, 60), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_exact_ap_is_that_of_all_thresholds(seed, count, distinct):
    rng = np.random.default_rng(seed)
    values, truth = rng.integers(0, distinct, count) / 7.0, rng.random(count) < 0.4
    truth[0] = True
    assert exact_ap(values, truth) == pytest.approx(by_brute_force(values, truth), rel=1e-12)
    assert exact_ap(np.exp(values), truth) == exact_ap(values, truth)  # the order is all that counts


def test_exact_ap_of_constant_perfect_and_empty():
    truth = np.array([True, False, False, True])
    assert exact_ap(np.full(4, 0.3), truth) == pytest.approx(50)
    assert exact_ap(np.array([0.9, 0.1, 0.2, 0.8]), truth) == 100
    assert np.isnan(exact_ap(np.ones(4), np.zeros(4, bool)))


def test_one_value_a_bin_has_the_same_ap_with_bins_and_without():
    rng = np.random.default_rng(0)
    values, truth = ((rng.integers(0, 1000, 5000) + 0.5) / 1000).astype(np.float32), rng.random(5000) < 0.3
    assert binned_pxap(values, truth) == pytest.approx(exact_ap(values, truth), rel=1e-9)


def test_a_saturated_map_loses_its_order_in_bins_alone():
    rng = np.random.default_rng(1)
    truth = rng.random(20_000) < 0.4
    score = rng.normal(0, 1, 20_000) + 1.2 * truth
    mild, hard = (1 / (1 + np.exp(-k * score)) for k in (1, 8))
    assert binned_pxap(mild, truth) == pytest.approx(exact_ap(score, truth), abs=0.05)
    assert exact_ap(hard, truth) == pytest.approx(
        exact_ap(score, truth), abs=0.1
    )  # float64 tells apart what lies above 0.999
    assert binned_pxap(hard, truth) < exact_ap(score, truth) - 4


@pytest.mark.parametrize(("height", "width"), [(7, 7), (14, 9), (48, 48), (96, 64), (1, 1)])
def test_interpolated_pixels_are_those_of_the_resized_map(height, width):
    maps = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    places = on_device(("a", "b", "c"), 500, 48, CPU)
    wanted = resize_maps(maps, 48).flatten(1).gather(1, places)
    torch.testing.assert_close(interpolated(maps, places, 48), wanted, atol=2e-6, rtol=0)


def test_the_same_pixels_whatever_the_batch():
    assert np.array_equal(positions(("a", "b"), 40, 32)[1], positions(("b",), 40, 32)[0])
    assert not np.array_equal(*positions(("a", "b"), 40, 32))
    assert positions(("a",), 4000, 32).max() < 32 * 32
    assert [pixels_of_each(n) for n in (1, 80, 15_664, 0)] == [4096, 3277, 32, 4096]


def test_ignored_pixels_count_nowhere():
    codes = torch.tensor([[[1, 0], [2, 2]]], dtype=torch.uint8)
    at = codes_at(codes, torch.tensor([[0, 1, 2, 3]]))
    sample = Sample(np.float32([[0.9, 0.1, 5, 5]]), np.float32([[0.9, 0.1, 1, 1]]), at.numpy())
    assert sample_facts(sample, None) == {"pixels": 2, "ap": 100.0, "pxap": 100.0, "gated": None}


def test_gated_pixels_lie_below_all_others():
    values = np.float32([[-3, -4], [9, 9]])
    sample = Sample(values, values.clip(0, 1), np.uint8([[1, 0], [0, 0]]))
    facts = sample_facts(sample, np.array([False, True]))
    assert facts["ap"] == pytest.approx(100 / 3)
    assert facts["gated"] == {"ap": 100.0, "pxap": 25.0}  # the bins see four zeros
    nothing = sample_facts(Sample(values, values.clip(0, 1), np.uint8([[0, 0], [0, 0]])), None)
    assert (nothing["ap"], nothing["pxap"]) == (None, None)


# -- ranks -------------------------------------------------------------------------------------------------------------
def counted(maps, masks, validation, kind):
    """Histograms of maps whose bins are ranks among validation maps."""
    scale = MapScale(0, 1, rank_levels(validation))
    scaled = scale_later(maps, kind, "validation", scale).maps
    return Histograms(*(h.numpy() for h in histogram(resize_maps(scaled, masks.shape[-1]), masks)))


@pytest.mark.parametrize("change", [torch.exp, lambda m: m**3, lambda m: 100 * m - 7, torch.atan])
def test_no_monotone_change_of_scores_moves_a_rank(change):
    generator = torch.Generator().manual_seed(3)
    maps, validation = (torch.randn(n, 14, 14, generator=generator, dtype=torch.float64) for n in (6, 4))
    masks = torch.rand(6, 56, 56, generator=generator) < 0.4
    plain, turned = (counted(f(maps), masks, [f(v) for v in validation], "score") for f in (lambda m: m, change))
    assert all(np.array_equal(a, b) for a, b in zip(plain, turned, strict=True))
    assert pxap(plain) == pxap(turned)
    assert best_tau(plain) == best_tau(turned)


def test_a_saturated_decoder_keeps_its_order():
    generator = torch.Generator().manual_seed(4)
    masks = torch.rand(8, 32, 32, generator=generator) < 0.4
    logits = torch.randn(8, 32, 32, generator=generator).double() + 1.2 * masks
    mild, hard = (torch.sigmoid(k * logits) for k in (1, 12))
    linear = [Histograms(*(h.numpy() for h in histogram(m.float(), masks))) for m in (mild, hard)]
    ranked = [counted(m, masks, [m[:2]], "prob") for m in (mild, hard)]
    assert pxap(linear[1]) < pxap(linear[0]) - 2
    assert pxap(ranked[0]) == pytest.approx(pxap(linear[0]), abs=0.2)
    assert pxap(ranked[1]) == pytest.approx(pxap(ranked[0]), abs=0.1)


def test_ranks_of_values_between_on_and_beyond_the_levels():
    levels = rank_levels([torch.arange(LEVELS).double()])
    maps = torch.tensor([[[-5.0, 0, 0.5, 1], [500, 999.5, 1000, 2000]]])
    scaled = scale_later(maps, "score", "validation", MapScale(0, 1, levels))
    assert scaled.maps.flatten().tolist() == pytest.approx([0, 0, 0.0005, 0.001, 0.5, 0.9995, 1, 1])
    assert torch.equal(scaled.unclipped, maps)
    flat = rank_levels([torch.cat([torch.zeros(500), torch.ones(501)])])
    ranks = scale_later(torch.tensor([[[-1.0, 0, 0.5, 1, 2]]]), "score", "validation", MapScale(0, 1, flat)).maps
    assert ranks.flatten().diff().min() >= 0
    assert ranks.flatten().tolist()[1] == pytest.approx(0.25, abs=2e-3)


def test_constant_validation_maps_give_no_scale():
    levels = rank_levels([torch.ones(4, 5)])
    scaled = scale_later(torch.rand(2, 3, 3), "score", "validation", MapScale(1, 1, levels))
    assert scaled.degenerate.all()
    assert not scaled.maps.any()
    with pytest.raises(BenchError, match="not finite"):
        rank_levels([torch.tensor([1.0, float("nan")])])
    with pytest.raises(BenchError, match="there are none"):
        rank_levels([])


def test_the_option_is_part_of_the_protocol():
    fair = get_protocol("fair", binning="validation")
    assert fair.id == "fair(binning=validation)"
    assert fair.identity() != get_protocol("fair").identity()
    with pytest.raises(BenchError, match="Use it with --protocol fair"):
        get_protocol("paper", binning="validation")
