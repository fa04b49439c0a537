import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets import open as opening
from wsolbench.datasets.glas import FOLDER, Glas
from wsolbench.datasets.open import content_hashes, manifest_identity, open_dataset
from wsolbench.datasets.verify import quick_checks, verify


def identity(root, cache, splits=("train", "val", "test"), fold="0"):
    dataset = Glas(root)
    m = dataset.manifest(fold)
    return manifest_identity(m, content_hashes(m, cache), splits)


def test_names_and_files(synth_root, tmp_path):
    assert isinstance(open_dataset("glas", synth_root), Glas)
    with pytest.raises(BenchError, match="Did you mean glas"):
        open_dataset("glass", synth_root)
    with pytest.raises(BenchError, match="no variant 'stain-3'"):
        open_dataset("glas:stain-3", synth_root)
    with pytest.raises(BenchError, match="no file"):
        open_dataset(str(tmp_path / "my.csv"), synth_root)


def test_identity_does_not_depend_on_the_place(synth_root, synth_copy, tmp_path):
    (synth_copy / FOLDER).rename(synth_copy / FOLDER.replace(" ", "_"))
    here, there = identity(synth_root, tmp_path / "a.json"), identity(synth_copy, tmp_path / "b.json")
    assert here == there
    assert str(synth_root) not in json.dumps(here)


@pytest.mark.parametrize("name", ["train_1.bmp", "train_1_anno.bmp"])
def test_identity_follows_content(synth_root, synth_copy, tmp_path, name):
    path = synth_copy / FOLDER / name
    pixels = np.array(Image.open(path))
    pixels.flat[7] ^= 1
    Image.fromarray(pixels).save(path)
    before, after = identity(synth_root, tmp_path / "a.json"), identity(synth_copy, tmp_path / "b.json")
    assert before["content"] != after["content"]
    assert before["split"] == after["split"]
    test = ("test",)
    assert identity(synth_root, tmp_path / "a.json", test) == identity(synth_copy, tmp_path / "b.json", test)


@pytest.mark.parametrize("change", [{"label": None}, {"group": "x"}, {"split": "test"}, {"pixel_val": False}])
def test_identity_follows_labels_groups_and_splits(synth_root, tmp_path, change):
    dataset = Glas(synth_root)
    m = dataset.manifest("0")
    facts = content_hashes(m, tmp_path / "h.json")
    index, item = next((k, i) for k, i in enumerate(m.items) if i.pixel_val)
    if "label" in change:
        change = {"label": 1 - item.label}
    other = replace(m, items=(*m.items[:index], replace(item, **change), *m.items[index + 1 :]))
    one, two = manifest_identity(m, facts), manifest_identity(other, facts)
    assert one["split"] != two["split"]
    shuffled = replace(m, items=m.items[::-1])
    assert manifest_identity(shuffled, facts) == one


def test_unknown_splits_are_refused(synth_root, tmp_path):
    m = Glas(synth_root).manifest("0")
    with pytest.raises(ValueError, match="valpx"):
        manifest_identity(m, {}, ("valpx",))


def test_a_second_call_reads_no_file(synth_copy, tmp_path, monkeypatch):
    dataset = Glas(synth_copy)
    m = dataset.manifest("0")
    first = content_hashes(m, tmp_path / "h.json")
    read = []
    monkeypatch.setattr(opening, "file_sha256", lambda p: read.append(p) or "new")
    assert content_hashes(m, tmp_path / "h.json") == first
    assert read == []
    path = m.items[0].image
    os.utime(path, ns=(1, 1))  # a changed time alone makes it suspicious
    assert content_hashes(m, tmp_path / "h.json")[path].sha256 == "new"
    assert read == [path]


def test_a_damaged_index_is_made_again(synth_root, tmp_path):
    m = Glas(synth_root).manifest("0")
    for text in ("{", "[]", '{"version": 9, "files": {}}', '{"version": 1, "files": {"x": 3}}'):
        (tmp_path / "h.json").write_text(text)
        assert len(content_hashes(m, tmp_path / "h.json")) == 80


def test_verify_decodes_to_the_last_pixel_even_what_the_index_knows(synth_copy, tmp_path):
    folder = synth_copy / FOLDER
    for k in range(1, 8):
        (folder / f"train_{k}.bmp").write_bytes((folder / f"train_{k}.bmp").read_bytes()[:-50])
    dataset = Glas(synth_copy)
    content_hashes(dataset.manifest("0"), tmp_path / "h.json")  # the headers are sound
    report = verify(dataset, ["0"], tmp_path / "h.json")
    assert len(report.problems) == 7
    assert report.folds[0].identity is None


def test_a_mask_of_another_size_is_refused(synth_copy, tmp_path):
    path = synth_copy / FOLDER / "testA_1_anno.bmp"
    Image.fromarray(np.ones((64, 60), np.uint8)).save(path)
    dataset = Glas(synth_copy)
    m = dataset.manifest("0")
    facts = content_hashes(m, tmp_path / "h.json")
    for known in (None, facts):
        with pytest.raises(BenchError, match=r"testA_1_anno\.bmp is 60 x 64 px, its image testA_1\.bmp 64 x 64"):
            quick_checks(m, known)
    assert verify(dataset, ["0"], tmp_path / "h.json").problems


def test_quick_checks_pass_a_sound_copy_and_name_unreadable_headers(synth_copy):
    m = Glas(synth_copy).manifest("0")
    quick_checks(m)
    (synth_copy / FOLDER / "train_2.bmp").write_bytes(b"")
    with pytest.raises(BenchError, match=r"1 of 40 files.*\n.*train_2\.bmp is empty"):
        quick_checks(m)


def test_verify_writes_all_hashes(synth_root, tmp_path):
    dataset = Glas(synth_root)
    report = verify(dataset, dataset.folds, tmp_path / "h.json", tmp_path / "report.json")
    assert report.problems == ()
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["ok"] is True
    assert len(stored["sha256"]) == 40
    assert all(len(v["image"]) == 64 and len(v["mask"]) == 64 for v in stored["sha256"].values())
    assert [f["fold"] for f in stored["folds"]] == list(dataset.folds)
    assert stored["folds"][0]["identity"]["content"] == stored["folds"][1]["identity"]["content"]
    assert stored["folds"][0]["identity"]["split"] != stored["folds"][1]["identity"]["split"]


def test_datasets_need_no_torch(synth_root):
    code = (
        "import sys; from pathlib import Path; from wsolbench.datasets.open import open_dataset; "
        f"open_dataset('glas', Path({str(synth_root)!r})).manifest('0'); "
        "print([m for m in ('torch', 'matplotlib', 'pandas', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_read_only_data_is_fine(synth_copy, tmp_path):
    folder = synth_copy / FOLDER
    before = sorted(p.name for p in folder.iterdir())
    folder.chmod(0o555)
    try:
        identity(synth_copy, tmp_path / "h.json")
    finally:
        folder.chmod(0o755)
    assert sorted(p.name for p in folder.iterdir()) == before


def test_unicode_folders(synth_copy, tmp_path):
    odd = Path(shutil.copytree(synth_copy, tmp_path / "Gewebe – 組織 (ü)"))
    assert identity(odd, tmp_path / "h.json")["images"] == 40


def test_files_that_are_no_images_are_named_at_once(synth_copy, tmp_path):
    for k in range(1, 8):
        (synth_copy / FOLDER / f"train_{k}.bmp").write_bytes(b"<html>404</html>")
    with pytest.raises(BenchError, match="7 of 80 files cannot be used") as caught:
        content_hashes(Glas(synth_copy).manifest("0"), tmp_path / "h.json")
    assert str(caught.value).count("train_") == 5
