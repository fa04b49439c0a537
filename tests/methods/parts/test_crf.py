"""The dense CRF against loops over all pairs, finite differences and the Potts energy."""

import itertools
import math
from functools import partial

import pytest
import torch

from wsolbench.methods.backbones.normalisation import HALF, IMAGENET
from wsolbench.methods.parts import crf
from wsolbench.methods.parts.crf import agreement, draw_partners

dense_crf = partial(crf.dense_crf, statistics=IMAGENET)
joint_crf = partial(crf.joint_crf, statistics=IMAGENET)


def colours(count=2, size=6, seed=0):
    """Raw images in 0..255 with few distinct colours, so that some pairs are alike."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(0, 4, (count, 3, size, size), generator=generator).double()
    return base * 12 + torch.rand(count, 3, size, size, generator=generator).double()


def normalised(raw, known=IMAGENET):
    mean, std = (torch.tensor(v, dtype=raw.dtype).view(1, 3, 1, 1) for v in (known.mean, known.std))
    return (raw / 255 - mean) / std


def planes(count=2, size=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, size, size, generator=generator).double().softmax(1)


def by_loop(raw, labels, sigma_xy):
    """Mean over images of -(1/N^2) sum_c S_c^T G S_c, one pair after the other."""
    total = 0.0
    for image, soft in zip(raw, labels, strict=True):
        places = list(itertools.product(range(image.shape[1]), range(image.shape[2])))
        for (a, b), (c, d) in itertools.product(places, places):
            colour = (image[:, a, b] - image[:, c, d]).square().sum().item() / (2 * 15**2)
            far = ((a - c) ** 2 + (b - d) ** 2) / (2 * sigma_xy**2)
            total -= math.exp(-colour - far) * (soft[:, a, b] * soft[:, c, d]).sum().item() / len(places) ** 2
    return total / len(raw)


def test_it_equals_the_loop_over_all_pairs():
    # 6 px stand for the 224 of the published images, so 100 px are 100 * 6 / 224
    found = dense_crf(planes(), normalised(colours()), sigma_xy=40.0)
    assert found.item() == pytest.approx(by_loop(colours(), planes(), 40.0 * 6 / 224), rel=1e-9)
    assert -1 <= found <= 0


def test_gradient_is_minus_two_g_s():
    raw, soft = normalised(colours()), planes().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: dense_crf(s, raw), (soft,))
    (found,) = torch.autograd.grad(dense_crf(soft, raw, sigma_xy=1e9), soft)
    flat = colours().flatten(2)
    affinity = torch.exp(-(flat[..., :, None] - flat[..., None, :]).square().sum(1) / (2 * 15**2))
    wanted = -2 * torch.einsum("bij,bcj->bci", affinity, soft.flatten(2)) / (2 * 36**2)
    torch.testing.assert_close(found.flatten(2), wanted)


def test_no_gradient_reaches_the_images():
    images, soft = normalised(colours()).requires_grad_(), planes().requires_grad_()
    dense_crf(soft, images).backward()
    assert images.grad is None
    assert soft.grad.abs().sum() > 0


def test_it_is_the_potts_energy_up_to_a_constant():
    features = torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(0)).double()
    apart = (features[..., :, None] - features[..., None, :]).square().sum(1)
    affinity = torch.exp(-apart / 2)
    for seed in (1, 2):  # the constant does not depend on the labelling
        soft = torch.randn(2, 3, 30, generator=torch.Generator().manual_seed(seed)).double().softmax(1)
        potts = (affinity * (1 - torch.einsum("bci,bcj->bij", soft, soft))).sum((1, 2))
        torch.testing.assert_close(-agreement(features, soft), potts / 900 - affinity.sum((1, 2)) / 900)


def test_parts_of_rows_and_of_the_batch_make_no_difference(monkeypatch):
    whole = dense_crf(planes(3), normalised(colours(3)))
    for most in (1, 100, 36 * 36, 3000):
        monkeypatch.setattr(crf, "MOST", most)
        torch.testing.assert_close(dense_crf(planes(3), normalised(colours(3))), whole)


def test_larger_images_are_averaged_to_the_grid():
    raw, soft = (t.repeat_interleave(4, 2).repeat_interleave(4, 3) for t in (colours(), planes()))
    torch.testing.assert_close(
        dense_crf(soft, normalised(raw), size=6), dense_crf(planes(), normalised(colours()), size=6)
    )


def test_averaging_is_by_area_for_any_ratio():
    values = torch.rand(2, 3, 12, 8)
    torch.testing.assert_close(crf._reduced(values, 4), torch.nn.functional.avg_pool2d(values, (3, 2)))
    uneven = crf._reduced(torch.rand(1, 1, 10, 10), 4)
    assert uneven.shape[-2:] == (4, 4)
    torch.testing.assert_close(crf._reduced(torch.ones(1, 1, 10, 10), 4), torch.ones(1, 1, 4, 4))
    ramp = crf._reduced(torch.arange(10.0).expand(1, 1, 10, 10), 4)[0, 0, 0]
    torch.testing.assert_close(ramp, torch.tensor([0.8, 3.2, 5.8, 8.2]))


def test_the_weight_hardly_depends_on_the_grid():
    axis = torch.linspace(-1, 1, 64).double()
    smooth = (axis[:, None] * axis)[None, None]
    soft = torch.cat([smooth, -smooth], 1).mul(3).softmax(1)
    raw = normalised((smooth * 60 + 120).repeat(1, 3, 1, 1))
    fine, coarse = (dense_crf(soft, raw, size=size) for size in (64, 16))
    assert fine.item() == pytest.approx(coarse.item(), rel=0.02)
    weight = 2e-9 * crf.PUBLISHED_PAIRS
    assert weight == pytest.approx(5.035, abs=1e-3)


def test_one_colour_everywhere_and_one_label_is_full_agreement():
    soft = torch.zeros(1, 2, 6, 6)
    soft[:, 1] = 1
    assert dense_crf(soft, torch.zeros(1, 3, 6, 6), sigma_xy=1e6).item() == pytest.approx(-1.0)
    half = dense_crf(torch.full((1, 2, 6, 6), 0.5), torch.zeros(1, 3, 6, 6), sigma_xy=1e6)
    assert half.item() == pytest.approx(-0.5)


def test_it_pulls_a_pixel_to_the_label_of_its_colour():
    raw = torch.zeros(1, 3, 6, 6)
    raw[..., 3:] = 200.0
    logits = torch.zeros(1, 2, 6, 6)
    logits[:, 1, :, 3:] = 4.0
    logits[:, 1, 2, 4] = 0.0  # one of the bright pixels does not know yet
    logits.requires_grad_()
    dense_crf(logits.softmax(1), normalised(raw)).backward()
    assert logits.grad[0, 1, 2, 4] < 0 < logits.grad[0, 0, 2, 4]


# -- images of one class together -----------------------------------------------------------------------------------
def test_joint_form_equals_the_loop_over_both_images():
    raw, soft = colours(4, 4), planes(4, 4)
    partners = torch.tensor([2, -1, 0, 1])
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(1, 3, 1, 1)
    grey = (raw * luma).sum(1).flatten(1)
    total = 0.0
    for a, b in ((0, 2), (2, 0), (3, 1)):
        values, labels = torch.cat([grey[a], grey[b]]), torch.cat([soft[a].flatten(1), soft[b].flatten(1)], 1)
        for i, j in itertools.product(range(32), range(32)):
            near = math.exp(-((values[i] - values[j]).item() ** 2) / (2 * 15**2))
            total -= near * (labels[:, i] * labels[:, j]).sum().item() / 32**2
    assert joint_crf(soft, normalised(raw), partners).item() == pytest.approx(total / 3, rel=1e-9)


def test_joint_form_without_partners_is_zero_with_a_gradient():
    soft = planes(2).requires_grad_()
    loss = joint_crf(soft, normalised(colours()), torch.tensor([-1, -1]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(soft.grad, torch.zeros_like(soft))


def test_partners_are_others_of_the_same_class():
    labels = torch.tensor([0, 1, 1, 0, 2, 1, 0, 0])
    seen = set()
    for seed in range(20):
        partners = draw_partners(labels, torch.Generator().manual_seed(seed))
        assert partners[4] == -1
        for image, other in enumerate(partners.tolist()):
            if image != 4:
                assert other != image
                assert labels[other] == labels[image]
        seen.add(partners[1].item())
        assert torch.equal(draw_partners(labels, torch.Generator().manual_seed(seed)), partners)
    assert seen == {2, 5}


def test_colours_are_those_of_the_image_whatever_it_is_normalised_by():
    raw, soft, pairs = colours(), planes(), torch.tensor([1, 0])
    for loss, words in ((crf.dense_crf, ()), (crf.joint_crf, (pairs,))):
        one, other = (loss(soft, normalised(raw, known), *words, statistics=known) for known in (IMAGENET, HALF))
        torch.testing.assert_close(one, other)
        assert abs(loss(soft, normalised(raw, HALF), *words, statistics=IMAGENET) - one) > 1e-3
