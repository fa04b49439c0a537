"""One growing file of arrays: rows in any order, zeros for none, nothing half-written is ever seen."""

import hashlib
import os
import threading

import numpy as np
import pytest

from wsolbench.benchmark.data.pixel_store import PixelStore


def digest(k: int) -> str:
    return hashlib.sha256(str(k).encode()).hexdigest()


def array(k: int) -> np.ndarray:
    return np.full((4, 4, 3), k, np.uint8)


@pytest.fixture
def store(tmp_path):
    store = PixelStore(tmp_path / "deep" / "images-4", (4, 4, 3), np.uint8)
    add(store, range(10))
    return store


def add(store, numbers):
    growth = store.begin([digest(k) for k in numbers])
    for k in numbers:
        growth.put(digest(k), array(k))
    growth.commit()


@pytest.mark.parametrize("order", [[0], [3, 4, 5], [9, 0, 5, 5, 6, 1], list(range(9, -1, -1)), []])
def test_rows_come_in_the_order_asked_for(store, order):
    rows = store.rows([digest(k) for k in order])
    assert rows.shape == (len(order), 4, 4, 3)
    assert [int(a[0, 0, 0]) for a in np.asarray(rows)] == order


def test_rows_are_indexed_like_an_array(store):
    order = [4, 2, 9, 3, 8]
    rows = store.rows([digest(k) for k in order])
    whole = np.asarray(rows)
    for key in (slice(1, 4), slice(3, 99), [4, 0], np.array([2, 2, 1]), slice(None, None, -1)):
        assert np.array_equal(rows[key], whole[key])
    assert np.array_equal(rows[-1], whole[-1])
    assert np.array_equal(rows.mapped()[rows.rows], whole)
    assert rows.nbytes == whole.nbytes


def test_no_file_means_zeros(store):
    rows = store.rows([None, digest(7), None, None, digest(8)])
    assert [int(a.max()) for a in np.asarray(rows)] == [0, 7, 0, 0, 8]
    assert store.rows([None, None])[:].max() == 0


def test_a_store_grows(store):
    add(store, range(10, 14))
    assert [int(a.max()) for a in np.asarray(store.rows([digest(12), digest(3), digest(13)]))] == [12, 3, 13]
    with pytest.raises(KeyError):
        store.rows([digest(99)])


def test_what_was_given_up_has_never_been(store):
    growth = store.begin([digest(50)])
    growth.put(digest(50), array(50))
    growth.abandon()
    assert digest(50) not in store.known()
    add(store, [51])
    assert int(store.rows([digest(51)])[0].max()) == 51


@pytest.mark.parametrize("cut", [1, 64, 65, 66, 200])
def test_a_crash_while_the_index_is_written_loses_rows_but_never_mixes_them(store, cut):
    text = store.index.read_bytes()
    store.index.write_bytes(text[:-cut])
    known = store.known()
    assert len(known) == 10 - -(-cut // 65)
    add(store, [k for k in range(10) if digest(k) not in known])
    assert [int(a.max()) for a in np.asarray(store.rows([digest(k) for k in range(10)]))] == list(range(10))


@pytest.mark.parametrize(
    ("garbage", "left"),
    [(b"\x80" * 65, 4), (b"\n" * 65, 4), (b" " * 64 + b"\n", 4), (b"x" * 130, 4), (b"x" * 64 + b"\n", 9)],
)
def test_a_damaged_index_counts_up_to_the_damage(store, garbage, left):
    """A line that names nothing ends the index; one that is merely wrong names a file that does not exist."""
    text = store.index.read_bytes()
    store.index.write_bytes(text[: 4 * 65] + garbage + text[4 * 65 + len(garbage) :])
    known = store.known()
    assert len([k for k in range(10) if known.get(digest(k)) == k]) == left
    add(store, [k for k in range(10) if digest(k) not in known])
    assert [int(a.max()) for a in np.asarray(store.rows([digest(k) for k in range(10)]))] == list(range(10))


def test_one_line_twice_in_an_index(store):
    text = store.index.read_bytes()
    store.index.write_bytes(text[:130] + text[:65] + text[195:])
    add(store, [k for k in range(10) if digest(k) not in store.known()])
    assert [int(a.max()) for a in np.asarray(store.rows([digest(k) for k in range(10)]))] == list(range(10))


def test_a_crash_while_arrays_are_written_is_not_seen(store):
    with store.data.open("ab") as handle:
        handle.write(b"x" * 70)
    add(store, [20])
    assert int(store.rows([digest(20)])[0].max()) == 20
    assert int(store.rows([digest(9)])[0].max()) == 9


def test_a_file_cut_short_is_an_error_not_zeros(store):
    rows = store.rows([digest(9)])
    with store.data.open("r+b") as handle:
        handle.truncate(9 * 48 + 5)
    with pytest.raises(OSError, match="ends in the middle"):
        rows[:]
    assert digest(9) not in store.known()


def test_an_array_of_another_shape_is_refused(store):
    growth = store.begin([digest(60)])
    with pytest.raises(ValueError, match="cannot join"):
        growth.put(digest(60), np.zeros((5, 4, 3), np.uint8))
    growth.abandon()


def test_lines_of_arrays_that_are_gone_never_name_others(store):
    """The data file was cut short; then arrays are added and the process dies before their lines are written."""
    with store.data.open("r+b") as handle:
        handle.truncate(8 * 48)
    growth = store.begin([digest(70), digest(71)])
    growth.put(digest(70), array(70))
    growth.put(digest(71), array(71))
    assert set(store.known()) == {digest(k) for k in range(8)}
    growth.abandon()


def test_what_was_flushed_stays_whatever_happens_to_the_rest(store):
    growth = store.begin([digest(k) for k in range(10, 14)])
    growth.put(digest(12), array(12))
    growth.put(digest(10), array(10))
    growth.flush()
    growth.put(digest(11), array(11))
    assert set(store.known()) == {digest(k) for k in (*range(10), 10, 12)}
    growth.abandon()
    assert set(store.known()) == {digest(k) for k in (*range(10), 10, 12)}
    assert store.data.stat().st_size == 12 * 48
    assert [int(a.max()) for a in np.asarray(store.rows([digest(12), digest(10), digest(9)]))] == [12, 10, 9]


def test_an_array_is_put_once_and_only_if_it_was_announced(store):
    growth = store.begin([digest(10)])
    growth.put(digest(10), array(10))
    for again in (10, 11):
        with pytest.raises(KeyError):
            growth.put(digest(again), array(again))
    growth.commit()
    assert len(store.known()) == 11


def test_nothing_behind_an_array_that_could_not_be_written_is_listed(store, monkeypatch):
    """The disk is full for one array of three: those before it count, it and those after it do not."""
    honest = os.pwrite

    def full(handle, data, offset):
        if bytes(data[:1]) == bytes([11]):
            raise OSError("no space left")
        return honest(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    growth = store.begin([digest(k) for k in (10, 11, 12)])
    growth.put(digest(10), array(10))
    with pytest.raises(OSError, match="no space"):
        growth.put(digest(11), array(11))
    growth.put(digest(12), array(12))
    growth.commit()
    assert set(store.known()) == {digest(k) for k in range(11)}
    monkeypatch.undo()
    add(store, [11, 12])
    assert [int(a.max()) for a in np.asarray(store.rows([digest(k) for k in (10, 11, 12)]))] == [10, 11, 12]


@pytest.mark.parametrize("end", ["abandon", "commit"])
def test_the_end_waits_for_a_thread_that_writes(store, monkeypatch, end):
    """The file's number must not go to another file while a thread still writes to it."""
    honest, entered, release_pages = os.pwrite, threading.Event(), threading.Event()

    def slow(handle, data, offset):
        entered.set()
        assert release_pages.wait(10)
        return honest(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    growth = store.begin([digest(10), digest(11)])
    problems = []

    def write():
        try:
            growth.put(digest(10), array(10))
        except (OSError, ValueError) as problem:
            problems.append(problem)

    writer = threading.Thread(target=write)
    writer.start()
    assert entered.wait(10)
    ender = threading.Thread(target=getattr(growth, end))
    ender.start()
    ender.join(0.05)
    assert ender.is_alive(), "it did not wait"
    release_pages.set()
    writer.join(10)
    ender.join(10)
    assert not problems
    assert len(store.known()) == (11 if end == "commit" else 10)
    assert store.data.stat().st_size == len(store.known()) * 48
    with pytest.raises(ValueError, match="no longer takes"):
        growth.put(digest(11), array(11))


def test_many_threads_put_into_one_store(store):
    numbers = list(range(10, 250))
    growth = store.begin([digest(k) for k in numbers])

    def work(part):
        for k in part:
            growth.put(digest(k), array(k))
            if k % 7 == 0:
                growth.flush()

    # only one thread flushes, as the decoder's main thread does
    threads = [threading.Thread(target=work, args=([k for k in numbers if k % 7 and k % 5 == t],)) for t in range(5)]
    threads.append(threading.Thread(target=work, args=([k for k in numbers if k % 7 == 0],)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    growth.commit()
    found = np.asarray(store.rows([digest(k) for k in range(250)]))
    assert np.array_equal(found[:, 0, 0, 0], np.arange(250, dtype=np.uint8))
