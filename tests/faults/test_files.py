"""Damaged files of a results folder: never loaded, made again by the same command, with one line that says so."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import pytest

from tests.faults.conftest import Reference
from tests.faults.inject import Point, text
from tests.faults.matrix import Matrix, contents, steady
from wsolbench.benchmark.core.files import write_json

WRITER = """
import os, sys
from pathlib import Path
from wsolbench.benchmark.core.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half of")
    print(temporary, flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), 9)
    sys.stdin.read()
"""


def test_what_a_dead_writer_left_goes_and_a_living_one_is_left_alone(tmp_path):
    target = tmp_path / "x" / "y.json"
    call = [sys.executable, "-c", WRITER, str(target)]
    dead = subprocess.run([*call, "die"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    with subprocess.Popen([*call, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as living:
        assert living.stdout
        alive = living.stdout.readline().strip()
        assert not Path(dead).exists(), "the next writer clears it away"
        write_json(target, [])
        assert Path(alive).is_file()
        living.kill()
    command = "import sys; from pathlib import Path; from wsolbench.benchmark.core.files import write_json; "
    subprocess.run([sys.executable, "-c", f"{command}write_json(Path(sys.argv[1]), [1])", str(target)], check=True)
    assert [p.name for p in target.parent.iterdir()] == ["y.json"]
    assert target.read_text() == "[\n 1\n]\n"


# -- ways to damage a file -------------------------------------------------------------------------------------------
def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flipped(path: Path) -> None:
    """One bit in the middle, which leaves size and structure as they are."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def gone(path: Path) -> None:
    path.unlink()


def old_schema(path: Path) -> None:
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 0'))


def not_even_text(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


def no_object(path: Path) -> None:
    path.write_text("[1, 2]\n")


# -- of finished stages ----------------------------------------------------------------------------------------------
@pytest.fixture
def results(reference, tmp_path):
    """A copy of a finished matrix."""
    shutil.copytree(reference.results, tmp_path / "results")
    return tmp_path / "results"


def stage(results: Path, kind: str, method: str, split: str = "") -> Path:
    """The folder of a stage, the first of several by its key."""
    for path in sorted((results / "runs").glob("*/record.json")):
        record = json.loads(path.read_text())
        labels = record["labels"]
        if (record["kind"], labels["method"], labels.get("split", "")) == (kind, method, split):
            return path.parent
    raise LookupError(f"{kind} {method} {split}")


def forget(results: Path, *wanted: tuple[str, str, str]) -> None:
    """Removes all stages of these kinds, methods and splits, so that the next run must read what they read."""
    for which in wanted:
        with contextlib.suppress(LookupError):
            while True:
                shutil.rmtree(stage(results, *which))


def heals(matrix: Matrix, reference: Reference, results: Path, *damaged: Path) -> None:
    """The same command makes it all again, says so in one line for each damaged file, and nothing is left of it."""
    before = [p.read_bytes() if p.is_file() else b"" for p in damaged]
    done = matrix.run(results)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    warned = [line for line in done.stderr.splitlines() if "is done again" in line]
    assert [sum(str(p) in line for line in warned) for p in damaged] == [1] * len(damaged), done.stderr
    assert len(warned) == len(damaged), done.stderr
    assert contents(results) == reference.contents
    for path, content in zip(damaged, before, strict=True):
        assert not path.is_file() or path.read_bytes() != content
    assert steady(matrix.rows(results)) == reference.rows
    assert "left out" not in matrix.run(results).stderr


STUDENT = (("train", "pixelcam", ""), ("score", "pixelcam", "val"), ("score", "pixelcam", "test"))
CHECKPOINT = (("train", "classifier"), "weights", (("score", "layercam", "test"),))
MAPS = (("maps", "layercam"), "maps.npz", STUDENT)
VALIDATION = (("score", "layercam", "val"), "scores.npz", (("score", "layercam", "test"),))
ARRAYS = [truncated, flipped, emptied, gone]


@pytest.mark.parametrize(
    ("owner", "name", "readers", "damage"),
    [
        pytest.param(*what, damage, marks=() if quick else pytest.mark.slow, id=f"{what[1]} {damage.__name__}")
        for what, few in ((CHECKPOINT, flipped), (MAPS, truncated), (VALIDATION, flipped))
        for damage in ARRAYS
        for quick in [damage is few]
    ],
)
def test_what_a_later_stage_reads(matrix, reference, results, owner, name, readers, damage):
    forget(results, *readers)
    folder = stage(results, *owner)
    if name == "weights":
        name = json.loads((folder / "record.json").read_text())["roles"]["last"]["weights"]
    damage(folder / name)
    heals(matrix, reference, results, folder / name)


@pytest.mark.parametrize("damage", [flipped, *(pytest.param(d, marks=pytest.mark.slow) for d in (truncated, gone))])
def test_scores_of_a_row(matrix, reference, results, damage):
    path = stage(results, "score", "pixelcam", "test") / "scores.npz"
    damage(path)
    heals(matrix, reference, results, path)


RECORDS = [("score", "layercam", "test"), ("score", "layercam", "val"), ("train", "classifier"), ("train", "pixelcam")]
NOTES = [emptied, truncated, old_schema, not_even_text, no_object]


def test_records_of_every_kind(matrix, reference, results):
    paths = [stage(results, *which) / "record.json" for which in RECORDS]
    for path, damage in zip(paths, NOTES, strict=False):
        damage(path)
    heals(matrix, reference, results, *paths)


@pytest.mark.slow
@pytest.mark.parametrize("damage", NOTES)
@pytest.mark.parametrize("which", RECORDS, ids=str)
def test_a_record(matrix, reference, results, which, damage):
    path = stage(results, *which) / "record.json"
    damage(path)
    heals(matrix, reference, results, path)


def test_a_damaged_record_stops_no_reader(matrix, results):
    truncated(stage(results, "score", "layercam", "test") / "record.json")
    for words in (("status",), ("status", "--json"), ("report", "--json")):
        done = matrix.bench(*words, "--results", results)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


# -- of the cache ----------------------------------------------------------------------------------------------------
def test_the_cache_may_hold_anything(matrix, small, results):
    """Decoded images, hashes and numbers worked out before: what is not what was written counts as nothing."""
    shutil.rmtree(results / "runs")
    images = results / "cache" / "images"
    emptied(results / "cache" / "file-hashes.json")
    not_even_text(results / "cache" / "rows.json")
    for path, damage in zip(
        sorted(images.glob("*.idx")), cycle((truncated, not_even_text, emptied, gone)), strict=False
    ):
        damage(path)
    truncated(sorted(images.glob("*images-32.bin"))[0])
    done = matrix.run(results, methods=small.methods)
    assert done.returncode == 0, done.stderr
    assert contents(results) == small.contents
    assert steady(matrix.rows(results, methods=small.methods)) == small.rows


# -- snapshots -------------------------------------------------------------------------------------------------------
METHOD = "layercam"  # one training is enough


@pytest.fixture(scope="module")
def interrupted(matrix, tmp_path_factory):
    """A training that was killed when it had two snapshots: epoch 1 and epoch 2 of 3."""
    folder = tmp_path_factory.mktemp("interrupted")
    done = matrix.run(folder, inject=text([Point("renamed", r"resume/state\.json$", 2)]), methods=METHOD)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder


def newest(resume: Path) -> Path:
    return resume / json.loads((resume / "state.json").read_text())["file"]


def all_tensors(damage):
    def apply(resume: Path) -> None:
        for path in resume.glob("*.safetensors"):
            damage(path)

    return apply


SNAPSHOTS = {  # what is damaged -> how many snapshots are passed over
    "newest truncated": (lambda resume: truncated(newest(resume)), 1),
    "newest flipped": (lambda resume: flipped(newest(resume)), 1),
    "newest gone": (lambda resume: gone(newest(resume)), 1),
    "state truncated": (lambda resume: truncated(resume / "state.json"), 1),
    "state empty": (lambda resume: emptied(resume / "state.json"), 1),
    "state no object": (lambda resume: no_object(resume / "state.json"), 1),
    "state gone": (lambda resume: gone(resume / "state.json"), 0),
    "all flipped": (all_tensors(flipped), 2),
    "all truncated": (all_tensors(truncated), 2),
    "weights flipped": (lambda resume: [flipped(p) for p in resume.parent.glob("epoch-*.safetensors")], 2),
    "curve gone": (lambda resume: gone(resume.parent / "history.jsonl"), 2),
    "curve truncated": (lambda resume: truncated(resume.parent / "history.jsonl"), 1),
}
QUICK = ("newest flipped", "curve truncated")


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in SNAPSHOTS])
def test_a_damaged_snapshot_is_passed_over(matrix, reference, interrupted, tmp_path, case):
    results = tmp_path / "results"
    shutil.copytree(interrupted, results)
    (resume,) = (results / "runs").glob("*/resume")
    damage, passed_over = SNAPSHOTS[case]
    damage(resume)
    done = matrix.run(results, methods=METHOD)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    warned = [line for line in done.stderr.splitlines() if "is not used" in line]
    if passed_over is not None:
        assert len(warned) == passed_over, done.stderr
    found = contents(results)
    assert found.items() <= reference.contents.items()
    assert {v["record"]["labels"]["method"] for v in found.values()} == {"classifier", "layercam"}
