"""Decoded arrays: each file is decoded once for all sizes, rows keep their order, a changed file is decoded anew."""

import shutil
from collections import Counter
from itertools import count

import numpy as np
import pytest
from PIL import Image

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.files import file_sha256
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.data import image_cache as module
from wsolbench.benchmark.data.image_cache import DecodeRequest, ImageCache, MaskForm, mask_request
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
    honest = module.decode_squashed
    monkeypatch.setattr(module, "decode_squashed", lambda p, sizes: seen.update([p]) or honest(p, sizes))
    train, test = tuple(manifest.split("train")), tuple(manifest.split("test"))
    needs = [
        DecodeRequest(train, 36),
        DecodeRequest(train, 32),
        DecodeRequest(test, 32),
        DecodeRequest(test[:3], 64),
        mask_request(test, 64),
    ]
    cache.prepare(needs)
    assert set(seen.values()) == {1}
    assert len(seen) == len(train) + len(test)
    cache.prepare(needs)
    assert set(seen.values()) == {1}


def test_a_whole_run_decodes_each_image_once(world, monkeypatch):
    seen = Counter()
    honest = module.decode_squashed
    monkeypatch.setattr(module, "decode_squashed", lambda p, sizes: seen.update([p]) or honest(p, sizes))
    world.run("layercam,pixelcam,darkness", protocols=("fair", "paper"))
    assert set(seen.values()) == {1}


def test_rows_and_masks_keep_their_order(data):
    dataset, manifest, cache = data
    items = tuple(reversed(manifest.split("test")))
    cache.prepare([DecodeRequest(items, 64), mask_request(items, 64)])
    frames = cache.frames(items, 64, MaskForm(64))
    for row, item in enumerate(items):
        assert np.array_equal(frames.images[row], np.asarray(Image.open(item.image)))
        expected = dataset.read_mask(item).foreground if item.mask else np.zeros((64, 64), bool)
        assert np.array_equal(frames.masks[row], expected)


def test_a_maskless_image_has_no_mask_to_read(data):
    _, manifest, cache = data
    bare = tuple(i for i in manifest.items if i.mask is None)
    with pytest.raises(BenchError, match="declared maskless"):
        cache.prepare([DecodeRequest(bare, 16, "nearest")])


@pytest.fixture
def damaged(blobs, tmp_path):
    """A copy of the blobs in which seven training images are cut short."""
    folder = tmp_path / "copy"
    shutil.copytree(blobs.parent, folder)
    for k in range(7):
        path = folder / f"train_{k:02d}.png"
        path.write_bytes(path.read_bytes()[:200])
    dataset = CsvDataset(folder / "blobs.csv", folder)
    items = tuple(dataset.manifest("0").split("train"))
    return items, ImageCache(Store(tmp_path / "r"), dataset, {str(i.image): file_sha256(i.image) for i in items})


def test_unreadable_files_are_named_and_the_others_kept(damaged, monkeypatch):
    items, cache = damaged
    with pytest.raises(BenchError, match="7 of 32 files cannot be read") as caught:
        cache.prepare([DecodeRequest(items, 16)])
    assert str(caught.value).count("train_") == 5
    good = items[7:]
    expected = np.stack([module.decode_squashed(i.image, [16])[0] for i in good])
    monkeypatch.setattr(module, "decode_squashed", None)  # nothing is left to decode
    cache.prepare([DecodeRequest(good, 16)])
    assert np.array_equal(np.asarray(cache.frames(good, 16).images), expected)
    with pytest.raises(KeyError):
        cache.frames(items[:1], 16)


def test_an_interrupted_decode_goes_on_where_it_stopped(data, monkeypatch):
    """Ctrl-C after some files: those are kept at all sizes, and the next call decodes only the others."""
    _, manifest, cache = data
    items = tuple(manifest.split("train"))
    honest, calls = module.decode_squashed, count(1)

    def stubborn(path, sizes):
        if next(calls) > 9:
            raise KeyboardInterrupt
        return honest(path, sizes)

    monkeypatch.setattr(module, "decode_squashed", stubborn)
    with pytest.raises(KeyboardInterrupt):
        cache.prepare([DecodeRequest(items, 16), DecodeRequest(items, 24)])
    kept = [len(cache._store(size).known()) for size in (16, 24)]
    assert kept == [9, 9]
    seen = Counter()
    monkeypatch.setattr(module, "decode_squashed", lambda p, sizes: seen.update([p]) or honest(p, sizes))
    cache.prepare([DecodeRequest(items, 16), DecodeRequest(items, 24)])
    assert len(seen) == seen.total() == len(items) - 9
    for size in (16, 24):
        expected = np.stack([honest(i.image, [size])[0] for i in items])
        assert np.array_equal(np.asarray(cache.frames(items, size).images), expected)


def test_a_killed_decode_keeps_what_was_flushed(data, monkeypatch):
    """Nothing but flushes reach the index: the process dies before it commits."""
    _, manifest, cache = data
    items = tuple(manifest.split("train"))
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(module.StoreWriter, "commit", module.StoreWriter.abandon)
    cache.prepare([DecodeRequest(items, 16)])
    assert len(cache._store(16).known()) == len(items)


def test_a_changed_file_never_meets_its_old_pixels(data, tmp_path):
    dataset, manifest, cache = data
    items = tuple(manifest.split("val"))
    cache.prepare([DecodeRequest(items, 16)])
    other = ImageCache(cache.store, dataset, {str(i.image): "changed" for i in items})
    with pytest.raises(KeyError):
        other.frames(items, 16)


def test_folds_and_users_share_one_copy_of_a_file(data):
    """Two needs with common images, asked for one after the other, store each image once."""
    _, manifest, cache = data
    train = tuple(manifest.split("train"))
    cache.prepare([DecodeRequest(train[:20], 16)])
    cache.prepare([DecodeRequest(train[10:], 16), DecodeRequest(train[::-1], 16)])
    stored = sum(p.stat().st_size for p in cache.folder.glob("*-images-16.bin"))
    assert stored == len({cache._digest(i.image) for i in train}) * 16 * 16 * 3
    backwards = cache.frames(train[::-1], 16)
    assert np.array_equal(np.asarray(backwards.images), np.asarray(cache.frames(train, 16).images)[::-1])


@pytest.mark.slow
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
