"""The tiny matrix for fault tests: run once without any fault, to compare with."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark.conftest import World
from tests.faults.matrix import LONG, METHODS, Matrix, contents, steady
from tests.faults.warm import Bench
from wsolbench.benchmark.conformance.synthetic_task import write_blobs


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run: its folder, what that holds, the rows it prints and how long it took, in seconds."""

    results: Path
    contents: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]
    seconds: float
    methods: str = METHODS

    def part(self, method: str) -> "Reference":
        """What the same command leaves and prints when it asks for this explainer alone."""
        own = {"classifier": "train", method: "score"}
        stages = {k: v["record"] for k, v in self.contents.items()}
        kept = {k for k, r in stages.items() if own.get(r["labels"]["method"]) == r["kind"]}
        rows = [r for r in self.rows if r["stage"] in kept]
        return replace(self, contents={k: self.contents[k] for k in kept}, rows=rows, methods=method)


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


@pytest.fixture(scope="session")
def small(reference: Reference) -> Reference:
    """The part of one explainer: a single training, a third of the time."""
    return reference.part("layercam")


@pytest.fixture(scope="session")
def long_reference(matrix: Matrix, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one uninterrupted process leaves of a matrix whose trainings can be met in their middle."""
    results = tmp_path_factory.mktemp("uninterrupted")
    done = matrix.run(results, **LONG)
    assert done.returncode == 0, done.stderr
    return contents(results)


def refer(matrix: Matrix, results: Path, **changes: Any) -> Reference:
    """Runs the matrix without any fault."""
    matrix.bench("--version")  # the server may still be importing, which belongs to no run
    job = matrix.start(results, **changes)
    assert job.wait() == 0, job.stderr
    return Reference(results, contents(results), steady(matrix.rows(results, **changes)), job.seconds)
