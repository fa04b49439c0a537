"""The stopwatch against a clock that the test turns; what one map alone costs, taken apart from a shared pass."""

import math

import pytest
import torch

from wsolbench.benchmark.core import timing
from wsolbench.benchmark.core.timing import Stopwatch, cost_of, ms_per_image, own_times, pass_times, shares

PARTS = {"load": 8.0, "forward": 4.0, "gradient:true": 1.5, "taps:pred": 0.5,
         "read:cam": 0.5, "read:darkness": 0.25, "score:fair|cam": 1.0,
         "score:paper|cam": 3.0, "predict:unet": 16.0}  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    hands = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: hands[0])
    return hands


def test_a_part_is_not_charged_for_what_an_inner_part_took(clock):
    watch = Stopwatch(torch.device("cpu"))
    with watch.part("outer"):
        clock[0] += 1
        with watch.part("inner"):
            clock[0] += 10
        clock[0] += 2
        with watch.part("inner"):
            clock[0] += 20
    clock[0] += 100  # outside of every part: charged to none
    with watch.part("outer"):
        clock[0] += 4
    assert watch.seconds() == {"outer": 7.0, "inner": 30.0}


def test_a_part_inside_itself_counts_once(clock):
    watch = Stopwatch(torch.device("cpu"))
    with watch.part("a"), watch.part("a"):
        clock[0] += 3
    assert watch.seconds() == {"a": 3.0}


def test_a_block_that_raises_is_charged_and_closed(clock):
    watch = Stopwatch(torch.device("cpu"))
    with pytest.raises(RuntimeError), watch.part("a"):  # noqa: PT012 - the clock turns inside
        clock[0] += 5
        raise RuntimeError
    with watch.part("b"):
        clock[0] += 1
    assert watch.seconds() == {"a": 5.0, "b": 1.0}


def test_seconds_measured_elsewhere_join(clock):
    watch = Stopwatch(torch.device("cpu"))
    watch.add("load", 2.0)
    with watch.part("load"):
        clock[0] += 1
    assert watch.seconds() == {"load": 3.0}


@pytest.mark.gpu
def test_a_gpu_is_timed_by_its_own_clock():
    watch = Stopwatch(torch.device("cuda"))
    square = torch.randn(4096, 4096, device="cuda")
    with watch.part("work"):
        for _ in range(20):
            square = square @ square / 64
    assert watch.seconds()["work"] > 0


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
