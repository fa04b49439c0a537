import io
import pickle

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.files import key_of
from wsolbench.datasets.shifts.shift import (
    LADDER,
    SHIFTS,
    expand_shift,
    is_shift,
    make_shift,
    parse_shift,
    shift_identity,
    stain_pool,
)
from wsolbench.datasets.synthesis.histology import STYLES, paint_glands, random_stain

EVERY = [(name, level) for name, card in SHIFTS.items() for level in card.levels]
FIXED = [name for name, card in SHIFTS.items() if not card.pooled]
IDS = [f"image-{k}" for k in range(6)]


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """(6, 128, 128, 3): painted glands of both classes, each in a stain of its own."""
    rngs = [np.random.default_rng(100 + k) for k in range(6)]
    return np.stack([paint_glands(rng, STYLES[k % 2], random_stain(rng), 128)[0] for k, rng in enumerate(rngs)])


@pytest.fixture(scope="module")
def pool(tissue):
    rngs = [np.random.default_rng(200 + k) for k in range(14)]
    return stain_pool(tissue, (paint_glands(r, STYLES[0], random_stain(r), 64)[0] for r in rngs), 10)


def test_there_are_five_levels_of_each_and_ten_target_stains():
    assert {name: card.levels[-1] for name, card in SHIFTS.items()} == {
        "stain": 5, "restain": 10, "blur": 5, "jpeg": 5, "brightness": 5, "contrast": 5, "resample": 5,
    }  # fmt: skip
    for name, card in SHIFTS.items():
        assert card.name == name
        assert card.levels[0] == 0
        assert len(card.axis) == (0 if card.pooled else len(card.levels))
        steps = np.diff(card.axis)
        assert (steps > 0).all() or (steps < 0).all()  # the axis goes one way


@pytest.mark.parametrize("name", SHIFTS)
def test_level_0_is_the_very_same_array(name, tissue, pool):
    before = tissue.copy()
    assert make_shift(name, 0, pool)(tissue, IDS) is tissue
    assert make_shift(name, 0)(tissue, IDS) is tissue  # the identity needs no pool
    np.testing.assert_array_equal(tissue, before)


@pytest.mark.parametrize("name, level", EVERY)
def test_shapes_types_and_the_input_are_kept(name, level, tissue, pool):
    images = np.ascontiguousarray(tissue[:2, :90])  # not square
    before = images.copy()
    images.setflags(write=False)  # rows of a memory-mapped file
    shifted = make_shift(name, level, pool)(images, IDS[:2])
    assert (shifted.dtype, shifted.shape) == (images.dtype, images.shape)
    np.testing.assert_array_equal(images, before)
    if level:
        assert (shifted != images).any()


@pytest.mark.parametrize("name", SHIFTS)
def test_an_image_does_not_depend_on_its_batch_or_its_order_or_on_when(name, tissue, pool):
    level = SHIFTS[name].levels[-1]
    whole = make_shift(name, level, pool)(tissue, IDS)
    again = make_shift(name, level, pool)
    np.testing.assert_array_equal(again(tissue[::-1], IDS[::-1])[::-1], whole)  # a view with negative strides
    parts = [again(tissue[a:b], IDS[a:b]) for a, b in ((0, 1), (1, 4), (4, 6))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(again(tissue[:0], [])) == 0


@pytest.mark.parametrize("name", FIXED)
def test_every_level_changes_more_than_the_one_before(name, tissue):
    change = []
    for level in SHIFTS[name].levels:
        shifted = make_shift(name, level)(tissue, IDS)
        change.append(np.abs(shifted.astype(int) - tissue).mean((1, 2, 3)))
    assert (np.diff(change, axis=0) > 0).all()  # of each image
    # No level is a leap: none takes more than half of the way from the first level to the last.
    path = np.mean(change, 1)[1:]
    assert np.diff(path).max() < 0.5 * (path[-1] - path[0])


def test_stain_multiplies_the_amounts_by_its_axis(tissue, hed_amounts):
    """Weak stains everywhere, so that no channel is near black, where grey levels say little about amounts."""
    pale = (255 - (255 - tissue.astype(int)) // 3).astype(np.uint8)
    before = hed_amounts(pale).reshape(-1, 3)
    for level in SHIFTS["stain"].levels[1:]:
        after = hed_amounts(make_shift("stain", level)(pale, IDS)).reshape(-1, 3)
        (h_scale, e_scale), (h_offset, _) = (SHIFTS["stain"].steps[level - 1][k] for k in ("scale", "offset"))
        slope, offset = np.polyfit(before[:, 0], after[:, 0], 1)
        assert slope == pytest.approx(h_scale, abs=0.03)
        assert offset == pytest.approx(h_offset, abs=0.01)
        assert np.polyfit(before[:, 1], after[:, 1], 1)[0] == pytest.approx(e_scale, abs=0.03)
        assert SHIFTS["stain"].axis[level] == pytest.approx(h_scale / e_scale, abs=1e-3)


@pytest.mark.parametrize("level", [1, 5])
def test_blur_is_a_gaussian_of_its_axis(level, tissue):
    sigma = SHIFTS["blur"].axis[level]
    reach = np.arange(-12, 13)
    bell = np.exp(-(reach**2) / (2 * sigma**2))
    kernel = np.outer(bell, bell) / bell.sum() ** 2
    expected = np.stack([ndimage.convolve(tissue[0, ..., c].astype(float), kernel) for c in range(3)], -1)
    shifted = make_shift("blur", level)(tissue, IDS)[0]
    assert np.abs(shifted - expected).max() < 1  # ours is cut off at four sigma, and rounded


@pytest.mark.parametrize("level", [1, 5])
def test_jpeg_is_the_file_of_its_quality(level, tissue):
    buffer = io.BytesIO()
    shifted = make_shift("jpeg", level)(tissue, IDS)
    Image.fromarray(tissue[0]).save(buffer, "JPEG", quality=int(SHIFTS["jpeg"].axis[level]), subsampling="4:2:0")
    np.testing.assert_array_equal(shifted[0], np.asarray(Image.open(buffer)))


@pytest.mark.parametrize("level", [1, 5])
def test_brightness_and_contrast_follow_their_formulas(level, tissue):
    images = tissue.astype(float)
    dim = make_shift("brightness", level)(tissue, IDS)
    assert np.abs(dim - SHIFTS["brightness"].axis[level] * images).max() <= 0.5
    flat = make_shift("contrast", level)(tissue, IDS)
    mean = images.mean((1, 2), keepdims=True)
    assert np.abs(flat - (mean + SHIFTS["contrast"].axis[level] * (images - mean))).max() <= 0.5 + 1e-9


def test_resample_takes_away_detail_but_not_colour(tissue):
    for level in (1, 5):
        factor = SHIFTS["resample"].axis[level]
        side = round(128 / factor)
        shifted = make_shift("resample", level)(tissue, IDS)
        small = Image.fromarray(tissue[0]).resize((side, side), Image.Resampling.BILINEAR)
        expected = np.asarray(small.resize((128, 128), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(shifted[0], expected)
        assert np.abs(shifted.mean((1, 2)) - tissue.mean((1, 2))).max() < 1
        gone = np.abs(np.fft.fft2(shifted[0].mean(-1)))[48:81, 48:81].mean()  # the finest detail
        assert gone < 0.35 * np.abs(np.fft.fft2(tissue[0].mean(-1)))[48:81, 48:81].mean()


def test_restain_gives_the_target_of_its_level_and_counts_what_it_leaves(tissue, pool):
    images = tissue.copy()
    images[3] = 255
    shift = make_shift("restain", 7, pool)
    shifted = shift(images, IDS)
    assert shift.unchanged == {"image-3"}
    np.testing.assert_array_equal(shifted[3], images[3])
    shift(images, IDS)
    assert shift.unchanged == {"image-3"}  # the same image again is no second one
    other = make_shift("restain", 1, pool)(images, IDS)
    assert (other[0] != shifted[0]).any()


@pytest.mark.parametrize("name, level", EVERY)
@pytest.mark.parametrize("value", [0, 255])
def test_blank_images_do_no_harm(name, level, value, pool):
    blank = np.full((2, 33, 47, 3), value, np.uint8)
    shift = make_shift(name, level, pool)
    shifted = shift(blank, ["a", "b"])
    assert shifted.shape == blank.shape
    assert np.ptp(shifted.astype(int), axis=(1, 2)).max() == 0  # still plain
    assert shift.unchanged == ({"a", "b"} if name == "restain" and level else set())


@pytest.mark.parametrize("name", SHIFTS)
def test_one_pixel_is_an_image_too(name, pool):
    pixel = np.full((1, 1, 1, 3), 90, np.uint8)
    assert make_shift(name, SHIFTS[name].levels[-1], pool)(pixel, ["a"]).shape == pixel.shape


def test_shifts_travel_to_other_processes(tissue, pool):
    for name, card in SHIFTS.items():
        shift = make_shift(name, card.levels[-1], pool)
        copy = pickle.loads(pickle.dumps(shift))  # noqa: S301 - our own
        np.testing.assert_array_equal(copy(tissue[:1], IDS[:1]), shift(tissue[:1], IDS[:1]))


@pytest.mark.parametrize(
    "images, ids",
    [
        (np.zeros((2, 8, 8, 3), np.float32), ["a", "b"]),
        (np.zeros((8, 8, 3), np.uint8), ["a"]),
        (np.zeros((2, 8, 8, 4), np.uint8), ["a", "b"]),
        (np.zeros((2, 8, 8, 3), np.uint8), ["a"]),
    ],
)
def test_other_arrays_are_refused(images, ids):
    for level in (0, 1):
        with pytest.raises(ValueError, match="expected"):
            make_shift("blur", level)(images, ids)


# -- names ------------------------------------------------------------------------------------------------------------
def test_names_are_parsed_and_expanded():
    assert parse_shift("stain-3") == ("stain", 3)
    assert parse_shift("restain-10") == ("restain", 10)
    assert parse_shift("blur-0") == ("blur", 0)
    assert expand_shift("stain") == [f"stain-{k}" for k in range(1, 6)]
    assert expand_shift("stain-0") == ["stain-0"]
    ladder = expand_shift(LADDER)
    assert len(ladder) == len(set(ladder)) == 6 * 5 + 10
    assert {parse_shift(text) for text in ladder} == {(n, k) for n, k in EVERY if k}


def test_what_is_a_shift():
    for text in ("stain", "stain-3", "restain-10", "ladder", "blur-9", "blur-"):
        assert is_shift(text)
    for text in ("", "centre-2", "stian-3", "stain-3-4", "-3", "Stain-3"):
        assert not is_shift(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("stian-3", "no shift 'stian'. Did you mean stain"),
        ("fog-3", "no shift 'fog'. Known: blur, brightness"),
        ("stain", "'stain' names no level. Levels: stain-0 .unchanged. to stain-5"),
        ("stain-6", "stain has no level '6'. Levels: stain-0 .unchanged. to stain-5"),
        (
            "restain-11",
            "restain has no target stain '11'. Target stains: restain-1 to restain-10, in no order of severity",
        ),
        ("stain-", "names no level"),
        ("stain-03", "no level '03'"),
        ("stain-x", "no level 'x'"),
        ("stain-³", "no level '³'"),
        ("stain--1", "no shift 'stain-'. Did you mean"),
        ("", "no shift ''"),
    ],
)
def test_wrong_names_are_explained(text, message):
    with pytest.raises(BenchError, match=message):
        parse_shift(text)
    if text not in SHIFTS:
        with pytest.raises(BenchError, match=message):
            expand_shift(text)


def test_wrong_levels_and_missing_pools_are_explained(pool):
    for act in (shift_identity, make_shift):
        with pytest.raises(BenchError, match="stain has no level '9'"):
            act("stain", 9)
        with pytest.raises(BenchError, match=r"no shift 'blurr'.*blur"):
            act("blurr", 1)
    with pytest.raises(BenchError, match="restain-2 needs a pool of at least 2 target stains; there are 0"):
        make_shift("restain", 2)
    few = stain_pool([pool_image(k) for k in range(3)], [pool_image(k) for k in range(3, 9)], 4)
    with pytest.raises(BenchError, match="needs a pool of at least 5 target stains; there are 4"):
        make_shift("restain", 5, few)
    make_shift("restain", 4, few)


def pool_image(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return paint_glands(rng, STYLES[seed % 2], random_stain(rng), 64)[0]


# -- identity ---------------------------------------------------------------------------------------------------------
def test_identities_tell_every_level_apart():
    keys = {key_of(shift_identity(name, level)) for name, level in EVERY}
    assert len(keys) == len(EVERY)
    assert shift_identity("blur", 0)["parameters"] == {}
    assert shift_identity("stain", 2)["parameters"] == {"scale": [1.25, 0.8], "offset": [0.02, 0.0]}
    assert shift_identity("jpeg", 5) == {"shift": "jpeg", "level": 5, "version": 1, "parameters": {"quality": 10}}


# -- how much is changed ----------------------------------------------------------------------------------------------
def rms(shifted: np.ndarray, images: np.ndarray) -> float:
    return float(np.sqrt(np.square(shifted.astype(float) - images.astype(float)).mean()))


@pytest.mark.parametrize("name, level", EVERY)
def test_the_change_of_the_pixels_is_measured_whatever_the_batches(name, level, tissue, pool):
    whole, parts = make_shift(name, level, pool), make_shift(name, level, pool)
    expected = rms(whole(tissue, IDS), tissue)
    assert whole.pixel_change == pytest.approx(expected, rel=1e-12)
    for some in (slice(4, 6), slice(0, 1), slice(1, 4), slice(0, 1)):  # an image seen again counts once
        parts(tissue[some], IDS[some])
    assert parts.pixel_change == whole.pixel_change
    assert (whole.pixel_change > 0) == bool(level)


def test_there_is_no_change_to_tell_before_an_image_was_seen(tissue):
    assert np.isnan(make_shift("blur", 1).pixel_change)
    black, shift = np.zeros((1, 8, 8, 3), np.uint8), make_shift("restain", 1, stain_pool(tissue, tissue, 1))
    shift(black, ["a"])
    assert (shift.pixel_change, shift.unchanged) == (0, {"a"})  # left as it is, and counted as such


@pytest.mark.parametrize("name", [name for name, card in SHIFTS.items() if card.graded])
def test_each_level_of_severity_changes_the_pixels_more_than_the_one_before(name, tissue):
    changes = []
    for level in SHIFTS[name].levels:
        shift = make_shift(name, level)
        shift(tissue, IDS)
        changes.append(shift.pixel_change)
    assert (np.diff(changes) > 0).all(), changes
    assert SHIFTS[name].severity


def test_target_stains_are_no_levels_of_severity(tissue, pool):
    card = SHIFTS["restain"]
    assert (card.graded, card.severity, card.axis, card.step) == (False, "", (), "target stain")
    assert [name for name, c in SHIFTS.items() if not c.graded] == ["restain"]
    changes = []
    for k in card.levels[1:]:
        shift = make_shift("restain", k, pool)
        shift(tissue, IDS)
        changes.append(shift.pixel_change)
    assert (np.diff(pool.distances) > 0).all()
    assert not (np.diff(changes) > 0).all(), "why: the distance of stain matrices does not order the change of pixels"
