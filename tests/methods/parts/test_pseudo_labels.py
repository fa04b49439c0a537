import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from skimage.filters import threshold_otsu

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.methods.parts.losses import partial_cross_entropy
from wsolbench.methods.parts.pseudo_labels import (
    SAMPLERS,
    PseudoLabelRule,
    _draw,
    _weights,
    lowest,
    otsu,
    sample_pseudo_labels,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blob(size=32):
    """A bright disc on a dark ground, in [0, 1]."""
    axis = torch.linspace(-1, 1, size)
    return torch.exp(-4 * (axis[:, None] ** 2 + axis[None] ** 2))[None]


# -- Otsu -----------------------------------------------------------------------------------------------------------
def test_otsu_equals_scikit_image_row_by_row():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 256, 900), rng.normal(80, 12, 900), np.r_[rng.normal(60, 9, 700), rng.normal(190, 20, 200)],
            rng.integers(100, 103, 900), np.r_[np.zeros(899), 255]]  # fmt: skip
    levels = np.stack([np.clip(r, 0, 255).astype(np.uint8) for r in rows])
    assert otsu(torch.from_numpy(levels).long()).tolist() == [threshold_otsu(row) for row in levels]


def test_otsu_of_a_constant_row_is_its_level():
    assert otsu(torch.full((2, 50), 7)).tolist() == [7, 7]


def test_otsu_region_is_eroded_as_by_scipy():
    rng = np.random.default_rng(1)
    maps = torch.from_numpy(rng.random((1, 40, 40))).float()
    maps[0, 8:30, 5:33] = 0.95
    front, _ = _weights(maps.flatten(1), maps.shape, PseudoLabelRule("otsu", erosion=5))
    levels = np.floor(maps[0].numpy() * 255)
    wanted = binary_erosion(levels > threshold_otsu(levels.astype(np.uint8)), np.ones((5, 5)), border_value=1)
    assert wanted.any()
    np.testing.assert_array_equal(front[0].view(40, 40).numpy() > 0, wanted)


def test_a_region_that_erosion_deletes_is_used_as_it_is():
    maps = torch.zeros(1, 20, 20)
    maps[0, 4:6, 4:6] = 1
    seeds = sample_pseudo_labels(maps, PseudoLabelRule("otsu", 4, 0), generator())
    assert (seeds[0] == 1).nonzero().tolist() == [[4, 4], [4, 5], [5, 4], [5, 5]]


# -- drawing --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_numbers_and_places_of_drawn_pixels(sampler):
    maps = blob().repeat(6, 1, 1)
    seeds = sample_pseudo_labels(maps, PseudoLabelRule(sampler, 7, 9, area=0.3, erosion=3), generator())
    assert seeds.dtype == torch.int64
    assert set(seeds.unique().tolist()) == {-100, 0, 1}
    if sampler != "prob":  # there the two may meet
        assert (seeds == 1).sum((1, 2)).tolist() == [7] * 6
        assert (seeds == 0).sum((1, 2)).tolist() == [9] * 6
        low = lowest(maps.flatten(1), 0.3).view(maps.shape)
        assert not (seeds == 0)[~low].any()
    assert maps[seeds == 1].mean() > maps.mean() > maps[seeds == 0].mean()


def race(weights, seed=0):
    return lambda: torch.empty_like(weights).exponential_(generator=generator(seed))


def test_draws_follow_the_weights_without_replacement():
    weights = torch.tensor([0.0, 1.0, 2.0, 5.0]).repeat(40_000, 1)
    single = _draw(weights, 1, race(weights)).float().mean(0)
    torch.testing.assert_close(single, weights[0] / 8, atol=0.01, rtol=0)
    pairs = _draw(weights, 2, race(weights, 1)).float().mean(0)
    wanted = [0.0, *(p / 8 + sum(q / 8 * p / (8 - q) for q in (1, 2, 5) if q != p) for p in (1, 2, 5))]
    torch.testing.assert_close(pairs, torch.tensor(wanted), atol=0.01, rtol=0)
    assert _draw(weights[:5], 4, race(weights[:5])).sum(1).tolist() == [3] * 5  # what weighs nothing is never drawn


def test_lowest_takes_whole_ties_so_that_no_corner_is_favoured():
    maps = torch.zeros(1, 100)
    maps[0, :10] = 1
    assert lowest(maps, 0.2).sum().item() == 90


def test_background_weights_as_described_spare_the_region_and_flat_ones_do_not():
    maps = torch.zeros(2000, 8, 8)
    maps[:, :, :4] = 1.0  # half of the image is certain foreground
    described, flat = (PseudoLabelRule("prob", 0, 5, flat_background=flag) for flag in (False, True))
    assert (sample_pseudo_labels(maps, described, generator())[:, :, :4] == 0).sum().item() == 0
    share = (sample_pseudo_labels(maps, flat, generator())[:, :, :4] == 0).sum().item() / (2000 * 5)
    assert share == pytest.approx(0.5, abs=0.02)


def test_drawn_pixels_are_widened_and_conflicts_ignored():
    maps = torch.zeros(1, 9, 9)
    maps[0, 4, 4] = 1
    seeds = sample_pseudo_labels(maps, PseudoLabelRule("prob", 1, 80, dilation=3), generator())[0]
    assert (seeds[3:6, 3:6] == -100).all()  # foreground's square is all claimed by background too
    assert not (seeds == 1).any()
    alone = sample_pseudo_labels(maps, PseudoLabelRule("prob", 1, 0, dilation=3), generator())[0]
    assert (alone == 1).sum().item() == 9
    assert (alone[3:6, 3:6] == 1).all()


def test_constant_maps_give_no_pixels():
    for value in (0.0, 0.4, 1.0):
        for sampler in SAMPLERS:
            assert (
                sample_pseudo_labels(torch.full((2, 8, 8), value), PseudoLabelRule(sampler), generator()) == -100
            ).all()


@pytest.mark.parametrize(("negatives", "background"), [("skip", 0), ("background", 5), ("dense", 0)])
def test_images_without_region(negatives, background):
    maps = torch.cat([blob(), blob(), torch.zeros(1, 32, 32)])
    positive = torch.tensor([True, False, False])
    seeds = sample_pseudo_labels(maps, PseudoLabelRule(negatives=negatives), generator(), positive)
    assert (seeds[0] == 1).sum().item() == 5
    for image in seeds[1:]:
        assert not (image == 1).any()
        assert (image == 0).sum().item() == background


def test_background_of_a_negative_image_comes_from_everywhere():
    maps = blob().repeat(500, 1, 1)
    seeds = sample_pseudo_labels(maps, PseudoLabelRule(area=0.1), generator(), torch.zeros(500, dtype=torch.bool))
    share = (seeds[:, 8:24, 8:24] == 0).sum().item() / (500 * 5)
    assert share == pytest.approx(0.25, abs=0.05)


def test_the_generator_alone_decides():
    maps = blob().repeat(3, 1, 1)
    torch.manual_seed(1)
    first = sample_pseudo_labels(maps, PseudoLabelRule(), generator(4))
    torch.manual_seed(2)
    assert torch.equal(sample_pseudo_labels(maps, PseudoLabelRule(), generator(4)), first)
    assert not torch.equal(sample_pseudo_labels(maps, PseudoLabelRule(), generator(5)), first)


@pytest.mark.parametrize(
    "wrong",
    [{"sampler": "top"}, {"negatives": "some"}, {"area": 0.0}, {"erosion": 4}, {"dilation": 0}, {"foreground": -1}],
)
def test_rules_that_make_no_sense_are_refused(wrong):
    with pytest.raises(BenchError, match="Pseudo-labels"):
        PseudoLabelRule(**wrong)


# -- partial cross-entropy ------------------------------------------------------------------------------------------
def test_partial_cross_entropy_is_the_mean_over_labelled_pixels():
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 4, 4)
    seeds = torch.full((2, 4, 4), -100)
    seeds[0, 1, 2], seeds[1, 3, 3] = 1, 0
    terms = -logits.log_softmax(1)[0, 1, 1, 2], -logits.log_softmax(1)[1, 0, 3, 3]
    torch.testing.assert_close(partial_cross_entropy(logits, seeds), sum(terms) / 2)
    seeds[1] = -100
    torch.testing.assert_close(partial_cross_entropy(logits, seeds), terms[0])


def test_partial_cross_entropy_without_labels_is_zero_with_a_gradient():
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    loss = partial_cross_entropy(logits, torch.full((2, 4, 4), -100))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
