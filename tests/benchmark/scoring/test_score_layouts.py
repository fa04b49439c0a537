"""`bench score` on the layouts that tools of the field write, and against the images of a dataset."""

import csv
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.scoring.external_maps import ScoreRequest, score_folders
from wsolbench.benchmark.scoring.map_files import read_labels, read_map
from wsolbench.benchmark.scoring.map_pairs import find_files, pair_files
from wsolbench.datasets.masks.reader import make_rule

SIDE = 12


def values(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A map whose values lie in the middle of their bins, and a mask it knows something of."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[2:8, 3 : 4 + seed % 6] = True
    return (np.clip(rng.integers(0, 600, mask.shape) + 300 * mask, 0, 999) + 0.5) / 1000, mask


def save_mask(path: Path, mask: np.ndarray, ring: bool = False) -> None:
    """Foreground 1 and, if asked for, its frame 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codes = mask.astype(np.uint8)
    if ring:
        codes[0] = codes[-1] = 255
    Image.fromarray(codes).save(path)


def save_map(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


@pytest.fixture
def nested(tmp_path) -> tuple[Path, Path]:
    """Maps as the evaluation of WSOL papers has them: NAME.jpg.npy in folders of classes, equal names in each."""
    for k, place in enumerate(("benign/1", "benign/2", "malignant/1")):
        scores, mask = values(k)
        save_map(tmp_path / "maps" / f"{place}.jpg.npy", scores.astype(np.float32)[None])
        save_mask(tmp_path / "masks" / f"{place}_mask.png", mask, ring=True)
    return tmp_path / "maps", tmp_path / "masks"


def test_nested_npy_maps_and_ignored_pixels_against_scikit_learn(nested):
    result = score_folders(ScoreRequest(*nested, rule=make_rule(ignore="255")))
    pairs = [values(k) for k in range(3)]
    truth, scores = (np.concatenate([p[i][1:-1].ravel() for p in pairs]) for i in (1, 0))
    assert result["pxap"] == pytest.approx(100 * average_precision_score(truth, scores), abs=1e-4)
    assert result["chance"] == pytest.approx(100 * truth.mean())
    called = scores >= 0.5
    assert result["dice"] == pytest.approx(100 * 2 * (called & truth).sum() / (called.sum() + truth.sum()))
    assert [p.id for p in pair_files(*nested)] == ["benign/1", "benign/2", "malignant/1"]
    with pytest.raises(BenchError, match="255"):
        score_folders(ScoreRequest(*nested))  # whether 255 is ignored is open


def test_unique_names_match_whatever_the_folders(tmp_path):
    for k in range(3):
        scores, mask = values(k)
        save_map(tmp_path / "maps" / f"class-{k}" / f"im{k}.png.npy", scores)
        save_mask(tmp_path / "masks" / f"im{k}_anno.png", mask)
    assert [p.id for p in pair_files(tmp_path / "maps", tmp_path / "masks")] == ["im0", "im1", "im2"]
    (tmp_path / "maps" / "other").mkdir()
    save_map(tmp_path / "maps" / "other" / "im0.npy", values(0)[0])
    with pytest.raises(BenchError, match="maps have no mask"):  # the name is there twice now: paths decide, and differ
        pair_files(tmp_path / "maps", tmp_path / "masks")


def test_hidden_files_endings_in_capitals_and_decomposed_letters(tmp_path):
    scores, mask = values(0)
    save_map(tmp_path / "maps" / unicodedata.normalize("NFD", "größe.NPY"), scores)
    (tmp_path / "maps" / "größe.NPY").with_name("._größe.npy").write_bytes(b"rubbish")
    (tmp_path / "maps" / "__MACOSX").mkdir()
    (tmp_path / "maps" / "__MACOSX" / "x.npy").write_bytes(b"rubbish")
    save_mask(tmp_path / "masks" / unicodedata.normalize("NFC", "größe.PNG"), mask)
    (pair,) = pair_files(tmp_path / "maps", tmp_path / "masks")
    assert pair.id == "größe"


@pytest.mark.parametrize(
    "form", ["f2", ">f4", "f8", "fortran", "channel first", "channel last", "tiff float", "tiff 8", "tiff 16"]
)
def test_arrays_in_every_form(tmp_path, form):
    expected = values(1)[0]
    path = tmp_path / "a.npy"
    if form.startswith("tiff"):
        path = tmp_path / "a.tif"
        kind, top = {"float": (np.float32, 1), "8": (np.uint8, 255), "16": (np.uint16, 65535)}[form.partition(" ")[2]]
        Image.fromarray((expected * top).round(0 if top > 1 else 9).astype(kind)).save(path)
    else:
        shaped = {"channel first": expected[None], "channel last": expected[..., None]}.get(form, expected)
        np.save(
            path, np.asfortranarray(shaped) if form == "fortran" else shaped.astype(form if "f" in form[:2] else "f8")
        )
    np.testing.assert_allclose(read_map(path), expected, atol={"f2": 1e-3, "tiff 8": 2e-3}.get(form, 1e-4))


BAD = {
    "pickled": (lambda p: np.save(p, np.array([{}], object), allow_pickle=True), "cannot be read"),
    "structured": (lambda p: np.save(p, np.zeros((4, 4), "f4,f4")), "not a 2-D array"),
    "two channels": (lambda p: np.save(p, np.zeros((2, 4, 4))), "not a 2-D array"),
    "infinite": (lambda p: np.save(p, np.full((4, 4), np.inf)), "not finite"),
    "cut": (lambda p: p.write_bytes(b"\x93NUMPY\x01"), "cannot be read"),
    "empty": (lambda p: p.write_bytes(b""), "empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_are_no_map(tmp_path, name):
    make, message = BAD[name]
    make(tmp_path / "a.npy")
    with pytest.raises(BenchError, match=message):
        read_map(tmp_path / "a.npy")


def test_a_lossy_tiff_and_a_folder_of_jpegs_are_refused_with_the_reason(tmp_path):
    Image.fromarray((values(0)[0] * 255).astype(np.uint8)).save(tmp_path / "a.tif", compression="jpeg")
    with pytest.raises(BenchError, match="JPEG"):
        read_map(tmp_path / "a.tif")
    (tmp_path / "photos").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "photos" / "a.jpg")
    with pytest.raises(BenchError, match=r"\.jpg\..*JPEG and WebP change values"):
        find_files(tmp_path / "photos", (".npy",), "maps")


def plain(tmp_path, make, shape=(SIDE, SIDE), rule=None, **changes):
    """Scores two maps that `make` writes from (path without ending, values)."""
    for k in range(2):
        scores, mask = values(k)
        (tmp_path / "maps").mkdir(exist_ok=True, parents=True)
        make(tmp_path / "maps" / f"im{k}", scores)
        save_mask(tmp_path / "masks" / f"im{k}.png", np.resize(mask, shape))
    return score_folders(ScoreRequest(tmp_path / "maps", tmp_path / "masks", **changes))


def test_doubts_about_maps_are_told_and_nothing_is_changed(tmp_path):
    inverted = plain(tmp_path / "a", lambda p, v: np.save(f"{p}.npy", 1 - v))
    assert any("below chance: are high values background" in n for n in inverted["notes"])
    two = plain(tmp_path / "b", lambda p, v: np.save(f"{p}.npy", (v > 0.5).astype(np.float32)))
    assert any("2 maps of 2 with two values only" in n for n in two["notes"])
    assert plain(tmp_path / "c", lambda p, v: np.save(f"{p}.npy", v))["notes"] == []


def test_eight_bits_saved_with_sixteen_are_refused(tmp_path):
    def make(path, scores):
        Image.fromarray((scores * 255).astype(np.uint16)).save(f"{path}.png")

    with pytest.raises(BenchError, match="or 8 bits saved with 16"):
        plain(tmp_path, make)
    assert plain(tmp_path, make, kind="score")["pxap"] > 30


def test_a_transposed_map_is_told(tmp_path):
    with pytest.raises(BenchError, match="looks transposed"):
        plain(tmp_path, lambda p, v: np.save(f"{p}.npy", v[:6]), shape=(SIDE, 6))


def test_regions_that_vanish_are_told_and_stay_positive(tmp_path):
    mask = np.zeros((200, 200), bool)
    mask[100:102, 100:102] = True
    save_map(tmp_path / "maps" / "small.npy", np.linspace(0, 1, 400).reshape(20, 20))
    save_map(tmp_path / "maps" / "large.npy", np.linspace(0, 1, 400).reshape(20, 20))
    save_mask(tmp_path / "masks" / "small.png", mask)
    save_mask(tmp_path / "masks" / "large.png", np.kron(np.eye(2, dtype=bool), np.ones((100, 100), bool)))
    lost = score_folders(ScoreRequest(tmp_path / "maps", tmp_path / "masks", size=24))
    assert lost["positives"]["images"] == 2
    assert lost["per_image"]["images"] == 1
    assert any(n.startswith("1 of 2 masks lost all foreground at 24 px") and "small" in n for n in lost["notes"])
    kept = score_folders(ScoreRequest(tmp_path / "maps", tmp_path / "masks", size=24, reduction="any"))
    assert kept["per_image"]["images"] == 2
    assert not any("lost" in n for n in kept["notes"])


def test_labels_as_pandas_writes_them(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(",id,label,prediction,group,site\n0,a.jpg,1.0,1.0,7,X\n1,b.jpg.npy,0.0,1.0,7.0,Y\n")
    rows, notes = read_labels(path)
    assert {k: (r.label, r.prediction, r.group) for k, r in rows.items()} == {
        "a": ("1", "1", "7"),
        "b": ("0", "1", "7"),
    }
    assert notes == ["columns of labels.csv that are not read: site",
                     "groups spelt in several ways are taken for one each: '7', '7.0'"]  # fmt: skip
    for text, message in (
        ("id;label\na;1\n", "separated by commas"),
        ("id,lable\na,1\n", "Did you mean label"),
        ("id,label,predicton\na,1,1\n", "Did you mean prediction"),
        ("id,label\na,nan\n", "the label is 'nan'"),
        ("id,label,label\na,1,1\n", "twice"),
    ):
        path.write_text(text)
        with pytest.raises(BenchError, match=message):
            read_labels(path)


@pytest.fixture
def manifest(blobs, tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """Perfect maps of the test images of the blobs; half of these are background and have no mask."""
    maps = {}
    with blobs.open() as handle:
        for row in csv.DictReader(line for line in handle if not line.startswith("#")):
            if row["split"] == "test":
                mask = np.array(Image.open(blobs.parent / row["mask"])) > 0 if row["mask"] else np.zeros((64, 64), bool)
                maps[row["id"]] = mask
    return blobs, maps


@pytest.mark.parametrize("layout", ["{id}.npy", "{id}.png.npy", "class/{id}.npy"])
def test_a_dataset_in_place_of_masks(warm_bench, manifest, tmp_path, layout):
    path, truth = manifest
    for name, mask in truth.items():
        save_map(tmp_path / "maps" / layout.format(id=name), mask.astype(np.float32))
    save_map(tmp_path / "maps" / "stranger.npy", np.zeros((4, 4)))
    line = ("score", "--maps", tmp_path / "maps", "--dataset", path)
    done = warm_bench(*line, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["images"], result["pxap"], result["positives"]["images"]) == (24, 100, 12)
    assert result["chance"] == pytest.approx(100 * np.mean(list(truth.values())))
    assert set(result["classes"]) == {"plain", "blob"}
    assert any("stranger.npy" in n for n in result["notes"])
    assert result["notes"][0].startswith("maps were matched to the images of blobs, fold 0, test by their ")


def test_a_dataset_whose_maps_are_incomplete(warm_bench, manifest, tmp_path):
    path, truth = manifest
    for name in list(truth)[2:]:
        save_map(tmp_path / "maps" / f"{name}.npy", np.zeros((8, 8)))
    for more, message in (
        ((), "2 images of blobs, fold 0, test have no map"),
        (("--masks", tmp_path), "leave out --masks"),
        (("--mask-ignore", "255"), "leave out --masks"),
        (("--fold", "7"), "no fold '7'"),
    ):
        done = warm_bench("score", "--maps", tmp_path / "maps", "--dataset", path, *more)
        assert done.returncode == 2
        assert message in done.stderr
    done = warm_bench("score", "--maps", tmp_path / "maps")
    assert "--masks FOLDER, or --dataset" in done.stderr
