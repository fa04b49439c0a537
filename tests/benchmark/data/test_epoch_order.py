"""The order of an epoch: every image once, or classes and groups in balance; the same whenever it is asked for."""

import hashlib

import pytest
import torch

from wsolbench.benchmark.core.seeds import seed_for
from wsolbench.benchmark.data.epoch_order import balanced_order, epoch_order, group_numbers

UNEVEN = torch.tensor([0] * 41 + [1] * 7 + [5] * 2)


def flat(batches):
    return torch.cat(batches)


def test_shuffling_is_one_permutation_cut_in_nearly_equal_batches():
    batches = epoch_order(10, 4, seed=3, epoch=2)
    expected = torch.randperm(10, generator=torch.Generator().manual_seed(seed_for("order", 3, 2)))
    assert flat(batches).tolist() == expected.tolist()
    assert [len(b) for b in batches] == [4, 3, 3]


def test_a_balanced_epoch_has_as_many_images_and_strata_in_balance():
    batches = epoch_order(50, 9, seed=0, epoch=1, strata=UNEVEN)
    order = flat(batches)
    assert [len(b) for b in batches] == [len(b) for b in epoch_order(50, 9, 0, 1)]
    counts = [int((UNEVEN[order] == k).sum()) for k in (0, 1, 5)]
    assert sum(counts) == 50
    assert max(counts) - min(counts) <= 1
    for batch in batches:  # rounds of three, so any nine rows in a row hold each stratum two to four times
        assert all(2 <= int((UNEVEN[batch] == k).sum()) <= 4 for k in (0, 1, 5))


def test_rows_of_a_stratum_come_equally_often_up_to_one():
    order = balanced_order(UNEVEN, torch.Generator().manual_seed(0))
    for stratum, images in ((0, 41), (1, 7), (5, 2)):
        chosen = order[UNEVEN[order] == stratum]
        times = torch.bincount(chosen, minlength=50)[stratum == UNEVEN]
        assert len(times) == images
        assert int(times.max() - times.min()) <= 1
    assert int((UNEVEN[order[:3]]).unique().numel()) == 3  # a round has one of each


def test_a_balanced_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return flat(epoch_order(50, 9, seed, epoch, UNEVEN)).tolist()

    torch.manual_seed(1)
    first = order(0, 1)
    torch.rand(5)
    assert order(0, 1) == first
    assert order(0, 2) != first
    assert order(1, 1) != first


def test_strata_of_one_image_each_are_a_permutation():
    order = balanced_order(torch.arange(8), torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(8))


def test_groups_are_numbered_by_a_digest_since_names_may_tell_the_class():
    names = ["tumor_1", "normal_2", "tumor_1", "normal_1"]
    numbers = group_numbers(names)
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert [ordered[k] for k in numbers] == names
    assert numbers.dtype == "int64"


@pytest.mark.parametrize("names", [["a"], ["a", "a", "a"]])
def test_one_group_is_zero(names):
    assert group_numbers(names).tolist() == [0] * len(names)
