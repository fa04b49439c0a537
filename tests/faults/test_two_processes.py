"""Several `bench run` on one results folder: each stage is done once, by one of them, and all of them end well."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.matrix import METHODS, contents, leftovers, steady

# Tells on stderr which record this process has given its name.
WITNESS = """
import os
honest = os.replace
def replace(source, target, **named):
    honest(source, target, **named)
    if os.path.basename(target) == "record.json":
        os.write(2, f"\\nRECORD {os.path.basename(os.path.dirname(target))}\\n".encode())
os.replace = replace
"""


def recorded(said: str) -> list[str]:
    """The stages a process finished."""
    return [line.split()[1] for line in said.splitlines() if line.startswith("RECORD ")]


def workers(results: Path) -> dict[str, int]:
    """The process that each record names as its maker."""
    found = {p.parent.name: json.loads(p.read_text()) for p in results.glob("runs/*/record.json")}
    return {key: record["worker"]["pid"] for key, record in found.items()}


def together(matrix, reference, results, count):
    jobs = [matrix.start(results, inject=WITNESS, methods=reference.methods) for _ in range(count)]
    assert [job.wait() for job in jobs] == [0] * count, "\n".join(job.stderr for job in jobs)
    done = {job.pid: recorded(job.stderr) for job in jobs}
    times = Counter(key for keys in done.values() for key in keys)
    assert times == dict.fromkeys(reference.contents, 1), "each stage once"
    assert workers(results) == {key: pid for pid, keys in done.items() for key in keys}
    assert contents(results) == reference.contents
    assert steady(matrix.rows(results, methods=reference.methods)) == reference.rows
    assert leftovers(results) == []
    for job in jobs:
        assert "Traceback" not in job.stderr
    return done


def test_two_processes_share_the_work(matrix, small, tmp_path):
    together(matrix, small, tmp_path / "results", 2)


@pytest.mark.slow
def test_four_processes_share_the_work(matrix, reference, tmp_path):
    together(matrix, reference, tmp_path / "results", 4)


def wait_for(job, words):
    """Until it has said so."""
    until = time.monotonic() + 60
    while words not in job.stderr:
        assert job.poll() is None, job.stderr
        assert time.monotonic() < until, job.stderr
        time.sleep(0.002)


SLOWLY = """
import time
import wsolbench.benchmark.training.train_step as steps
step = steps.train_step
def slow(*a, **k):
    time.sleep(0.7)
    return step(*a, **k)
steps.train_step = slow
"""


def test_one_of_two_is_killed(matrix, small, tmp_path):
    """The one that waits takes over what the dead one was doing."""
    results = tmp_path / "results"
    first = matrix.start(results, methods=small.methods, inject=SLOWLY)
    wait_for(first, "epoch 1/3")
    second = matrix.start(results, methods=small.methods)
    wait_for(second, f"process {first.pid}")  # it says whom it waits for
    assert first.kill()
    assert second.wait() == 0, second.stderr
    assert contents(results) == small.contents
    assert leftovers(results) == []


@pytest.mark.slow
def test_two_processes_with_workers_and_other_methods(matrix, reference, tmp_path):
    """Half of the stages are shared; each command does its own others."""
    results = tmp_path / "results"
    one = matrix.start(results, "--jobs", 2, methods=METHODS)
    other = matrix.start(results, "--jobs", 2, methods="cam,layercam")
    assert (one.wait(), other.wait()) == (0, 0), one.stderr + other.stderr
    found = contents(results)
    assert reference.contents.items() <= found.items()
    assert len(found) > len(reference.contents)
    assert leftovers(results) == []
