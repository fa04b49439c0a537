"""What all masks of a set say together."""

import numpy as np
import pytest
from PIL import Image

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.csv_manifest import CsvDataset
from wsolbench.datasets.info import describe
from wsolbench.datasets.masks.reader import MaskRule, make_rule, read_mask
from wsolbench.datasets.masks.sets import Surveyed, check_masks, sized_mask, survey, vanished
from wsolbench.datasets.verify import verify

PLAIN = MaskRule()
BOX = np.zeros((40, 40), np.uint8)
BOX[10:20, 10:30] = 1


def surveyed(tmp_path, masks, rule=PLAIN, expected=True):
    found = []
    for k, values in enumerate(masks):
        path = tmp_path / f"m{k}.png"
        Image.fromarray(np.asarray(values).astype(np.uint8)).save(path)
        found.append(Surveyed(f"m{k}", rule, read_mask(path, rule).facts, expected))
    return found


def notes(tmp_path, masks, **more):
    return "\n".join(survey(surveyed(tmp_path, masks, **more)))


def test_sound_masks_need_no_note(tmp_path):
    assert notes(tmp_path, [BOX, BOX, BOX]) == ""
    assert notes(tmp_path, [BOX * 255, BOX * 255]) == ""
    assert notes(tmp_path, [BOX * 0, BOX], expected=False) == ""


def test_masks_that_are_foreground_everywhere_are_counted_and_named(tmp_path):
    found = notes(tmp_path, [BOX, BOX * 0 + 1, BOX, BOX * 0 + 1])
    assert "2 of 4 masks are foreground everywhere: m1, m3" in found


@pytest.mark.parametrize("value", [1, 7, 255])
def test_a_set_without_any_background_is_refused(tmp_path, value):
    masks = surveyed(tmp_path, [BOX * 0 + value] * 6)
    with pytest.raises(
        BenchError, match=rf"mine: 6 of 6 masks are foreground everywhere, with the values {value} .*m0, m1"
    ):
        check_masks("mine", masks)
    check_masks("mine", surveyed(tmp_path, [BOX * 0 + value] * 6, rule=make_rule("any")))
    check_masks("mine", surveyed(tmp_path, [BOX * 0 + value] * 5 + [BOX * value]))


def test_ones_throughout_point_to_labels_that_start_at_one(tmp_path):
    with pytest.raises(BenchError, match="Declare mask_foreground: 2 where 1 is the background"):
        check_masks("mine", surveyed(tmp_path, [BOX * 0 + 1]))


def test_a_set_without_any_foreground_is_refused_where_regions_are_expected(tmp_path):
    with pytest.raises(BenchError, match=r"2 of 2 masks are without foreground .* values are 0, 1; mask value 2 is"):
        check_masks("mine", surveyed(tmp_path, [BOX, BOX], rule=make_rule("2")))
    check_masks("mine", surveyed(tmp_path, [BOX * 0, BOX * 0], expected=False))
    assert "1 of 2 masks is without foreground, though their class has a region: m0" in notes(tmp_path, [BOX * 0, BOX])


def test_several_values_are_said_to_be_read_as_objects(tmp_path):
    panda = BOX * 2 + 1
    panda[:3] = 0
    found = notes(tmp_path, [panda, panda])
    assert "2 of 2 masks hold several values above 0 (1, 3): all are read as foreground" in found
    assert "declare mask_foreground" in found
    assert notes(tmp_path, [panda, panda], rule=make_rule("3")) == ""
    assert notes(tmp_path, [panda, panda], rule=make_rule("any")) == ""


def test_masks_of_other_codings_are_named(tmp_path):
    found = notes(tmp_path, [BOX, BOX * 255, BOX * 255])
    assert "not the same (1 in 1, 255 in 2)" in found


def test_declared_values_that_never_occur_are_named(tmp_path):
    assert "mask_foreground 5 occurs in none of 2 masks" in notes(tmp_path, [BOX, BOX], rule=make_rule("1, 5"))
    assert "mask_ignore (255) occurs in none of 1 masks" in notes(tmp_path, [BOX], rule=make_rule(ignore="255"))


def test_the_share_of_ignored_pixels_is_told(tmp_path):
    ringed = BOX.copy()
    ringed[:10] = 255
    found = notes(tmp_path, [ringed, BOX], rule=make_rule(ignore="255"))
    assert "12.5 % of the pixels of masks (in 1 of 2) are ignored" in found
    assert "1 of 1 masks is ignored as a whole" in notes(tmp_path, [BOX * 0 + 255], rule=make_rule(ignore="255"))


def test_regions_that_vanish_are_counted_and_named(tmp_path):
    tiny = np.zeros((900, 900), np.uint8)
    tiny[1:3, 1:3] = 1
    sized = {}
    for name, values in (("tiny", tiny), ("large", np.kron(BOX, np.ones((20, 20), np.uint8))), ("none", tiny * 0)):
        Image.fromarray(values).save(tmp_path / "m.png")
        sized[name] = sized_mask(read_mask(tmp_path / "m.png"), 100)
    found = vanished(sized, 100, "nearest")
    assert found.startswith("1 of 2 masks lost all foreground at 100 px (mask_reduction=nearest): tiny.")
    Image.fromarray(tiny).save(tmp_path / "m.png")
    sized["tiny"] = sized_mask(read_mask(tmp_path / "m.png"), 100, "any")
    assert vanished(sized, 100, "any") == ""


@pytest.fixture
def folder(tmp_path):
    """A CSV set whose masks hold 0 and 1, with two images of each split and class."""
    rows = []
    for split in ("train", "val", "test"):
        for k in (0, 1):
            for kind in ("normal", "tumour"):
                name = f"{split}-{kind}-{k}"
                pixels = np.random.default_rng(len(rows)).integers(0, 255, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"{name}.png")
                mask = f"{name}-mask.png" if kind == "tumour" else ""
                if mask:
                    Image.fromarray(BOX).save(tmp_path / mask)
                rows.append(f"{name},{name}.png,{mask},{kind},{name},{split}")
    (tmp_path / "rows").write_text("\n".join(rows))
    return tmp_path


def dataset(folder, head="", columns="", more=lambda row: ""):
    rows = (folder / "rows").read_text().splitlines()
    text = ["# classes: normal, tumour", "# background: normal", *filter(None, [head])]
    text += [f"id,image,mask,label,group,split{columns}", *(r + more(r) for r in rows)]
    (folder / "my.csv").write_text("\n".join(text) + "\n")
    return CsvDataset(folder / "my.csv", folder)


def test_info_and_verify_say_it_too(folder):
    for path in folder.glob("*-mask.png"):
        Image.fromarray(BOX + 1).save(path)
    found = dataset(folder)
    with pytest.raises(BenchError, match="has no background"):
        describe(found, "0")
    assert any("has no background" in p for p in verify(found, ["0"], folder / "h.json").problems)
    found = dataset(folder, "# mask_foreground: 2")
    assert describe(found, "0").foreground == pytest.approx(dict.fromkeys(("train", "val", "test"), 1 / 16), abs=0.003)
    assert verify(found, ["0"], folder / "h.json").problems == ()


def test_shares_leave_ignored_pixels_out(folder):
    for path in folder.glob("*-mask.png"):
        ringed = BOX.copy()
        ringed[20:] = 255
        Image.fromarray(ringed).save(path)
    info = describe(dataset(folder, "# mask_ignore: 255"), "0")
    assert info.foreground["test"] == pytest.approx(200 / (1600 * 2 - 800), abs=0.003)
    assert any("25.0 %" in n or "50.0 %" in n for n in info.notes)


def test_a_row_overrides_what_the_file_declares(folder):
    special = folder / "test-tumour-0-mask.png"
    Image.fromarray((BOX * 3 + 100).astype(np.uint8)).save(special)
    found = dataset(
        folder, "# mask_foreground: 1", ",mask_foreground,mask_ignore",
        lambda row: ",103,100" if row.startswith("test-tumour-0") else ",,",
    )  # fmt: skip
    assert found.ignores
    items = {i.id: i for i in found.manifest("0").items}
    assert items["test-tumour-1"].mask_rule is None
    mask = found.read_mask(items["test-tumour-0"])
    np.testing.assert_array_equal(mask.foreground, BOX > 0)
    np.testing.assert_array_equal(mask.ignored, BOX == 0)
    np.testing.assert_array_equal(found.read_mask(items["test-tumour-1"]).foreground, BOX > 0)


def test_a_wrong_rule_names_its_line(folder):
    with pytest.raises(BenchError, match=r"my\.csv: mask_foreground 'lots'"):
        dataset(folder, "# mask_foreground: lots")
    with pytest.raises(BenchError, match=r"my\.csv, line 5: mask_threshold: 'high'"):
        dataset(
            folder, "", ",mask_threshold", lambda row: ",high" if row.startswith("train-tumour-0") else ","
        ).manifest("0")
