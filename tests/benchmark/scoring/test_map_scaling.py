"""Scaling, resizing and counting of score maps, against numpy."""

import numpy as np
import pytest
import torch

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.metrics import BINS, THRESHOLDS
from wsolbench.benchmark.scoring import histograms
from wsolbench.benchmark.scoring.map_scaling import histogram, resize_maps, scale_constants, scale_maps

REFERENCE_EDGES = np.append(np.arange(0, 1, 0.001), [1.0, 2.0, 3.0])  # the published evaluator's


def by_numpy(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One image at a time; numpy compares float32 values with float64 edges in float64."""
    rows = []
    for values, mask in zip(maps.astype(np.float64), masks, strict=True):
        both = [np.histogram(values[where], REFERENCE_EDGES)[0] for where in (mask, ~mask)]
        assert both[0][BINS:].sum() == both[1][BINS:].sum() == 0
        rows.append([b[:BINS] for b in both])
    stacked = np.array(rows)
    return stacked[:, 0], stacked[:, 1]


def assert_same_counts(maps: torch.Tensor, masks: torch.Tensor) -> None:
    foreground, background = histogram(maps, masks)
    assert foreground.dtype == background.dtype == torch.int64
    expected = by_numpy(maps.numpy(), masks.numpy())
    np.testing.assert_array_equal(foreground.numpy(), expected[0])
    np.testing.assert_array_equal(background.numpy(), expected[1])


def adversarial_values() -> np.ndarray:
    """Every edge rounded to float32, its neighbours two steps up and down, and the ends of the range."""
    edges = THRESHOLDS.astype(np.float32)
    around = [edges]
    for direction in (-np.inf, np.inf):
        step = edges
        for _ in range(2):
            step = np.nextafter(step, np.float32(direction), dtype=np.float32)
            around.append(step)
    tiny = np.array([0.0, -0.0, 1.0, np.finfo(np.float32).tiny, 1e-45, 0.5, 0.125], np.float32)
    thousandths = (np.arange(1001, dtype=np.float32) / np.float32(1000)).astype(np.float32)
    return np.concatenate([*around, tiny, thousandths]).clip(0, 1)


def test_counts_equal_numpy_on_every_edge_and_its_neighbours():
    values = adversarial_values()
    maps = torch.from_numpy(values.reshape(1, 1, -1))
    masks = torch.from_numpy(np.random.default_rng(0).random(maps.shape) < 0.5)
    assert_same_counts(maps, masks)


def test_each_edge_falls_where_the_threshold_list_says():
    smallest = THRESHOLDS.astype(np.float32)
    smallest = np.where(smallest < THRESHOLDS, np.nextafter(smallest, np.float32(2)), smallest).astype(np.float32)
    for values, bins in ((smallest, np.arange(BINS)), (np.nextafter(smallest[1:], np.float32(0)), np.arange(BINS - 1))):
        maps = torch.from_numpy(values)[:, None, None]  # one image per value
        foreground, _ = histogram(maps, torch.ones_like(maps, dtype=torch.bool))
        np.testing.assert_array_equal(foreground.argmax(1).numpy(), bins)


@pytest.mark.parametrize("chunk", [1 << 18, 5000, 37])
def test_counts_equal_numpy_on_random_maps_whatever_the_chunk(monkeypatch, chunk):
    monkeypatch.setitem(histograms._CHUNK, "cpu", chunk)
    rng = np.random.default_rng(chunk)
    side = 70 if chunk == 37 else 500
    maps = torch.from_numpy(rng.random((4, side, side), dtype=np.float32) ** 3)
    masks = torch.from_numpy(rng.random((4, side, side)) < rng.random((4, 1, 1)))
    assert_same_counts(maps, masks)


def test_counts_of_non_contiguous_and_non_square_batches():
    rng = np.random.default_rng(3)
    big = torch.from_numpy(rng.random((6, 31, 90), dtype=np.float32))
    masks = torch.from_numpy(rng.random((6, 90, 31)) < 0.3).transpose(1, 2)
    assert not masks.is_contiguous()
    assert_same_counts(big, masks)
    assert_same_counts(big[::2, 1::3, 5:70:2], masks[::2, 1::3, 5:70:2])
    assert_same_counts(big.transpose(1, 2), masks.transpose(1, 2))


def test_counts_refuse_shapes_that_differ():
    with pytest.raises(ValueError, match="differ in shape"):
        histogram(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5, dtype=torch.bool))


def test_image_scaling_uses_the_whole_range_and_zeroes_a_constant_map():
    maps = torch.tensor([[[-2.0, 0.0], [1.0, 2.0]], [[7.0, 7.0], [7.0, 7.0]]])
    scaled, degenerate = scale_maps(maps, "score", "image")
    assert scaled.tolist() == [[[0.0, 0.5], [0.75, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]
    assert degenerate.tolist() == [False, True]
    assert scaled.dtype == torch.float32


def test_image_scaling_survives_extreme_ranges():
    maps = torch.tensor([[[-3e38, 3e38]], [[0.0, 1e-45]]])
    scaled, degenerate = scale_maps(maps, "score", "image")
    assert scaled.tolist() == [[[0.0, 1.0]], [[0.0, 1.0]]]
    assert not degenerate.any()


def test_image_scaling_ignores_gain_and_offset():
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 7, 5)))
    one, two = scale_maps(maps, "score", "image")[0], scale_maps(8 * maps - 3, "score", "image")[0]
    torch.testing.assert_close(one, two)


def test_validation_scaling_clips_and_keeps_constant_maps():
    maps = torch.tensor([[[-1.0, 1.0, 2.0, 5.0]], [[2.0, 2.0, 2.0, 2.0]]])
    scaled, degenerate = scale_maps(maps, "score", "validation", (1.0, 3.0))
    assert scaled.tolist() == [[[0.0, 0.0, 0.5, 1.0]], [[0.5, 0.5, 0.5, 0.5]]]
    assert degenerate.tolist() == [False, True]


def test_validation_scaling_without_a_range_gives_zeros_and_counts_every_image():
    scaled, degenerate = scale_maps(torch.rand(2, 3, 3), "score", "validation", (0.4, 0.4))
    assert not scaled.any()
    assert degenerate.all()


def test_probabilities_stay_and_rounding_is_clipped():
    maps = torch.tensor([[[0.25, 1.00001, -0.00001]], [[0.3, 0.3, 0.3]]])
    scaled, degenerate = scale_maps(maps, "prob", "image")
    torch.testing.assert_close(scaled, torch.tensor([[[0.25, 1.0, 0.0]], [[0.3, 0.3, 0.3]]]))
    assert float(scaled.max()) == 1.0
    assert degenerate.tolist() == [False, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind, scale", [("prob", "image"), ("score", "image"), ("score", "validation")])
def test_values_that_are_not_finite_are_refused_by_name(bad, kind, scale):
    maps = torch.zeros(3, 2, 2)
    maps[1, 0, 1] = bad
    with pytest.raises(BenchError, match=r"'b' is not finite"):
        scale_maps(maps, kind, scale, (0.0, 1.0), ids=("a", "b", "c"))
    with pytest.raises(BenchError, match="number 1 of the batch"):
        scale_maps(maps, kind, scale, (0.0, 1.0))


def test_probabilities_outside_the_range_and_wrong_words_are_refused():
    with pytest.raises(BenchError, match=r"'x' leaves \[0, 1\].*score"):
        scale_maps(torch.full((1, 2, 2), 1.1), "prob", "image", ids=("x",))
    for kind, scale, constants in (("none", "image", None), ("score", "set", None), ("score", "validation", None)):
        with pytest.raises(BenchError):
            scale_maps(torch.zeros(1, 2, 2), kind, scale, constants)


def test_constants_are_exact_quantiles_whatever_the_order():
    values = np.random.default_rng(0).normal(size=(10, 13)).astype(np.float32)
    low, high = scale_constants([torch.from_numpy(v) for v in values], (0.1, 0.9))
    ordered = np.sort(values.ravel().astype(np.float64))
    for got, share in ((low, 0.1), (high, 0.9)):
        place = share * (ordered.size - 1)
        below, part = int(place), place - int(place)
        assert got == pytest.approx(ordered[below] + part * (ordered[below + 1] - ordered[below]), abs=1e-12)
    assert scale_constants(list(values[::-1]), (0.1, 0.9)) == (low, high)
    assert scale_constants([values], (0.0, 1.0)) == (values.min(), values.max())


def test_constants_need_finite_values():
    for values in ([], [np.empty(0)], [np.array([0.0, np.nan])], [torch.tensor([np.inf])]):
        with pytest.raises(BenchError, match="validation images"):
            scale_constants(values, (0.0, 1.0))


def test_resize_is_bilinear_between_pixel_centres():
    ramp = torch.tensor([[[0.0, 1.0]]])
    resized = resize_maps(ramp, 4)
    assert resized.shape == (1, 4, 4)
    np.testing.assert_allclose(resized[0, 0].numpy(), [0.0, 0.25, 0.75, 1.0], atol=1e-7)
    assert resize_maps(ramp, (1, 8)).shape == (1, 1, 8)
    assert torch.equal(resize_maps(ramp, (1, 2)), ramp)


def test_resize_stays_in_range_and_keeps_constants():
    maps = torch.rand(4, 9, 7, generator=torch.Generator().manual_seed(0)).round()
    resized = resize_maps(maps, (61, 53))
    assert float(resized.min()) >= 0
    assert float(resized.max()) <= 1
    values = torch.from_numpy(THRESHOLDS.astype(np.float32))[:, None, None]
    constant = resize_maps(values.expand(-1, 3, 7), 17)
    assert (constant == values).all()  # not one rounding error: it would spread a constant map over two bins
