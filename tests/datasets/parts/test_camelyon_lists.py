import gzip
import re
from collections import Counter
from pathlib import PurePosixPath

import numpy as np
import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.parts.camelyon_lists import (
    LABELS,
    MASKS,
    Lists,
    Patch,
    PatchName,
    check_patches,
    find_lists,
    mask_beside,
    read_labels,
    read_masks,
    read_part,
    write_part,
)

HOME = "camelyon16"
TUMOUR = "Patch_file_training-tumor-tumor_009.tif_reg_4_row_23_patch_12_x_17767_y_157191_tissue_0.7259063720703125_metastatic_1.0_w_512_h_512.png"  # fmt: skip  # noqa: E501
NORMAL = "Patch_file_testing-images-test_044.tif_patch_17_x_15872_y_19968_tissue_0.6676864624023438_w_512_h_512.png"
TUMOUR_PATH = f"{HOME}/w-512xh-512/metastatic-patches/training/tumor/tumor_009/{TUMOUR}"
NORMAL_PATH = f"{HOME}/w-512xh-512/normal-patches/split_1/fold_0/test/{NORMAL}"


# -- names -----------------------------------------------------------------------------------------------------------
def test_a_published_tumour_name():
    name = PatchName.parse(TUMOUR)
    assert name == PatchName("training-tumor-tumor_009", 12, 17767, 157191, 0.7259063720703125, 1.0, 4, 23)
    assert (name.slide_id, name.width, name.height) == ("tumor_009", 512, 512)
    assert name.id == "tumor_009_reg_4_row_23_patch_12_x_17767_y_157191"
    assert name.image_name == TUMOUR
    assert name.mask_name == TUMOUR.replace("Patch_file", "mask_file")
    assert PatchName.parse(name.mask_name) == name
    assert name.folder(test=False) == PurePosixPath("metastatic-patches/training/tumor/tumor_009")


def test_a_published_normal_name():
    name = PatchName.parse(NORMAL_PATH)
    assert name == PatchName("testing-images-test_044", 17, 15872, 19968, 0.6676864624023438)
    assert (name.slide_id, name.metastatic, name.region, name.row) == ("test_044", None, None, None)
    assert name.image_name == NORMAL
    assert name.folder(test=True) == PurePosixPath("normal-patches/split_1/fold_0/test")
    assert name.folder(test=False) == PurePosixPath("normal-patches/split_0/fold_0/train")


def test_names_of_camelyon17():
    text = "Patch_file_testing-tumor-patient_020_node_4.tif_reg_0_row_0_patch_1_x_64657_y_110931_tissue_0.35_metastatic_0.05_w_512_h_512.png"  # noqa: E501
    assert PatchName.parse(text).slide_id == "patient_020_node_4"
    assert PatchName.parse(text).image_name == text


def test_any_name_survives_the_round_trip():
    rng = np.random.default_rng(3)
    for _ in range(300):
        tumour = rng.random() < 0.5
        shares = rng.random(2) ** rng.integers(1, 8)  # down to shares that are written with an exponent
        place = {"metastatic": shares[1], "region": int(rng.integers(99)), "row": int(rng.integers(99))}
        name = PatchName(
            slide=f"training-x-s_{rng.integers(999)}",
            patch=int(rng.integers(200)),
            x=int(rng.integers(10**6)),
            y=int(rng.integers(10**6)),
            tissue=shares[0],
            width=int(rng.integers(1, 999)),
            **(place if tumour else {}),
        )
        assert PatchName.parse(name.image_name) == name


@pytest.mark.parametrize(
    "bad",
    [
        TUMOUR.replace("Patch", "patch"),
        TUMOUR.replace(".png", ".jpg"),
        TUMOUR.replace("_x_17767", ""),
        TUMOUR.replace("row_23_", ""),
        TUMOUR.replace("_w_512", "_w_-512"),
        TUMOUR + "x",
        "a" + TUMOUR,
        NORMAL.replace("test_044", "test 044"),
        NORMAL.replace("0.6676864624023438", "nan"),
        NORMAL.replace("15872", "１５８７２"),
        "Patch_1.png",
    ],
)
def test_other_names_are_refused(bad):
    with pytest.raises(BenchError, match="is not the name of a Camelyon patch"):
        PatchName.parse(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slide": "a/b"}, "'a/b' cannot stand"),
        ({"slide": ""}, "cannot stand"),
        ({"tissue": 1.5}, r"not in \[0, 1\]"),
        ({"metastatic": float("nan")}, r"not in \[0, 1\]"),
        ({"region": 1}, "not both"),
        ({"x": -1}, "negative"),
        ({"width": 0}, "no extent"),
    ],
)
def test_what_a_name_cannot_hold(change, message):
    with pytest.raises(BenchError, match=message):
        PatchName(**{"slide": "s_1", "patch": 0, "x": 0, "y": 0, "tissue": 0.5, **change})


# -- formats ---------------------------------------------------------------------------------------------------------
def test_both_formats_as_published(tmp_path):
    (tmp_path / LABELS).write_text(f"{TUMOUR_PATH},1\n{NORMAL_PATH},0\n")
    other = NORMAL_PATH.replace("044", "045")
    (tmp_path / MASKS).write_text(f"{TUMOUR_PATH},{mask_beside(TUMOUR_PATH)},\n{NORMAL_PATH},None,\n{other},,\n")
    assert {p: r.label for p, r in read_labels(tmp_path / LABELS, HOME).items()} == {TUMOUR_PATH: 1, NORMAL_PATH: 0}
    assert read_masks(tmp_path / MASKS, HOME) == {
        TUMOUR_PATH: TUMOUR_PATH.replace("Patch_file", "mask_file"), NORMAL_PATH: None, other: None,
    }  # fmt: skip


def test_parts_are_read_plain_gzipped_and_without_masks(tmp_path):
    rows = (
        Patch(TUMOUR_PATH, 1, mask_beside(TUMOUR_PATH), PatchName.parse(TUMOUR)),
        Patch(NORMAL_PATH, 0, None, PatchName.parse(NORMAL)),
    )
    write_part(tmp_path, rows)
    assert read_part(tmp_path, HOME) == rows
    for name in (LABELS, MASKS):
        text = (tmp_path / name).read_bytes()
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.replace(b"\n", b"\r\n") + b"\n"))
        (tmp_path / name).unlink()
    assert read_part(tmp_path, HOME) == rows
    (tmp_path / f"{MASKS}.gz").unlink()
    assert read_part(tmp_path, HOME) == rows  # the mask follows from the name
    (tmp_path / f"{LABELS}.gz").unlink()
    assert read_part(tmp_path, HOME) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (NORMAL_PATH, "line 2: .* is not 'path,label'"),
        (f"{NORMAL_PATH},2", "line 2: .* with label 0 or 1"),
        (f"{NORMAL_PATH},0,", "line 2: .* is not 'path,label'"),
        (f"/{NORMAL_PATH},0", "line 2: .* is not a path below camelyon16/"),
        (f"{HOME}/../../{NORMAL},0", "line 2: .* is not a path below camelyon16/"),
        (f"glas/{NORMAL},0", "line 2: .* is not a path below camelyon16/"),
        (f"{HOME}/a.png,0", "line 2: .* is not the name of a Camelyon patch"),
        (f"{mask_beside(TUMOUR_PATH)},1", "line 2: .* is a mask, not a patch"),
        (f"{TUMOUR_PATH},1", "line 2: .* occurs twice"),
    ],
)
def test_bad_labels_are_refused_with_file_and_line(tmp_path, line, message):
    (tmp_path / LABELS).write_text(f"{TUMOUR_PATH},1\n{line}\n")
    with pytest.raises(BenchError, match=message) as caught:
        read_labels(tmp_path / LABELS, HOME)
    assert str(caught.value).startswith(str(tmp_path / LABELS))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{NORMAL_PATH},", "line 2: .* is not 'image,mask,ignore'"),
        (f"{NORMAL_PATH},None,x.png", "line 2: the ignore mask 'x.png' cannot be used"),
        (f"{NORMAL_PATH},/etc/passwd,", "line 2: '/etc/passwd' is not a path below"),
        (f"{TUMOUR_PATH},,", "line 2: .* occurs twice"),
        (f"{NORMAL_PATH},{mask_beside(TUMOUR_PATH)},", "line 2: .* is not the mask of .* names differ"),
    ],
)
def test_bad_masks_are_refused_with_file_and_line(tmp_path, line, message):
    (tmp_path / MASKS).write_text(f"{TUMOUR_PATH},{mask_beside(TUMOUR_PATH)},\n{line}\n")
    with pytest.raises(BenchError, match=message) as caught:
        read_masks(tmp_path / MASKS, HOME)
    assert str(caught.value).startswith(str(tmp_path / MASKS))


def test_lists_that_disagree(tmp_path):
    (tmp_path / LABELS).write_text(f"{TUMOUR_PATH},1\n{NORMAL_PATH},0\n")
    (tmp_path / MASKS).write_text(f"{TUMOUR_PATH},{mask_beside(TUMOUR_PATH)},\n")
    with pytest.raises(BenchError, match=r"disagree: 1 patches, the first:\n  .*test_044"):
        read_part(tmp_path, HOME)
    (tmp_path / LABELS).unlink()
    with pytest.raises(BenchError, match=r"localization\.txt but no class_labels\.txt"):
        read_part(tmp_path, HOME)


def test_files_that_are_no_lists(tmp_path):
    (tmp_path / LABELS).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BenchError, match="cannot be read as a list"):
        read_labels(tmp_path / LABELS, HOME)
    packed = tmp_path / f"{LABELS}.gz"
    for content in (b"no gzip", gzip.compress(f"{NORMAL_PATH},0\n".encode())[:-9]):
        packed.write_bytes(content)
        with pytest.raises(BenchError, match="cannot be read as a list"):
            read_labels(packed, HOME)


@pytest.mark.parametrize(
    ("path", "label", "mask", "message"),
    [
        (TUMOUR_PATH, 1, None, r"1 tumour patches, the first:\n  .*tumor_009.*\n  without a mask.*never taken for all"),
        (NORMAL_PATH, 0, mask_beside(NORMAL_PATH), r"1 normal patches, the first:\n  .*test_044.*\n  with a mask"),
        (NORMAL_PATH, 1, mask_beside(NORMAL_PATH), r"1 patches, the first:\n  .*test_044.*\n  whose label contradicts"),
        (TUMOUR_PATH, 0, None, r"1 patches, the first:\n  .*tumor_009.*\n  whose label contradicts"),
    ],
)
def test_rows_that_contradict_themselves(path, label, mask, message):
    with pytest.raises(BenchError, match=message):
        check_patches([Patch(path, label, mask, PatchName.parse(path))], "here")


def test_a_tumour_patch_whose_mask_field_is_empty_names_the_list(tmp_path):
    (tmp_path / LABELS).write_text(f"{TUMOUR_PATH},1\n")
    (tmp_path / MASKS).write_text(f"{TUMOUR_PATH},None,\n")
    with pytest.raises(BenchError, match=rf"{re.escape(str(tmp_path / MASKS))}: 1 tumour patches"):
        read_part(tmp_path, HOME)


# -- folds -----------------------------------------------------------------------------------------------------------
def test_training_rows_are_the_validation_rows_of_the_other_folds(patch_tree):
    folder = patch_tree.lists()
    folds = patch_tree.folds()
    for fold in range(5):
        rows = Lists(folder, HOME).rows(fold)
        assert set(rows.val) == set(folds[fold])
        assert set(rows.train) == {r for k in range(5) if k != fold for r in folds[k]}
        assert set(rows.test) == set(patch_tree.rows["test"])  # the list of fold 0 serves all
        assert rows.pixel_val < {r.path for r in rows.val}
        assert Counter(r.label for r in rows.val if r.path in rows.pixel_val) == {0: 1, 1: 1}


def test_a_training_list_must_agree_and_serves_alone(patch_tree):
    folder = patch_tree.lists()
    rest = [r for k in range(1, 5) for r in patch_tree.folds()[k]]
    write_part(folder / "fold-0" / "train", rest)
    whole = Lists(folder, HOME).rows(0)
    for k in range(1, 5):
        (folder / f"fold-{k}" / "valcl" / LABELS).unlink()
        (folder / f"fold-{k}" / "valcl" / MASKS).unlink()
    alone = Lists(folder, HOME).rows(0)
    assert (set(alone.train), alone.val) == (set(whole.train), whole.val)
    with pytest.raises(BenchError, match=r"lacks fold-1/valcl/class_labels\.txt, fold-2/.*all five are needed"):
        Lists(folder, HOME).rows(1)
    patch_tree.lists()
    write_part(folder / "fold-0" / "train", rest[1:])
    with pytest.raises(BenchError, match=r"fold-0/train does not hold .* 1 patches"):
        Lists(folder, HOME).rows(0)
    write_part(folder / "fold-0" / "train", [*rest, patch_tree.folds()[0][0]])
    (folder / "fold-3" / "valcl" / LABELS).unlink()
    (folder / "fold-3" / "valcl" / MASKS).unlink()
    with pytest.raises(BenchError, match="both in train and in valcl"):
        Lists(folder, HOME).rows(0)


def test_folds_that_overlap_or_lack_a_list(patch_tree):
    folder = patch_tree.lists()
    folds = patch_tree.folds()
    write_part(folder / "fold-2" / "valcl", [*folds[2], folds[1][0]])
    with pytest.raises(BenchError, match=r"1 patches.*\n.*\n  in the valcl lists of both fold 1 and fold 2"):
        Lists(folder, HOME).rows(0)
    patch_tree.lists()
    write_part(folder / "fold-2" / "valpx", folds[3][:2])
    with pytest.raises(BenchError, match=r"valpx: 2 patches.*\n.*\n.*\n  that valcl does not hold"):
        Lists(folder, HOME).rows(2)
    for part, message in (("valpx", "whose masks may be read"), ("test", "has no test list")):
        patch_tree.lists()
        (folder / "fold-0" / part / LABELS).unlink()
        (folder / "fold-0" / part / MASKS).unlink()
        with pytest.raises(BenchError, match=message):
            Lists(folder, HOME).rows(0)


@pytest.mark.parametrize("place", [".", "splits", "folds", "folds/wsol-done-right-splits", "camelyon16"])
def test_places_where_lists_are_found(patch_tree, place):
    folder = patch_tree.lists(f"{place}/CAMELYON512")
    found, places = find_lists(patch_tree.root, ("CAMELYON512",), HOME)
    assert found == folder
    assert folder in places


def test_two_folders_of_lists_are_refused_but_a_link_is_not(patch_tree):
    folder = patch_tree.lists()
    (patch_tree.root / "splits").mkdir()
    (patch_tree.root / "splits" / "CAMELYON512").symlink_to(folder)
    assert find_lists(patch_tree.root, ("CAMELYON512",), HOME)[0]
    patch_tree.lists("folds/CAMELYON512")
    with pytest.raises(BenchError, match="Several folders of lists"):
        find_lists(patch_tree.root, ("CAMELYON512",), HOME)


# -- the published lists ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def published(shared_data):
    """Every row of the published lists, by fold."""
    lists = Lists(shared_data / "splits" / "CAMELYON512", HOME)
    return {fold: lists.rows(fold) for fold in range(5)}


def labels(rows):
    found = Counter(r.label for r in rows)
    return found[0], found[1]


def slides(rows, label):
    return {r.name.slide_id for r in rows if r.label == label}


def test_published_counts(published):
    for fold, rows in published.items():
        train, val = (13284, 3319) if fold == 4 else (13282, 3321)
        assert labels(rows.train) == (train, train)
        assert labels(rows.val) == (val, val)
        assert labels(rows.test) == (7832, 7832)
        assert labels(r for r in rows.val if r.path in rows.pixel_val) == (5, 5)
        assert len(rows.pixel_val) == 10


def test_the_validation_sets_are_disjoint_and_their_union_is_the_training_pool(published):
    pool = {r.path for r in published[0].train} | {r.path for r in published[0].val}
    assert len(pool) == 33206
    for rows in published.values():
        assert {r.path for r in rows.train} | {r.path for r in rows.val} == pool
        assert not {r.path for r in rows.train} & {r.path for r in rows.val}
    assert sum(len(rows.val) for rows in published.values()) == 33206


def test_published_slides_and_their_leak(published):
    train, val, test, _ = published[0]
    assert (len(slides(train, 0)), len(slides(train, 1))) == (159, 111)
    assert (len(slides(val, 0)), len(slides(val, 1))) == (159, 107)
    assert (len(slides(test, 0)), len(slides(test, 1))) == (80, 48)
    everywhere = {r.name.slide_id for r in train}
    assert len(everywhere) == 270
    assert len(everywhere & {r.name.slide_id for r in val}) == 266
    assert not everywhere & {r.name.slide_id for r in test}


def test_published_tumour_shares(published):
    test = [r.name.metastatic or 0.0 for r in published[0].test]
    tumour = np.array([share for share in test if share])
    assert round(100 * float(np.mean(test)), 1) == 23.2
    assert round(100 * float(tumour.mean()), 1) == 46.5
    assert round(100 * float(np.mean([r.name.metastatic or 0.0 for r in published[0].val])), 1) == 24.0
    assert round(100 * float(np.mean(tumour <= 0.5)), 1) == 61.6
    assert round(100 * float(np.mean(tumour > 0.9)), 1) == 8.4
    assert int(np.sum(tumour == 1.0)) == 190
    assert tumour.min() >= 0.2


def test_published_rows_against_the_raw_lines(published, shared_data):
    """The same facts by string operations on the lines themselves."""
    folder = shared_data / "splits" / "CAMELYON512"
    for fold, part, rows in ((0, "test", published[0].test), (4, "valcl", published[4].val)):
        packed = (folder / f"fold-{fold}" / part / "class_labels.txt.gz").read_bytes()
        lines = gzip.decompress(packed).decode().split()
        assert [f"{r.path},{r.label}" for r in rows] == lines
        for line, row in zip(lines, rows, strict=True):
            name = line.rpartition(",")[0].rpartition("/")[2]
            assert row.name.image_name == name
            slide, rest = name.split("file_")[1].split(".tif")
            assert row.name.slide == slide
            words = rest.split("_")
            assert row.name.x == int(words[words.index("x") + 1])
            assert row.name.y == int(words[words.index("y") + 1])
            assert row.mask == (line[:-2].replace("/Patch_file", "/mask_file") if row.label else None)
    ids = [r.name.id for rows in (published[0].train, published[0].val, published[0].test) for r in rows]
    assert len(set(ids)) == 48870


def test_the_published_layout_is_the_one_patch_names_give(published):
    for rows, test in ((published[0].train, False), (published[0].test, True)):
        for row in rows:
            folder = f"{HOME}/w-512xh-512/{row.name.folder(test)}"
            assert row.path.rpartition("/")[0] in (folder, folder.replace("fold_0/train", "fold_0/valid"))
