"""The tiny matrix for fault tests: run once without any fault, to compare with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark.conftest import World
from tests.faults.matrix import Matrix, contents, steady
from tests.faults.warm import Bench
from wsolbench.benchmark.check_data import write_blobs


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run: its folder, what that holds, the rows it prints and how long it took, in seconds."""

    results: Path
    contents: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]
    seconds: float


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("blobs"))


@pytest.fixture
def world(blobs: Path, tmp_path: Path) -> World:
    return World(blobs, tmp_path / "results")


@pytest.fixture(scope="session")
def matrix(warm_bench: Bench, blobs: Path) -> Matrix:
    return Matrix(warm_bench, blobs)


@pytest.fixture(scope="session")
def reference(matrix: Matrix, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return refer(matrix, tmp_path_factory.mktemp("reference"))


def refer(matrix: Matrix, results: Path, **changes: Any) -> Reference:
    """Runs the matrix without any fault."""
    matrix.bench("--version")  # the server may still be importing, which belongs to no run
    job = matrix.start(results, **changes)
    assert job.wait() == 0, job.stderr
    return Reference(results, contents(results), steady(matrix.rows(results, **changes)), job.seconds)
