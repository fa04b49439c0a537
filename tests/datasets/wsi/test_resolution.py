"""What a slide states of itself, honoured, refused or told: resolution, objective power, levels, background, corner."""

import numpy as np
import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.wsi.resolution import background_note, bounds_origin, level0_resolution, sound_levels


def stated(x, y=None, **more):
    names = {"power": "openslide.objective-power"}
    return {"openslide.mpp-x": str(x), "openslide.mpp-y": str(x if y is None else y)} | {
        names[k]: str(v) for k, v in more.items()
    }


@pytest.mark.parametrize("x, y, mpp", [(0.25, None, 0.25), (0.5, 0.505, 0.50249), ("0.2270", "0.2271", 0.22705)])
def test_what_can_be_counts(x, y, mpp):
    found = level0_resolution(stated(x, y), assumed=None)
    assert found.mpp == pytest.approx(mpp, abs=1e-5)
    assert bool(found.notes) == (y == 0.505)  # a hundredth is told, a rounding is not


@pytest.mark.parametrize("x, inch", [(25400, "1 px an inch"), (25400 / 72, "72 px an inch"), (25400 / 96, "96 px"),
                                     (0.001, "0.001 x 0.001"), (21, "no scanner has")])  # fmt: skip
def test_what_no_scanner_has_is_not_stated(x, inch):
    found = level0_resolution(stated(x))
    assert found.mpp is None
    assert inch in found.reason
    assumed = level0_resolution(stated(x), assumed=0.5)
    assert assumed.mpp == 0.5
    assert "no scanner has: 0.5 µm per px from --assume-mpp" in assumed.notes[0].text


@pytest.mark.parametrize("properties", [{}, stated("nan"), stated(0), stated("a"), {"openslide.mpp-x": "0.25"}])
def test_no_number_is_no_resolution(properties):
    found = level0_resolution(properties)
    assert (found.mpp, found.square) == (None, True)
    assert found.reason
    assert level0_resolution(properties, 0.3).mpp == 0.3


def test_the_objective_power_helps_and_contradicts():
    assert "usually 0.25 µm" in level0_resolution({"openslide.objective-power": "40"}).reason
    for mpp, power, told in ((0.25, 40, False), (0.5, 20, False), (0.17, 40, False), (0.25, 20, True), (1, 40, True)):
        found = level0_resolution(stated(mpp, power=power))
        assert found.mpp == mpp
        assert bool(found.notes) == told, (mpp, power)


def test_pixels_that_are_not_square_are_refused_whatever_is_assumed():
    assert not level0_resolution(stated(0.5, 0.25)).square
    assert not level0_resolution(stated(0.5, 0.25), assumed=0.5).square


def test_an_assumption_beside_a_statement_is_told():
    (note,) = level0_resolution(stated(0.25), assumed=0.5).notes
    assert note.text == "states 0.25 µm per px, which counts, not --assume-mpp 0.5"
    assert level0_resolution(stated(0.25), assumed=0.2501).notes == ()


def test_levels_of_another_shape_are_not_the_slide():
    rounded = [(4099, 3001), (2050, 1501), (1025, 751), (513, 376), (257, 188), (3, 2)]
    assert sound_levels(rounded) == [0, 1, 2, 3, 4, 5]
    assert sound_levels([(46000, 32914), (11500, 8228), (2875, 2057), (1024, 732)]) == [0, 1, 2, 3]
    assert sound_levels([(8000, 6000), (2000, 1500), (1000, 1000), (500, 375), (400, 150)]) == [0, 1, 3]


def test_background_and_corner():
    assert background_note({"openslide.background-color": "FFFFFF"}) == background_note({}) == []
    assert "#000000" in background_note({"openslide.background-color": "000000"})[0].text
    assert background_note({"openslide.background-color": "red"}) == []
    assert bounds_origin({}) == (0.0, 0.0)
    assert bounds_origin({"openslide.bounds-x": "120", "openslide.bounds-y": "77"}) == (120.0, 77.0)


def test_slides_as_files(tmp_path):
    """The same through openslide: inches, absurd values, a thumbnail among the levels."""
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("openslide")
    from wsolbench.datasets.wsi.slide import Slide

    image = np.full((600, 800, 3), 200, np.uint8)
    path = tmp_path / "a.TIF"
    options = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, image, resolution=(50_800, 50_800), resolutionunit="INCH", **options)
    assert Slide(path, 0.5).level0_mpp == 0.5
    tifffile.imwrite(path, image, resolution=(72, 72), resolutionunit="INCH", **options)
    with pytest.raises(BenchError, match=r"a\.TIF states 352\.8 x 352\.8 µm per px, or 72 px an inch.*--assume-mpp"):
        Slide(path, 0.5)
    assert Slide(path, 0.5, assume_mpp=0.25).scale.scale == 2.0
    assert "no scanner has" in Slide(path, None).notes[0].text
    with tifffile.TiffWriter(path) as writer:
        for level, shape in enumerate(((600, 800), (200, 200), (75, 100))):
            writer.write(np.full((*shape, 3), 60 * level, np.uint8), subfiletype=int(level > 0), **options)
    slide = Slide(path)
    assert [n.text for n in slide.notes if "levels" in n.text] == [
        "levels that are not the slide made smaller, not read: 1"
    ]
    assert Slide(path, 2.0, assume_mpp=0.5).scale.level == 0  # the thumbnail lies nearer, and is none of the slide
