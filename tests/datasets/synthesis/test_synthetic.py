import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.glas import FOLDER, Glas
from wsolbench.datasets.info import foreground_shares, sized_masks
from wsolbench.datasets.masks.decode import decode_image
from wsolbench.datasets.synthesis.synthetic import write_glas


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    small = {"train": 20, "test": 4, "size": 64}
    one, two = (digest(write_glas(tmp_path / n, **small)) for n in "ab")
    other = digest(write_glas(tmp_path / "c", **small, seed=1))
    assert one == two
    assert one["train_1.bmp"] != other["train_1.bmp"]
    assert set(one) == set(other)


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path, synth_root):
    few = write_glas(tmp_path, train=30, test=10, size=64)
    assert digest(few) == digest(synth_root / FOLDER)  # drawn in another process pool, or none


def test_layout_is_the_official_one(synth_root):
    folder = synth_root / FOLDER
    names = {p.name for p in folder.iterdir()}
    assert {"Grade.csv", "SYNTHETIC.json", "train_30.bmp", "train_30_anno.bmp", "testA_8.bmp", "testB_2.bmp"} < names
    with (folder / "Grade.csv").open(newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows[0] == ["name", "patient ID", " grade (GlaS)", " grade (Sirinukunwattana et al. 2015)"]
    assert all(value.startswith(" ") for row in rows[1:] for value in row[1:])
    with Image.open(folder / "train_1_anno.bmp") as mask:
        assert (mask.mode, mask.size) == ("L", (64, 64))
        numbers = np.unique(np.asarray(mask))
    assert numbers.tolist() == list(range(len(numbers)))
    assert len(numbers) > 3


def test_patients_have_several_images_of_both_classes(synth_root):
    items = Glas(synth_root).manifest("0").items
    patients = {i.group for i in items}
    assert len(patients) == 10
    for patient in patients:
        assert {i.label for i in items if i.group == patient} == {0, 1}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(images, masks, labels) of sixty images of 96 px."""
    root = tmp_path_factory.mktemp("pictures")
    write_glas(root, train=50, test=10, size=96)
    dataset = Glas(root)
    items = dataset.manifest("0").items
    images = [decode_image(i.image).astype(float) for i in items]
    return images, [dataset.read_mask(i).foreground for i in items], np.array([i.label for i in items])


def gap(values, labels):
    """Distance of the class means in pooled standard deviations (Cohen's d)."""
    values = np.asarray(values)
    a, b = values[labels == 0], values[labels == 1]
    return abs(a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2)


def test_the_class_shows_in_the_glands_and_not_in_the_stroma(pictures):
    images, masks, labels = pictures
    for measure in (lambda v: v.mean(), lambda v: v.std()):
        assert gap([measure(i[~m]) for i, m in zip(images, masks, strict=True)], labels) < 0.6
    assert gap([i.mean() for i in images], labels) < 1.2  # brightness alone does not do
    ratio = [(i[m].mean() / i[~m].mean()) for i, m in zip(images, masks, strict=True)]
    assert gap(ratio, labels) > 1.5


def test_foreground_and_colours_are_plausible(pictures, synth_root):
    images, masks, labels = pictures
    for label in (0, 1):
        share = np.mean([m.mean() for m, k in zip(masks, labels, strict=True) if k == label])
        assert 0.4 <= share <= 0.62
    red, green, blue = np.mean([i.mean((0, 1)) for i in images], axis=0)
    assert red > green
    assert blue > green  # pink to purple, as stained tissue is
    dataset = Glas(synth_root)
    shares = foreground_shares(dataset.manifest("0"), sized_masks(dataset, dataset.manifest("0")))
    assert all(0.35 < s < 0.65 for s in shares.values())


def test_a_copy_that_is_there_is_kept(synth_copy):
    before = {p.name: p.stat().st_mtime_ns for p in (synth_copy / FOLDER).iterdir()}
    write_glas(synth_copy, train=30, test=10, size=64)
    assert {p.name: p.stat().st_mtime_ns for p in (synth_copy / FOLDER).iterdir()} == before


def test_nothing_is_overwritten(synth_copy):
    with pytest.raises(BenchError, match="other settings"):
        write_glas(synth_copy, train=30, test=10, size=64, seed=5)
    (synth_copy / FOLDER / "SYNTHETIC.json").unlink()
    with pytest.raises(BenchError, match="not synthetic"):
        write_glas(synth_copy, train=30, test=10, size=64)


def test_a_failure_leaves_no_folder_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("stopped")

    monkeypatch.setattr("wsolbench.datasets.synthesis.synthetic._draw_image", fail)
    with pytest.raises(RuntimeError):
        write_glas(tmp_path, train=20, test=4, size=64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"size": 10}, {"size": 100_000}, {"train": 3}, {"test": 0}])
def test_settings_out_of_range(tmp_path, wrong):
    with pytest.raises(BenchError):
        write_glas(tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []
