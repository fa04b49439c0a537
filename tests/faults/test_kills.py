"""Promises 2 and 3: SIGKILL at any moment, the same command again, and the rows are those of an uninterrupted run.

Injected kills hit the moments that matter (see `inject`), random ones whatever the run happens to do. The result of a
run is all it stores, bit for bit: arrays, curves, weights and records without times.
"""

import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Reference
from tests.faults.inject import Point, met, text
from tests.faults.matrix import Matrix, contents, inodes, leftovers, steady


POINTS = (
    Point("made", r"file-hashes\.json$"),
    Point("half", r"file-hashes\.json$"),
    Point("written", r"file-hashes\.json$"),
    Point("pwritten", r"images-36\.bin$", 7),
    Point("flushed", r"images-\d+\.bin$"),  # the data are there, their lines are not
    Point("cut", r"images-\d+\.idx$"),
    Point("flushed", r"masks-\d+\.bin$"),
    Point("opened", r"history\.jsonl$", 3, b'{"epoch": 1, "los'),
    Point("half", r"/epoch-\d+\.safetensors$"),
    Point("half", r"resume/\d+\.safetensors$"),
    Point("written", r"resume/\d+\.safetensors$"),
    Point("renamed", r"resume/\d+\.safetensors$"),  # the tensors have their name, the state does not know them
    Point("half", r"resume/state\.json$"),
    Point("renamed", r"resume/state\.json$"),
    Point("half", r"resume/state\.previous\.json$"),
    Point("renamed", r"resume/state\.previous\.json$"),  # two states of one epoch
    Point("written", r"resume/state\.json$"),
    Point("unlinked", r"\.safetensors$"),
    Point("made", r"record\.json$"),
    Point("half", r"record\.json$"),
    Point("written", r"record\.json$"),
    Point("renamed", r"record\.json$"),  # finished, but for what is no longer needed
    Point("opened", r"images-32\.bin$", 3),  # in the second batch of a pass
    Point("half", r"maps\.npz$"),
    Point("renamed", r"maps\.npz$"),  # arrays without a record
    Point("renamed", r"/examples/[^/]+\.npz$"),  # pictures that several stages share
    Point("opened", r"history\.jsonl$", 3),  # in the training of the student
    Point("renamed", r"resume/state\.json$"),
    Point("half", r"scores\.npz$"),
    Point("renamed", r"scores\.npz$", 2),  # one stage of a pass is finished, one half, others not at all
    Point("half", r"/examples\.npz$"),
    Point("written", r"record\.json$", 2),
    Point("written", r"rows\.json$"),
)
QUICK = tuple(p for p in POINTS if p.moment not in ("made", "written") or "resume/" in p.pattern)


def equals(results: Path, matrix: Matrix, reference: Reference, **changes: Any) -> None:
    """Asserts that a folder holds what the reference holds, prints its rows, and has nothing half-written in it."""
    assert contents(results) == reference.contents
    assert steady(matrix.rows(results, **changes)) == reference.rows
    assert leftovers(results) == []


def dies(matrix: Matrix, reference: Reference, results: Path, points: Sequence[Point]) -> Point | None:
    """Runs the command until it meets one of the points, and returns that; None if it came to its end instead.

    What was finished before stays as it is, and what is finished now is right.
    """
    before = inodes(results)
    done = matrix.run(results, inject=text(points))
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    assert "Traceback" not in done.stderr
    assert before.items() <= inodes(results).items(), "a finished stage was done again"
    assert contents(results).items() <= reference.contents.items()
    return met(done.stderr) if done.returncode else None


def killed_at_all(matrix: Matrix, reference: Reference, results: Path, points: Sequence[Point]) -> None:
    """Kills the command at one point after another, in the order in which they come, until none is left."""
    left = list(points)
    while point := dies(matrix, reference, results, left):
        left.remove(point)
    assert not left, f"never came to {[str(p) for p in left]}"
    equals(results, matrix, reference)


def test_killed_at_one_point_after_another(matrix, reference, tmp_path):
    killed_at_all(matrix, reference, tmp_path / "results", QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS, ids=str)
def test_killed_at_one_point(matrix, reference, tmp_path, point):
    killed_at_all(matrix, reference, tmp_path / "results", [point])


# -- at random -------------------------------------------------------------------------------------------------------
class Hunt:
    """Kills commands at random moments, one after the other, until enough kills have landed."""

    def __init__(self, matrix: Matrix, reference: Reference, results: Path, **changes: Any) -> None:
        self.matrix, self.reference, self.results, self.changes = matrix, reference, results, changes
        self.landed, self.tried, self.survived = 0, 0, 0
        self.phases: Counter[str] = Counter()

    def shoot(self, moment: float, *more: object) -> bool:
        """Starts the command, and kills its session after so many seconds; whether that ended it."""
        self.tried += 1
        before = inodes(self.results)
        job = self.matrix.start(self.results, *more, **self.changes)
        while time.monotonic() - begun(job) < moment and job.poll() is None:
            time.sleep(0.002)
        landed = job.kill()
        assert job.members() == [], "a process outlived its session"
        assert before.items() <= inodes(self.results).items(), "a finished stage was done again"
        if not landed:
            assert job.wait() == 0, job.stderr
        else:
            self.landed += 1
            self.phases[phase(self.results, job.stderr)] += 1
            self.survived += contents(self.results).items() <= self.reference.contents.items()
        return landed

    def finish(self, *more: object) -> None:
        """The same command to its end, which gives the reference."""
        done = self.matrix.run(self.results, *more, **self.changes)
        assert done.returncode == 0, done.stderr
        equals(self.results, self.matrix, self.reference, **self.changes)

    def tell(self) -> str:
        phases = ", ".join(f"{n} {name}" for name, n in self.phases.most_common())
        return f"{self.survived} of {self.landed} kills survived ({self.tried} commands): {phases}"


def begun(job: Any) -> float:
    """When the child had left the fork behind: kills count from there."""
    return job.began


def phase(results: Path, said: str) -> str:
    """What a killed run was doing, by the last line it printed."""
    lines = [line for line in said.splitlines() if line]
    if not lines or "stages to do" in lines[-1]:
        return "planning" if not lines else "reading images"
    return {"train": "training", "score": "scoring", "maps": "teacher maps"}.get(lines[-1].split()[0], "between stages")


def test_five_random_kills(matrix, reference, tmp_path, record_property):
    """Kills spread over the run by its progress: each command goes on from the one before, so few seconds are left."""
    hunt, moments = Hunt(matrix, reference, tmp_path / "results"), random.Random(0)
    for _ in range(60):
        if hunt.landed == 5:
            break
        hunt.shoot(reference.seconds * moments.uniform(0.1, 0.5))
    hunt.finish()
    record_property("kills", hunt.tell())
    print(hunt.tell())
    assert hunt.survived == hunt.landed == 5, hunt.tell()
    assert len(hunt.phases) > 1, hunt.tell()
