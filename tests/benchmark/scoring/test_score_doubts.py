"""`bench score`: layouts and values that could be read in two ways are matched by a stated rule, refused or told."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.scoring.external_maps import ScoreRequest, score_folders

HEIGHT, WIDTH = 20, 30


def values(k: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(k).random((height, width))


@pytest.fixture
def folders(tmp_path) -> Path:
    """Three masks and three maps of 30 x 20 px, in folders of that name."""
    (tmp_path / "maps").mkdir()
    (tmp_path / "masks").mkdir()
    for k in range(3):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[2 + k : 12, 5:20] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"a{k}.png")
        np.save(tmp_path / "maps" / f"a{k}.npy", values(k))
    return tmp_path


def scored(folder: Path, **asked):
    return score_folders(ScoreRequest(folder / "maps", folder / "masks", **asked))


def told(result, *words: str) -> bool:
    return any(all(word in note for word in words) for note in result["notes"])


def as_png(folder: Path, k: int, levels: np.ndarray) -> None:
    (folder / "maps" / f"a{k}.npy").unlink()
    Image.fromarray(levels).save(folder / "maps" / f"a{k}.png")


def test_labels_that_name_images_by_their_path(folders):
    plain = scored(folders)
    rows = [f"class{k % 2}/a{k}.jpg,{k % 2}" for k in range(3)]
    (folders / "l.csv").write_text("\n".join(["id,label", *rows]))
    assert scored(folders, labels=folders / "l.csv")["pxap"] == plain["pxap"]
    (folders / "maps" / "class0").mkdir()  # whatever the folders of the maps are called
    (folders / "maps" / "a0.npy").rename(folders / "maps" / "class0" / "a0.jpg.npy")
    assert scored(folders, labels=folders / "l.csv")["pxap"] == plain["pxap"]
    (folders / "l.csv").write_text("\n".join(["id,label", *rows, "other/a0.jpg,1"]))  # which of the two is a0?
    with pytest.raises(BenchError, match=r"2 images have no map in .*: class0/a0, other/a0"):
        scored(folders, labels=folders / "l.csv")


def test_links_to_folders_are_followed_and_circles_are_not(folders):
    plain = scored(folders)
    (folders / "maps").rename(folders / "disk")
    (folders / "maps").mkdir()
    (folders / "maps" / "fold0").symlink_to(folders / "disk")
    (folders / "disk" / "again").symlink_to(folders / "disk")
    assert repr(scored(folders)) == repr(plain)


def test_names_twice_are_compared_by_path_and_capitals_are_named(folders):
    for name in ("x", "y"):
        (folders / "maps" / name).mkdir()
        np.save(folders / "maps" / name / "b.npy", values(9))
    with pytest.raises(BenchError, match=r"x/b, y/b.* Paths are compared, because a name is there twice"):
        scored(folders)
    for path in (folders / "maps").glob("[xy]/b.npy"):
        path.unlink()
    (folders / "maps" / "a1.npy").rename(folders / "maps" / "A1.npy")
    with pytest.raises(BenchError, match=r"1 map has no mask in .*: A1.* differ in capital letters only"):
        scored(folders)


@pytest.mark.parametrize(
    "levels",
    [
        lambda v: (v > 0.5).astype(np.uint8),  # 0 and 1, saved with 8 bits
        lambda v: (v * 255).astype(np.uint16),  # 8 bits, saved with 16
        lambda v: (v > 0.5).astype(np.uint16),
    ],
)
def test_levels_at_the_dark_end_of_their_range(folders, levels):
    as_png(folders, 0, levels(values(0)))
    assert told(scored(folders), "1 map of 3 (a0)", "8 bits saved with 16")
    assert not told(scored(folders, kind="score"), "8 bits saved with 16")
    for k in (1, 2):
        as_png(folders, k, levels(values(k)))
    with pytest.raises(BenchError, match=r"3 maps of 3 .* or add --kind score"):
        scored(folders)


def test_small_probabilities_in_a_float_tiff_are_what_they_are(folders):
    for k in range(3):
        (folders / "maps" / f"a{k}.npy").unlink()
        Image.fromarray((values(k) / 300).astype(np.float32)).save(folders / "maps" / f"a{k}.tif")
    assert scored(folders)["notes"] == []


def test_maps_squashed_by_size(folders):
    assert scored(folders, size=16)["notes"] == []
    np.save(folders / "maps" / "a0.npy", values(0, 8, 8))  # square: squashed already, as in the published evaluation
    assert scored(folders, size=16)["notes"] == []
    np.save(folders / "maps" / "a1.npy", values(1, 20, 25))
    assert told(scored(folders, size=16), "1 map of another aspect", "a1", "squashed to 16 px")


@pytest.mark.parametrize("size", [None, 16])
def test_a_transposed_map_is_refused_with_and_without_size(folders, size):
    np.save(folders / "maps" / "a2.npy", values(2, WIDTH, HEIGHT))
    with pytest.raises(BenchError, match=r"a2.npy is 20 x 30 px and its mask a2.png 30 x 20 px.*transposed"):
        scored(folders, size=size)


@pytest.mark.parametrize("asked", [{"fold": "0"}, {"split": "val"}, {"reduction": "area"}])
def test_options_that_would_do_nothing_are_refused(folders, asked):
    with pytest.raises(BenchError, match=r"--dataset|--size"):
        scored(folders, **asked)
