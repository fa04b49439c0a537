import hashlib

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from wsolbench.datasets.synthesis.histology import blend_stains, random_stain
from wsolbench.datasets.synthesis.histology_nodes import paint_node, random_metastasis, tissue_share
from wsolbench.datasets.synthesis.synthetic import write_glas


def draw(k, share, size=96):
    slide = np.random.default_rng([3, k // 4])
    stain, tumour = random_stain(slide), random_metastasis(slide)
    return paint_node(np.random.default_rng([4, k]), stain, size, share, tumour)


@pytest.fixture(scope="module")
def pictures():
    """(40, 96, 96, 3) float images, their masks, and labels; every other patch is normal."""
    shares = (0.22, 0.3, 0.45, 0.25, 0.8)
    drawn = [draw(k, shares[k // 2 % 5] if k % 2 else 0.0) for k in range(40)]
    images, masks = (np.stack(part) for part in zip(*drawn, strict=True))
    return images.astype(float), masks, np.arange(40) % 2


@pytest.mark.parametrize("share", [0.2, 0.35, 0.7, 0.97, 1.0])
def test_the_islands_cover_what_was_asked_for_and_hardly_more(share):
    for k in range(4):
        image, mask = draw(k, share, 64)
        assert (image.dtype, image.shape, mask.dtype, mask.shape) == (np.uint8, (64, 64, 3), bool, (64, 64))
        assert share <= mask.mean() <= min(1, share + 0.05)


def test_islands_are_few_and_no_specks(pictures):
    _, masks, labels = pictures
    assert not masks[labels == 0].any()
    for mask in masks[labels == 1]:
        numbers, n = ndimage.label(mask)
        assert 1 <= n <= 12
        assert np.bincount(numbers.ravel())[1:].min() >= 100


def test_the_same_generator_gives_the_same_patch_and_another_another():
    one, two, other = draw(1, 0.3), draw(1, 0.3), draw(2, 0.3)
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])
    assert not np.array_equal(one[0], other[0])


def test_neither_darkness_nor_colour_marks_the_tumour(pictures):
    images, masks, labels = pictures
    chance = masks.mean()
    assert 0.15 < chance < 0.3
    density = -np.log10((images + 1) / 256)
    stains = np.linalg.inv(np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]))
    cues = {
        "dark": density.mean(3), "bright": images.mean(3), "blue": images[..., 2] - images[..., 0],
        "red": images[..., 0] - images[..., 2], "haematoxylin": (density @ stains)[..., 0],
        "eosin": (density @ stains)[..., 1],
    }  # fmt: skip
    for name, cue in cues.items():
        assert average_precision_score(masks.ravel(), cue.ravel()) < chance + 0.25, name
        auc = roc_auc_score(labels, cue.mean((1, 2)))
        assert max(auc, 1 - auc) < 0.8, name


def test_the_tumour_shows_in_its_texture(pictures):
    images, masks, _ = pictures
    grey = images.mean(3)
    smooth = np.stack([ndimage.gaussian_filter(i, 3) for i in grey])
    spread = np.sqrt(np.stack([ndimage.gaussian_filter((i - s) ** 2, 3) for i, s in zip(grey, smooth, strict=True)]))
    assert average_precision_score(masks.ravel(), -spread.ravel()) > masks.mean() + 0.3  # large nuclei, even cytoplasm


def test_tissue_is_what_is_stained():
    image = np.full((10, 10, 3), 250, np.uint8)
    assert tissue_share(image) == 0
    image[:4] = (150, 90, 160)
    assert tissue_share(image) == 0.4
    assert 0.3 < tissue_share(draw(0, 0.0)[0]) <= 1


def test_a_blend_lies_between_two_stains():
    one, other = (random_stain(np.random.default_rng(k)) for k in (0, 1))
    for share, same in ((0.0, one), (1.0, other)):
        blend = blend_stains(one, other, share)
        assert np.allclose(blend.haematoxylin, same.haematoxylin)
        assert np.allclose(blend.amounts, same.amounts)
        assert np.allclose(blend.light, same.light)
    half = blend_stains(one, other, 0.5)
    assert np.isclose(np.linalg.norm(half.eosin), 1)
    assert np.allclose(half.amounts, (np.array(one.amounts) + other.amounts) / 2)


def test_glands_are_still_painted_as_in_version_1(tmp_path):
    # the sum of all files, from before nodes shared the canvas; if it changes, raise VERSION in synthetic.py
    digest = hashlib.sha256()
    for path in sorted(write_glas(tmp_path, train=20, test=4, size=64).iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    assert digest.hexdigest() == "a7a897cf1dd953f0a9e41ee186636a9482b1d2cda79dc018ddf0a56d7582b558"
