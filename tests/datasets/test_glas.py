import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.registry import scan_source
from wsolbench.datasets import glas
from wsolbench.datasets.base import SPLITS, shared_groups
from wsolbench.datasets.glas import FOLDER, Glas
from wsolbench.datasets.info import foreground_shares, sized_masks
from wsolbench.datasets.parts.folds import choose_pixel_val, divide_groups


def counts(manifest, split):
    labels = Counter(i.label for i in manifest.split(split))
    return labels[0], labels[1]


def test_facts_can_be_read_without_import_and_agree_with_the_class():
    source = Path(glas.__file__).read_text(encoding="utf-8")
    (entry,) = [e for e in scan_source(source, "glas", "built-in") if e.name == "glas"]
    assert entry.error == ""
    assert entry.facts["version"] == Glas.card.version
    assert entry.facts["classes"] == Glas.card.classes
    assert entry.facts["folds"] == Glas.folds
    assert entry.facts["licence"].startswith("research")
    assert "benign or malignant" in entry.summary


@pytest.mark.parametrize("fold", range(5))
def test_published_folds_equal_the_published_lists(real, shared_data, fold):
    manifest = real.manifest(str(fold))
    lists = shared_data / "splits" / "GLAS" / f"fold-{fold}"
    for split, folder in (("train", "train"), ("val", "valcl"), ("valpx", "valpx"), ("test", "test")):
        lines = (lists / folder / "class_labels.txt").read_text().split()
        published = {(Path(p).stem, int(k)) for p, k in (line.rsplit(",", 1) for line in lines)}
        assert {(i.id, i.label) for i in manifest.split(split)} == published


def test_published_counts(real):
    for fold in "0123":
        m = real.manifest(fold)
        assert [counts(m, s) for s in ("train", "val", "valpx", "test")] == [(29, 38), (8, 10), (3, 3), (37, 43)]
    m = real.manifest("4")
    assert [counts(m, s) for s in ("train", "val", "valpx", "test")] == [(32, 40), (5, 8), (3, 3), (37, 43)]
    everything = Counter((i.id.split("_")[0], i.label) for i in m.items)
    assert everything == {("train", 0): 37, ("train", 1): 48, ("testA", 0): 33, ("testA", 1): 27,
                          ("testB", 0): 4, ("testB", 1): 16}  # fmt: skip


def test_the_leak_of_the_published_folds_is_reported(real):
    m = real.manifest("0")
    patients = {s: {i.group for i in m.split(s)} for s in SPLITS}
    both = patients["train"] & patients["test"]
    leaked = sum(i.group in both for i in m.split("test"))
    assert len(both) > 0
    note = next(n for n in m.notes if "test patients" in n)
    assert f"{len(both)} of {len(patients['test'])} test patients ({leaked} of 80 images)" in note
    assert any("validation patients" in n for n in m.notes)


def check_grouped(dataset, images):
    tested = []
    for fold in dataset.expand_folds(["grouped"]):
        m = dataset.manifest(fold)
        assert len(m.items) == images
        for one, other in combinations(SPLITS, 2):
            assert shared_groups(m.items, one, other) == []
        for split in SPLITS:
            assert min(counts(m, split)) > 0
        assert counts(m, "valpx") == (3, 3)
        assert {i.split for i in m.items if i.pixel_val} == {"val"}
        assert not any("share patients" in n for n in m.notes)
        assert m == dataset.manifest(fold)
        tested += [i.group for i in m.split("test")]
        yield m
    assert set(Counter(tested)) == {i.group for i in m.items}
    assert len(tested) == images  # every image, hence every patient, in test exactly once


def test_grouped_folds_are_patient_disjoint_and_balanced(real):
    sizes = [counts(m, "test") for m in check_grouped(real, 165)]
    assert len(sizes) == 5
    # equal parts would be 14.8 benign and 18.2 malignant; patients of 20 images allow no more than this
    assert all(abs(b - 14.8) <= 5 and abs(m - 18.2) <= 6 for b, m in sizes)


def test_grouped_folds_of_a_synthetic_copy(synth_root):
    assert len(list(check_grouped(Glas(synth_root), 40))) == 5


def test_image_level_folds_of_a_synthetic_copy_are_like_the_published_ones(synth_root):
    dataset = Glas(synth_root)
    validated = []
    for fold in "01234":
        m = dataset.manifest(fold)
        assert m.synthetic
        assert "SYNTHETIC" in m.notes[0]
        assert {i.id for i in m.split("train")} | {i.id for i in m.split("val")} == {f"train_{k}" for k in range(1, 31)}
        assert all(i.split == "val" for i in m.split("valpx"))
        assert min(counts(m, "val")) >= 2
        validated += [i.id for i in m.split("val")]
    assert sorted(validated) == sorted({f"train_{k}" for k in range(1, 31)})


def test_foreground_share_of_the_test_set_is_the_known_chance_level(real):
    assert foreground_shares(real.manifest("0"), sized_masks(real, real.manifest("0")))["test"] == pytest.approx(
        0.512, abs=0.0006
    )


def test_masks_mark_every_gland(real):
    m = real.manifest("0")
    item = next(i for i in m.items if i.id == "testA_1")
    mask = real.read_mask(item).foreground
    assert (mask.dtype, mask.shape) == (np.bool_, (522, 775))
    assert mask.mean() == pytest.approx(0.859, abs=0.0006)


@pytest.mark.parametrize("place", ["{}", "GLAS/{}", "glas/{}", "."])
@pytest.mark.parametrize("name", [FOLDER, FOLDER.replace(" ", "_")])
def test_places_where_the_download_is_found(synth_root, tmp_path, place, name):
    target = tmp_path / place.format(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(synth_root / FOLDER, target, dirs_exist_ok=True)
    assert Glas(tmp_path).manifest("0").items[0].image.parent.resolve() == target.resolve()


def test_a_link_to_the_same_folder_is_no_second_copy_but_a_copy_is(synth_copy):
    (synth_copy / FOLDER.replace(" ", "_")).symlink_to(synth_copy / FOLDER)
    Glas(synth_copy).manifest("0")
    shutil.copytree(synth_copy / FOLDER, synth_copy / "GLAS" / FOLDER)
    with pytest.raises(BenchError, match="Several copies"):
        Glas(synth_copy).manifest("0")


def test_no_dataset_says_where_it_looked_and_what_to_do(tmp_path):
    with pytest.raises(BenchError, match=r"Warwick QU.*bench data synth"):
        Glas(tmp_path).manifest("0")


def test_a_folder_without_grades_is_incomplete(tmp_path):
    (tmp_path / FOLDER).mkdir()
    with pytest.raises(BenchError, match=r"no Grade\.csv"):
        Glas(tmp_path).manifest("0")


def test_half_a_download_names_the_missing_files(synth_copy):
    for k in (3, 4):
        (synth_copy / FOLDER / f"train_{k}.bmp").unlink()
    (synth_copy / FOLDER / "testA_1_anno.bmp").unlink()
    with pytest.raises(BenchError, match=r"3 of 80 files are missing") as caught:
        Glas(synth_copy).manifest("0")
    assert "train_3.bmp" in str(caught.value)
    assert "testA_1_anno.bmp" in str(caught.value)


def test_images_without_their_marker_are_not_taken_for_the_real_dataset(synth_copy):
    (synth_copy / FOLDER / "SYNTHETIC.json").unlink()
    with pytest.raises(BenchError, match="40 images instead of 165"):
        Glas(synth_copy).manifest("0")


def test_a_synthetic_copy_must_have_as_many_images_as_it_says(synth_copy):
    grades = synth_copy / FOLDER / "Grade.csv"
    grades.write_text("\n".join(grades.read_text().splitlines()[:-1]))
    with pytest.raises(BenchError, match=r"30 \+ 9 images.*30 \+ 10"):
        Glas(synth_copy).manifest("0")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (" benign", " beningn", r"line \d+: .*beningn"),
        ("train_2,", "train_02,", "line 3"),
        ("train_2,", "train_1,", "occurs twice"),
        ("train_2,", "../../etc/passwd,", "line 3"),
    ],
)
def test_damaged_grades_are_refused_with_the_line(synth_copy, old, new, message):
    grades = synth_copy / FOLDER / "Grade.csv"
    text = grades.read_text()
    assert old in text
    grades.write_text(text.replace(old, new, 1))
    with pytest.raises(BenchError, match=message):
        Glas(synth_copy).manifest("0")


def test_a_changed_grade_in_the_real_dataset_is_noticed(real_root, tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    for file in (real_root / FOLDER).iterdir():
        (folder / file.name).symlink_to(file)
    text = (folder / "Grade.csv").read_text()
    (folder / "Grade.csv").unlink()
    (folder / "Grade.csv").write_text(text.replace(" benign", " malignant", 1))
    with pytest.raises(BenchError, match="was changed"):
        Glas(tmp_path).manifest("0")


def test_unknown_folds(synth_root):
    dataset = Glas(synth_root)
    with pytest.raises(BenchError, match="no fold '7'"):
        dataset.manifest("7")
    with pytest.raises(BenchError, match="grouped-0"):
        dataset.manifest("grouped")


def test_groups_are_divided_as_equally_as_brute_force_can():
    rows = [(k % 2, f"g{g}") for g, n in enumerate((8, 7, 6, 5, 4)) for k in range(n)]
    part = divide_groups(rows, 2)
    totals = Counter((part[g], label) for label, g in rows)
    sizes = sorted(totals[p, 0] + totals[p, 1] for p in range(2))
    assert sizes == [15, 15]  # 8 + 7 against 6 + 5 + 4


def test_groups_that_cannot_be_divided_are_refused():
    with pytest.raises(BenchError, match="Grouped folds need 5"):
        divide_groups([(k % 2, f"g{k}") for k in range(6)], 5)


def test_pixel_val_takes_one_group_after_the_other():
    rows = [(f"a{k}", 0, "big") for k in range(20)] + [("b", 0, "small"), ("c", 0, "tiny"), ("d", 1, "big")]
    chosen = choose_pixel_val(rows)
    assert {"b", "c", "d"} < chosen
    assert len(chosen) == 4
    assert chosen == choose_pixel_val(reversed(rows))
