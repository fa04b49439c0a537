"""Whose slide it is and what tables say: patients from names and columns, splits as pandas writes them, stages."""

import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.patches.patients import group_slides, patient_of, shared_patients
from wsolbench.datasets.patches.slides import list_slides


@pytest.mark.parametrize(
    "slide, patient",
    [
        ("patient_017_node_4", "patient_017"), ("Patient_017_Node_4", "patient_017"),
        ("TCGA-55-1594-01Z-00-DX1.5d6c", "TCGA-55-1594"), ("tcga-55-1594-01A-01-TS1", "TCGA-55-1594"),
        ("TCGA-55-1594", "TCGA-55-1594"), ("C3L-00001-21", "C3L-00001"), ("GTEX-1117F-0126", "GTEX-1117F"),
        ("patient_17_node_4", ""), ("patient_017", ""), ("TCGA-55-15943", ""), ("tumor_001", ""), ("S21-00123", ""),
    ],
)  # fmt: skip
def test_the_patient_in_a_name(slide, patient):
    assert patient_of(slide) == patient


def test_groups_from_names_and_tables():
    names = ["patient_001_node_0", "patient_001_node_3", "a", "b", "c"]
    groups, notes = group_slides(names, {"a": "P7", "b": "p-07"})
    assert groups == {"patient_001_node_0": "patient_001", "patient_001_node_3": "patient_001", "a": "P7", "b": "P7",
                      "c": "c"}  # fmt: skip
    told = " | ".join(notes)
    assert "spelt in several ways are taken for one: P7, p-07" in told
    assert "group = patient: 4 slides of 2 patients, by the table and the names" in told
    assert "group = slide: the patient of 1 slide is not known (c)" in told
    assert group_slides(["a"], {"a": "7"})[1] == ["group = patient: 1 slide of 1 patient, by the table"]


def test_a_table_may_join_patients_of_the_names_and_not_part_them():
    names = ["patient_001_node_0", "patient_001_node_1", "patient_002_node_0"]
    assert set(group_slides(names, dict.fromkeys(names, "one"))[0].values()) == {"one"}
    with pytest.raises(BenchError, match="slides of one patient to several: patient_001"):
        group_slides(names, {names[0]: "x", names[1]: "y"})
    with pytest.raises(BenchError, match="patient_001"):
        group_slides(names, {names[0]: "x"})  # the other node would stay with another patient


def test_shared_patients_are_named_with_their_slides():
    rows = [("a", "7", "train"), ("b", "007", "test"), ("c", "8", "train"), ("d", "8", "train"), ("e", "7.0", "")]
    said = shared_patients(rows)
    assert said.startswith("1 patient in two splits")
    assert "(test: b; train: a)" in said
    assert shared_patients([("a", "7", "train"), ("b", "8", "test"), ("c", "7", "train")]) == ""


@pytest.fixture
def tree(tmp_path):
    """Empty files: listing opens none of them."""
    for folder, names in {
        "s": ["P7 a.svs", "x1.tif", "x2.TIF", "sub/7.tif"], "x": ["x1.xml", "x2.geojson", "7.tif.xml"],
        "n": [f"patient_{p:03}_node_{k}.tif" for p in range(4) for k in range(3)],
        "m": [f"patient_{p:03}_node_0.xml" for p in range(4)],
    }.items():  # fmt: skip
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).touch()
    return tmp_path


def listed(tree, text, slides="s", xml="x", **options):
    (tree / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return list_slides(tree / slides, tree / xml, tree / "t.csv", **options)


def brief(listing):
    return {j.name: (j.label, j.split, j.group) for j in listing.jobs}


@pytest.mark.parametrize(
    "text",
    [
        "slide,split,label,patient\nP7 a,train,normal,1\nx1,train,tumor,2\nx2,val,tumor,3\n7,test,tumor,4\n",
        "\ufeffPatient,LABEL,Slide,split\n1,Normal,P7 a.svs,Train\n2,tumor,x1.tif,train\n3,TUMOR,X2,VAL\n"
        "4,tumor,7,test\n",
        ",slide,split,label,patient,site\n0,s/P7 a.svs,train,normal,1.0,x\n1,x1,train,tumor,2.0,\n2,x2,val,tumor,3.0,\n"
        "3,7.0,test,tumor,4.0,y\n",
        "Unnamed: 0,slide,split,label,patient\r\n0,P7 a,train,normal,1\r\n1,x1,train,tumor,2\r\n2,x2,val,tumor,3\r\n"
        "3,sub\\7.tif,test,tumor,4\r\n\r\n,,,,\r\n",
    ],
)
def test_tables_as_people_and_pandas_write_them(tree, text):
    listing = listed(tree, text)
    assert listing.problems == listing.refusals == ()
    found = brief(listing)
    assert {n: (label, split) for n, (label, split, _) in found.items()} == {
        "P7 a": ("normal", "train"), "x1": ("tumor", "train"), "x2": ("tumor", "val"), "7": ("tumor", "test")
    }  # fmt: skip
    assert len({g for *_, g in found.values()}) == 4
    assert any("columns of t.csv that are not read: site" in n for n in listing.notes) == ("site" in text)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("slide,split\nx1,trian\nx2,tset\n7,train,\n", r"line 2.*Did you mean train.*line 3.*test.*line 4: 3 fields"),
        ("slide,split,patient\nx1,train,\n,test,3\n", "line 3: no slide is named"),
        ("slide,split,split\nx1,train,test\n", "occurs twice"), ("slide,patient\nx1,1\n", "the header must be"),
        ("slide,label\nx1,tumor\n", "no column 'split'"), ("patient,stage\npatient_000_node_0.tif,bad\n", "line 2"),
        ("patient,stage\npatient_999.zip,pN0\n", "lists none"), (b"slide,split\n\xff,train\n", "UTF-8"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_right_name_every_line(tree, text, complaint):
    with pytest.raises(BenchError, match=complaint):
        listed(tree, text)


@pytest.mark.parametrize("one, other", [("7", "007"), ("P7", "p-7"), ("7", "7.0"), ("Anna  B", "anna b")])
def test_a_patient_in_two_splits_is_refused_however_it_is_spelt(tree, one, other):
    text = f"slide,split,label,patient\nx1,train,tumor,{one}\nx2,test,tumor,{other}\n7,test,tumor,9\n"
    listing = listed(tree, text)
    (refusal,) = listing.refusals
    assert "1 patient in two splits" in refusal
    assert "test: x2; train: x1" in refusal


def test_a_slide_with_a_problem_counts_for_leaks(tree):
    text = "slide,split,label,patient\nx1,train,tumor,1\nP7 a,test,tumor,1\n"  # P7 a has no annotation yet
    listing = listed(tree, text)
    assert [p.slide for p in listing.problems] == ["P7 a"]
    assert listing.refusals


def test_cells_that_programs_leave_empty_are_empty(tree):
    listing = listed(tree, "slide,split,label,patient\nx1,train,nan,NaN\nx2,test,,<NA>\n7,train,tumor,nan\n")
    assert listing.refusals == ()
    assert brief(listing) == {
        "x1": ("tumor", "train", "x1"),
        "x2": ("tumor", "test", "x2"),
        "7": ("tumor", "train", "7"),
    }


def test_a_known_tumour_slide_taken_for_normal_is_told(tmp_path):
    for name in ("test_001", "test_003", "mine"):
        (tmp_path / f"{name}.tif").touch()
    (tmp_path / "s.csv").write_text("slide,split,label\ntest_001,test,normal\ntest_003,test,normal\nmine,test,normal\n")
    for options in ({"splits": tmp_path / "s.csv"}, {"unannotated": "normal"}):
        (note,) = [n for n in list_slides(tmp_path, None, **options).notes if "by the reference" in n]
        assert note.endswith("they have metastases: test_001")


STAGES = "patient,stage\n" + "".join(
    f"patient_{p:03}.zip,pN1\npatient_{p:03}_node_0.tif,macro\npatient_{p:03}_node_1.tif,negative\n"
    f"patient_{p:03}_node_2.tif,{'itc' if p == 3 else 'negative'}\n" for p in range(5)
)  # fmt: skip


def test_stage_labels_of_camelyon17_as_they_are(tree):
    listing = listed(tree, STAGES, "n", "m")
    assert listing.problems == listing.refusals == ()
    assert [tuple(s) for s in listing.skipped] == [
        ("patient_003_node_2", "itc, but not annotated: Camelyon17 outlines the metastases of 50 slides only")
    ]
    found = brief(listing)
    assert found["patient_000_node_0"] == ("tumor", "test", "patient_000")
    assert found["patient_003_node_1"] == ("normal", "test", "patient_003")
    assert {split for _, split, _ in found.values()} == {"test"}
    told = " | ".join(listing.notes)
    assert "3 of the 15 slides in t.csv are not here" in told
    assert "group = patient: 11 slides of 4 patients, by the names" in told
    assert "all slides are test" in told


def test_patients_are_set_aside_whole(tree):
    listing = listed(tree, STAGES, "n", "m", test_share=0.25)
    splits = {}
    for _, split, group in brief(listing).values():
        splits.setdefault(group, set()).add(split)
    assert sorted(map(sorted, splits.values())) == [["test"], ["train"], ["train"], ["train"]]
    with pytest.raises(BenchError, match="tells the splits already"):
        listed(tree, "slide,split\nx1,train\n", test_share=0.2)
    with pytest.raises(BenchError, match=r"test-share 0\.7"):
        listed(tree, STAGES, "n", "m", test_share=0.7)
    with pytest.raises(BenchError, match="cannot be parted into 10 sets"):
        listed(tree, STAGES, "n", "m", test_share=0.1)
    found = brief(listed(tree, STAGES, "n", "m", test_share=0.5))
    assert {split for _, split, _ in found.values()} == {"train", "test"}


def test_nodes_of_camelyon17_without_a_table_say_what_to_give(tree):
    assert all("its stage_labels.csv" in p.reason for p in list_slides(tree / "n", tree / "m").problems)


def test_files_that_belong_to_nothing_are_told(tree):
    for name in (
        "s/._x1.tif",
        "s/scan.czi",
        "s/sub/a.DCM",
        "s/x1_mask.tif",
        "x/x_1.xml",
        "x/.x2.xml",
        "x/settings.json",
    ):
        (tree / name).touch()
    listing = listed(tree, "slide,split\nx1,train\nx2,test\n7,train\n")
    told = " | ".join(listing.notes)
    assert "hidden files passed over, such as those of macOS: ._x1.tif" in told
    assert "1 .czi, 1 .dcm" in told
    assert "annotations of no slide, not read: 1 (x_1.xml)" in told
    assert {s.slide for s in listing.skipped} == {"x1_mask", "P7 a"}


@pytest.mark.parametrize("extra", ["x/x1.geojson", "x/x1.tif.xml", "x/sub/X1.XML", "s/x1.svs", "s/sub/X1.tiff"])
def test_two_files_for_one_slide_are_refused(tree, extra):
    (tree / extra).parent.mkdir(exist_ok=True)
    (tree / extra).touch()
    with pytest.raises(BenchError, match="have the same name") as problem:
        listed(tree, "slide,split\nx1,train\n")
    assert extra.rpartition("/")[2] in str(problem.value)
