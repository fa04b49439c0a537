"""One growing file of arrays: rows in any order, zeros for none, nothing half-written is ever seen."""

import hashlib

import numpy as np
import pytest

from wsolbench.benchmark.pixelstore import PixelStore


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
