import hashlib
import json
import shutil
from collections import Counter, defaultdict

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from wsolbench.benchmark.cli.data.verbs import data
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.base import shared_groups
from wsolbench.datasets.open import open_dataset
from wsolbench.datasets.parts.camelyon_lists import PatchName
from wsolbench.datasets.synthesis.histology_nodes import tissue_share
from wsolbench.datasets.synthesis.synthetic import WRITERS, write_camelyon16, write_camelyon17

SMALL = {"train": 20, "test": 6, "size": 64}
FOLDERS = ("camelyon16", "CAMELYON512")


def digests(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("nodes")
    assert write_camelyon16(root, **SMALL) == root / "camelyon16"
    return root


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(made, tmp_path):
    write_camelyon16(tmp_path / "b", **SMALL)
    write_camelyon16(tmp_path / "c", **SMALL, seed=1)
    assert digests(tmp_path / "b") == digests(made)
    assert not digests(tmp_path / "c").keys() & {k for k in digests(made) if k.endswith(".png")}


def test_names_say_what_is_in_the_files(made):
    images = list(made.rglob("Patch_*.png"))
    assert Counter("metastatic" in p.name for p in images) == {True: 13, False: 13}
    for path in images:
        name = PatchName.parse(path.name)
        assert name.image_name == path.name
        image = np.asarray(Image.open(path))
        assert image.shape == (name.height, name.width, 3) == (64, 64, 3)
        assert name.tissue == tissue_share(image)
        mask = path.with_name(name.mask_name)
        test = "testing" in name.slide
        if name.metastatic is None:
            assert not mask.exists()
            assert path.parent.relative_to(made / "camelyon16" / "w-512xh-512" / "normal-patches").parts[0] == (
                "split_1" if test else "split_0"
            )
        else:
            values = np.asarray(Image.open(mask))
            assert set(np.unique(values)) <= {0, 255}
            assert name.metastatic == (values == 255).mean() >= 0.2
            assert path.parent == made / "camelyon16" / "w-512xh-512" / name.folder(test)


def test_patches_of_a_slide_lie_apart(made):
    corners = defaultdict(list)
    for path in made.rglob("Patch_*.png"):
        name = PatchName.parse(path.name)
        corners[name.slide].append((name.x // 64, name.y // 64))
    assert all(len(set(c)) == len(c) for c in corners.values())
    assert Counter(s.partition("-")[2].rpartition("_")[0] for s in corners) == {
        "normal-normal": 5, "tumor-tumor": 5, "images-test": 6,
    }  # fmt: skip


def test_lists_are_in_the_published_formats_and_agree(made):
    seen = Counter()
    for k in range(5):
        parts = {}
        for part in ("valcl", "valpx", "test"):
            folder = made / "CAMELYON512" / f"fold-{k}" / part
            labels = [line.split(",") for line in (folder / "class_labels.txt").read_text().splitlines()]
            masks = [line.split(",") for line in (folder / "localization.txt").read_text().splitlines()]
            assert [row[0] for row in labels] == [row[0] for row in masks]
            for (path, label), (_, mask, ignore) in zip(labels, masks, strict=True):
                assert (made / path).is_file()
                assert ignore == ""
                none = "None" if part == "test" else ""
                assert mask == (path.replace("Patch_file", "mask_file") if label == "1" else none)
            parts[part] = {path for path, _ in labels}
            assert {label for _, label in labels} == {"0", "1"}
        assert parts["valpx"] <= parts["valcl"]
        assert len(parts["test"]) == 6
        assert not (made / "CAMELYON512" / f"fold-{k}" / "train").exists()
        seen.update(parts["valcl"])
    assert set(seen.values()) == {1}
    assert len(seen) == 20


def test_the_reader_opens_every_fold(made):
    dataset = open_dataset("camelyon16", made)
    for fold in dataset.folds:
        manifest = dataset.manifest(fold)
        assert manifest.synthetic
        for split in ("train", "val", "valpx", "test"):
            assert {i.label for i in manifest.split(split)} == {0, 1}
        for split in ("train", "val"):
            assert not shared_groups(manifest.items, split, "test")
        if fold.startswith("grouped"):
            assert not shared_groups(manifest.items, "train", "val")
            assert Counter(i.label for i in manifest.split("val")) == {0: 2, 1: 2}


def test_a_copy_is_kept_and_lost_lists_come_back(copy, made):
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*.png")}
    shutil.rmtree(copy / "CAMELYON512")
    write_camelyon16(copy, **SMALL)
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*.png")} == before
    assert digests(copy) == digests(made)


@pytest.mark.parametrize("there", FOLDERS)
def test_real_data_in_the_way_is_refused(copy, there):
    (copy / there / "SYNTHETIC.json").unlink()
    if there == "CAMELYON512":
        shutil.rmtree(copy / "camelyon16")
    before = digests(copy)
    with pytest.raises(BenchError, match=rf"{there} exists and is not synthetic"):
        write_camelyon16(copy, **SMALL)
    assert digests(copy) == before


def test_other_settings_are_refused(copy):
    with pytest.raises(BenchError, match="other settings"):
        write_camelyon16(copy, **SMALL, seed=7)
    shutil.rmtree(copy / "camelyon16")
    with pytest.raises(BenchError, match="other settings"):
        write_camelyon16(copy, **SMALL, seed=7)


def test_what_an_interrupted_call_leaves_is_taken_up(made, tmp_path, monkeypatch):
    def stop(*_):
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("wsolbench.datasets.synthesis.synthetic_camelyon._draw_patch", stop)
        with pytest.raises(RuntimeError):
            write_camelyon16(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr("wsolbench.datasets.synthesis.synthetic_folder.write_marker", stop)
        with pytest.raises(RuntimeError):
            write_camelyon16(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(made / "CAMELYON512", tmp_path / "CAMELYON512")  # killed between the two renamings
    write_camelyon16(tmp_path, **SMALL)
    assert digests(tmp_path) == digests(made)


@pytest.mark.parametrize("wrong", [{"size": 10}, {"train": 19}, {"test": 3}])
def test_settings_out_of_range(tmp_path, wrong):
    for write in (write_camelyon16, write_camelyon17):
        if write is write_camelyon16 or "train" not in wrong:
            with pytest.raises(BenchError):
                write(tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []


def test_two_centres_of_camelyon17_differ_in_stain(tmp_path):
    write_camelyon17(tmp_path, test=24, size=64)
    found = {}
    for centre in (0, 3):
        items = open_dataset(f"camelyon17:centre-{centre}", tmp_path).manifest("0").items
        assert Counter(i.label for i in items) == {0: 6, 1: 6}
        assert len({i.group for i in items}) == 6
        found[centre] = np.array([np.asarray(Image.open(i.image)).mean((0, 1)) for i in items])
    assert len(open_dataset("camelyon17", tmp_path).manifest("0").items) == 24
    shift = np.abs(found[0].mean(0) - found[3].mean(0)) / np.sqrt((found[0].var(0) + found[3].var(0)) / 2)
    assert shift.max() > 1


def call(*words):
    return CliRunner().invoke(data, ["synth", *(str(w) for w in words)])


def test_the_command_writes_what_is_asked_for(tmp_path):
    words = ["--out", tmp_path, "--train", 20, "--test", 4, "--size", 64]
    found = json.loads(call(*words, "--datasets", "camelyon16, camelyon17", "--json").stdout)
    assert found["datasets"] == {name: str(tmp_path / name) for name in ("camelyon16", "camelyon17")}
    assert {p.name for p in tmp_path.iterdir()} == {*FOLDERS, "camelyon17"}
    both = json.loads(call(*words, "--json").stdout)["datasets"]
    assert list(both) == ["glas", "camelyon16"]
    assert "20 + 4 synthetic images of 64 px are in" in call(*words).stdout


def test_an_unknown_layout_is_named(tmp_path):
    problem = call("--out", tmp_path, "--datasets", "glas,camelyon61").exception
    assert isinstance(problem, BenchError)
    assert "camelyon61" in str(problem)
    assert "camelyon16" in str(problem)
    assert list(tmp_path.iterdir()) == []
    assert set(WRITERS) == {"glas", "camelyon16", "camelyon17"}
