"""Stopped between epochs, a training goes on with the same bits; kills of the real command are in tests/faults."""

import json
from pathlib import Path

import pytest

from wsolbench.benchmark.core.files import read_npz
from wsolbench.benchmark.training import trainer as training


def arrays(results: Path) -> dict[str, dict[str, bytes]]:
    """All stored scores and histories without timings, by stage."""
    found = {}
    for path in sorted((results / "runs").glob("*/scores.npz")):
        found[path.parent.name] = {n: a.tobytes() for n, a in read_npz(path).items()}
    for path in sorted((results / "runs").glob("*/history.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = {"history": json.dumps([{**x, "seconds": 0} for x in lines]).encode()}
    return found


class StopHereError(Exception):
    pass


@pytest.mark.slow  # tests/faults/test_stop.py stops at every step
@pytest.mark.parametrize(("method", "epoch"), [("cam", 0), ("pixelcam", 1), ("cam", 3)])
def test_stopped_after_any_epoch(world, tmp_path, monkeypatch, method, epoch):
    world.run(method, overrides={"train": {"epochs": "4"}})
    expected = arrays(world.results)
    world.results = tmp_path / "stopped"
    honest = training.run_epoch

    def stop(job, optimizer, scaler, at, restore):
        if at.epoch == epoch + 1 and len(arrays(world.results)) >= (method == "pixelcam"):
            raise StopHereError
        return honest(job, optimizer, scaler, at, restore)

    monkeypatch.setattr(training, "run_epoch", stop)
    _, outcome = world.run(method, overrides={"train": {"epochs": "4"}})
    assert outcome.failed
    monkeypatch.setattr(training, "run_epoch", honest)
    _, outcome = world.run(method, overrides={"train": {"epochs": "4"}})
    assert outcome.exit_code == 0
    assert arrays(world.results) == expected


@pytest.mark.slow
def test_a_damaged_snapshot_falls_back_to_the_one_before(world, tmp_path, monkeypatch, caplog):
    world.run("cam", overrides={"train": {"epochs": "5"}})
    expected = arrays(world.results)
    world.results = tmp_path / "damaged"
    honest = training.run_epoch

    def stop(job, optimizer, scaler, at, restore):
        if at.epoch == 4:
            raise StopHereError
        return honest(job, optimizer, scaler, at, restore)

    monkeypatch.setattr(training, "run_epoch", stop)
    plan, _ = world.run("cam", overrides={"train": {"epochs": "5"}})
    monkeypatch.setattr(training, "run_epoch", honest)
    folder = world.store.run_dir(plan.kinds("train")[0].key) / "resume"
    newest = folder / json.loads((folder / "state.json").read_text())["file"]
    newest.write_bytes(newest.read_bytes()[:-100])
    _, outcome = world.run("cam", overrides={"train": {"epochs": "5"}})
    assert outcome.exit_code == 0
    assert "is not used" in caplog.text
    assert arrays(world.results) == expected
