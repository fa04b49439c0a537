"""The command `bench data patches`: what it prints, its exit codes, and going on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from wsolbench.benchmark.cli import main

pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two slides of each class for training and one for the test, 480 x 384 px, tumour in their middle."""
    root = tmp_path_factory.mktemp("cli")
    y, x = np.mgrid[:384, :480]
    tissue = ((x - 240) / 220) ** 2 + ((y - 192) / 180) ** 2 < 1
    for seed, name in enumerate(("tumor_001", "tumor_002", "normal_001", "normal_002", "test_001", "test_003")):
        noise = np.random.default_rng(seed).integers(-8, 9, (384, 480, 1))
        image = (np.where(tissue[..., None], (190, 110, 160), (242, 241, 243)) + noise).astype(np.uint8)
        path = root / "slides" / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, image, tile=(128, 128), photometric="rgb", compression="zlib", metadata=None,
                         resolution=(40_000, 40_000), resolutionunit="CENTIMETER")  # fmt: skip
        if name in ("tumor_001", "tumor_002", "test_001"):
            dots = "".join(
                f'<Coordinate X="{a}" Y="{b}"/>' for a, b in ((150, 110), (330, 120), (300, 290), (160, 250))
            )
            (root / "xml").mkdir(exist_ok=True)
            (root / "xml" / f"{name}.xml").write_text(
                f'<Annotations><Annotation Type="Polygon" PartOfGroup="Tumor">{dots}</Annotation></Annotations>'
            )
    return root


def command(world, out, *words):
    paths = ["--slides", world / "slides", "--annotations", world / "xml", "--out", out]
    return [str(w) for w in ("data", "patches", *paths, "--size", 48, "--jobs", 1, *words)]


def bench(capsys, world, out, *words):
    with pytest.raises(SystemExit) as stop:
        main(command(world, out, *words))
    printed = capsys.readouterr()
    return stop.value.code or 0, printed.out, printed.err


def test_from_slides_to_a_dataset(world, tmp_path, capsys):
    code, text, log = bench(capsys, world, tmp_path / "out")
    assert code == 0
    assert "tumor of 1 slides" in text
    assert f"--datasets {tmp_path / 'out' / 'dataset.csv'}" in text
    assert "slides cut: 6" in log
    code, text, _ = bench(capsys, world, tmp_path / "out", "--json")
    found = json.loads(text)
    assert (code, found["failed"], found["settings"]["size"]) == (0, [], 48)
    assert found["counts"]["test"]["normal"] == found["counts"]["test"]["tumor"] != {"patches": 0, "slides": 0}
    assert found["software"]["openslide"]
    with pytest.raises(SystemExit) as stop:
        main(["data", "verify", str(tmp_path / "out" / "dataset.csv"), "--results", str(tmp_path / "results")])
    assert not stop.value.code


def test_dry_run_writes_nothing(world, tmp_path, capsys):
    code, text, _ = bench(capsys, world, tmp_path / "out", "--dry-run")
    assert code == 0
    assert "6 slides to cut, 0 left out, 0 with a problem" in text
    assert str(world / "xml" / "tumor_001.xml") in text
    code, text, _ = bench(capsys, world, tmp_path / "out", "--dry-run", "--json", "--unannotated", "error")
    found = json.loads(text)
    assert (code, [p["slide"] for p in found["problems"]]) == (1, ["test_003"])
    assert {s["slide"]: s["annotation"] for s in found["slides"]}["normal_001"] is None
    assert not (tmp_path / "out").exists()


def test_one_bad_slide_costs_only_itself(world, tmp_path, capsys):
    (tmp_path / "w" / "slides").mkdir(parents=True)
    (tmp_path / "w" / "xml").symlink_to(world / "xml")
    for path in (world / "slides").iterdir():
        (tmp_path / "w" / "slides" / path.name).symlink_to(path)
    (tmp_path / "w" / "slides" / "tumor_009.tif").write_bytes(b"no slide")
    (tmp_path / "w" / "slides" / "test_114.tif").write_bytes(b"no slide either, but known to be bad")
    code, text, log = bench(capsys, tmp_path / "w", tmp_path / "out")
    assert code == 1
    assert "1 slide could not be cut" in log
    assert "tumor_009: a tumour slide without an annotation" in log
    assert "left out: test_114: not annotated exhaustively" in text
    assert (tmp_path / "out" / "dataset.csv").is_file()


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--as-published", "--mpp", "0.5"], "--as-published sets --mpp itself"),
        (["--mpp", "fine"], "neither a number"), (["--size", "3"], "--size 3"), (["--jobs", "0"], "--jobs 0"),
        (["--unannotated", "maybe"], "maybe"), (["--mpp", "0.1"], ""),
        (["--splits", "nowhere.csv"], "no file nowhere.csv"), (["--tumor-share", "2"], "tumor-share"),
    ],
)  # fmt: skip
def test_mistakes(world, tmp_path, capsys, words, complaint):
    code, _, log = bench(capsys, world, tmp_path / "out", *words)
    assert complaint in log
    assert code == (2 if complaint else 1)  # a resolution that no slide has is every slide's own error
    assert complaint or "at its finest" in log


def test_level_0_and_published_settings(world, tmp_path, capsys):
    _, text, _ = bench(capsys, world, tmp_path / "native", "--mpp", "level-0", "--json")
    assert json.loads(text)["settings"]["mpp"] is None
    _, text, _ = bench(capsys, world, tmp_path / "published", "--as-published", "--json")
    settings = json.loads(text)["settings"]
    assert (settings["mpp"], settings["rgb_floor"], settings["creep"]) == (None, 0.1, True)
    assert (settings["subtract"], settings["one_of_each"]) == (False, False)
    code, _, log = bench(capsys, world, tmp_path / "published")
    assert code == 2
    assert "other settings" in log


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_finishes(world, tmp_path, capsys):
    assert bench(capsys, world, tmp_path / "whole")[0] == 0
    call = [sys.executable, "-c", "import sys; from wsolbench.benchmark.cli import main; main(sys.argv[1:])"]
    rng = np.random.default_rng(0)
    kills = 0
    for wait in rng.uniform(0.4, 2.5, 12):
        process = subprocess.Popen([*call, *command(world, tmp_path / "out")], stderr=subprocess.DEVNULL)
        time.sleep(wait)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    assert bench(capsys, world, tmp_path / "out")[0] == 0
    one, other = (
        {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        for out in (tmp_path / "whole", tmp_path / "out")
    )
    assert one == other


def link(world, root, *names):
    """A folder with some of the slides and all annotations; each name may be OLD:NEW."""
    (root / "slides").mkdir(parents=True)
    (root / "xml").mkdir()
    for name in names:
        old, _, new = name.partition(":")
        (root / "slides" / f"{new or old}.tif").symlink_to(world / "slides" / f"{old}.tif")
        if (world / "xml" / f"{old}.xml").exists():
            (root / "xml" / f"{new or old}.xml").symlink_to(world / "xml" / f"{old}.xml")
    return root


def test_a_dry_run_exits_as_the_run_does(world, tmp_path, capsys):
    root = link(world, tmp_path / "w", "tumor_001", "normal_001")
    (root / "slides" / "normal_002.tif").write_bytes(b"no slide")
    (root / "slides" / "tumor_002.tif").symlink_to(world / "slides" / "tumor_002.tif")
    for words in ((), ("--mpp", 0.1), ("--json",)):
        dry, text, _ = bench(capsys, root, tmp_path / "dry", "--dry-run", *words)
        wet, _, log = bench(capsys, root, tmp_path / f"out{len(words)}", *words)
        assert dry == wet == 1
        for slide in ("normal_002", "tumor_002"):
            assert slide in text
            assert slide in log
    assert not (tmp_path / "dry").exists()
    table = tmp_path / "s.csv"
    table.write_text("slide,split,label,patient\ntumor_001,train,tumor,1\nnormal_001,test,normal,1.0\n")
    dry, text, _ = bench(capsys, root, tmp_path / "dry", "--dry-run", "--splits", table)
    wet, _, log = bench(capsys, root, tmp_path / "leak", "--splits", table)
    assert dry == wet == 2
    assert "REFUSED: 1 patient in two splits" in text
    assert "A run would stop before it cuts anything" in text
    assert "1 patient in two splits" in log
    assert not (tmp_path / "leak").exists()


def test_the_last_line_says_what_the_table_is_good_for(world, tmp_path, capsys):
    tests = link(world, tmp_path / "a", "test_001", "test_003")
    code, text, _ = bench(capsys, tests, tmp_path / "tests")
    assert (code, "--ood" in text, "Use it with" in text, "no tumor patch" in text) == (0, True, False, False)
    few = link(world, tmp_path / "b", "tumor_001", "normal_001")
    code, text, _ = bench(capsys, few, tmp_path / "few")
    assert (code, "cannot be run on yet" in text, "--datasets" in text) == (0, True, False)
    assert "no tumor patch in split test" in text


def test_sets_are_named_after_their_slides(world, tmp_path, capsys):
    for names, out, name in (
        (("test_001", "test_003"), "a", "camelyon16"),
        (("test_001:patient_001_node_0", "test_003:patient_002_node_1"), "b", "camelyon17"),
        (("test_001:lung 1", "test_003:lung 2"), "Lung set (2)", "Lung-set-2"),
    ):
        root = link(world, tmp_path / f"w{out}", *names)
        rows = [f"{(new or old)},test" for old, _, new in (n.partition(":") for n in names)]
        (root / "s.csv").write_text("slide,split\n" + "\n".join(rows))
        words = ("--splits", root / "s.csv", "--unannotated", "normal", "--json")
        _, text, _ = bench(capsys, root, tmp_path / out, *words)
        assert json.loads(text)["settings"]["name"] == name
        head = (tmp_path / out / "dataset.csv").read_text().partition("\nimage")[0]
        assert f"# name: {name}-patches" in head
        assert ("citation" in head) == name.startswith("camelyon")
        assert (tmp_path / out / name / "w-48xh-48").is_dir()
    _, text, _ = bench(capsys, root, tmp_path / "Lung set (2)", *words)  # goes on under the name that it has
    assert json.loads(text)["settings"]["name"] == "Lung-set-2"


def test_groups_of_other_names(world, tmp_path, capsys):
    root = link(world, tmp_path / "w", "test_001", "test_003")
    path = root / "xml" / "test_001.xml"
    text = path.read_text().replace('"Tumor"', '"macro"')
    path.unlink()
    path.write_text(text)
    code, _, log = bench(capsys, root, tmp_path / "out")
    assert (code, "--group 'macro=tumor'" in log) == (1, True)
    assert bench(capsys, root, tmp_path / "told", "--group", "macro=tumor")[0] == 0
    code, _, log = bench(capsys, root, tmp_path / "x", "--group", "macro=lymph")
    assert (code, "is not NAME=tumor" in log) == (2, True)
    code, _, log = bench(capsys, root, tmp_path / "told", "--group", "macro=excluded")
    assert (code, "other settings: groups" in log) == (2, True)


def test_stage_labels_of_camelyon17(world, tmp_path, capsys):
    slides = [
        f"{kind}_00{p + 1}:patient_00{p}_node_{n}" for p in range(2) for n, kind in enumerate(("tumor", "normal"))
    ]
    root = link(world, tmp_path / "w", *slides)
    (root / "stage_labels.csv").write_text(
        "patient,stage\n" + "".join(f"patient_00{p}.zip,pN1\npatient_00{p}_node_0.tif,macro\n"
                                    f"patient_00{p}_node_1.tif,negative\n" for p in range(3))
    )  # fmt: skip
    code, text, _ = bench(capsys, root, tmp_path / "out", "--splits", root / "stage_labels.csv")
    assert code == 0
    for said in ("group = patient: 4 slides of 2 patients", "all slides are test", "2 of the 6 slides", "--ood"):
        assert said in text
    code, text, _ = bench(
        capsys, root, tmp_path / "both", "--splits", root / "stage_labels.csv", "--test-share", 0.5, "--json"
    )
    counts = json.loads(text)["counts"]
    assert counts["train"]["tumor"]["groups"] == counts["test"]["tumor"]["groups"] == 1
