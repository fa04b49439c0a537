"""What one method alone costs, taken apart from a pass that many share."""

import math

import pytest

from wsolbench.benchmark.stages.costs import cost_of, ms_per_image, own_times, pass_times, shares

PARTS = {"load": 8.0, "forward": 4.0, "gradient:true": 1.5, "taps:pred": 0.5,
         "read:cam": 0.5, "read:darkness": 0.25, "score:fair|cam": 1.0,
         "score:paper|cam": 3.0, "predict:unet": 16.0}  # fmt: skip


def test_a_pass_as_a_whole():
    assert pass_times(PARTS) == {"load": 8.0, "forward": 20.0, "gradient": 2.0, "explain": 0.75, "score": 4.0}
    assert sum(pass_times(PARTS).values()) == sum(PARTS.values())


def test_one_map_pays_for_what_it_needs():
    cam = own_times(PARTS, {"forward", "gradient:true"}, "cam", "fair|cam")
    assert cam == {"load": 8.0, "forward": 4.0, "gradient": 1.5, "explain": 0.5, "score": 1.0}
    assert ms_per_image(cam, 10) == pytest.approx(700.0)  # the backward pass of others is not its own
    assert ms_per_image(own_times(PARTS, set(), "darkness", "x"), 10) == pytest.approx(25.0)
    assert ms_per_image(own_times(PARTS, set(), "unet", "x"), 10) == pytest.approx(1600.0)
    assert math.isnan(ms_per_image(cam, 0))


def test_cost_of_a_stage():
    assert cost_of(4.0, 100, {"load": 1.0}) == {"seconds": 4.0, "images_per_second": 25.0, "times": {"load": 1.0}}


def test_shares_are_ordered_and_small_ones_left_out():
    assert shares({"load": 1.0, "backward": 298.0, "forward": 100.0}) == "backward 75%, forward 25%"
    assert shares({}) == shares({"load": 0.0}) == ""
