"""Masks at the size of scoring: against Pillow, OpenCV and areas summed one by one."""

import cv2
import numpy as np
import pytest
from PIL import Image

from wsolbench.benchmark.core.protocols import MASK_REDUCTIONS
from wsolbench.datasets.masks.sizes import reduce_mask

SHAPES = [(522, 775), (512, 512), (430, 567), (2000, 2000), (17, 90), (224, 224), (1, 1), (100, 7)]
ODD = [(31, 17), (97, 224), (300, 11)]


def random_mask(shape, seed=0, codes=False):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3 if codes else 2, tuple(-(-s // 5) for s in shape))
    return np.kron(coarse, np.ones((5, 5), np.uint8))[: shape[0], : shape[1]].astype(np.uint8 if codes else bool)


def areas(mask, size):
    """Foreground, ignored and whole area of every new pixel, summed pixel by pixel."""
    height, width = mask.shape
    found = np.zeros((3, size, size))
    for r in range(size):
        for c in range(size):
            top, bottom, left, right = r * height, (r + 1) * height, c * width, (c + 1) * width
            for y in range(top // size, -(-bottom // size)):
                for x in range(left // size, -(-right // size)):
                    tall = min(bottom, (y + 1) * size) - max(top, y * size)
                    wide = min(right, (x + 1) * size) - max(left, x * size)
                    found[:, r, c] += tall * wide * np.array([mask[y, x] == 1, mask[y, x] == 2, True])
    return found


@pytest.mark.parametrize("shape", SHAPES + ODD)
@pytest.mark.parametrize("size", [224, 96, 37])
def test_nearest_is_pillows_and_the_published_one_is_opencvs(shape, size):
    mask = random_mask(shape)
    small = Image.fromarray(mask.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(reduce_mask(mask, size, "nearest"), np.asarray(small) > 0)
    published = cv2.resize(mask.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST) > 0
    np.testing.assert_array_equal(reduce_mask(mask, size, "nearest-opencv"), published)


def test_the_published_one_takes_the_indices_of_opencv_at_any_size():
    for size in (224, 112, 256):
        for source in range(1, 1600, 3):
            line = np.arange(source, dtype=np.float32)[None].repeat(2, 0)
            expected = cv2.resize(line, (size, size), interpolation=cv2.INTER_NEAREST)
            np.testing.assert_array_equal(reduce_mask(line, size, "nearest-opencv"), expected)


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize(("shape", "size"), [((31, 17), 8), ((8, 8), 8), ((5, 9), 13), ((40, 40), 7), ((1, 3), 4)])
def test_area_and_any_are_what_the_areas_say(shape, size, codes):
    mask = random_mask(shape, seed=shape[0], codes=codes)
    foreground, ignored, whole = areas(mask, size)
    annotated = whole - ignored
    area, part = (reduce_mask(mask, size, how) for how in ("area", "any"))
    assert area.dtype == part.dtype == mask.dtype
    out = ignored > whole / 2
    np.testing.assert_array_equal(area == 2, out)
    np.testing.assert_array_equal(area == 1, ~out & (annotated > 0) & (foreground >= annotated / 2))
    np.testing.assert_array_equal(part == 1, foreground > 0)
    np.testing.assert_array_equal(part == 2, out & (foreground == 0))


def test_a_lesion_of_three_pixels_survives_where_any_part_counts():
    mask = np.zeros((2000, 2000), bool)
    mask[1001:1004, 701:704] = True
    assert {how: int(reduce_mask(mask, 224, how).sum()) for how in MASK_REDUCTIONS} == {
        "nearest": 0, "nearest-opencv": 0, "area": 0, "any": 1,
    }  # fmt: skip
    mask[1000:1010, 700:710] = True
    assert reduce_mask(mask, 224, "area").sum() > 0


@pytest.mark.parametrize("how", MASK_REDUCTIONS)
def test_every_way_of_the_protocols_keeps_what_is_uniform(how):
    for value in (False, True):
        assert (reduce_mask(np.full((33, 50), value), 9, how) == value).all()
    for code in (0, 1, 2):
        assert (reduce_mask(np.full((33, 50), code, np.uint8), 9, how) == code).all()


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="'smooth' is no way"):
        reduce_mask(np.zeros((4, 4), bool), 2, "smooth")
