"""Cutting a batch for memory: every field that a method added comes along."""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
import torch

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.mask_guard import WITHHELD
from wsolbench.benchmark.training.micro_batches import split_batch, take_images
from wsolbench.methods.base import Batch


class Pair(NamedTuple):
    rows: torch.Tensor
    tau: float


@dataclass
class Views(Batch):
    """What an `augment` of a method's own might return."""

    views: torch.Tensor | None = None
    drawn: dict = field(default_factory=dict)
    names: list = field(default_factory=list)


def batch_of(kind=Views, count=6):
    rows = torch.arange(count)
    images = rows[:, None, None, None].expand(count, 3, 2, 2).float()
    return kind(images, rows % 2, rows, masks=WITHHELD, teachers={"cam": rows[:, None, None].float()})


@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 2, 3], [4, 2]])
def test_every_field_of_a_methods_own_batch_comes_along(sizes):
    batch = batch_of()
    batch.views = torch.arange(12).reshape(6, 2)
    batch.drawn = {"shift": torch.arange(6) * 10, "prototypes": torch.ones(9, 4), "pair": Pair(torch.arange(6), 0.5)}
    batch.names = list("abcdef")
    batch.added = (torch.arange(6.0), torch.zeros(3), "a word")  # set, not declared
    batch.numbers = np.arange(6)
    parts = split_batch(batch, sizes)
    assert [type(p) for p in parts] == [Views] * len(sizes)
    starts = np.cumsum([0, *sizes])
    for part, start, size in zip(parts, starts, sizes, strict=False):
        rows = list(range(start, start + size))
        assert part.indices.tolist() == part.drawn["pair"].rows.tolist() == part.numbers.tolist() == rows
        assert part.views.tolist() == [[2 * r, 2 * r + 1] for r in rows]
        assert part.drawn["shift"].tolist() == [10 * r for r in rows]
        assert part.drawn["prototypes"] is batch.drawn["prototypes"]  # not one row an image: whole
        assert type(part.drawn["pair"]) is Pair
        assert part.drawn["pair"].tau == 0.5
        assert part.names == [list("abcdef")[r] for r in rows]
        assert part.added[0].tolist() == rows
        assert part.added[1:] == (batch.added[1], "a word")
        assert part.teachers["cam"].flatten().tolist() == rows
        assert part.masks is WITHHELD
        assert part.maps is None
    assert batch.names == list("abcdef")  # the whole is as it was


def test_images_are_never_lost_and_settings_never_cut():
    batch = batch_of(Batch, 2)
    batch.size = (64, 48)  # as many values as images, and no list of them
    assert [p.size for p in split_batch(batch, [1, 1])] == [(64, 48), (64, 48)]
    with pytest.raises(BenchError, match=r"2 images cannot be cut into \[1\]"):
        split_batch(batch, [1])


def test_some_images_by_index():
    part = take_images(batch_of(Batch), torch.tensor([4, 1]))
    assert part.indices.tolist() == [4, 1]
    assert part.teachers["cam"].flatten().tolist() == [4, 1]


def test_a_frozen_batch_is_cut_too():
    @dataclass(frozen=True)
    class Held:
        rows: torch.Tensor
        scale: float

    batch, inner = batch_of(Batch), batch_of()
    batch.held, batch.inner, inner.added = Held(torch.arange(6), 2.0), inner, torch.arange(6)
    first, second = split_batch(batch, [2, 4])
    assert (type(second.inner), second.inner.added.tolist()) == (Views, [2, 3, 4, 5])  # what was merely set, too
    assert (first.held.rows.tolist(), second.held.scale) == ([0, 1], 2.0)


def test_a_list_with_one_entry_an_image_is_cut_whatever_the_entries_are():
    batch = batch_of(Batch)
    batch.boxes = [torch.full((k, 4), k) for k in range(6)]  # one of them has as many rows as there are images
    batch.targets = [{"points": torch.arange(k)} for k in range(6)]
    batch.notes = [("a", k) for k in range(6)]
    for start, part in zip((0, 2), split_batch(batch, [2, 4]), strict=True):
        rows = list(range(start, start + len(part.labels)))
        assert [b.shape for b in part.boxes] == [(k, 4) for k in rows]
        assert [len(t["points"]) for t in part.targets] == rows
        assert part.notes == [("a", k) for k in rows]
    picked = take_images(batch, torch.tensor([5, 0]))
    assert [len(b) for b in picked.boxes] == [5, 0]


def test_a_list_of_levels_is_cut_level_by_level_and_a_doubtful_one_is_refused():
    batch = batch_of(Batch)
    batch.levels = [torch.arange(6), torch.arange(12).reshape(6, 2)]
    first, second = split_batch(batch, [2, 4])
    assert [len(level) for level in first.levels] == [2, 2]
    assert second.levels[1].tolist() == [[4, 5], [6, 7], [8, 9], [10, 11]]
    for doubtful in ([torch.zeros(6, 2)] * 6, [{"level": (torch.zeros(6),)}] * 6):
        batch.levels = doubtful
        with pytest.raises(BenchError, match="The field 'levels' of a batch of 6 images holds a list of 6"):
            split_batch(batch, [2, 4])
        assert split_batch(batch, [6])[0].levels is doubtful
    batch.levels = (torch.zeros(6, 2),) * 6
    assert [level.shape for level in split_batch(batch, [2, 4])[1].levels] == [(4, 2)] * 6
    batch.levels = np.empty(6, object)
    batch.levels[:] = [torch.zeros(6, 2)] * 6
    assert [level.shape for level in split_batch(batch, [2, 4])[1].levels] == [(6, 2)] * 4


def test_a_mapping_stays_of_its_kind():
    batch = batch_of(Batch)
    batch.counts = defaultdict(list, rows=torch.arange(6))
    batch.ordered = OrderedDict(b=torch.arange(6), a=3)
    batch.fixed = MappingProxyType({"rows": torch.arange(6)})
    part = split_batch(batch, [4, 2])[1]
    assert (type(part.counts), part.counts["new"], part.counts["rows"].tolist()) == (defaultdict, [], [4, 5])
    assert (type(part.ordered), list(part.ordered)) == (OrderedDict, ["b", "a"])
    assert (type(part.fixed), part.fixed["rows"].tolist()) == (MappingProxyType, [4, 5])
    assert "new" not in batch.counts


def test_views_and_groups_are_cut():
    batch = batch_of(Batch)
    batch.views = (batch.images, batch.images + 10)
    batch.groups = torch.arange(6) // 2
    parts = split_batch(batch, [1, 5])
    assert [p.groups.tolist() for p in parts] == [[0], [0, 1, 1, 2, 2]]
    assert all(torch.equal(p.views[0], p.images) and torch.equal(p.views[1], p.images + 10) for p in parts)
