"""Killed at any moment, the same command gives the rows of an uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsolbench.benchmark import train as training
from wsolbench.benchmark.store import Store, read_npz

BENCH = [sys.executable, "-c", "from wsolbench.benchmark.cli import main; main()"]


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


def command(world, results: Path) -> list[str]:
    settings = [f"--set=train.{k}={v}" for k, v in {**world.settings, "epochs": "12"}.items()]
    return [
        *BENCH, "run", "--methods", "layercam,pixelcam", "--datasets", str(world.csv), "--backbones", "test_resnet",
        "--weights", "none", "--preset", "smoke", "--results", str(results), "--device", "cpu",
        "--set", "run.snapshot_seconds=0", *settings,
    ]  # fmt: skip


def test_sigkill_then_the_same_command(world, tmp_path):
    """The real command line, killed with SIGKILL five times at whatever it is doing, ends with the same bits."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    subprocess.run(command(world, whole), check=True, env=environment, capture_output=True)
    duration = time.monotonic() - began
    kills = 0
    for share in (0.55, 0.6, 0.7, 0.65, 0.8):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command(world, killed), env=environment, **quiet)
        try:
            process.wait(timeout=duration * share)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills, "the run was never interrupted"
    done = subprocess.run(
        [*command(world, killed), "--json"], check=True, env=environment, capture_output=True, text=True
    )
    assert arrays(killed) == arrays(whole)
    rows = [r for r in Store(whole).records().values() if r["labels"].get("split") == "test"]
    assert len(json.loads(done.stdout)) == len(rows)
    assert not list((killed / "runs").rglob("*.tmp")), "half-written files must be cleared away"


@pytest.mark.slow
def test_thirty_random_kills(world, tmp_path):
    """SIGKILL at thirty random moments, wherever the run happens to be; then the same bits as without."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    subprocess.run(command(world, whole), check=True, env=environment, capture_output=True)
    duration = time.monotonic() - began
    moments = random.Random(0)
    kills = 0
    while kills < 30:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command(world, killed), env=environment, **quiet)
        try:
            process.wait(timeout=duration * moments.uniform(0.3, 0.75))
            for path in sorted((killed / "runs").glob("*/record.json"))[-8:]:
                path.unlink()  # everything was done: undo some of it and go on killing
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    subprocess.run(command(world, killed), check=True, env=environment, capture_output=True)
    assert arrays(killed) == arrays(whole)
