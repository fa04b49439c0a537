"""Stains against oracles: skimage's HED, known mixtures by Beer-Lambert, k-means by brute force and by sklearn."""

import itertools
import json

import numpy as np
import pytest
from skimage.color import hed2rgb, rgb2hed
from sklearn.cluster import KMeans

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.masks.decode import decode_image, resize_image
from wsolbench.datasets.shifts.stain import (
    LIGHT,
    StainPool,
    kmeans_1d,
    macenko,
    mix_hed,
    restain,
    stain_pool,
)
from wsolbench.datasets.synthesis.histology import STYLES, paint_glands, random_stain

SKIMAGE_UNIT = -np.log(1e-6)  # skimage measures densities in this unit


def mixture(seed: int, amounts: tuple[float, float] | None = None, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """An image of a known stain and its (3, 2) matrix: a fifth of glass, pure pixels of both stains, and mixtures."""
    rng = np.random.default_rng(seed)
    stain = random_stain(rng)
    matrix = np.stack([stain.haematoxylin, stain.eosin], 1)
    share = rng.beta(0.5, 0.5, (size * size, 1))
    share[rng.random(size * size) < 0.1] = 0
    share[rng.random(size * size) < 0.1] = 1
    strength = rng.uniform(0.6, 1.5, (size * size, 1)) * (rng.random((size * size, 1)) > 0.2)
    parts = np.concatenate([share, 1 - share], 1) * strength * (amounts or stain.amounts)
    image = np.clip(np.rint(LIGHT * np.exp(-parts @ matrix.T) - 1), 0, 255)
    return image.astype(np.uint8).reshape(size, size, 3), matrix


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(2,) angles between the columns of two matrices."""
    return np.degrees(np.arccos(np.clip((a * b).sum(0), -1, 1)))


@pytest.fixture(scope="module")
def tissue() -> list[np.ndarray]:
    """Twenty painted images of 96 px, each in a stain of its own."""
    rngs = [np.random.default_rng(k) for k in range(20)]
    return [paint_glands(rng, STYLES[k % 2], random_stain(rng), 96)[0] for k, rng in enumerate(rngs)]


def test_hed_amounts_of_these_tests_are_those_of_skimage(tissue, hed_amounts):
    expected = rgb2hed(tissue[0]) * SKIMAGE_UNIT
    np.testing.assert_allclose(np.maximum(hed_amounts(tissue[0]), 0), expected, atol=1e-5)


@pytest.mark.parametrize("scale, offset", [((1.3, 0.7), (0.05, 0.0)), ((0.8, 1.2), (0.0, 0.03))])
def test_mixing_hed_is_skimage_there_and_back(tissue, hed_amounts, scale, offset):
    image = tissue[1]
    hed = hed_amounts(image) * [*scale, 1] + [*offset, 0]
    expected = hed2rgb(hed / SKIMAGE_UNIT) * 255  # skimage clips to [0, 1] as we clip to [0, 255]
    assert np.abs(mix_hed(image, scale, offset) - expected).max() <= 0.501


def test_mixing_by_nothing_changes_nothing():
    greys = np.random.default_rng(0).integers(1, 256, (40, 40, 3), np.uint8)
    np.testing.assert_array_equal(mix_hed(greys, (1.0, 1.0), (0.0, 0.0)), greys)


@pytest.mark.parametrize("seed", range(6))
def test_macenko_finds_a_known_stain(seed):
    image, matrix = mixture(seed)
    found = macenko(image)
    assert found is not None
    np.testing.assert_allclose(np.linalg.norm(found.matrix, axis=0), 1)
    assert degrees(found.matrix, matrix).max() < 0.5  # grey levels are rounded


def test_macenko_finds_the_amounts():
    """Both stains pure and each at one strength, some of it mixed: the 99th percentile is that strength."""
    _, matrix = mixture(3)
    parts = np.repeat([[0.9, 0.0], [0.0, 0.8], [0.7, 0.7], [0.0, 0.0]], 1500, 0)
    image = np.rint(LIGHT * np.exp(-parts @ matrix.T) - 1).astype(np.uint8).reshape(60, 100, 3)
    found = macenko(image)
    assert found is not None
    assert degrees(found.matrix, matrix).max() < 0.5
    np.testing.assert_allclose(found.top, [0.9, 0.8], rtol=0.02)


def test_haematoxylin_comes_first_whichever_is_stronger():
    for amounts in ((1.4, 0.6), (0.6, 1.4)):
        image, _ = mixture(1, amounts)
        found = macenko(image)
        assert found is not None
        assert found.matrix[0, 0] > found.matrix[0, 1]


def test_the_stain_does_not_depend_on_glass_or_place():
    image, _ = mixture(2)
    wide = np.concatenate([image, np.full_like(image, 250)], 1)
    shuffled = np.random.default_rng(0).permutation(wide.reshape(-1, 3)).reshape(wide.shape)
    one, two = macenko(image), macenko(shuffled)
    assert one is not None
    assert two is not None
    np.testing.assert_allclose(two.matrix, one.matrix, atol=1e-4)
    np.testing.assert_allclose(two.top, one.top, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_restaining_to_its_own_stain_is_nearly_the_identity(seed):
    image, _ = mixture(seed)
    own = macenko(image)
    assert own is not None
    again = restain(image, own)
    assert again is not None
    # What lies outside of the plane of the two stains is dropped: rounding here.
    assert np.abs(again.astype(int) - image).mean() < 1
    assert np.abs(again.astype(int) - image).max() <= 4


def test_restaining_painted_tissue_to_its_own_stain_is_nearly_the_identity(tissue):
    for image in tissue[:4]:
        own = macenko(image)
        assert own is not None
        again = restain(image, own)
        assert again is not None
        assert np.abs(again.astype(int) - image).mean() < 3


@pytest.mark.parametrize("pair", [(0, 1), (2, 3), (4, 5)])
def test_restained_images_have_the_stain_they_were_given(pair):
    (image, _), (other, matrix) = (mixture(seed) for seed in pair)
    target = macenko(other)
    assert target is not None
    given = restain(image, target)
    assert given is not None
    assert given.dtype == np.uint8
    assert given.shape == image.shape
    measured = macenko(given)
    assert measured is not None
    assert degrees(measured.matrix, target.matrix).max() < 0.75
    assert degrees(measured.matrix, matrix).max() < 1
    np.testing.assert_allclose(measured.top, target.top, rtol=0.1)


def test_real_images_have_a_stain_and_keep_their_colours_in_it(shared_data):
    files = sorted((shared_data / "glas" / "png").glob("test?_1[0-9].png"))
    assert len(files) >= 11
    pink = shared_data / "glas" / "png" / "train_6.png"  # eosin of hardly any red density, which a floor would drop
    for path in [pink, *files[::2]]:
        image = resize_image(decode_image(path), 224)
        own = macenko(image)
        assert own is not None
        again = restain(image, own)
        assert again is not None
        assert np.abs(again.astype(int) - image).mean() < 4


def test_images_without_a_stain_are_told_from_others():
    rng = np.random.default_rng(0)
    white = np.full((64, 64, 3), 255, np.uint8)
    speck = white.copy()
    speck[:6, :6] = mixture(0)[0][:6, :6]  # 36 of 4096 px
    plain = np.full((64, 64, 3), 120, np.uint8)
    bare = [white, np.zeros_like(white), plain, speck]
    bare += [np.clip(plain + rng.normal(0, 2, plain.shape), 0, 255).astype(np.uint8)]
    bare += [rng.integers(0, 200, (64, 64, 1), np.uint8).repeat(3, 2)]  # grey: one stain, not two
    target = macenko(mixture(0)[0])
    assert target is not None
    for image in bare:
        assert macenko(image) is None
        assert restain(image, target) is None


def test_random_colours_overflow_nothing():
    """Warnings are errors here: exponentials and divisions must hold for whatever has a stain matrix."""
    rng = np.random.default_rng(1)
    targets = [t for t in (macenko(mixture(k)[0]) for k in range(3)) if t is not None]
    done = 0
    for _ in range(60):
        image = np.clip(rng.normal(rng.uniform(20, 180, 3), rng.uniform(5, 60, 3), (32, 32, 3)), 0, 255)
        changed = [restain(image.astype(np.uint8), t) for t in targets]
        done += sum(c is not None for c in changed)
    assert done > 10


def best_by_brute_force(values: np.ndarray, clusters: int) -> float:
    """Least squared deviation over all divisions of the sorted values into non-empty intervals."""
    ranked = np.sort(values)
    best = np.inf
    for cuts in itertools.combinations(range(1, len(ranked)), clusters - 1):
        parts = np.split(ranked, cuts)
        best = min(best, sum(((p - p.mean()) ** 2).sum() for p in parts))
    return best


def inertia(values: np.ndarray, group: np.ndarray) -> float:
    return sum(((values[group == k] - values[group == k].mean()) ** 2).sum() for k in np.unique(group))


@pytest.mark.parametrize("clusters", [1, 2, 3, 4])
def test_kmeans_is_the_optimum(clusters):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        values = rng.normal(0, 1, 11) if seed % 2 else rng.integers(0, 7, 11) + 0.25  # the latter with equal values
        group = kmeans_1d(values, clusters)
        assert set(group.tolist()) == set(range(clusters))
        assert inertia(values, group) == pytest.approx(best_by_brute_force(values, clusters), abs=1e-9)


def test_kmeans_groups_are_ordered_intervals_and_equal_values_stay_together():
    values = np.random.default_rng(0).integers(0, 40, 300).astype(float)
    group = kmeans_1d(values, 7)
    ends = [(values[group == k].min(), values[group == k].max()) for k in range(7)]
    assert all(high < low for (_, high), (low, _) in itertools.pairwise(ends))


def test_kmeans_is_no_worse_than_sklearn():
    values = np.random.default_rng(5).gamma(2, 1, 400)
    fitted = KMeans(10, n_init=5, random_state=42).fit(values[:, None])
    ours = inertia(values, kmeans_1d(values, 10))
    assert ours <= fitted.inertia_ * (1 + 1e-9)
    assert ours > 0.8 * fitted.inertia_


def test_kmeans_refuses_more_groups_than_values():
    with pytest.raises(BenchError, match="2 different values cannot be divided into 3"):
        kmeans_1d(np.array([1.0, 1.0, 2.0]), 3)


def test_pool_is_what_its_definition_says(tissue):
    own, other = tissue[:8], tissue[8:]
    pool = stain_pool(iter(own), iter(other), 4)
    mine, theirs = ([m for m in map(macenko, images) if m is not None] for images in (own, other))
    distance = np.array([np.mean([np.linalg.norm(t.matrix - m.matrix) for m in mine]) for t in theirs])
    fitted = KMeans(4, n_init=20, random_state=42).fit(distance[:, None])
    near = [int(np.argmin(np.abs(distance - c))) for c in np.sort(fitted.cluster_centers_[:, 0])]
    np.testing.assert_allclose(pool.distances, distance[near])
    for target, index in zip(pool.targets, near, strict=True):
        np.testing.assert_array_equal(target.matrix, theirs[index].matrix)
        np.testing.assert_array_equal(target.top, theirs[index].top)
    assert list(pool.distances) == sorted(pool.distances)
    assert pool.images == (8, 12)
    assert pool.skipped == (0, 0)


def test_pool_does_not_depend_on_the_order_of_images(tissue):
    one = stain_pool(tissue[:6], tissue[6:], 3).as_json()
    two = stain_pool(tissue[5::-1], tissue[:5:-1], 3).as_json()
    assert two["matrices"] == one["matrices"]
    np.testing.assert_allclose(two["distances"], one["distances"], rtol=1e-12)


def test_pool_counts_images_without_a_stain(tissue):
    white = np.full((96, 96, 3), 255, np.uint8)
    pool = stain_pool([white, *tissue[:4]], [*tissue[4:10], white, white], 3)
    assert (pool.images, pool.skipped) == ((4, 6), (1, 2))


def test_pool_survives_json(tissue):
    pool = stain_pool(tissue[:4], tissue[4:10], 3)
    again = StainPool.from_json(json.loads(json.dumps(pool.as_json())))
    assert again.as_json() == pool.as_json()
    np.testing.assert_array_equal(
        restain(tissue[0], again.targets[2]),
        restain(tissue[0], pool.targets[2]),
    )


def test_pools_without_enough_stains_say_so(tissue):
    white = np.full((96, 96, 3), 255, np.uint8)
    with pytest.raises(BenchError, match="none of its 2 images holds enough tissue"):
        stain_pool([white, white], tissue, 2)
    with pytest.raises(BenchError, match=r"10 target stains need as many.*of 5 images.*4 have a measurable"):
        stain_pool(tissue[:3], [white, *tissue[3:7]], 10)
    with pytest.raises(BenchError, match="and 1 of these differ"):
        stain_pool(tissue[:3], [tissue[4]] * 6, 2)
    with pytest.raises(BenchError, match="0 have a measurable"):
        stain_pool(tissue[:3], [white], 2)
