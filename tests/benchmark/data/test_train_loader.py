"""Batches of training images: views, groups and balanced orders are functions of seed, epoch and step alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wsolbench.benchmark.data.augment import augment, draw
from wsolbench.benchmark.data.epoch_order import Sampling, generator_of, group_numbers
from wsolbench.benchmark.data.train_loader import StepCursor, TrainingSet
from wsolbench.benchmark.planning.config import TrainConfig
from wsolbench.methods.backbones.normalisation import IMAGENET

CONFIG = TrainConfig(image_size=8, load_size=12, batch_size=6, jitter=(0.2, 0.2, 0.2, 0.1))
LABELS = np.array([0] * 11 + [1] * 3)
NAMES = [f"slide-{k // 4}" for k in range(14)]
CPU = torch.device("cpu")


class Rows:
    """Stored images of a tiny set, as the loader reads them."""

    def __init__(self, arrays):
        self.arrays, self.rows, self.nbytes = arrays, np.arange(len(arrays)), arrays.nbytes

    def mapped(self):
        return self.arrays


PIXELS = np.random.default_rng(0).integers(0, 256, (14, 12, 12, 3), np.uint8)


def data(**sampling):
    frames = SimpleNamespace(
        images=Rows(PIXELS), masks=None, labels=LABELS, items=[SimpleNamespace(group=name) for name in NAMES]
    )
    return TrainingSet(
        frames, CONFIG, CPU, IMAGENET, {"cam": (PIXELS[..., 0] / 255).astype(np.float32)}, Sampling(**sampling)
    ).on_device()


def test_views_are_independent_and_the_first_is_what_a_method_with_one_sees():
    alone, several = (list(data(views=n).epoch_batches(3, 2)) for n in (1, 3))
    for step, (one, many) in enumerate(zip(alone, several, strict=True)):
        assert one.views == ()
        assert many.images is many.views[0]
        assert torch.equal(one.images, many.images)
        assert torch.equal(one.maps, many.maps)
        pixels = torch.from_numpy(PIXELS)[many.indices]
        for number, view in enumerate(many.views[1:], 1):
            drawn = draw(len(pixels), CONFIG, generator_of("augment", 3, 2, step, "view", number))
            assert torch.equal(view, augment(pixels, drawn, CONFIG, IMAGENET))
            assert not torch.equal(view, many.images)


def test_an_epoch_may_begin_at_any_step():
    whole = list(data(views=2, order="class").epoch_batches(0, 1))
    rest = list(data(views=2, order="class").epoch_batches(0, 1, start=StepCursor(1)))
    assert len(rest) == len(whole) - 1 == data().batches_per_epoch() - 1
    for one, other in zip(whole[1:], rest, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))


@pytest.mark.parametrize("order", ["shuffle", "class", "group"])
def test_two_processes_have_together_what_one_has(order):
    alone = data(views=2, order=order, groups=True).epoch_batches(0, 1)
    parts = [data(views=2, order=order, groups=True).epoch_batches(0, 1, start=StepCursor(0, k, 2)) for k in (0, 1)]
    for whole, *shares in zip(alone, *parts, strict=True):
        assert torch.equal(whole.indices, torch.cat([s.indices for s in shares]))
        assert torch.equal(whole.groups, torch.cat([s.groups for s in shares]))
        for number, view in enumerate(whole.views):
            assert torch.equal(view, torch.cat([s.views[number] for s in shares]))


def test_classes_and_groups_are_balanced_on_request():
    def counts(values, **sampling):
        rows = torch.cat([b.indices for b in data(**sampling).epoch_batches(0, 1)])
        return torch.bincount(torch.from_numpy(values)[rows]).tolist()

    assert counts(LABELS) == [11, 3]
    assert counts(LABELS, order="class") == [7, 7]
    assert sorted(counts(group_numbers(NAMES), order="group")) == [3, 3, 4, 4]


def test_groups_come_with_the_images_where_they_were_asked_for():
    numbers = torch.from_numpy(group_numbers(NAMES))
    assert all(torch.equal(b.groups, numbers[b.indices]) for b in data(groups=True).epoch_batches(0, 1))
    assert all(b.groups is None for b in data(order="group").epoch_batches(0, 1))


def test_a_batch_of_chosen_rows_has_views_too():
    batch = data(views=2).batch(torch.tensor([3, 1]), torch.Generator().manual_seed(0))
    assert batch.indices.tolist() == [3, 1]
    assert [v.shape for v in batch.views] == [(2, 3, 8, 8)] * 2
