"""Tests of the stopwatch, against a clock that the test turns."""

import pytest
import torch

from wsolbench.benchmark.core import timing
from wsolbench.benchmark.core.timing import Stopwatch


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
