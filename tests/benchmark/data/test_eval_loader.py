"""Evaluation batches: what reaches the device, in which order, and what is charged for it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsolbench.benchmark.core.timing import Stopwatch
from wsolbench.benchmark.data.augment import normalise
from wsolbench.benchmark.data.eval_loader import EvalLoader
from wsolbench.benchmark.data.image_cache import ImageSplit
from wsolbench.benchmark.data.pixel_store import PixelStore
from wsolbench.benchmark.data.prefetch import HostCopy
from wsolbench.datasets.base import Item
from wsolbench.methods.backbones.normalisation import HALF, IMAGENET

CPU = torch.device("cpu")


def rows_of(arrays, folder, name):
    digests = [f"{k:064x}" for k in range(len(arrays))]
    store = PixelStore(folder / name, arrays.shape[1:], arrays.dtype)
    growth = store.begin(digests)
    for digest, array in zip(digests, arrays, strict=True):
        growth.put(digest, array)
    growth.commit()
    return store.rows(digests)


@pytest.fixture
def frames(tmp_path):
    rng = np.random.default_rng(0)
    pixels, masks = rng.integers(0, 256, (7, 16, 16, 3), np.uint8), rng.random((7, 8, 8)) > 0.5
    items = tuple(Item(f"i{k}", Path("none"), None, k % 2, "g", "test") for k in range(7))
    return ImageSplit(items, rows_of(pixels, tmp_path, "images"), rows_of(masks, tmp_path, "masks")), pixels, masks


def test_all_images_once_and_in_order(frames):
    known, pixels, masks = frames
    watch = Stopwatch(CPU)
    found = list(EvalLoader(known, 3, CPU, statistics=HALF, masks=True, watch=watch))
    assert [seen.rows for seen in found] == [slice(0, 3), slice(3, 6), slice(6, 9)]
    assert [i for seen in found for i in seen.ids] == known.ids
    assert torch.equal(torch.cat([seen.images for seen in found]), normalise(torch.from_numpy(pixels), HALF))
    assert torch.cat([seen.labels for seen in found]).tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert np.array_equal(torch.cat([seen.masks for seen in found]).numpy(), masks)
    assert list(watch.seconds()) == ["load"]


def test_images_are_changed_as_stored_and_squashed_on_the_device(frames):
    known, pixels, _ = frames
    asked = []

    def darker(images, ids):
        asked.extend(ids)
        return images // 2

    (seen,) = EvalLoader(known, 10, CPU, statistics=IMAGENET, side=8, change=darker)
    whole = normalise(torch.from_numpy(pixels // 2), IMAGENET)
    assert torch.equal(seen.images, F.interpolate(whole, (8, 8), mode="bilinear", antialias=True))
    assert asked == known.ids
    assert seen.masks is None


def test_masks_that_were_not_prepared_are_an_error(frames):
    bare = ImageSplit(frames[0].items, frames[0].images)
    with pytest.raises(ValueError, match="never prepared"):
        next(iter(EvalLoader(bare, 3, CPU, statistics=HALF, masks=True)))


def test_what_is_on_the_cpu_lands_as_it_is():
    there = {"a": torch.arange(3)}
    assert HostCopy(there).get()["a"] is there["a"]


@pytest.mark.gpu
def test_a_gpu_sees_the_same_batches(frames):
    device = torch.device("cuda")
    both = (EvalLoader(frames[0], 2, place, statistics=HALF, masks=True) for place in (CPU, device))
    for seen, gpu in zip(*both, strict=True):
        landed = HostCopy({"images": gpu.images, "labels": gpu.labels, "masks": gpu.masks}).get()
        assert torch.equal(landed["labels"], seen.labels)
        assert torch.equal(landed["masks"], seen.masks)
        torch.testing.assert_close(landed["images"], seen.images)
