"""Leaks between splits, as typed: refused before anything is computed, or told in every table."""

import shutil
from pathlib import Path

import pytest

from wsolbench.benchmark.planning.config import Request, RunConfig


@pytest.fixture
def leaky(blobs, tmp_path) -> Path:
    """The blobs with one test image that is a training image of the same class, byte for byte."""
    folder = tmp_path / "leaky"
    shutil.copytree(blobs.parent, folder)
    shutil.copy(folder / "train_01.png", folder / "test_01.png")
    shutil.copy(folder / "train_01_mask.png", folder / "test_01_mask.png")
    return folder / blobs.name


def line(csv: Path, results: Path, *more: object) -> tuple[object, ...]:
    return (
        "run", "--methods", "darkness", "--datasets", csv, "--preset", "smoke", "--device", "cpu", "--weights", "none",
        "--results", results, *more,
    )  # fmt: skip


def test_a_leak_ends_the_command_before_anything_is_stored(warm_bench, leaky, tmp_path):
    for more in ((), ("--dry-run",), ("--allow-leaks", "labels,groups")):
        done = warm_bench(*line(leaky, tmp_path / "r", *more))
        assert done.returncode == 2
        assert "1 of 24 test images are, byte for byte, train images: test_01 = train_01" in done.stderr
        assert "add --allow-leaks images" in done.stderr
    assert not list((tmp_path / "r").glob("runs/*"))


def test_an_allowed_leak_stands_in_every_table(warm_bench, leaky, tmp_path):
    results = tmp_path / "r"
    done = warm_bench(*line(leaky, results, "--allow-leaks", "images"))
    assert done.returncode == 0, done.stderr
    told = "leak allowed by --allow-leaks images: 1 of 24 test images"
    assert told in done.stdout
    assert told in done.stderr
    assert warm_bench("report", "--results", results, "--format", "md,tex,csv,html").returncode == 0
    for name in ("report.md", "report.tex", "rows.csv", "lines.csv", "index.html"):
        text = (results / "report" / name).read_text(encoding="utf-8")
        assert "1 of 24 test images are, byte for byte, train images" in text, name


def test_a_word_that_is_no_leak(warm_bench, leaky, tmp_path):
    done = warm_bench(*line(leaky, tmp_path / "r", "--allow-leaks", "image"))
    assert done.returncode == 2
    assert "Did you mean images" in done.stderr


def test_allowed_leaks_change_no_key(blobs, world):
    from wsolbench.benchmark.planning.planner import Planner

    def keys(allowed: tuple[str, ...]) -> set[str]:
        run = RunConfig(results=world.results, device="cpu")
        request = Request(("darkness",), (str(blobs),), preset="smoke", weights="none", allow_leaks=allowed, run=run)
        return set(Planner(request).build().stages)

    assert keys(()) == keys(("images", "groups"))
