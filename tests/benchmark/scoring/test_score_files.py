"""`bench score`: maps and masks as people have them, and everything that can be wrong with them."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import average_precision_score

from wsolbench.benchmark.cli.score import score
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.scoring.external_maps import ScoreRequest, score_folders
from wsolbench.benchmark.scoring.map_files import read_labels, read_map, read_mask
from wsolbench.benchmark.scoring.map_pairs import pair_files

SIDE = (12, 16)


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Five maps at the size of their masks, all values in the middle of a bin, so that binning keeps their order."""
    maps, masks = tmp_path / "maps", tmp_path / "masks"
    maps.mkdir()
    masks.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        mask = rng.random(SIDE) < 0.4
        levels = np.clip(rng.integers(0, 700, SIDE) + 300 * mask, 0, 1000)
        np.savez(maps / f"im.{i}.npz", map=np.minimum((levels + 0.5) / 1000, 1))
        Image.fromarray((mask * 255).astype(np.uint8)).save(masks / f"im.{i}.png")
    return maps, masks


def arrays(folders: tuple[Path, Path]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    pairs = pair_files(*folders)
    return [read_map(p.map) for p in pairs], [read_mask(p.mask).foreground for p in pairs]


def run(folders: tuple[Path, Path], **changes) -> dict:
    return score_folders(ScoreRequest(*folders, **changes))


def oracle(maps: list[np.ndarray], masks: list[np.ndarray]) -> float:
    truth, scores = (np.concatenate([a.ravel() for a in part]) for part in (masks, maps))
    return 100 * float(average_precision_score(truth, scores))


def mean_iou(called: np.ndarray, truth: np.ndarray) -> float:
    return ((called & truth).sum() / (called | truth).sum() + (~called & ~truth).sum() / (~(called & truth)).sum()) / 2


def test_numbers_equal_scikit_learn_and_direct_counts(folders):
    maps, masks = arrays(folders)
    result = run(folders, tau=0.3)
    assert result["pxap"] == pytest.approx(oracle(maps, masks), abs=1e-6)
    truth, scores = np.array(masks), np.array(maps)
    assert result["chance"] == pytest.approx(100 * truth.mean())
    called = scores >= 0.3
    assert result["dice"] == pytest.approx(100 * 2 * (called & truth).sum() / (called.sum() + truth.sum()))
    assert result["iou"] == pytest.approx(100 * (called & truth).sum() / (called | truth).sum())
    assert (result["images"], result["degenerate"], result["groups"]) == (5, 0, 5)
    assert result["interval"][0] < result["pxap"] < result["interval"][1]
    ladder = [(mean_iou(scores >= tau, truth), -tau) for tau in np.arange(1001) / 1000]
    assert result["tau_oracle"] == pytest.approx(-max(ladder)[1])  # of equals the lowest
    each = [oracle([m], [k]) for m, k in zip(maps, masks, strict=True)]
    assert result["per_image"]["pxap_mean"] == pytest.approx(np.mean(each), abs=1e-6)
    assert result["per_image"]["pxap_median"] == pytest.approx(np.median(each), abs=1e-6)


def test_scores_are_scaled_per_image(folders, tmp_path):
    prob = run(folders)
    other = tmp_path / "scores"
    other.mkdir()
    for i, path in enumerate(sorted(folders[0].iterdir())):
        np.savez(other / path.name, 40.0 * (i + 1) * read_map(path) - 7 * i)
    with pytest.raises(BenchError, match="--kind score"):
        run((other, folders[1]))
    scaled = run((other, folders[1]), kind="score")
    assert scaled["pxap"] != pytest.approx(prob["pxap"], abs=1e-3)  # min-max moves each map by its own constants
    each = scaled["per_image"]["pxap_mean"]
    assert each == pytest.approx(prob["per_image"]["pxap_mean"], abs=1.0)  # within an image the order stays


def save_png(path: Path, levels: np.ndarray) -> None:
    Image.fromarray(levels).save(path)


def test_png_maps_of_8_and_16_bits(tmp_path):
    values = np.random.default_rng(0).random(SIDE)
    save_png(tmp_path / "a.png", np.round(values * 255).astype(np.uint8))
    save_png(tmp_path / "b.png", np.round(values * 65535).astype(np.uint16))
    np.testing.assert_allclose(read_map(tmp_path / "a.png"), values, atol=0.5 / 255)
    np.testing.assert_allclose(read_map(tmp_path / "b.png"), values, atol=0.5 / 65535)
    save_png(tmp_path / "white.png", np.full(SIDE, 65535, np.uint16))
    assert (read_map(tmp_path / "white.png") == 1).all()


def test_npz_maps_by_any_name(tmp_path):
    value = np.arange(6.0, dtype=np.float16).reshape(2, 3)
    np.savez(tmp_path / "positional.npz", value)
    np.savez(tmp_path / "only.npz", cam=value)
    np.savez_compressed(tmp_path / "named.npz", map=value, logits=np.zeros(2))
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_map(path), value)


@pytest.mark.parametrize("form", ["instances.png", "binary.bmp", "bit.png", "wide.png", "palette.png", "array.npz"])
def test_masks_in_any_lossless_form(tmp_path, form):
    mask = np.random.default_rng(0).random(SIDE) < 0.5
    path, kind = tmp_path / form, form.partition(".")[0]
    if kind == "array":
        np.savez(path, mask)
    elif kind == "bit":
        Image.fromarray(mask).save(path)
    elif kind == "wide":
        save_png(path, mask.astype(np.uint16) * 300)
    elif kind == "palette":
        image = Image.fromarray(mask.astype(np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.save(path)
    else:
        save_png(path, mask.astype(np.uint8) * (255 if kind == "binary" else 3))
    np.testing.assert_array_equal(read_mask(path).foreground, mask)


def test_ground_truth_constant_and_coarse_maps(folders, tmp_path):
    _, masks = arrays(folders)
    for name, make, expected in (
        ("truth", lambda k: k.astype(np.float32), 100.0),
        ("constant", lambda k: np.full(SIDE, 0.4), 100 * np.mean(masks)),
        ("coarse", lambda k: np.full((3, 4), 0.4), 100 * np.mean(masks)),
    ):
        other = tmp_path / name
        other.mkdir()
        for i, mask in enumerate(masks):
            np.savez(other / f"im.{i}.npz", make(mask))
        result = run((other, folders[1]))
        assert result["pxap"] == pytest.approx(expected)
        assert result["degenerate"] == (0 if name == "truth" else 5)


def test_maps_and_masks_are_compared_at_the_size_asked_for(tmp_path):
    for folder in ("maps", "masks"):
        (tmp_path / folder).mkdir()
    mask = np.zeros((40, 80), np.uint8)
    mask[:, :40] = 1
    save_png(tmp_path / "masks" / "a.png", mask)
    np.savez(tmp_path / "maps" / "a.npz", np.array([[1.0, 0.0], [1.0, 0.0]]))
    both = tmp_path / "maps", tmp_path / "masks"
    with pytest.raises(BenchError, match=r"2 x 2 px and its mask a\.png 80 x 40 px: the aspects differ.*--size"):
        run(both)
    assert run(both, size=16)["pxap"] == 100
    assert run(both, size=16)["chance"] == 50


def test_masks_may_add_a_suffix_and_lie_among_the_images(tmp_path):
    maps, glas = tmp_path / "maps", tmp_path / "Warwick QU Dataset"
    maps.mkdir()
    glas.mkdir()
    mask = np.eye(8, dtype=np.uint8)
    for name in ("train_1", "testA_1"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(glas / f"{name}.bmp")
        save_png(glas / f"{name}_anno.bmp", mask)
        np.savez(maps / f"{name}.npz", mask.astype(float))
    (glas / "Grade.csv").write_text("name\n")
    assert run((maps, glas))["pxap"] == 100
    (maps / "train_1.npz").unlink()
    with pytest.raises(BenchError, match=r"1 mask has no map .*train_1_anno.*--labels"):
        run((maps, glas))
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\ntestA_1.bmp,benign\n")
    assert run((maps, glas), labels=labels)["images"] == 1


def test_labels_give_accuracy_classes_and_groups(folders, tmp_path):
    labels = tmp_path / "labels.csv"
    rows = [("im.0", "benign", "benign"), ("im.1", "benign", "malignant"), ("im.3", "malignant", "malignant")]
    lines = [f" {i} , {label},{p},patient {label}" for i, label, p in rows]
    labels.write_text("\ufeffid,label,prediction,group\n" + "\n".join(lines) + "\n\n", encoding="utf-8")
    result = run(folders, labels=labels)
    maps, masks = arrays(folders)
    assert (result["images"], result["groups"]) == (3, 2)
    assert result["accuracy"] == pytest.approx(200 / 3)
    assert result["classes"]["benign"]["images"] == 2
    assert result["classes"]["benign"]["pxap"] == pytest.approx(oracle(maps[:2], masks[:2]), abs=1e-6)
    assert result["classes"]["malignant"]["pxap"] == pytest.approx(oracle(maps[3:4], masks[3:4]), abs=1e-6)


def test_images_without_foreground_count_and_are_told_apart(folders):
    save_png(folders[1] / "im.2.png", np.zeros(SIDE, np.uint8))
    maps, masks = arrays(folders)
    result = run(folders)
    assert result["pxap"] == pytest.approx(oracle(maps, masks), abs=1e-6)
    assert result["positives"]["images"] == result["per_image"]["images"] == 4
    rest = [0, 1, 3, 4]
    assert result["positives"]["pxap"] == pytest.approx(
        oracle([maps[i] for i in rest], [masks[i] for i in rest]), abs=1e-6
    )


def test_undefined_is_null_in_json_and_said_in_words(folders):
    for path in folders[1].iterdir():
        save_png(path, np.zeros(SIDE, np.uint8))
    arguments = ["--maps", str(folders[0]), "--masks", str(folders[1])]
    done = CliRunner().invoke(score, [*arguments, "--json"], catch_exceptions=False)
    value = json.loads(done.output)
    assert (
        value["pxap"]
        is value["chance"]
        is value["dice"]
        is value["tau_oracle"]
        is value["per_image"]["pxap_mean"]
        is None
    )
    assert value["interval"] == [None, None]
    table = CliRunner().invoke(score, arguments, catch_exceptions=False).output
    assert "No mask has a foreground pixel" in table
    assert "n/a" in table
    assert "nan" not in table


def test_the_table_marks_the_oracle(folders):
    table = (
        CliRunner()
        .invoke(score, ["--maps", str(folders[0]), "--masks", str(folders[1])], catch_exceptions=False)
        .output
    )
    result = run(folders)
    for shown in (f"{result['pxap']:.2f}", f"chance {result['chance']:.2f}", "Dice (oracle)", "chosen on these masks"):
        assert shown in table
    done = CliRunner().invoke(score, ["--maps", str(folders[0]), "--masks", str(folders[1]), "--json"])
    assert {"pxap", "chance", "images", "degenerate"} <= set(json.loads(done.output))


def corrupt(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def bad_map(name: str, folder: Path) -> None:
    """Puts a map that cannot be scored in the place of the first one."""
    path = folder / "im.0.npz"
    path.unlink()
    colour = np.zeros((*SIDE, 3), np.uint8)
    png = folder / "im.0.png"
    writers = {
        "colour": lambda: save_png(png, colour),
        "palette": lambda: Image.fromarray(colour).convert("P").save(png),
        "negative": lambda: np.savez(path, np.full(SIDE, -0.5)),
        "bytes": lambda: np.savez(path, np.full(SIDE, 200, np.uint8)),
        "nan": lambda: np.savez(path, np.full(SIDE, np.nan)),
        "infinite": lambda: np.savez(path, np.full(SIDE, np.inf)),
        "object": lambda: np.savez(path, np.array([[{}]], dtype=object)),
        "pickle": lambda: path.write_bytes(b"\x80\x04\x95\x00."),
        "text": lambda: np.savez(path, np.array([["a"]])),
        "complex": lambda: np.savez(path, np.zeros(SIDE, complex)),
        "volume": lambda: np.savez(path, np.zeros((2, *SIDE))),
        "empty array": lambda: np.savez(path, np.zeros((0, 4))),
        "two": lambda: np.savez(path, a=np.zeros(SIDE), b=np.zeros(SIDE)),
        "none": lambda: np.savez(path),
        "truncated png": lambda: (
            save_png(png, np.random.default_rng(0).integers(0, 255, SIDE).astype(np.uint8)),
            corrupt(png),
        ),
        "truncated npz": lambda: (np.savez(path, np.zeros(SIDE)), corrupt(path)),
        "zero bytes": lambda: png.write_bytes(b""),
        "not a png": lambda: png.write_text("hello"),
    }
    writers[name]()


MAP_FAULTS = {
    "colour": "not grey", "palette": "not grey", "negative": "outside", "bytes": "--kind score", "nan": "not finite",
    "infinite": "not finite", "object": "cannot be read", "pickle": "cannot be read", "text": "not a 2-D array",
    "complex": "not a 2-D array", "volume": r"shape \(2, 12, 16\)", "empty array": "not a 2-D array",
    "two": "holds the arrays a, b", "none": r"holds the arrays \(none\)", "truncated png": "cannot be read",
    "truncated npz": "cannot be read", "zero bytes": "0 bytes", "not a png": "damaged or none of PNG",
}  # fmt: skip


@pytest.mark.parametrize("name", MAP_FAULTS)
def test_maps_that_cannot_be_scored_are_named(folders, name):
    bad_map(name, folders[0])
    with pytest.raises(BenchError, match=rf"im\.0\..*{MAP_FAULTS[name]}"):
        run(folders)


def test_masks_that_cannot_be_read_are_named(folders):
    path = folders[1] / "im.0.png"
    for write in (
        lambda: save_png(path, np.zeros((*SIDE, 3), np.uint8)),
        lambda: corrupt(path),
        lambda: path.write_bytes(b""),
    ):
        write()
        with pytest.raises(BenchError, match=r"im\.0\.png"):
            run(folders)
    path.unlink()
    np.savez(folders[1] / "im.0.npz", np.full(SIDE, np.nan))
    with pytest.raises(BenchError, match="not finite"):
        run(folders)


def test_an_npz_bomb_is_refused_before_it_is_unpacked(folders, monkeypatch):
    monkeypatch.setattr("wsolbench.datasets.masks.arrays.MAX_BYTES", 1000)
    with pytest.raises(BenchError, match=r"too much for one \.npz"):
        run(folders)


def test_folders_that_do_not_fit_are_explained(folders, tmp_path):
    maps, masks = folders
    with pytest.raises(BenchError, match=r"maps .*nowhere does not exist"):
        run((tmp_path / "nowhere", masks))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match="holds no masks"):
        run((maps, tmp_path / "empty"))
    for i in range(5):
        np.savez(maps / f"extra{i}.npz", np.zeros(SIDE))
    np.savez(maps / "extra9.npz", np.zeros(SIDE))
    with pytest.raises(BenchError, match=r"6 maps have no mask in .*: extra0, extra1, extra2, extra3, extra4, …"):
        run(folders)
    save_png(maps / "extra0.png", np.zeros(SIDE, np.uint8))
    with pytest.raises(BenchError, match=r"two maps of one name: extra0\.npz and extra0\.png"):
        run(folders)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no column 'id'"),
        ("id,lable\na,b\n", "Did you mean label"),
        ("id,prediction\nim.0,x\n", "no column 'label'"),
        ("id,label\nim.0,\n", "line 2"),
        ("id,label\nim.0\n", "line 2"),
        ("id,label\nim.0,x\nim.0.png,y\n", "line 3: the id 'im.0' occurs twice"),
        ("id,label\n", "names no image"),
        ("id,label\nim.7,x\n", "1 image has no map"),
        ("id,label,prediction\nim.0,x,1\nim.1,y,0\n", "none of that is a label"),
    ],
)
def test_labels_that_make_no_sense_are_refused(folders, tmp_path, text, message):
    labels = tmp_path / "labels.csv"
    labels.write_text(text)
    with pytest.raises(BenchError, match=message):
        run(folders, labels=labels)


def test_labels_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "latin.csv").write_bytes("id,label\nü,x\n".encode("latin-1"))
    for name in ("none.csv", "latin.csv"):
        with pytest.raises(BenchError, match="cannot be read"):
            read_labels(tmp_path / name)


def test_the_command_line_ends_with_2_and_one_line(folders, capsys):
    from wsolbench.benchmark.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["score", "--maps", str(folders[0] / "none"), "--masks", str(folders[1])])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("Error: The folder of maps")
    assert "Traceback" not in captured.err
    with pytest.raises(SystemExit) as stop:
        main(["score", "--maps", str(folders[0]), "--masks", str(folders[1]), "--tau", "1.5"])
    assert stop.value.code == 2
