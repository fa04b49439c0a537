"""Decoded arrays: each file is decoded once for all sizes, rows keep their order, a changed file is decoded anew."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from wsolbench.benchmark import images as module
from wsolbench.benchmark.errors import BenchError
from wsolbench.benchmark.images import ImageCache, Need, mask_need
from wsolbench.benchmark.store import Store, file_sha256
from wsolbench.datasets.csv_manifest import CsvDataset


@pytest.fixture
def data(blobs, tmp_path):
    dataset = CsvDataset(blobs, tmp_path)
    manifest = dataset.manifest("0")
    files = [p for i in manifest.items for p in (i.image, i.mask) if p]
    return dataset, manifest, ImageCache(Store(tmp_path / "r"), dataset, {str(p): file_sha256(p) for p in files})


def test_each_file_is_decoded_once_for_all_sizes(data, monkeypatch):
    _, manifest, cache = data
    seen = Counter()
    honest = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda p: seen.update([p]) or honest(p))
    train, test = tuple(manifest.split("train")), tuple(manifest.split("test"))
    needs = [Need(train, 36), Need(train, 32), Need(test, 32), Need(test[:3], 64), mask_need(test, 64)]
    cache.prepare(needs)
    assert set(seen.values()) == {1}
    assert len(seen) == len(train) + len(test)
    cache.prepare(needs)
    assert set(seen.values()) == {1}


def test_a_whole_run_decodes_each_image_once(world, monkeypatch):
    seen = Counter()
    honest = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda p: seen.update([p]) or honest(p))
    world.run("layercam,pixelcam,darkness", protocols=("fair", "paper"))
    assert set(seen.values()) == {1}


def test_rows_and_masks_keep_their_order(data):
    dataset, manifest, cache = data
    items = tuple(reversed(manifest.split("test")))
    cache.prepare([Need(items, 64), mask_need(items, 64)])
    frames = cache.frames(items, 64, 64)
    for row, item in enumerate(items):
        assert np.array_equal(frames.images[row], np.asarray(Image.open(item.image)))
        expected = dataset.read_mask(item.mask) if item.mask else np.zeros((64, 64), bool)
        assert np.array_equal(frames.masks[row], expected)


def test_a_maskless_image_has_no_mask_to_read(data):
    _, manifest, cache = data
    bare = tuple(i for i in manifest.items if i.mask is None)
    with pytest.raises(BenchError, match="declared maskless"):
        cache.prepare([Need(bare, 16, masks=True)])


def test_unreadable_files_leave_no_array_behind(blobs, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(blobs.parent, folder)
    for k in range(7):
        path = folder / f"train_{k:02d}.png"
        path.write_bytes(path.read_bytes()[:200])
    dataset = CsvDataset(folder / "blobs.csv", folder)
    items = tuple(dataset.manifest("0").split("train"))
    cache = ImageCache(Store(tmp_path / "r"), dataset, {str(i.image): file_sha256(i.image) for i in items})
    with pytest.raises(BenchError, match="7 of 32 files cannot be read") as caught:
        cache.prepare([Need(items, 16)])
    assert str(caught.value).count("train_") == 5
    assert not list((tmp_path / "r" / "cache").rglob("*.idx")), "no array counts"
    assert all(p.stat().st_size == 0 for p in (tmp_path / "r" / "cache").rglob("*.bin"))
    good = items[7:]
    cache.prepare([Need(good, 16)])
    assert np.array_equal(
        cache.frames(good, 16).images[-1], module.resize_image(module.decode_image(good[-1].image), 16)
    )


def test_a_changed_file_never_meets_its_old_pixels(data, tmp_path):
    dataset, manifest, cache = data
    items = tuple(manifest.split("val"))
    cache.prepare([Need(items, 16)])
    other = ImageCache(cache.store, dataset, {str(i.image): "changed" for i in items})
    with pytest.raises(KeyError):
        other.frames(items, 16)


def test_folds_and_users_share_one_copy_of_a_file(data):
    """Two needs with common images, asked for one after the other, store each image once."""
    _, manifest, cache = data
    train = tuple(manifest.split("train"))
    cache.prepare([Need(train[:20], 16)])
    cache.prepare([Need(train[10:], 16), Need(train[::-1], 16)])
    stored = sum(p.stat().st_size for p in cache.folder.glob("*-images-16.bin"))
    assert stored == len({cache._digest(i.image) for i in train}) * 16 * 16 * 3
    backwards = cache.frames(train[::-1], 16)
    assert np.array_equal(np.asarray(backwards.images), np.asarray(cache.frames(train, 16).images)[::-1])


def test_the_maps_of_a_teacher_are_read_off_the_copy_that_trains(world):
    """No second decoded copy of the training images at the size of the network."""
    plan, outcome = world.run("layercam,pixelcam")
    assert outcome.exit_code == 0
    train = plan.kinds("maps")[0].identity["data"]["images"]
    sizes = {p.name.split("-")[-1]: p for p in (world.results / "cache" / "images").glob("*-images-*.bin")}
    load = sizes["36.bin"].stat().st_size // (36 * 36 * 3)
    assert load == train
    manifest = CsvDataset(world.csv, world.csv.parent).manifest("0")
    others = {file_sha256(i.image) for i in manifest.items if i.split != "train"}
    assert sizes["32.bin"].stat().st_size // (32 * 32 * 3) == len(others)
