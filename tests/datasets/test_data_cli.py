import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from PIL import Image

from wsolbench.benchmark.cli.data.verbs import data
from wsolbench.benchmark.cli.demo import demo
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.glas import FOLDER


def call(*words, fails=False):
    result = CliRunner().invoke(data, [str(w) for w in words])
    if fails:
        assert isinstance(result.exception, BenchError)
        return result
    assert result.exception is None, result.exception
    return result


@pytest.fixture
def where(synth_copy, tmp_path):
    return ["--data-root", synth_copy, "--results", tmp_path / "results"]


def test_verify(where, tmp_path):
    out = call("verify", "glas", *where).stdout
    assert "glas (SYNTHETIC): 80 files read, 0 problems" in out
    assert "fold grouped-4" in out
    assert "share patients" in out
    found = json.loads(call("verify", "glas", *where, "--folds", "0,grouped", "--json").stdout)
    assert [f["fold"] for f in found["folds"]] == ["0", *(f"grouped-{k}" for k in range(5))]
    assert (found["ok"], found["synthetic"], found["files"]) == (True, True, 80)
    assert found["folds"][0]["counts"]["valpx"] == {"benign": 3, "malignant": 3}
    assert (tmp_path / "results" / "data" / "glas-verify.json").is_file()


def test_verify_fails_on_a_damaged_copy_and_still_reports(where, synth_copy):
    path = synth_copy / FOLDER / "testB_1.bmp"
    path.write_bytes(path.read_bytes()[:-10])
    result = call("verify", "glas", *where, "--json", fails=True)
    assert "testB_1.bmp" in str(result.exception)
    assert json.loads(result.stdout)["ok"] is False


def test_many_image_sizes_are_one_line():
    from wsolbench.benchmark.cli.data.verbs import _sizes

    sizes = {f"{300 + 7 * k} x {200 + 5 * k}": 98 - k for k in range(98)}
    assert _sizes(dict(list(sizes.items())[:2])) == "98 of 300 x 200, 97 of 307 x 205"
    assert _sizes(sizes).endswith(
        "95 of 321 x 215, and 4465 of 94 other sizes, 328 to 979 px wide and 220 to 685 px high"
    )


def test_info(where, tmp_path):
    out = call("info", "glas", *where).stdout
    for word in (
        "glas, fold 0 (SYNTHETIC)",
        "benign",
        "40 of 64 x 64",
        "licence",
        "Sirinukunwattana",
        "SYNTHETIC images",
    ):
        assert word in out
    sheet = tmp_path / "results" / "data" / "glas-fold-0.png"
    with Image.open(sheet) as image:
        assert image.width > 800
        assert image.convert("L").getextrema()[0] < 128
    (found,) = json.loads(call("info", "glas", *where, "--json", "--no-sheet", "--folds", "grouped-2").stdout)
    assert (found["fold"], found["sheet"], found["synthetic"]) == ("grouped-2", None, True)
    assert sum(sum(found["counts"][s].values()) for s in ("train", "val", "test")) == 40
    assert 0.3 < found["foreground"]["test"] < 0.7


def test_info_of_a_table(synth_copy, tmp_path):
    folder = synth_copy / FOLDER
    rows = [f"train_{k}.bmp,train_{k}_anno.bmp,{k % 2},p{k},{s}" for k, s in
            enumerate(["train"] * 4 + ["val"] * 4 + ["test"] * 4, start=1)]  # fmt: skip
    path = folder / "my set <b>$.csv"
    path.write_text("# positive: 1\n# name: <b>my/set</b>\nimage,mask,label,group,split\n" + "\n".join(rows))
    out = call("info", path, "--results", tmp_path / "r").stdout
    assert "<b>my/set</b>, fold 0" in out
    assert "no row is marked pixel_val" in out
    assert len(list((tmp_path / "r" / "data").glob("*.png"))) == 1


def test_synth(tmp_path):
    words = ["synth", "--out", tmp_path / "demo", "--train", 20, "--test", 4, "--size", 64]
    assert "20 + 4 synthetic images" in call(*words).stdout
    found = json.loads(call(*words, "--json").stdout)
    assert found["datasets"]["glas"] == str(tmp_path / "demo" / FOLDER)
    assert (
        "is not synthetic"
        not in call("verify", "glas", "--data-root", tmp_path / "demo", "--results", tmp_path / "r").stdout
    )


def test_synth_writes_nothing_where_real_data_are(tmp_path):
    real = tmp_path / "camelyon16" / "w-512xh-512"
    real.mkdir(parents=True)
    problem = str(call("synth", "--out", tmp_path, "--train", 20, "--test", 4, "--size", 64, fails=True).exception)
    assert problem == f"{real.parent} exists and is not synthetic; nothing was written. Choose another folder."
    shown = CliRunner().invoke(demo, ["--data-root", str(tmp_path), "--results", str(tmp_path / "r")])
    assert str(shown.exception) == problem
    assert [p.name for p in tmp_path.rglob("*")] == ["camelyon16", "w-512xh-512"]
    call("synth", "--out", tmp_path, "--datasets", "glas", "--train", 20, "--test", 4, "--size", 64)
    again = ("synth", "--out", tmp_path, "--datasets", "glas", "--train", 21, "--test", 4, "--size", 64)
    assert "other settings: train 20 (now 21). Remove it" in str(call(*again, fails=True).exception)


def test_mistakes(where):
    assert "Did you mean glas" in str(call("info", "glsa", *where, fails=True).exception)
    assert "no fold '9'" in str(call("info", "glas", *where, "--folds", "9", fails=True).exception)


def test_importing_the_commands_is_cheap():
    code = (
        "import sys, wsolbench.benchmark.cli.data.verbs; "
        "print([m for m in ('torch', 'numpy', 'PIL', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
