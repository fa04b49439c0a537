"""What the numbers of a mask mean: files that the tests write in every way a program may have meant them."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.masks.doubts import between_neighbours
from wsolbench.datasets.masks.reader import MaskRule, make_rule, mask_size, read_mask

SIDE = 48
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
DISC = (ROWS - 24) ** 2 + (COLUMNS - 22) ** 2 < 12**2
TWO = np.where(COLUMNS < 22, DISC * 1, DISC * 2).astype(np.uint8)  # two touching objects, 1 and 2
RING = ((ROWS - 24) ** 2 + (COLUMNS - 22) ** 2 < 15**2) & ~DISC


def write(path, values, mode=None, **options):
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def indexed(path, values, palette, **options):
    image = (
        Image.fromarray(values).convert("P")
        if values.dtype != np.uint8
        else Image.frombytes("P", values.shape[::-1], values.tobytes())
    )
    image.putpalette(palette)
    image.save(path, **options)
    return path


def jpeg(values, quality=75):
    """What is left of grey values after JPEG."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def enlarged(values, how):
    return np.asarray(Image.fromarray(values).resize((SIDE * 2, SIDE * 2), how))


def voc_palette():
    """The colours of Pascal VOC: entry 0 black, all 256 of them different."""
    bits = np.arange(256)[:, None] >> np.arange(8)[None] & 1
    return [
        int(sum(bits[k, 3 * shift + channel] << (7 - shift) for shift in range(3) if 3 * shift + channel < 8))
        for k in range(256)
        for channel in range(3)
    ]


def rle_bitmap(path, values):
    """A BMP of 8 bits with run-length encoding, which Pillow reads and does not write."""
    height, width = values.shape
    body = b"".join(b"".join(bytes([1, v]) for v in row) + b"\0\0" for row in values[::-1].tolist()) + b"\0\1"
    palette = b"".join(bytes([k, k, k, 0]) for k in range(256))
    start = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + palette + body)


GOOD = {
    "binary.png": lambda p: write(p, DISC * np.uint8(255)),
    "binary.bmp": lambda p: write(p, DISC * np.uint8(255)),
    "ones.tif": lambda p: write(p, DISC * np.uint8(1)),
    "half.png": lambda p: write(p, DISC * np.uint8(128)),
    "bits.png": lambda p: write(p, DISC),
    "bits.tif": lambda p: write(p, DISC),
    "objects.png": lambda p: write(p, TWO),
    "deep.png": lambda p: write(p, TWO.astype(np.uint16) * 300),
    "lzw.tif": lambda p: write(p, TWO, compression="tiff_lzw"),
    "deflate.tif": lambda p: write(p, TWO, compression="tiff_adobe_deflate"),
    "packbits.tif": lambda p: write(p, TWO, compression="packbits"),
    "float.tif": lambda p: write(p, DISC.astype(np.float32)),
    "four-bits.png": lambda p: write(p, TWO, bits=4),
    "colours.png": lambda p: indexed(p, TWO, [0, 0, 0, 200, 0, 0, 0, 200, 0]),
    "voc.png": lambda p: indexed(p, TWO, voc_palette()),
    "rle.bmp": lambda p: rle_bitmap(p, TWO),
    "greys.bmp": lambda p: indexed(p, TWO, [0, 0, 0, 90, 90, 90, 180, 180, 180]),
    "clear-background.png": lambda p: indexed(p, TWO, [0, 0, 0, 200, 0, 0, 0, 200, 0], transparency=0),
    "bool.npy": lambda p: np.save(p, DISC),
    "labels.npy": lambda p: np.save(p, TWO.astype(np.int64)),
    "floats.npz": lambda p: np.savez(p, DISC.astype(np.float64)),
}


@pytest.mark.parametrize("name", GOOD)
def test_numbers_with_one_meaning_are_read(tmp_path, name):
    GOOD[name](tmp_path / name)
    found = read_mask(tmp_path / name)
    assert found.foreground.dtype == np.bool_
    np.testing.assert_array_equal(found.foreground, DISC)
    assert found.ignored is None
    assert found.facts.foreground == DISC.sum()
    assert found.facts.background == SIDE**2 - DISC.sum()
    assert mask_size(tmp_path / name) == (SIDE, SIDE)
    np.testing.assert_array_equal(found.codes, DISC.astype(np.uint8))


def test_up_to_65535_objects_that_touch_each_other_are_numbers_and_no_soft_mask():
    """Cells of a Voronoi diagram: every value meets others at its edges, and none lies between its neighbours."""
    rng = np.random.default_rng(3)
    seeds, side = rng.integers(0, 300, (260, 2)), np.mgrid[:300, :300].reshape(2, -1).T
    numbers = 1 + ((side[:, None] - seeds[None]) ** 2).sum(2).argmin(1).reshape(300, 300)
    numbers[:20] = 0
    for dtype, scale in ((np.uint8, 1), (np.uint16, 251)):
        values = (np.minimum(numbers, 255) * scale).astype(dtype)
        between, changes = between_neighbours(values)
        assert between < 0.01 * changes


@pytest.mark.parametrize("count", [40, 255, 3000])
def test_object_masks_are_read_whatever_their_count(tmp_path, count):
    side = int(np.ceil(np.sqrt(count)))
    numbers = np.zeros((side * 6, side * 6), np.uint16)
    for k in range(count):
        numbers[k // side * 6 : k // side * 6 + 4, k % side * 6 : k % side * 6 + 5] = k + 1
    path = write(tmp_path / "objects.png", numbers if count > 255 else numbers.astype(np.uint8))
    assert read_mask(path).facts.foreground == 20 * count


def test_object_numbers_in_any_order_and_with_gaps_are_read(tmp_path):
    rng = np.random.default_rng(5)
    for dtype, highest in ((np.uint8, 254), (np.uint16, 60000)):
        numbers = np.zeros((60, 60), dtype)
        for k, value in enumerate([2, highest - 1, *rng.permutation(np.arange(20, highest - 20))[:30]]):
            numbers[k // 6 * 10 : k // 6 * 10 + 7, k % 6 * 10 : k % 6 * 10 + 8] = value
        assert read_mask(write(tmp_path / "m.png", numbers)).facts.distinct == 33


REFUSED = {
    "white-first.png": (lambda p: indexed(p, DISC * np.uint8(1), [255, 255, 255, 0, 0, 0]), "entry 0 .* is not black"),
    "reversed-greys.bmp": (
        lambda p: indexed(p, TWO, [v for k in range(256) for v in [255 - k] * 3]),
        "entry 0 .* is not black",
    ),
    "two-blacks.png": (lambda p: indexed(p, TWO, [0, 0, 0, 0, 0, 0, 9, 9, 9]), "entry 1 .* is black as entry 0 is"),
    "twice.png": (lambda p: indexed(p, TWO, [0, 0, 0, 9, 0, 0, 9, 0, 0]), "two values of the mask have one colour"),
    "falling.png": (lambda p: indexed(p, TWO, [0, 0, 0, 200, 200, 200, 90, 90, 90]), "do not rise with its indices"),
    "quantised.png": (
        lambda p: Image.fromarray(~DISC * np.uint8(255)).convert("RGB").quantize(4).save(p),
        "entry 0|foreground|no background",
    ),
    "clear.png": (
        lambda p: indexed(p, TWO, [0, 0, 0, 9, 0, 0, 0, 9, 0], transparency=2),
        "value 2 of the mask is transparent",
    ),
    "alpha.png": (lambda p: write(p, DISC * np.uint8(255), "LA"), r"several channels \(mode LA\)"),
    "colour.png": (lambda p: write(p, DISC * np.uint8(255), "RGB"), r"several channels \(mode RGB\)"),
    "gif.gif": (lambda p: write(p, DISC * np.uint8(255)), "is a GIF file; masks are read from"),
    "lossy.jpg": (lambda p: write(p, DISC * np.uint8(255)), "is a JPEG file; its compression has changed the values"),
    "lossy.webp": (lambda p: write(p, DISC * np.uint8(255)), "is a WEBP file; its compression has changed the values"),
    "jpeg.tif": (lambda p: write(p, DISC * np.uint8(255), compression="jpeg"), "compression JPEG"),
    "white-is-zero.tif": (
        lambda p: tifffile.imwrite(p, DISC * np.uint8(255), photometric="miniswhite"),
        "0 is white",
    ),
    "white-bits.tif": (lambda p: tifffile.imwrite(p, DISC, photometric="miniswhite"), "0 is white"),
    "no-data.tif": (
        lambda p: tifffile.imwrite(p, DISC * np.uint8(255), extratags=[(42113, "s", 0, "255", True)]),
        "255 means 'no data'",
    ),
    "was-jpeg.png": (lambda p: write(p, jpeg(DISC * np.uint8(255))), "values near 0 .* and near 255"),
    "good-jpeg.png": (lambda p: write(p, jpeg(DISC * np.uint8(255), 98)), "values near 0 .* and near 255"),
    "jpeg-objects.png": (lambda p: write(p, jpeg(TWO * np.uint8(100))), "passes through values between"),
    "enlarged.png": (
        lambda p: write(p, enlarged(DISC * np.uint8(255), Image.Resampling.BILINEAR)),
        "values near 0|passes through values between",
    ),
    "enlarged-objects.png": (
        lambda p: write(p, enlarged(TWO * np.uint8(60), Image.Resampling.BICUBIC)),
        "passes through values between",
    ),
    "probabilities.png": (
        lambda p: write(p, (255 * np.exp(-((ROWS - 24) ** 2 + (COLUMNS - 22) ** 2) / 200)).astype(np.uint8)),
        "values near 0|passes through values between",
    ),
    "soft.npy": (lambda p: np.save(p, DISC * 0.7), "no whole numbers, such as 0.7. Declare mask_threshold"),
    "nan.npz": (lambda p: np.savez(p, np.where(DISC, 1, np.nan)), "not finite, .* values are NaN"),
    "negative.npy": (lambda p: np.save(p, np.where(RING, -1, DISC * 1)), "negative value -1.*mask_ignore: -1"),
    "signed.tif": (lambda p: tifffile.imwrite(p, np.where(RING, -1, DISC * 1).astype(np.int8)), "negative value -1"),
    "ignored-ring.png": (lambda p: write(p, np.where(RING, 255, DISC).astype(np.uint8)), "mask_ignore: 255"),
    "thin-class.png": (
        lambda p: write(p, np.where(DISC, 2, RING).astype(np.uint8)[:, ::3]),
        "thin class between two others.*mask_foreground: 2, or a list, where 0, 1, 2 are classes; mask_threshold: 127",
    ),
    "many-classes.png": (
        lambda p: write(p, np.where(RING, 255, ROWS // 2 * 3).astype(np.uint8)),
        "near 0 .*mask_ignore: 255",
    ),
    "from-one.png": (lambda p: write(p, (1 + DISC).astype(np.uint8)), "no background.*mask_foreground: 2"),
    "no-zero.png": (lambda p: write(p, (254 + DISC).astype(np.uint8)), "no background"),
    "ends.png": (lambda p: write(p, np.where(DISC, 255, 1).astype(np.uint8)), "near 0 .*: .* pixels.* near 255"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_numbers_with_two_meanings_are_refused(tmp_path, name):
    make, message = REFUSED[name]
    make(tmp_path / name)
    with pytest.raises(BenchError, match=message) as caught:
        read_mask(tmp_path / name)
    assert name in str(caught.value)


def test_what_the_values_mean_may_be_declared(tmp_path):
    ring = write(tmp_path / "ring.png", np.where(RING, 255, DISC).astype(np.uint8))
    found = read_mask(ring, make_rule(ignore="255"))
    np.testing.assert_array_equal(found.foreground, DISC)
    np.testing.assert_array_equal(found.ignored, RING)
    np.testing.assert_array_equal(found.codes, DISC + RING * np.uint8(2))
    assert (found.facts.foreground, found.facts.ignored) == (DISC.sum(), RING.sum())
    np.testing.assert_array_equal(read_mask(ring, make_rule("1,255")).foreground, DISC | RING)
    np.testing.assert_array_equal(read_mask(ring, make_rule("any")).foreground, DISC | RING)
    labels = write(tmp_path / "labels.png", (1 + DISC).astype(np.uint8))
    np.testing.assert_array_equal(read_mask(labels, make_rule("2")).foreground, DISC)
    np.testing.assert_array_equal(read_mask(labels, make_rule("1")).foreground, ~DISC)
    soft = write(tmp_path / "soft.png", jpeg(DISC * np.uint8(255)))
    np.testing.assert_array_equal(
        read_mask(soft, make_rule(threshold="127")).foreground, jpeg(DISC * np.uint8(255)) > 127
    )
    np.save(tmp_path / "p.npy", np.where(RING, -1, DISC * 0.7))
    found = read_mask(tmp_path / "p.npy", make_rule(ignore="-1", threshold="0.5"))
    np.testing.assert_array_equal(found.codes, DISC + RING * np.uint8(2))


def test_a_bit_is_white_or_black_under_every_rule(tmp_path):
    bits = write(tmp_path / "bits.png", DISC)
    for rule in (make_rule(threshold="127"), make_rule("255"), make_rule("1"), MaskRule(meaning="black-white")):
        np.testing.assert_array_equal(read_mask(bits, rule).foreground, DISC)
    np.testing.assert_array_equal(read_mask(bits, make_rule("0")).foreground, ~DISC)


def test_smoothed_values_are_refused_also_where_foreground_is_declared(tmp_path):
    path = write(tmp_path / "m.png", enlarged(DISC * np.uint8(255), Image.Resampling.BILINEAR))
    with pytest.raises(BenchError, match="passes through values between"):
        read_mask(path, make_rule("255"))
    three = np.where(RING, 1, DISC * 2).astype(np.uint8)  # a border class
    np.testing.assert_array_equal(read_mask(write(path, three), make_rule("2")).foreground, DISC)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("2", "", "127"), "both given"),
        (("any", "", "127"), "both given"),
        (("1, 255", "255", ""), "value 255 is given as foreground and as ignored"),
        (("tumour", "", ""), "'tumour' is not a number"),
        (("5-3", "", ""), "no rising range"),
        (("1.5", "", ""), "no whole number"),
        (("", "0-99999", ""), "no rising range of values up to 65535"),
        (("", "", "high"), "'high' is not a number"),
        (("", "", "nan"), "not a number that values can lie above"),
        ((",", "", ""), "mask_foreground names no value"),
    ],
)
def test_rules_that_say_nothing_or_two_things_are_refused(asked, message):
    with pytest.raises(BenchError, match=f"my.csv: .*{message}"):
        make_rule(*asked, where="my.csv")


def test_rules_are_read_from_lists_and_ranges():
    assert make_rule("2").foreground == (2,)
    assert make_rule(" 3 - 5; 1", "255").foreground == (1, 3, 4, 5)
    assert make_rule("1", " 0, 255 ").ignore == (0, 255)
    assert make_rule("", "-1", "0.5") == MaskRule(ignore=(-1,), threshold=0.5)
    assert make_rule() == MaskRule()
    assert make_rule("any") == MaskRule(meaning="any")


def test_a_set_that_says_itself_what_its_values_mean_names_no_declaration(tmp_path):
    path = write(tmp_path / "m.png", (1 + DISC).astype(np.uint8))
    with pytest.raises(BenchError, match="Restore the file") as caught:
        read_mask(path, MaskRule(meaning="instances"))
    assert "declare" not in str(caught.value).lower()
