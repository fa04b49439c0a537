import json
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from wsolbench.benchmark.cli.data.verbs import data
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.registry import scan_source
from wsolbench.datasets import base, camelyon16
from wsolbench.datasets.base import SPLITS, missing_files, shared_groups
from wsolbench.datasets.camelyon16 import Camelyon16
from wsolbench.datasets.info import foreground_shares, sized_masks
from wsolbench.datasets.masks.reader import read_mask
from wsolbench.datasets.open import open_dataset
from wsolbench.datasets.parts.camelyon_files import MASK_RULE
from wsolbench.datasets.parts.camelyon_lists import LABELS, MASKS, PatchName, mask_beside, write_part
from wsolbench.datasets.verify import verify


def counts(manifest, split):
    labels = Counter(i.label for i in manifest.split(split))
    return labels[0], labels[1]


def first(tree, label, part="train"):
    return next(r for r in tree.rows[part] if r.label == label)


def test_facts_can_be_read_without_import_and_agree_with_the_class():
    (entry,) = scan_source(Path(camelyon16.__file__).read_text(encoding="utf-8"), "camelyon16", "built-in")
    card = Camelyon16.card
    assert entry.error == ""
    assert (entry.name, entry.facts["version"], entry.facts["classes"]) == (card.name, card.version, card.classes)
    assert entry.facts["folds"] == Camelyon16.folds
    assert (card.positive_class, card.background_class, card.namespace) == (1, 0, "camelyon16")


# -- published folds -------------------------------------------------------------------------------------------------
def test_rows_of_a_published_fold(camelyon16_root, patch_tree):
    m = Camelyon16(camelyon16_root).manifest("1")
    assert [counts(m, s) for s in ("train", "val", "valpx", "test")] == [(24, 24), (6, 6), (1, 1), (4, 4)]
    assert m.synthetic
    assert {i.image.relative_to(camelyon16_root).as_posix() for i in m.split("val")} == {
        r.path for r in patch_tree.folds()[1]
    }
    assert {i.split for i in m.items if i.pixel_val} == {"val"}
    row = first(patch_tree, 1)
    (item,) = [i for i in m.items if i.image == camelyon16_root / row.path]
    assert (item.id, item.label, item.group) == (row.name.id, 1, "tumor_001")
    assert item.mask == camelyon16_root / mask_beside(row.path)
    assert all((i.mask is None) == (i.label == 0) for i in m.items)


def test_the_leak_of_the_published_folds_is_reported_and_grouped_offered(camelyon16_root):
    m = Camelyon16(camelyon16_root).manifest("0")
    train, val = ({i.group for i in m.split(s)} for s in ("train", "val"))
    inside = sum(i.group in train for i in m.split("val"))
    assert "SYNTHETIC" in m.notes[0]
    (note,) = m.notes[1:]
    assert f"{len(train & val)} of {len(train)} training slides" in note
    assert f"({inside} of 12 validation patches)" in note
    assert "--folds grouped" in note


def test_real_data_must_have_the_published_counts(camelyon16_root):
    (camelyon16_root / "camelyon16" / "SYNTHETIC.json").unlink()
    with pytest.raises(BenchError, match=r"fold 0: train has 24 normal and 24 tumour patches instead of 13,282"):
        Camelyon16(camelyon16_root).manifest("0")
    with pytest.raises(BenchError, match=r"instead of 13,284.*--folds grouped"):
        Camelyon16(camelyon16_root).manifest("4")
    m = Camelyon16(camelyon16_root).manifest("grouped-0")  # patches of one's own are welcome there, and marked
    assert not m.synthetic
    assert any("60 training and 8 test patches instead of the published 33,206 and 15,664" in n for n in m.notes)


def test_without_lists_published_folds_say_where_they_looked(camelyon16_root):
    shutil.rmtree(camelyon16_root / "CAMELYON512")
    with pytest.raises(BenchError, match="defined by the published lists") as caught:
        Camelyon16(camelyon16_root).manifest("0")
    for place in ("CAMELYON512", "splits/CAMELYON512", "folds/wsol-done-right-splits/CAMELYON512"):
        assert str(camelyon16_root / place) in str(caught.value)
    assert "--folds grouped" in str(caught.value)


# -- grouped folds ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lists", [True, False])
def test_grouped_folds_are_slide_disjoint_balanced_and_deterministic(camelyon16_root, patch_tree, lists):
    if not lists:
        shutil.rmtree(camelyon16_root / "CAMELYON512")
    dataset = Camelyon16(camelyon16_root)
    official = {camelyon16_root / r.path for r in patch_tree.rows["test"]}
    validated = []
    for fold in dataset.expand_folds(["grouped"]):
        m = dataset.manifest(fold)
        for one, other in combinations(SPLITS, 2):
            assert shared_groups(m.items, one, other) == []
        assert [counts(m, s) for s in ("train", "val", "valpx", "test")] == [(24, 24), (6, 6), (5, 5), (4, 4)]
        assert {i.image for i in m.split("test")} == official
        assert m == Camelyon16(camelyon16_root).manifest(fold)
        assert "slide-disjoint" in m.notes[1]
        validated += [i.id for i in m.split("val")]
    assert sorted(validated) == sorted(r.name.id for r in patch_tree.rows["train"])


def test_lists_and_folders_give_the_same_grouped_folds(camelyon16_root):
    listed = Camelyon16(camelyon16_root).manifest("grouped-2")
    shutil.rmtree(camelyon16_root / "CAMELYON512")
    assert set(Camelyon16(camelyon16_root).manifest("grouped-2").items) == set(listed.items)


def test_grouped_folds_use_the_patches_of_the_lists_only(camelyon16_root, patch_tree):
    row = first(patch_tree, 0)
    extra = camelyon16_root / row.path.replace("_patch_0_", "_patch_77_")
    shutil.copy(camelyon16_root / row.path, extra)
    assert len(Camelyon16(camelyon16_root).manifest("grouped-0").items) == 68
    shutil.rmtree(camelyon16_root / "CAMELYON512")
    assert len(Camelyon16(camelyon16_root).manifest("grouped-0").items) == 69
    extra.rename(extra.with_name("Patch_of_mine.png"))
    with pytest.raises(BenchError, match=r"'Patch_of_mine.png' is not the name of a Camelyon patch.*Rename or remove"):
        Camelyon16(camelyon16_root).manifest("grouped-0")


def test_folders_without_patches(camelyon16_root):
    shutil.rmtree(camelyon16_root / "CAMELYON512")
    shutil.rmtree(camelyon16_root / "camelyon16" / "w-512xh-512" / "normal-patches" / "split_1")
    shutil.rmtree(camelyon16_root / "camelyon16" / "w-512xh-512" / "metastatic-patches" / "testing")
    with pytest.raises(BenchError, match=r"holds no patches in metastatic-patches/testing/\*/\*"):
        Camelyon16(camelyon16_root).manifest("grouped-0")


def test_unknown_folds(camelyon16_root):
    dataset = Camelyon16(camelyon16_root)
    with pytest.raises(BenchError, match="no fold '5'"):
        dataset.manifest("5")
    with pytest.raises(BenchError, match="such as grouped-0"):
        dataset.manifest("grouped")


# -- bad input -------------------------------------------------------------------------------------------------------
def test_lists_that_name_files_which_are_not_there(camelyon16_root, patch_tree):
    gone = [*[r for r in patch_tree.rows["train"] if r.label][:4], first(patch_tree, 0), first(patch_tree, 0, "test")]
    for row in gone:
        (camelyon16_root / row.path).unlink()
    (camelyon16_root / gone[0].mask).unlink()
    with pytest.raises(BenchError, match=r"fold 0: 7 of 102 files are missing, the first") as caught:
        Camelyon16(camelyon16_root).manifest("0")
    assert str(caught.value).count("\n  ") == 5
    assert "Patch_file_" in str(caught.value)


@pytest.mark.parametrize("fold", ["0", "grouped-0"])
def test_a_tumour_patch_without_its_mask_file(camelyon16_root, patch_tree, fold):
    for row in [r for r in patch_tree.rows["train"] if r.label][:7]:
        (camelyon16_root / row.mask).unlink()
    with pytest.raises(BenchError, match=r"(?s)masks of 7 tumour patches are missing.*never taken for all") as caught:
        Camelyon16(camelyon16_root).manifest(fold)
    assert str(caught.value).count("mask_file_training-tumor-tumor_00") == 5
    shutil.rmtree(camelyon16_root / "CAMELYON512")
    with pytest.raises(BenchError, match=r"(?s)7 tumour patches, the first:.*without a mask.*never taken for"):
        Camelyon16(camelyon16_root).manifest("grouped-0")


@pytest.mark.parametrize("field", ["", "None"])
def test_a_tumour_patch_without_its_mask_in_the_list(camelyon16_root, field):
    path = camelyon16_root / "CAMELYON512" / "fold-3" / "valcl" / MASKS
    line = next(x for x in path.read_text().splitlines() if "mask_file" in x)
    path.write_text(path.read_text().replace(line, f"{line.split(',')[0]},{field},"))
    with pytest.raises(BenchError, match=r"(?s)1 tumour patches, the first:.*without a mask") as caught:
        Camelyon16(camelyon16_root).manifest("0")
    assert str(path) in str(caught.value)


def test_a_normal_patch_with_a_mask(camelyon16_root, patch_tree):
    row = first(patch_tree, 0)
    path = camelyon16_root / "CAMELYON512" / "fold-0" / "valcl" / MASKS
    path.write_text(path.read_text().replace(f"{row.path},,", f"{row.path},{mask_beside(row.path)},"))
    with pytest.raises(BenchError, match=r"(?s)1 normal patches, the first:.*with a mask"):
        Camelyon16(camelyon16_root).manifest("0")
    shutil.rmtree(camelyon16_root / "CAMELYON512")
    Image.new("L", (16, 16)).save(camelyon16_root / mask_beside(row.path))
    with pytest.raises(BenchError, match=r"(?s)1 normal patches, the first:.*with a mask"):
        Camelyon16(camelyon16_root).manifest("grouped-0")


def test_a_slide_in_two_splits(camelyon16_root, patch_tree):
    patch_tree.add("test", "testing-images-tumor_004", 1, 1, "metastatic-patches/testing/images/tumor_004")
    patch_tree.images()
    write_part(camelyon16_root / "CAMELYON512" / "fold-0" / "test", patch_tree.rows["test"])
    for fold in ("0", "grouped-0"):
        with pytest.raises(BenchError, match=r"1 slides are in (train|val) and in test \(tumor_004\)"):
            Camelyon16(camelyon16_root).manifest(fold)


def test_a_patch_in_two_folders(camelyon16_root, patch_tree):
    shutil.rmtree(camelyon16_root / "CAMELYON512")
    path = camelyon16_root / first(patch_tree, 0).path
    shutil.copy(path, path.parents[1] / "valid")
    with pytest.raises(BenchError, match=f"id '{first(patch_tree, 0).name.id}' occurs 2 times"):
        Camelyon16(camelyon16_root).manifest("grouped-0")


# -- places ----------------------------------------------------------------------------------------------------------
def test_places_where_the_patches_are_found(camelyon16_root, tmp_path):
    Camelyon16(camelyon16_root).manifest("0")
    nested = tmp_path / "other" / "CAMELYON512"
    nested.mkdir(parents=True)
    (camelyon16_root / "camelyon16").rename(nested / "camelyon16")
    shutil.copytree(camelyon16_root / "CAMELYON512", tmp_path / "other" / "folds" / "CAMELYON512")
    m = Camelyon16(tmp_path / "other").manifest("0")
    assert m.items[0].image.is_relative_to(nested)
    with pytest.raises(BenchError, match=r"is the dataset itself: point --data-root at the folder that holds"):
        Camelyon16(nested / "camelyon16").manifest("0")
    with pytest.raises(BenchError, match=r"No camelyon16 patches(.|\n)*CAMELYON512/camelyon16/w-512xh-512"):
        Camelyon16(camelyon16_root).manifest("0")
    shutil.copytree(nested / "camelyon16", tmp_path / "other" / "camelyon16")
    with pytest.raises(BenchError, match="Several copies of camelyon16"):
        Camelyon16(tmp_path / "other").manifest("0")


@pytest.mark.parametrize("many", [True, False])
def test_missing_files_are_found_by_listing_and_by_asking(tmp_path, monkeypatch, many):
    monkeypatch.setattr(base, "LIST_FROM", 1 if many else 10**6)
    monkeypatch.chdir(tmp_path)
    for name in ("a/1", "a/2", "b/1"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("a/link").symlink_to("2")
    Path("a/dangling").symlink_to("nowhere")
    files = [Path(n) for n in ("a/1", "a/3", "a/link", "a/dangling", "b/1", "b", "c/1", "top")]
    expected = [Path(n) for n in ("a/3", "a/dangling", "b", "c/1", "top")]
    assert missing_files(files) == expected
    assert missing_files([f.absolute() for f in files]) == [f.absolute() for f in expected]


# -- masks -----------------------------------------------------------------------------------------------------------
def test_masks_are_black_and_white_png(camelyon16_root, patch_tree, tmp_path):
    dataset = Camelyon16(camelyon16_root)
    path = camelyon16_root / first(patch_tree, 1).mask
    mask = dataset.read_mask(next(i for i in dataset.manifest("0").items if i.mask == path)).foreground
    assert (mask.dtype, mask.shape) == (np.bool_, (16, 16))
    assert mask[:8].all()
    assert not mask[8:].any()
    for name, fill in (("all", 255), ("none", 0)):
        Image.new("L", (5, 4), fill).save(tmp_path / f"{name}.png")
        assert (read_mask(tmp_path / f"{name}.png", MASK_RULE).foreground == (fill > 0)).all()
    pixels = np.zeros((5, 4), bool)
    pixels[2, 1] = True
    Image.fromarray(pixels).save(tmp_path / "bits.png")
    assert (read_mask(tmp_path / "bits.png", MASK_RULE).foreground == pixels).all()


@pytest.mark.parametrize(
    ("mode", "fill", "name", "message"),
    [
        ("L", 1, "m.png", "holds 1 besides 0 and 255"),
        ("L", 254, "m.png", "holds 254 besides 0 and 255"),
        ("RGB", (255, 255, 255), "m.png", r"colours or several channels \(mode RGB\)"),
        ("P", 1, "m.png", "pixels without an entry in its palette"),
        ("LA", (255, 255), "m.png", "several channels"),
        ("I;16", 255, "m.png", "more than 8 bits"),
        ("L", 255, "m.jpg", "is a JPEG file; its compression has changed the values"),
    ],
)
def test_other_masks_are_refused(tmp_path, mode, fill, name, message):
    Image.new(mode, (6, 5), fill).save(tmp_path / name)
    with pytest.raises(BenchError, match=message) as caught:
        read_mask(tmp_path / name, MASK_RULE)
    assert str(tmp_path / name) in str(caught.value)


def test_a_black_mask_of_a_tumour_patch_is_refused(camelyon16_root, patch_tree):
    path = camelyon16_root / first(patch_tree, 1).mask
    Image.new("L", (16, 16)).save(path)
    dataset = Camelyon16(camelyon16_root)
    item = next(i for i in dataset.manifest("0").items if i.mask == path)
    with pytest.raises(BenchError, match=r"is all background, though its name says that 50\.0 %"):
        dataset.read_mask(item)
    report = verify(dataset, ["0"], camelyon16_root / "hashes.json")
    assert len(report.problems) == 1
    assert str(path) in report.problems[0]


# -- the commands ----------------------------------------------------------------------------------------------------
def test_foreground_share(camelyon16_root):
    dataset = Camelyon16(camelyon16_root)
    m = dataset.manifest("0")
    assert foreground_shares(m, sized_masks(dataset, m)) == pytest.approx({"train": 0.25, "val": 0.25, "test": 0.25})


def test_verify_and_info(camelyon16_root, tmp_path):
    where = ["--data-root", str(camelyon16_root), "--results", str(tmp_path / "results")]
    done = CliRunner().invoke(data, ["verify", "camelyon16", *where])
    assert done.exception is None, done.exception
    assert "camelyon16 (SYNTHETIC): 102 files read, 0 problems" in done.output
    assert "fold grouped-4  train 24 + 24, val 6 + 6, test 4 + 4, valpx 5 + 5" in done.output
    stored = json.loads((tmp_path / "results" / "data" / "camelyon16-verify.json").read_text())
    identities = [f["identity"] for f in stored["folds"]]
    assert len({i["content"] for i in identities}) == 1
    assert len({i["split"] for i in identities}) == 10
    done = CliRunner().invoke(data, ["info", "camelyon16", *where])
    assert done.exception is None, done.exception
    for word in ("slides", "tumour only", "JAMA", "CC0", "20 training slides also have validation patches", "25.0 %"):
        assert word in done.output
    assert (tmp_path / "results" / "data" / "camelyon16-fold-0.png").is_file()


@pytest.mark.slow
def test_the_published_lists_over_files_of_their_names(shared_data, tmp_path):
    """All 73,305 files, empty: the manifests of the real lists, as they come out on disk."""
    lists = shared_data / "splits" / "CAMELYON512"
    (tmp_path / "CAMELYON512").symlink_to(lists)
    dataset = open_dataset("camelyon16", tmp_path)
    (tmp_path / "camelyon16" / "w-512xh-512").mkdir(parents=True)
    rows = dataset._rows(tmp_path, 0, False)
    for folder in {(tmp_path / r.path).parent for part in rows[:3] for r in part}:
        folder.mkdir(parents=True, exist_ok=True)
    for row in (r for part in rows[:3] for r in part):
        for name in filter(None, (row.path, row.mask)):
            (tmp_path / name).touch()
    m = dataset.manifest("0")
    assert [counts(m, s) for s in ("train", "val", "valpx", "test")] == [
        (13282, 13282),
        (3321, 3321),
        (5, 5),
        (7832, 7832),
    ]
    assert any("266 of 270 training slides" in n and "6,642 of 6,642" in n for n in m.notes)
    assert not m.synthetic
    m = dataset.manifest("grouped-3")
    assert all(abs(n - 3320.6) < 50 for n in counts(m, "val"))
    assert shared_groups(m.items, "train", "val") == []
    assert not any("instead of" in n for n in m.notes)
    shares = [PatchName.parse(i.image.name).metastatic or 0.0 for i in m.split("test")]
    assert float(np.mean(shares)) == pytest.approx(0.232, abs=0.0005)
    (tmp_path / rows.train[5].path).unlink()
    with pytest.raises(BenchError, match=r"1 of 73305 files are missing"):
        dataset.manifest("grouped-3")


def test_a_list_that_was_cut_short(camelyon16_root):
    path = camelyon16_root / "CAMELYON512" / "fold-0" / "valcl" / LABELS
    path.write_text(path.read_text()[:-1] + "\nPatch")
    with pytest.raises(BenchError, match="line 13: 'Patch' is not 'path,label'"):
        Camelyon16(camelyon16_root).manifest("2")
