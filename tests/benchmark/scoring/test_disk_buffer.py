"""Rows on disk come back as they went in."""

import numpy as np
import pytest

from wsolbench.benchmark.scoring.disk_buffer import DiskBuffer, release_pages


@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_come_back_in_order(tmp_path, on_disk):
    spill = DiskBuffer(5, np.uint16, tmp_path / "spill" if on_disk else None)
    assert spill.rows().shape == (0, 5)
    parts = [np.random.default_rng(k).integers(0, 60000, (k + 1, 5)) for k in range(4)]
    for part in parts:
        spill.append(part)
    assert len(spill) == 10
    assert np.array_equal(spill.rows(), np.concatenate(parts))
    if on_disk:
        assert not list((tmp_path / "spill").iterdir()), "the file has no name"


@pytest.mark.parametrize("bad", [-1, 70000])
def test_a_count_that_does_not_fit_is_an_error(bad):
    with pytest.raises(OverflowError):
        DiskBuffer(1, np.uint16).append(np.array([[bad]]))


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match="3 numbers"):
        DiskBuffer(3, np.uint16).append(np.zeros((2, 4), np.int64))


def test_rows_let_go_are_read_again(tmp_path):
    spill = DiskBuffer(3, np.uint16, tmp_path)
    spill.append(np.arange(9000).reshape(3000, 3))
    rows = spill.rows()
    before = rows.copy()
    release_pages(rows)
    assert np.array_equal(rows, before)
    release_pages(before)
