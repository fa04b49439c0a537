"""Tests of reading ahead, and of constants that are made once."""

import threading
import time

import pytest
import torch

from wsolbench.benchmark.data.prefetch import ahead, constant, staged, upload


def readers():
    return [t for t in threading.enumerate() if t.name == "reading ahead"]


def test_items_come_in_their_order_and_the_thread_ends():
    assert list(ahead(iter(range(50)), depth=2)) == list(range(50))
    assert not readers()


def test_what_reading_raises_comes_in_its_turn():
    def source():
        yield 1
        raise OSError("disk")

    items = ahead(source())
    assert next(items) == 1
    with pytest.raises(OSError, match="disk"):
        next(items)
    assert not readers()


def test_at_most_depth_items_wait():
    made = []

    def source():
        for k in range(100):
            made.append(k)
            yield k

    items = ahead(source(), depth=2)
    next(items)
    limit = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < limit:
        time.sleep(0.005)
    time.sleep(0.05)
    assert len(made) == 4  # one is taken, two wait, one stands before the full queue
    items.close()
    assert not readers()


def test_stopping_early_stops_the_thread():
    stopped = []

    def source():
        try:
            while True:
                yield torch.zeros(3)
        finally:
            stopped.append(True)

    for _ in ahead(source()):
        break
    limit = time.monotonic() + 5
    while readers() and time.monotonic() < limit:
        time.sleep(0.005)
    assert not readers()


def test_a_constant_is_made_once():
    cpu = torch.device("cpu")
    assert constant((1.0, 2.0), cpu) is constant((1.0, 2.0), cpu)
    assert constant((1.0, 2.0), cpu).tolist() == [1.0, 2.0]
    assert constant((1, 2), cpu).dtype == torch.float32  # equal keys share one entry, so all are of one type


def test_on_the_cpu_nothing_is_copied():
    there = torch.arange(4)
    assert upload(there, torch.device("cpu")) is there
    assert staged(there, torch.device("cpu")) is there


@pytest.mark.gpu
def test_uploads_are_whole():
    device = torch.device("cuda")
    pieces = [torch.randn(1000, 1000) for _ in range(20)]
    assert all(torch.equal(upload(p, device).cpu(), p) for p in pieces)
