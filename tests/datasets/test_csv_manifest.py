import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.csv_manifest import CsvDataset

HEAD = "# classes: normal, tumour\n# background: normal\n"
COLUMNS = "id,image,mask,label,group,split,pixel_val\n"
ROWS = """n1,img/n1.png,,normal,p1,train,
t1,img/t1.png,mask/t1.png,tumour,p2,train,
n2,img/n2.png,,normal,p3,val,1
t2,img/t2.png,mask/t2.png,tumour,p3,val,1
n3,img/n3.png,,normal,p4,test,
t3,img/t3.png,mask/t3.png,tumour,p5,test,
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    (tmp_path / "mask").mkdir()
    for k in (1, 2, 3):
        for kind in "nt":
            Image.fromarray(np.full((8, 9, 3), 10 * k, np.uint8)).save(tmp_path / "img" / f"{kind}{k}.png")
        Image.fromarray(np.eye(8, 9, dtype=np.uint8)).save(tmp_path / "mask" / f"t{k}.png")
    return tmp_path


def write(folder, text):
    path = folder / "mine.csv"
    path.write_text(text, encoding="utf-8")
    return CsvDataset(path, folder)


def test_a_plain_table(folder):
    dataset = write(folder, HEAD + COLUMNS + ROWS)
    m = dataset.manifest("0")
    assert dataset.folds == ("0",)
    assert [i.id for i in m.items] == ["n1", "n2", "n3", "t1", "t2", "t3"]
    tumour = m.split("test")[1]
    assert (tumour.label, tumour.group, tumour.image, tumour.mask) == (
        1, "p5", folder / "img/t3.png", folder / "mask/t3.png",
    )  # fmt: skip
    assert m.split("test")[0].mask is None
    assert {i.id for i in m.split("valpx")} == {"n2", "t2"}
    assert m.notes == ()
    card = m.card
    assert (card.name, card.classes, card.positive_class, card.background_class) == ("mine", ("normal", "tumour"), 1, 0)
    assert dataset.read_mask(tumour).foreground.sum() == 8


def test_the_example_of_the_documentation_works(folder):
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"    # classes: normal.*?(?=\n\n)", page, re.DOTALL)
    text = "\n".join(line.removeprefix("    ") for line in block.splitlines())
    m = write(folder, text).manifest("0")
    assert len(m.items) == 6
    assert len(m.split("valpx")) == 2


def test_row_order_plays_no_part(folder):
    rows = ROWS.splitlines(keepends=True)
    assert (
        write(folder, HEAD + COLUMNS + "".join(reversed(rows))).manifest("0").items
        == write(folder, HEAD + COLUMNS + ROWS).manifest("0").items
    )


def test_settings_and_remarks(folder):
    more = "# a remark\n# name: my set\n# positive: tumour\n# licence: CC0\n# synthetic: yes\n"
    more += "# foreground: tumour nests,,,\n"
    m = write(folder, "\ufeff" + HEAD + more + COLUMNS + ROWS).manifest("0")
    assert m.synthetic
    assert (m.card.name, m.card.licence, m.card.foreground) == ("my set", "CC0", "tumour nests")


def test_labels_by_number_and_default_ids(folder):
    rows = [line.split(",") for line in ROWS.split()]
    numbers = "".join(f"{image},{mask},{int(k == 'tumour')},{g},{s}\n" for _, image, mask, k, g, s, _ in rows)
    m = write(folder, "# background: 0\nimage,mask,label,group,split\n" + numbers).manifest("0")
    assert m.card.classes == ("0", "1")
    assert {i.id: i.label for i in m.items}["img/t1.png"] == 1


def test_pixel_val_is_chosen_and_noted_if_none_is_marked(folder):
    m = write(folder, HEAD + COLUMNS + ROWS.replace("val,1", "val,")).manifest("0")
    assert {i.id for i in m.split("valpx")} == {"n2", "t2"}
    assert "no row is marked pixel_val: masks of 2" in m.notes[0]


def test_folds(folder):
    rows = [line.rstrip("\n") for line in ROWS.splitlines()]
    text = HEAD + COLUMNS.replace("pixel_val", "pixel_val,fold")
    text += "".join(f"{r},{'' if ',test,' in r else 'b'}\n" for r in rows)
    swap = {"train": "val", "val": "train"}
    for r in rows[:4]:
        cells = r.split(",")
        text += ",".join([*cells[:5], swap[cells[5]], "", "a"]) + "\n"
    dataset = write(folder, text)
    assert dataset.folds == ("a", "b")
    assert {i.id for i in dataset.manifest("a").split("train")} == {"n2", "t2"}
    assert {i.id for i in dataset.manifest("b").split("train")} == {"n1", "t1"}
    assert len(dataset.manifest("a").items) == 6
    with pytest.raises(BenchError, match="no fold 'c'"):
        dataset.manifest("c")


def test_absolute_paths_lie_beside_the_table_or_below_the_data_root(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "img/n1.png").rename(elsewhere / "x.png")
    text = HEAD + COLUMNS + ROWS.replace("img/n1.png", str(elsewhere / "x.png"))
    with pytest.raises(BenchError, match=r"line 4: the path '.*x.png' lies neither in the folder .* --data-root"):
        write(folder, text).manifest("0")
    assert CsvDataset(folder / "mine.csv", elsewhere).manifest("0").items[0].image == elsewhere / "x.png"
    sideways = f"{elsewhere}/../{elsewhere.name}-other/x.png"
    write(folder, text.replace(str(elsewhere / "x.png"), sideways))
    with pytest.raises(BenchError, match="lies neither"):
        CsvDataset(folder / "mine.csv", elsewhere).manifest("0")
    own = write(folder, text.replace(str(elsewhere / "x.png"), str(folder / "img/n2.png"))).manifest("0")
    assert own.items[0].image == folder / "img/n2.png"


def test_links_are_followed(folder, tmp_path_factory):
    """Images of large sets often lie on another disk; dots of a path are never taken through a link."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "img"
    (folder / "img").rename(elsewhere)
    (folder / "img").symlink_to(elsewhere)
    assert len(write(folder, HEAD + COLUMNS + ROWS).manifest("0").items) == 6
    (folder / "n1.png").write_bytes((elsewhere / "n1.png").read_bytes())
    m = write(folder, HEAD + COLUMNS + ROWS.replace("img/n1.png", "img/../n1.png")).manifest("0")
    assert m.items[0].image == folder / "n1.png"


BAD = {
    "a label typed wrong": (("tumour,p2", "tumuor,p2"), "line 5: there is no class 'tumuor'. Did you mean tumour"),
    "a split typed wrong": (("p4,test", "p4,tset"), "line 8: split 'tset'"),
    "an empty group": ((",p4,", ",,"), "line 8: the group is empty"),
    "a quote without its pair": (("n1,img", '"n1,img'), "line 4 cannot be read"),
    "a cell over two lines": (("n1,img", '"n\n1",img'), "line 4 cannot be read"),
    "a control character": (("p1,train", "p\x1b[2J1,train"), r"line 4: the group 'p\x1b[2J1' holds control"),
    "a zero byte": (("img/n1.png", "img/n1\0.png"), "holds control characters"),
    "an endless cell": (("p1,train", f"{'p' * 400},train"), "the group has 400 characters"),
    "a huge cell": (("p1,train", f"{'p' * 200_000},train"), "line 4"),
    "a class with a control character": (("# classes: normal,", "# classes: \x07normal,"), "control characters"),
    "an unknown column": (("pixel_val", "pixelval"), "no column 'pixelval'. Did you mean pixel_val"),
    "a column missing": (("group,", ""), "column group is missing"),
    "a column twice": (("id,image", "image,image"), "'image' occurs twice"),
    "semicolons": ((",", ";"), "separated by commas"),
    "a field too many": (("p1,train,", "p1,train,,"), "line 4: 8 fields"),
    "a path that leaves": (("img/n1.png", "img/../../n1.png"), "leaves the folder"),
    "a file that is not there": (("img/n1.png", "img/n9.png"), "1 of 9 files are missing"),
    "a tumour without mask": (("mask/t3.png", ""), "'t3' (tumour) has no mask"),
    "a background image with mask": (("n3.png,", "n3.png,mask/t3.png"), "declared background, yet"),
    "the same id twice": (("n2,", "n1,"), "'n1' occurs 2 times"),
    "pixel_val on a training row": (("p1,train,", "p1,train,1"), "only val rows"),
    "pixel_val that is no flag": (("val,1", "val,maybe"), "'maybe' is neither"),
    "an empty split": (("test", "val"), "split 'test' is empty"),
    "a setting typed wrong": (("# background", "# backgroud"), "no setting 'backgroud'. Did you mean background"),
    "a setting twice": (("# background: normal", "# classes: a, b"), "'classes' is set twice"),
    "a background class that is none": (("background: normal", "background: stroma"), "no class 'stroma'"),
    "positive and background at once": (("# back", "# positive: normal\n# back"), "both positive and background"),
    "no positive class": (("# background: normal\n", ""), "which of its classes is the positive one: normal, tumour"),
    "one class only": (("normal, tumour", "normal"), "at least two classes"),
    "no mask, yet no background class": (("# background: normal", "# positive: tumour"), "(normal) has no mask"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables(folder, name):
    (old, new), message = BAD[name]
    text = HEAD + COLUMNS + ROWS
    assert old in text
    with pytest.raises(BenchError, match=re.escape(message)) as caught:
        write(folder, text.replace(old, new)).manifest("0")
    assert str(folder) in str(caught.value) or "mine" in str(caught.value)


def test_files_that_are_no_table(folder):
    with pytest.raises(BenchError, match="no file"):
        CsvDataset(folder / "none.csv", folder)
    with pytest.raises(BenchError, match="no rows"):
        write(folder, HEAD + COLUMNS)
    (folder / "mine.csv").write_bytes((HEAD + COLUMNS + ROWS).encode("utf-16"))
    with pytest.raises(BenchError, match="UTF-8"):
        CsvDataset(folder / "mine.csv", folder)


def test_weak_labels_are_enough_to_train(folder):
    """A training image of a class with a region needs no mask; a tested one does."""
    rows = ROWS.replace("img/t1.png,mask/t1.png", "img/t1.png,")
    bare = [i for i in write(folder, HEAD + COLUMNS + rows).manifest("0").items if i.mask is None]
    assert {i.id for i in bare} == {"n1", "n2", "n3", "t1"}
    with pytest.raises(BenchError, match=r"'t3' \(tumour\) has no mask"):
        write(folder, HEAD + COLUMNS + ROWS.replace("mask/t3.png", "")).manifest("0")
