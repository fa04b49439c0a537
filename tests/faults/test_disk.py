"""Disks that are full, closed to us or oddly named: nothing stored is lost, and the same command goes on afterwards."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Reference
from tests.faults.matrix import Matrix, contents, inodes, leftovers, steady

NAMES = ("with spaces & (signs) 'quoted'", "Größe-ÄÖÜ-ß", "组织学", "🔬 results")
LONG = "a" * 120 + "/" + "b" * 120


def mount(*words: object) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 24 MiB, which holds the matrix twice."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", place)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def read_only(tmp_path: Path, blobs: Path) -> Iterator[Path]:
    """A copy of the data where nothing can be written, not even by root; the CSV in it."""
    place = tmp_path / "Größe 'x' 组织学"
    shutil.copytree(blobs.parent, place)
    if os.geteuid() == 0:
        mount("--bind", place, place)
        try:
            mount("-o", "remount,bind,ro", place)
            yield place / blobs.name
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)
        return
    place.chmod(0o555)
    yield place / blobs.name
    place.chmod(0o755)


def fill(place: Path, leave: int) -> Path:
    """Fills a file system up to so many free bytes; returns the file to remove again."""
    waste = place / "waste"
    with waste.open("wb") as handle:
        while (free := shutil.disk_usage(place).free - leave) > 0:
            handle.write(b"\0" * min(free, 1 << 16))
            handle.flush()
    return waste


def full(matrix: Matrix, small: Reference, results: Path, waste: Path) -> None:
    """The command on a full disk: exit 1, the path and the free space are told, what is finished stays.

    When there is room again, the same command completes.
    """
    before = inodes(results)
    done = matrix.run(results, methods=small.methods)
    assert done.returncode == 1, done.stderr
    assert "disk is full" in done.stderr, done.stderr
    assert str(results) in done.stderr
    assert "MiB are free" in done.stderr
    assert "Traceback" not in done.stderr
    assert before.items() <= inodes(results).items()
    waste.unlink()
    same(matrix, small, results)


def same(matrix: Matrix, small: Reference, results: Path) -> None:
    done = matrix.run(results, methods=small.methods)
    assert done.returncode == 0, done.stderr
    assert contents(results) == small.contents
    assert steady(matrix.rows(results, methods=small.methods)) == small.rows
    assert leftovers(results) == []


@pytest.mark.parametrize("leave", [1_200_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2_500_000))])
def test_a_full_disk_while_training(matrix, small, small_disk, leave):
    """There is room for some checkpoints and not for the next."""
    results = small_disk / "results"
    shutil.copytree(small.results / "cache", results / "cache")
    full(matrix, small, results, fill(small_disk, leave))


def test_a_full_disk_while_scoring(matrix, small, small_disk):
    results = small_disk / "results"
    shutil.copytree(small.results, results, ignore=shutil.ignore_patterns("examples", "locks"))
    for path in (results / "runs").iterdir():
        if path.name not in small.contents or path.name in [r["stage"] for r in small.rows]:
            shutil.rmtree(path)
    full(matrix, small, results, fill(small_disk, leave=8192))


@pytest.mark.slow
@pytest.mark.parametrize("leave", [300_000, 20_000])
def test_a_full_disk_while_images_are_decoded(matrix, small, small_disk, leave):
    results = small_disk / "results"
    waste = fill(small_disk, leave)
    done = matrix.run(results, methods=small.methods)
    assert done.returncode in (1, 2), done.stderr
    assert "space left" in done.stderr or "disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    waste.unlink()
    same(matrix, small, results)


def test_results_that_cannot_be_written(matrix, read_only):
    folder = read_only.parent / "results"
    done = matrix.run(folder)
    assert done.returncode == 2, done.stderr
    assert str(folder) in done.stderr
    assert "--results" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_read_only_results_can_be_reported(matrix, reference, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("a read-only mount needs root")
    results = shutil.copytree(reference.results, tmp_path / "results")
    mount("--bind", results, results)
    try:
        mount("-o", "remount,bind,ro", results)
        for words in (("status",), ("report", "--json"), ("report", "--out", tmp_path / "report")):
            done = matrix.bench(*words, "--results", results)
            assert done.returncode == 0, done.stderr
            assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", "-l", str(results)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_paths_with_odd_and_long_names(matrix, small, blobs, tmp_path, name):
    data, results = tmp_path / f"data {name}", tmp_path / name / "results"
    shutil.copytree(blobs.parent, data)
    moved = Matrix(matrix.bench, data / blobs.name)
    same(moved, small, results)
    for words in (("status",), ("report", "--format", "md,csv,html"), ("data", "verify", data / blobs.name)):
        found = matrix.bench(*words, "--results", results)
        assert found.returncode == 0, found.stderr
    assert (results / "report" / "index.html").is_file()


@pytest.mark.slow
def test_read_only_data_of_an_odd_name(matrix, small, read_only, tmp_path):
    before = sorted(p.name for p in read_only.parent.iterdir())
    results = tmp_path / LONG / "Ergebnisse 🔬"
    assert len(str(results)) > 200
    same(Matrix(matrix.bench, read_only), small, results)
    assert sorted(p.name for p in read_only.parent.iterdir()) == before
    for words in (("data", "verify", read_only), ("report", "--format", "md,csv,html")):
        done = matrix.bench(*words, "--results", results)
        assert done.returncode == 0, done.stderr
