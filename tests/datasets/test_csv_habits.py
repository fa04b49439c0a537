"""Tables as pandas, spreadsheets and people write them: read right, or refused with what to do."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.base import Manifest
from wsolbench.datasets.csv_manifest import CsvDataset

HEAD = "# background: normal\n"
COLUMNS = ["id", "image", "mask", "label", "group", "split", "pixel_val", "fold"]
ROWS = [
    ["n1", "n1.png", "", "normal", "p1", "train", "", ""],
    ["t1", "t1.png", "m.png", "tumour", "p2", "train", "", ""],
    ["n2", "n2.png", "", "normal", "p3", "val", "1", ""],
    ["t2", "t2.png", "m.png", "tumour", "p3", "val", "1", ""],
    ["n3", "n3.png", "", "normal", "p4", "test", "", ""],
    ["t3", "t3.png", "m.png", "tumour", "p5", "test", "", ""],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(3):
        for j, kind in enumerate("nt"):
            Image.fromarray(np.full((8, 8, 3), 10 * k + j, np.uint8)).save(tmp_path / f"{kind}{k + 1}.png")
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "m.png")
    return tmp_path


def table(folder, head=HEAD, columns=COLUMNS, **changes) -> CsvDataset:
    """The rows with whole columns changed by name; a column of None is left out, a new name is a column more."""
    cells = {name: [row[k] for row in ROWS] for k, name in enumerate(columns)}
    cells.update(changes)
    cells = {name: values for name, values in cells.items() if values is not None}
    lines = [",".join(cells), *(",".join(map(str, row)) for row in zip(*cells.values(), strict=True))]
    path = folder / "mine.csv"
    path.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return CsvDataset(path, folder)


def manifest(folder, head=HEAD, **changes) -> Manifest:
    return table(folder, head, **changes).manifest("0")


def facts(m: Manifest) -> list[tuple]:
    return [(i.id, i.label, i.group, i.split, i.pixel_val) for i in m.items]


def test_what_pandas_writes_for_columns_with_gaps(folder):
    plain = manifest(folder)
    assert plain.notes == ()
    asked = {
        "pixel_val": ["", "", "1.0", "1.0", "nan", ""],
        "fold": ["", "0.0", "0.0", "0.0", "0.0", "0"],
        "mask": ["nan", "m.png", "NaN", "m.png", "<NA>", "m.png"],
    }
    found = manifest(folder, **asked)
    assert facts(found) == facts(plain)
    assert [i.mask for i in found.items] == [i.mask for i in plain.items]
    assert any("mask: 1 cells that say <NA> were taken for empty" in n for n in found.notes)
    assert table(folder, **asked).folds == ("0",)
    assert facts(manifest(folder, pixel_val=["False", "False", "True", "True", "False", "False"])) == facts(plain)


@pytest.mark.parametrize(
    "labels, head, classes, expected",
    [
        (["1", "2"], "# background: 1\n# positive: 2\n", ("1", "2"), [0, 1]),
        (["1.0", "2.0"], "# background: 1\n# positive: 2\n", ("1", "2"), [0, 1]),
        (["0.0", "1.0"], "# background: 0\n", ("0", "1"), [0, 1]),
        (["3", "11"], "# background: 3\n", ("3", "11"), [0, 1]),
        (["0.0", "1.0"], "# classes: normal, tumour\n# background: normal\n", ("normal", "tumour"), [0, 1]),
    ],
)
def test_numbers_as_labels(folder, labels, head, classes, expected):
    found = manifest(folder, head, label=labels * 3)
    assert found.card.classes == classes
    assert [i.label for i in sorted(found.items, key=lambda i: (i.split, i.id))] == expected * 3
    assert bool(found.notes) == (classes[0] not in ("0", "normal"))  # names that are no count from 0 are told


BAD_LABELS = {
    "from 1 beside names": (["1", "2"], "# classes: normal, tumour\n# background: normal\n", "no class '2'"),
    "0 where the names are numbers": (["0", "2"], "# classes: 1, 2\n# positive: 2\n", "no class '0'"),
    "two spellings": (["tumour", "Tumour"], "", "'Tumour' and 'tumour' one class?"),
    "blanks and hyphens": (["in-situ", "in situ"], "", "one class?"),
    "an empty cell of pandas": (["normal", "nan"], HEAD, "the label is 'nan'"),
    "one class": (["tumour", "tumour"], "", "list all that its models know: '# classes"),
    "six classes": (["a", "b"], "# classes: a, b, c, d, e, f\n", "which of its classes is the positive one: a, b, c"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_labels_that_can_be_read_in_two_ways(folder, name):
    labels, head, message = BAD_LABELS[name]
    with pytest.raises(BenchError, match=message.replace("?", r"\?")):
        manifest(folder, head, label=labels * 3)


def test_a_label_called_none_can_be_declared(folder):
    assert manifest(folder, "# classes: none, tumour\n# background: none\n", label=["none", "tumour"] * 3).items


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "index"])
def test_the_index_of_pandas_is_left_out_and_told(folder, name):
    found = manifest(folder, **{name: list(range(6))})
    assert facts(found) == facts(manifest(folder))
    assert "without a name" in found.notes[0]


def test_columns_of_ones_own_are_kept(folder):
    found = manifest(folder, site=["A"] * 6, magnification=[40] * 6)
    assert found.items[0].meta == (("site", "A"), ("magnification", "40"))
    assert found.notes == ()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("group", "patient", "There is a column 'patient': if that is what must not be divided among splits, call it"),
        ("group", "Slide_ID", "There is a column 'Slide_ID'"),
        ("group", "cohort", "add the line '# groups: unknown'"),
        ("label", "lable", "Did you mean label"),
        ("image", "imagee", "Did you mean image"),
        ("pixel_val", "pixelval", "no column 'pixelval'. Did you mean pixel_val"),
        ("pixel_val", "Pixel-Val", "Did you mean pixel_val"),
        ("split", "splits", "Did you mean split"),
    ],
)
def test_slips_in_the_header_are_told(folder, old, new, message):
    values = [row[COLUMNS.index(old)] for row in ROWS]
    with pytest.raises(BenchError, match=message):
        manifest(folder, **{old: None, new: values})


def test_unknown_groups_are_declared_not_guessed(folder):
    with pytest.raises(BenchError, match=r"the group is empty.*# groups: unknown"):
        manifest(folder, group=["p1", "", "p3", "p3", "p4", "p5"])
    with pytest.raises(BenchError, match="the group is 'nan'"):
        manifest(folder, group=["p1", "nan", "p3", "p3", "p4", "p5"])
    for given in (None, [""] * 6, ["x"] * 6):
        found = manifest(folder, HEAD + "# groups: unknown\n", group=given)
        assert len({i.group for i in found.items}) == 6
        assert found.notes[-1].startswith("! patients or slides are unknown")
        assert found.card.group == "image"
    with pytest.raises(BenchError, match="Only 'unknown'"):
        manifest(folder, HEAD + "# groups: patients\n")


def test_one_patient_in_several_spellings_is_one_group(folder):
    found = manifest(folder, group=["7", "8", "9", "9.0", "10", "010"])
    assert [i.group for i in found.items] == ["7", "9", "10", "8", "9", "10"]
    assert found.notes == ("groups spelt in several ways are taken for one each: '10', '010'; '9', '9.0'",)
