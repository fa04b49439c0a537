import numpy as np
import pytest
import torch
from skimage.color import rgb2hed
from skimage.filters import threshold_otsu

from wsolbench.methods.backbones.normalisation import HALF, IMAGENET
from wsolbench.methods.base import Evidence, EvidenceSettings
from wsolbench.methods.spec import method_spec


@pytest.fixture
def rgb():
    """Two 8-bit images: noise with dark blobs, in [0, 1], (2, 40, 56, 3)."""
    rng = np.random.default_rng(0)
    image = rng.integers(140, 256, (2, 40, 56, 3))
    image[:, 10:25, 12:40] = rng.integers(20, 130, (2, 15, 28, 3))
    return image / 255


def seen(rgb, ids=("a", "b"), seed=0, known=IMAGENET):
    pixels = torch.from_numpy(rgb).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (known.mean, known.std))
    return Evidence((pixels - mean) / std, settings=EvidenceSettings(ids, seed, statistics=known))


@pytest.mark.parametrize("name", ["random", "constant", "darkness", "tissue"])
def test_baselines_need_no_model_and_no_training(name, rgb, make):
    spec = method_spec(name)
    assert (spec.backbone, spec.needs, spec.supervision, spec.trains) == ((), (), "none", False)
    maps = make.explain(name, seen(rgb))
    assert maps.shape == (2, 40, 56)
    if spec.kind == "prob":
        assert maps.min() >= 0
        assert maps.max() <= 1


def test_darkness_is_scikit_images_haematoxylin(rgb, make):
    wanted = np.stack([rgb2hed(image)[..., 0] for image in rgb]) * -np.log(1e-6)  # it measures in units of its floor
    maps = make.explain("darkness", seen(rgb))
    np.testing.assert_allclose(maps.numpy(), wanted, atol=2e-3)
    assert maps.max() > 0.5


def test_tissue_is_the_dark_side_of_otsus_threshold(rgb, make):
    maps = make.explain("tissue", seen(rgb))
    grey = np.round((rgb @ [0.299, 0.587, 0.114]) * 255).astype(np.uint8)
    wanted = np.stack([g <= threshold_otsu(g) for g in grey])
    assert (maps.numpy() != wanted).mean() < 0.001  # float rounding at half a grey level
    assert 0.1 < maps.mean() < 0.6


def test_tissue_of_an_image_of_two_grey_levels_is_the_darker(make):
    image = np.full((1, 8, 8, 3), 200 / 255)
    image[:, :, :3] = 50 / 255
    assert torch.equal(make.explain("tissue", seen(image, ["a"]))[0, 0], torch.tensor([1.0] * 3 + [0.0] * 5))


def test_blank_image_has_no_tissue(make):
    assert make.explain("tissue", seen(np.full((1, 8, 8, 3), 0.9), ["a"])).sum() == 0


def test_random_depends_on_seed_and_image_only(rgb, make):
    both = make.explain("random", seen(rgb))
    alone = make.explain("random", seen(rgb[1:], ["b"]))
    assert torch.equal(alone[0], both[1])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(make.explain("random", seen(rgb, seed=1)), both)


def test_constant_is_all_foreground(rgb, make):
    assert torch.equal(make.explain("constant", seen(rgb)), torch.ones(2, 40, 56))


@pytest.mark.parametrize("name", ["darkness", "tissue"])
def test_colours_are_those_of_the_image_whatever_it_is_normalised_by(name, rgb, make):
    one, other = (make.explain(name, seen(rgb, known=known)) for known in (IMAGENET, HALF))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
