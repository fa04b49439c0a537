import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.masks.decode import decode_grey, decode_image, decode_squashed, image_size, resize_image
from wsolbench.datasets.masks.reader import read_mask

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), np.uint8)
MASK = np.kron(RNG.integers(0, 3, (4, 6), np.uint8), np.ones((5, 5), np.uint8))  # patches of two objects


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["bmp", "png", "tif"])
def test_images_come_back_pixel_for_pixel(tmp_path, ending):
    path = save(tmp_path / f"a.{ending}", RGB)
    np.testing.assert_array_equal(decode_image(path), RGB)
    assert image_size(path) == (20, 30)


def test_grey_palette_and_opaque_alpha_become_rgb(tmp_path):
    grey = decode_image(save(tmp_path / "g.png", RGB[..., 0]))
    np.testing.assert_array_equal(grey, np.repeat(RGB[..., :1], 3, 2))
    opaque = np.dstack([RGB, np.full((20, 30), 255, np.uint8)])
    np.testing.assert_array_equal(decode_image(save(tmp_path / "a.png", opaque)), RGB)
    assert decode_image(save(tmp_path / "p.png", RGB, "P")).shape == (20, 30, 3)


def sixteen_bit_rgb(path):
    """A PNG of 16 bits a channel, which Pillow can read but not write."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + RNG.integers(0, 256, 4 * 6, np.uint8).tobytes() for _ in range(4))
    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(path, RGB, exif=exif)


def rotated_in_text(path, array=RGB):
    """A PNG whose flag stands in a text chunk, where some programs put it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(raw):8d}\n{raw.hex()}\n")
    return save(path, array, pnginfo=info)


def rotated_in_xmp(path):
    """A PNG whose flag stands in its XMP."""
    text = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmlns:tiff="t" tiff:Orientation="8"/></x:xmpmeta>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", text)
    return save(path, RGB, pnginfo=info)


def rotated_late(path, array=RGB):
    """A PNG whose flag comes after its pixels."""
    exif = Image.Exif()
    exif[0x0112] = 3
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    data = save(path, array).read_bytes()
    late = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    path.write_bytes(data[:-12] + late + data[-12:])
    return path


def sixteen_bit_tiff(path):
    """A colour TIFF of 16 bits, which Pillow would cut to 8 without a word."""
    tifffile.imwrite(path, RNG.integers(0, 1 << 16, (20, 30, 3), np.uint16), photometric="rgb")
    return path


BAD_IMAGES = {
    "truncated.bmp": (lambda p: p.write_bytes(save(p, RGB).read_bytes()[:-200]), "cannot be read"),
    "truncated.png": (lambda p: p.write_bytes(save(p, RGB).read_bytes()[:-200]), "cannot be read|damaged"),
    "empty.png": (lambda p: p.touch(), "0 bytes"),
    "text.png": (lambda p: p.write_text("not an image"), "damaged or none of"),
    "cmyk.jpg": (lambda p: save(p, RGB, "CMYK"), "mode CMYK"),
    "deep.png": (lambda p: save(p, RGB[..., 0].astype(np.uint16) * 256), "16 bits"),
    "deep_rgb.png": (sixteen_bit_rgb, "16 bits"),
    "clear.png": (lambda p: save(p, np.dstack([RGB, RGB[..., 0]])), "transparent"),
    "deep_rgb.tif": (sixteen_bit_tiff, "16 bits"),
    "cmyk.tif": (lambda p: save(p, RGB, "CMYK"), "mode CMYK"),
    "rotated.jpg": (rotated, "rotated"),
    "rotated_text.png": (rotated_in_text, "rotated"),
    "rotated_xmp.png": (rotated_in_xmp, "rotated"),
    "rotated_late.png": (rotated_late, "rotated"),
    "rotated.webp": (rotated, "rotated"),
    "rotated.png": (rotated, "rotated"),
    "rotated.tif": (rotated, "rotated"),
    "pages.tif": (lambda p: Image.fromarray(RGB).save(p, save_all=True, append_images=[Image.fromarray(RGB)]), "pages"),
    "gone.png": (lambda p: None, "does not exist"),
    "script.eps": (lambda p: save(p, RGB), "damaged or none of"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_refused_by_name(tmp_path, name):
    make, message = BAD_IMAGES[name]
    make(tmp_path / name)
    with pytest.raises(BenchError, match=message) as caught:
        decode_image(tmp_path / name)
    assert name in str(caught.value)


def test_a_bomb_is_refused_by_its_header(tmp_path):
    for side in (9_500, 20_000):  # Pillow warns at the first, raises at the second
        path = save(tmp_path / f"{side}.bmp", RGB)
        data = bytearray(path.read_bytes())
        data[18:26] = struct.pack("<ii", side, side)
        path.write_bytes(data)
        for read in (decode_image, image_size, read_mask):
            with pytest.raises(BenchError, match="patches"):
                read(path)


@pytest.mark.parametrize("read", [read_mask, decode_grey])
@pytest.mark.parametrize("make", [rotated_late, rotated_in_text])
def test_masks_and_maps_with_a_flag_to_be_rotated_are_refused(tmp_path, read, make):
    path = make(tmp_path / "m.png", (MASK > 0) * np.uint8(255))
    with pytest.raises(BenchError, match=r"m\.png carries an EXIF flag"):
        read(path)


def test_a_small_tiff_of_8_bits_is_no_deep_one(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.tif"), RGB)
    tifffile.imwrite(tmp_path / "g.tif", RGB[..., 0], photometric="minisblack")
    assert decode_image(tmp_path / "g.tif").shape == (20, 30, 3)


def test_grey_values_span_zero_to_one(tmp_path):
    deep = np.array([[0, 65535], [257, 32768]], np.uint16)
    np.testing.assert_array_equal(decode_grey(save(tmp_path / "d.png", deep)), deep / 65535)
    np.testing.assert_array_equal(decode_grey(save(tmp_path / "b.png", MASK)), MASK / 255)
    with pytest.raises(BenchError, match=r"not grey \(mode RGB\)"):
        decode_grey(save(tmp_path / "c.png", RGB))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, on what is wrong
@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp"])
def test_damage_anywhere_is_told_and_never_anything_else(tmp_path, ending):
    """Bytes changed at random: either pixels come out or an error that names the file."""
    whole = save(tmp_path / f"whole.{ending}", RGB).read_bytes()
    rng = np.random.default_rng(len(whole))
    path = tmp_path / f"damaged.{ending}"
    told: list[str] = []
    for _ in range(150):
        data = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, len(data) if rng.random() < 0.5 else min(200, len(data)), rng.integers(1, 6))
        data[places] = rng.integers(0, 256, len(places))
        path.write_bytes(data.tobytes()[: len(data) if rng.random() < 0.8 else rng.integers(1, len(data))])
        for read in (decode_image, read_mask, image_size):
            try:
                read(path)
            except BenchError as problem:
                told.append(str(problem))
    assert len(told) > 50
    assert all(path.name in text for text in told)


def test_resizing_squashes_images_smoothly():
    half = np.zeros((40, 80, 3), np.uint8)
    half[:, 40:] = 200
    small = resize_image(half, 16)
    assert small.shape == (16, 16, 3)
    assert (small[:, 0] == 0).all()
    assert (small[:, -1] == 200).all()
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None].repeat(3, 2)
    assert np.abs(resize_image(stripes, 16)[:, 1:-1].astype(int) - 127).max() < 12  # antialiased, not sampled


MODES = {"png": ("RGB", "L", "P", "RGBA", "LA"), "bmp": ("RGB", "L", "P"), "tif": ("RGB", "L"), "jpg": ("RGB", "L")}


@pytest.mark.parametrize(("ending", "mode"), [(ending, m) for ending, modes in MODES.items() for m in modes])
def test_squashing_while_reading_gives_the_pixels_of_reading_then_squashing(tmp_path, mode, ending):
    path = save(tmp_path / f"a.{ending}", RGB, mode)
    sizes = [7, 16, 40, 20]
    for size, found in zip(sizes, decode_squashed(path, sizes), strict=True):
        np.testing.assert_array_equal(found, resize_image(decode_image(path), size))
        assert found.flags.writeable


@pytest.mark.parametrize("name", sorted(BAD_IMAGES))
def test_squashing_refuses_what_reading_refuses(tmp_path, name):
    make, message = BAD_IMAGES[name]
    make(tmp_path / name)
    with pytest.raises(BenchError, match=message):
        decode_squashed(tmp_path / name, [8])
