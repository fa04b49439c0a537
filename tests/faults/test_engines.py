"""Engines: the rows of one process on any of them, also when one of its workers is killed in the middle."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.matrix import LONG, TWO_CORES, Matrix, contents, leftovers
from tests.faults.warm import Job
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.execution import parallel_backends
from wsolbench.benchmark.execution.parallel_backends import open_backend
from wsolbench.benchmark.planning.config import RunConfig

DONE = re.compile(r"^(?:\[[^\]]*\] )?train (\S+) .*: [\d.]+ s, ", re.MULTILINE)
SLOW = pytest.mark.slow


def start(matrix: Matrix, results: Path, *more: object, **env: str) -> Job:
    """The command, with a relative path as people type it; workers elsewhere have another working folder."""
    words = matrix.words(Path(results.name), *more, **LONG)
    return matrix.bench.start(*words, env={**TWO_CORES, **env}, cwd=results.parent)


def training(results: Path) -> int:
    """The process that is in the middle of a training now, 0 if none is."""
    for path in results.glob("progress/*/*.jsonl"):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        last = events[-1] if events else {}
        if last.get("kind") == "train" and 3 <= last["epoch"] < last["epochs"] - 2:
            return int(path.stem.rpartition("-")[2])
    return 0


def kill_one(job: Job, results: Path) -> int:
    """Kills the worker of a training in its middle."""
    until = time.monotonic() + 200
    while time.monotonic() < until and job.poll() is None:
        if pid := training(results):
            os.kill(pid, signal.SIGKILL)
            return pid
        time.sleep(0.01)
    raise AssertionError(f"nobody was found in the middle of a training: {job.stderr}")


def check_whole(job: Job, results: Path, long_reference: dict) -> None:
    """Everything is there, equal to the reference, and no training came to its end twice."""
    assert job.wait() == 0, job.stderr
    assert contents(results) == long_reference
    assert Counter(DONE.findall(job.stderr)) == {"classifier": 1, "pixelcam": 1}
    assert not leftovers(results)
    assert not list(results.glob("locks/*.lease"))
    assert not (results / "progress").exists()


@pytest.mark.parametrize("backend", ["loky", pytest.param("dask", marks=SLOW), pytest.param("ray", marks=SLOW)])
def test_a_killed_worker_is_replaced(matrix, tmp_path, long_reference, backend):
    job = start(matrix, tmp_path / "r", "--backend", backend, "--jobs", 2)
    dead = kill_one(job, tmp_path / "r")
    check_whole(job, tmp_path / "r", long_reference)
    workers = {e["record"]["kind"]: e for e in contents(tmp_path / "r").values()}
    assert set(workers) == {"train", "maps", "score"}
    records = [json.loads(p.read_text()) for p in (tmp_path / "r").glob("runs/*/record.json")]
    assert {r["worker"]["pid"] for r in records} - {dead}, "somebody else went on"
    assert job.pid not in {r["worker"]["pid"] for r in records}, "stages must run in workers, not in the command"


@SLOW
@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_rows_do_not_depend_on_the_engine(matrix, tmp_path, long_reference, backend):
    job = start(matrix, tmp_path / "r", "--backend", backend, "--jobs", 2)
    check_whole(job, tmp_path / "r", long_reference)
    assert "WARNING" not in job.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop_all(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(30)


@SLOW
@pytest.mark.parametrize("by_file", [False, True], ids=["address", "scheduler file"])
def test_a_running_dask_cluster(matrix, tmp_path, long_reference, by_file):
    """Scheduler and two workers as a cluster has them, started by others; one worker has four threads."""
    address, file = f"tcp://127.0.0.1:{free_port()}", tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-dashboard", "--memory-limit", "0"]
    opened = [
        subprocess.Popen([*dask, "--host", address, "--no-dashboard", "--scheduler-file", str(file)], env=TWO_CORES),
        *(subprocess.Popen([*worker, "--nthreads", n], env=TWO_CORES, cwd="/") for n in ("1", "4")),
    ]
    try:
        where = file if by_file else address
        while by_file and not file.is_file():
            time.sleep(0.1)
        job = start(matrix, tmp_path / "r", "--backend", "dask", "--scheduler", where)
        kill_one(job, tmp_path / "r")
        check_whole(job, tmp_path / "r", long_reference)
    finally:
        stop_all(opened)


@SLOW
def test_a_running_ray_cluster(matrix, tmp_path, long_reference):
    address = f"127.0.0.1:{free_port()}"
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    port = ["--port", address.rpartition(":")[2], "--include-dashboard", "false", "--num-cpus", "2"]
    environment = {**TWO_CORES, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    subprocess.run([*ray, "start", "--head", "--node-ip-address", "127.0.0.1", *port], check=True, env=environment)
    try:
        job = start(matrix, tmp_path / "r", "--backend", "ray", "--scheduler", address, RAY_AUTH_MODE="disabled")
        check_whole(job, tmp_path / "r", long_reference)
    finally:
        subprocess.run([*ray, "stop", "--force"], check=True, env=environment)


@pytest.mark.parametrize("backend", ["dask", pytest.param("ray", marks=SLOW)])
def test_a_cluster_that_is_not_there(monkeypatch, backend):
    monkeypatch.setattr(parallel_backends, "CONNECT_SECONDS", 0.5)
    monkeypatch.setenv("RAY_gcs_server_request_timeout_seconds", "1")
    address = f"127.0.0.1:{free_port()}"
    run = RunConfig(backend=backend, scheduler=f"tcp://{address}" if backend == "dask" else address)
    with pytest.raises(BenchError, match=rf"--scheduler \S*{address} cannot be reached"), open_backend(run):
        pass


def test_words_about_engines(monkeypatch):
    with pytest.raises(BenchError, match="Did you mean dask"), open_backend(RunConfig(backend="dusk")):
        pass
    with pytest.raises(BenchError, match="add --backend dask or ray"):
        RunConfig(scheduler="tcp://node:8786")
    monkeypatch.setitem(parallel_backends.PACKAGES, "ray", "a_package_nobody_has")
    with pytest.raises(BenchError, match=r"pip install 'wsolbench\[ray\]'"), open_backend(RunConfig(backend="ray")):
        pass


FATAL = '''"""A method that takes its process along."""
import os
import signal
from wsolbench.methods.base import register

@register("fatal", family="test", needs=("checkpoint:classifier",))
def fatal(evidence, options):
    """Dies."""
    os.kill(os.getpid(), signal.SIGKILL)
'''


@SLOW
def test_a_stage_that_kills_its_worker_fails_alone(matrix, tmp_path):
    """As the system does to what takes too much memory: others finish, it is tried again alone and then given up."""
    (tmp_path / "fatal.py").write_text(FATAL)
    methods = f"cam,{tmp_path / 'fatal.py'},random"
    done = matrix.bench(*matrix.words(tmp_path / "r", "--jobs", 2, methods=methods), env=TWO_CORES)
    assert done.returncode == 1, done.stderr
    assert "A worker died" in done.stderr
    assert "lower run.score_batch" in done.stderr
    assert "Traceback (most recent" not in done.stderr
    rows = {(e["record"]["labels"]["method"], e["record"]["kind"]) for e in contents(tmp_path / "r").values()}
    assert ("random", "score") in rows
    assert ("fatal", "score") not in rows
