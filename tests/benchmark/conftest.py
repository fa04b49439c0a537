"""A tiny world for harness tests: blob images, a 0.4-million-parameter network, runs of a second or two."""

from pathlib import Path

import pytest

from wsolbench.benchmark.conformance.synthetic_task import write_blobs
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.execution.preflight import preflight
from wsolbench.benchmark.execution.scheduler import PlanOutcome, execute
from wsolbench.benchmark.planning.config import Request, RunConfig
from wsolbench.benchmark.planning.planner import Planner
from wsolbench.benchmark.planning.stage import Plan

TINY = {
    "image_size": "32", "load_size": "36", "epochs": "3", "batch_size": "16", "lr": "0.05", "stride": "8",
    "head_lr_scale": "1", "step_epochs": "10", "warmup_epochs": "0",
}  # fmt: skip


@pytest.fixture(scope="session")
def blobs(tmp_path_factory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="session")
def stained(tmp_path_factory) -> Path:
    """Other blobs with another stain, called `stained`: a target for models of the blobs."""
    return write_stained(tmp_path_factory.mktemp("stained"))


def write_stained(folder: Path) -> Path:
    return write_blobs(folder, 1, "stained", (0.7, 0.95, 1.0))


@pytest.fixture
def world(blobs, tmp_path):
    return World(blobs, tmp_path / "results")


class World:
    """Plans and runs on the blobs."""

    def __init__(self, csv: Path, results: Path) -> None:
        self.csv, self.results, self.settings = csv, results, TINY

    @property
    def store(self) -> Store:
        return Store(self.results)

    def request(self, methods: str, run: dict | None = None, overrides: dict | None = None, **changes) -> Request:
        sections = {"train": {**TINY, **(overrides or {}).pop("train", {})}, **(overrides or {})}
        settings = {"results": self.results, "device": "cpu", "snapshot_seconds": 0.0, **(run or {})}
        return Request(
            tuple(methods.split(",")), (str(self.csv),), ("test_resnet",), "none",
            preset="smoke", overrides=sections, run=RunConfig(**settings), **changes,
        )  # fmt: skip

    def plan(self, methods: str, **changes) -> tuple[Planner, Plan]:
        planner = Planner(self.request(methods, **changes))
        return planner, planner.build()

    def run(self, methods: str, **changes) -> tuple[Plan, PlanOutcome]:
        planner, plan = self.plan(methods, **changes)
        todo = [s for s in plan.stages.values() if not self.store.is_done(s.key)]
        if todo:
            preflight(todo, planner)
        return plan, execute(plan, planner.request.run, planner.open_datasets, lambda event: None)
