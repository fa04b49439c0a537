"""Bad input through the real command line: exit 2, the file or row by name, what to do, and nothing written."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.matrix import Matrix
from wsolbench.benchmark.core.files import write_json
from wsolbench.benchmark.core.results_store import SCHEMA
from wsolbench.datasets.glas import FOLDER
from wsolbench.datasets.synthesis.synthetic import write_glas

STRICT = "import warnings; warnings.simplefilter('error', RuntimeWarning)"


@pytest.fixture
def copy(blobs: Path, tmp_path: Path) -> Path:
    """The table of a copy of the blobs, free to be damaged."""
    shutil.copytree(blobs.parent, tmp_path / "copy")
    return tmp_path / "copy" / "blobs.csv"


@pytest.fixture
def on_copy(warm_bench, copy) -> Matrix:
    return Matrix(warm_bench, copy)


def refused(done, results: Path, *words: str) -> str:
    """The message of a command that must have ended with 2 before it wrote any stage."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (results / "runs").exists()
    for word in words:
        assert word in done.stderr
    return done.stderr


def rewrite(path: Path, **options) -> None:
    """An image saved again in another form, under its old name."""
    image = Image.open(path)
    if mode := options.pop("mode", None):
        image = image.convert(mode)
    image.save(path, **options)


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rewrite(path, exif=exif)


def sixteen(path: Path) -> None:
    Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 256).save(path)


def rgba(path: Path) -> None:
    pixels = np.dstack([np.asarray(Image.open(path).convert("RGB")), np.full((64, 64), 9, np.uint8)])
    Image.fromarray(pixels).save(path)


def drop_mask(path: Path) -> None:
    table = path.parent / "blobs.csv"
    table.write_text(table.read_text().replace(path.name, ""))


FAULTS = {
    "mask deleted": ("test_01_mask.png", Path.unlink, "1 of 102 files are missing"),
    "mask not named": ("test_01_mask.png", drop_mask, "test image 'test_01' (blob) has no mask"),
    "mask with a palette": ("test_01_mask.png", lambda p: rewrite(p, mode="P"), "the mask has a palette"),
    "mask with alpha": ("test_01_mask.png", lambda p: rewrite(p, mode="LA"), "colours or several channels"),
    "mask to be rotated": ("test_01_mask.png", rotated, "EXIF flag to be shown rotated"),
    "image to be rotated": ("train_02.png", rotated, "EXIF flag to be shown rotated"),
    "image in CMYK": ("train_02.png", lambda p: rewrite(p, mode="CMYK", format="JPEG"), "mode CMYK"),
    "image of 16 bits": ("train_02.png", sixteen, "16 bits"),
    "image half transparent": ("train_02.png", rgba, "transparent"),
    "image that is text": ("train_02.png", lambda p: p.write_text("<svg/>"), "damaged or none of"),
}


QUICK = ("mask deleted", "mask not named", "image to be rotated")  # the others are told by the same lines


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAULTS])
def test_no_image_or_mask_is_guessed_or_skipped(on_copy, copy, tmp_path, name):
    file, damage, message = FAULTS[name]
    damage(copy.parent / file)
    told = refused(on_copy.run(tmp_path / "r", methods="cam"), tmp_path / "r", message)
    assert file.removesuffix("_mask.png") in told


def test_verify_names_every_bad_file_at_once(warm_bench, copy, tmp_path):
    folder = copy.parent
    rotated(folder / "train_02.png")
    (folder / "test_03.png").write_bytes((folder / "test_03.png").read_bytes()[:-60])
    Image.new("L", (32, 64)).save(folder / "test_05_mask.png")
    done = warm_bench("data", "verify", copy, "--results", tmp_path / "r", "--json")
    told = refused(done, tmp_path / "r", "3 problems")
    for file in ("train_02.png", "test_03.png", "test_05_mask.png"):
        assert file in told
    assert json.loads(done.stdout)["ok"] is False


@pytest.mark.slow
def test_masks_of_any_numbers_say_the_same(warm_bench, copy, tmp_path):
    """0/255, 0/1 and instance numbers are one mask: nothing is foreground but what is above zero."""

    def foreground() -> dict:
        words = ("data", "info", copy, "--results", tmp_path / "r", "--json", "--no-sheet")
        return json.loads(warm_bench(*words).stdout)[0]["foreground"]

    before = foreground()
    assert 0 < before["test"] < 1
    for k, path in enumerate(sorted(copy.parent.glob("*_mask.png"))):
        mask = np.asarray(Image.open(path)) > 0
        halves = np.where(np.arange(64)[:, None] < 32, 1, 2) * mask if k % 2 else mask
        Image.fromarray(halves.astype(np.uint8)).save(path)
    assert foreground() == before


@pytest.mark.parametrize(
    "bare", ["no positive image", pytest.param("no foreground in any mask", marks=pytest.mark.slow)]
)
def test_what_is_undefined_is_not_a_number(on_copy, copy, tmp_path, warm_bench, bare):
    if bare == "no positive image":
        rows = [line for line in copy.read_text().splitlines() if not (",test" in line and ",blob," in line)]
        copy.write_text("\n".join(rows))
    else:
        for path in copy.parent.glob("test_*_mask.png"):
            Image.new("L", (64, 64)).save(path)
    done = on_copy.run(tmp_path / "r", methods="cam,random", inject=STRICT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("n/a") >= 2
    made = warm_bench("report", "--results", tmp_path / "r", "--format", "csv,tex", inject=STRICT)
    assert made.returncode == 0, made.stderr
    with (tmp_path / "r" / "report" / "rows.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert {r["pxap"] for r in rows} == {r["dice_tau_val"] for r in rows} == {""}
    assert all(r["accuracy"] for r in rows if r["method"] == "cam")
    tex = (tmp_path / "r" / "report" / "report.tex").read_text()
    assert "n/a" in tex
    assert " nan" not in tex


def test_a_wrong_copy_says_what_was_expected_and_what_was_found(warm_bench, tmp_path):
    write_glas(tmp_path / "data", train=20, test=5, size=64)
    folder = tmp_path / "data" / FOLDER
    words = ["run", "--methods", "cam", "--datasets", "glas", "--data-root", tmp_path / "data", "--device", "cpu",
             "--results", tmp_path / "r", "--weights", "none"]  # fmt: skip
    grades = (folder / "Grade.csv").read_text()
    (folder / "Grade.csv").write_text(grades.replace(grades.splitlines()[3] + "\n", ""))
    refused(warm_bench(*words), tmp_path / "r", "lists 19 + 5 images, its marker says 20 + 5", "bench data synth")
    (folder / "Grade.csv").write_text(grades)
    (folder / "SYNTHETIC.json").unlink()
    refused(warm_bench(*words), tmp_path / "r", "lists 25 images instead of 165", "download it again")


def test_leaks_are_refused_with_the_ids(on_copy, copy, tmp_path):
    text = copy.read_text()
    copy.write_text(text.replace(",test-0,", ",train-0,"))
    refused(on_copy.run(tmp_path / "r", methods="cam"), tmp_path / "r", "'train-0' is in train and test")
    copy.write_text(text)
    other = copy.parent / "other.csv"
    head = "# classes: plain, blob\n# positive: blob\n# background: plain\nid,image,mask,label,group,split\n"
    rows = (
        "x1,train_01.png,train_01_mask.png,blob,a,test\nx2,train_02.png,,plain,b,test\nx3,test_00.png,,plain,c,test\n"
    )
    other.write_text(head + rows)
    done = on_copy.run(tmp_path / "r", "--ood", other, methods="cam")
    refused(done, tmp_path / "r", "2 images of the test set of other", "training or validation", "x1, x2.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "train.lr=fast"], "train.lr"),
        (["--set", "train.epoch=3"], "Did you mean epochs"),
        (["--set", "pixelcam.teecher=cam"], "Did you mean teacher"),
        (["--set", "pixlecam.teacher=cam"], "Did you mean pixelcam"),
        (["--protocol", "fare"], "Did you mean fair"),
        (["--folds", "9"], "no fold '9'"),
        (["--config", "run.toml"], "train.lr"),
        (["--config", "typo.toml"], "Did you mean epochs"),
        (["--device", "gpu"], "--device gpu"),
    ],
)
def test_a_typo_ends_with_2_and_writes_nothing(matrix, tmp_path, words, message):
    (tmp_path / "run.toml").write_text('[train]\nlr = "fast"\n')
    (tmp_path / "typo.toml").write_text("[train]\nepoch = 3\n")
    words = [str(tmp_path / w) if w.endswith(".toml") else w for w in words]
    typed = [w for w in matrix.words(tmp_path / "r", methods="pixelcam") if "train.lr" not in w]
    refused(matrix.bench(*typed, *words), tmp_path / "r", message)


def test_old_schemas_are_told_and_never_mixed_in(matrix, tmp_path):
    results = tmp_path / "r"
    rows = matrix.rows(results, methods="random,constant")
    victim = rows[0]["stage"]
    path = results / "runs" / victim / "record.json"
    write_json(path, {**json.loads(path.read_text()), "schema": SCHEMA - 1})
    status = matrix.bench("status", "--results", results)
    assert f"ignored {victim}: old schema ({SCHEMA - 1} instead of {SCHEMA}), ignored" in status.stdout
    told = json.loads(matrix.bench("status", "--results", results, "--json").stdout)
    assert [s["stage"] for s in told["ignored"]] == [victim]
    assert victim not in {s["stage"] for s in told["finished"]}
    report = matrix.bench("report", "--results", results, "--json")
    assert {r["stage"] for r in json.loads(report.stdout)} == {r["stage"] for r in rows} - {victim}
    assert "old schema, ignored" in report.stderr


def test_old_indexes_and_verifications_are_told_and_made_anew(matrix, tmp_path):
    results, verify = tmp_path / "r", ("data", "verify", matrix.csv, "--results", tmp_path / "r")
    assert matrix.bench(*verify).returncode == 0
    index, report = results / "cache" / "file-hashes.json", results / "data" / "blobs-verify.json"
    write_json(index, {"version": 0, "files": {"x": [1, 2, 3]}})
    write_json(report, {k: v for k, v in json.loads(report.read_text()).items() if k != "schema"})
    done = matrix.bench(*verify)
    assert done.returncode == 0
    assert "blobs-verify.json: old schema (none), ignored and written anew" in done.stdout
    assert "file-hashes.json: old schema (0), ignored" in done.stderr
    assert json.loads(index.read_text())["version"] == 1
    again = matrix.bench(*verify)
    assert "old schema" not in again.stdout + again.stderr


def test_verification_names_what_changed_since(warm_bench, copy, tmp_path):
    verify = ("data", "verify", copy, "--results", tmp_path / "r")
    assert "last verification" not in warm_bench(*verify).stdout
    assert "last verification" not in warm_bench(*verify).stdout
    shutil.copy(copy.parent / "train_01.png", copy.parent / "test_00.png")
    told = warm_bench(*verify).stdout
    assert "1 image changed since the last verification, the first: test_00" in told
    assert "2 problems" in told  # the copy, and its label, which is not that of the original


def test_names_of_any_script_and_ids_like_paths(warm_bench, blobs, tmp_path):
    folder = tmp_path / "Gewebe größer 組織" / ("lang" * 50)
    shutil.copytree(blobs.parent, folder)
    table = folder / "blobs.csv"
    lines = table.read_text(encoding="utf-8").replace("# name: blobs", "# name: 組織/α").splitlines()
    lines = [f"Präparat/{line}" if line.startswith(("train_", "val_", "test_")) else line for line in lines]
    text = "\n".join(lines).replace("blob,", "腫瘍,").replace("plain", "Grün & süß").replace(": blob", ": 腫瘍")
    table.write_text(text.replace(", blob", ", 腫瘍"), encoding="utf-8")
    bench = Matrix(warm_bench, table)
    rows = bench.rows(tmp_path / "r", methods="darkness,random")
    assert {(r["train"], tuple(r["classes"])) for r in rows} == {("組織/α", ("Grün & süß", "腫瘍"))}
    made = warm_bench("report", "--results", tmp_path / "r", "--format", "csv,tex")
    assert made.returncode == 0, made.stderr
    out = tmp_path / "r" / "report"
    assert "組織/α" in (out / "report.tex").read_text(encoding="utf-8")
    assert warm_bench("data", "verify", table, "--results", tmp_path / "r").returncode == 0
