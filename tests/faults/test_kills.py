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

QUICK = (
    Point("pwritten", r"images-36\.bin$", 7),
    Point("cut", r"images-\d+\.idx$"),
    Point("opened", r"history\.jsonl$", 3, b'{"epoch": 1, "los'),
    Point("half", r"resume/\d+\.safetensors$"),
    Point("renamed", r"resume/\d+\.safetensors$"),  # the tensors have their name, the state does not know them
    Point("half", r"resume/state\.json$"),
    Point("renamed", r"resume/state\.json$"),
    Point("renamed", r"resume/state\.previous\.json$"),  # two states of one epoch
    Point("unlinked", r"\.safetensors$"),
    Point("half", r"record\.json$"),
    Point("renamed", r"record\.json$"),  # finished, but for what is no longer needed
    Point("opened", r"images-32\.bin$", 3),  # in the second batch of a pass
    Point("renamed", r"maps\.npz$"),  # arrays without a record
    Point("renamed", r"/examples/[^/]+\.npz$"),  # pictures that several stages share
    Point("renamed", r"scores\.npz$", 2),  # one stage of a pass is finished, one half, others not at all
)
POINTS = (
    *QUICK,
    Point("made", r"file-hashes\.json$"),
    Point("half", r"file-hashes\.json$"),
    Point("written", r"file-hashes\.json$"),
    Point("flushed", r"images-\d+\.bin$"),  # the data are there, their lines are not
    Point("flushed", r"masks-\d+\.bin$"),
    Point("half", r"/epoch-\d+\.safetensors$"),
    Point("written", r"resume/\d+\.safetensors$"),
    Point("half", r"resume/state\.previous\.json$"),
    Point("written", r"resume/state\.json$"),
    Point("made", r"record\.json$"),
    Point("written", r"record\.json$"),
    Point("written", r"record\.json$", 2),
    Point("half", r"maps\.npz$"),
    Point("half", r"scores\.npz$"),
    Point("half", r"/examples\.npz$"),
    Point("written", r"rows\.json$"),
)


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


@pytest.mark.slow
def test_killed_at_one_point_after_another(matrix, reference, tmp_path):
    killed_at_all(matrix, reference, tmp_path / "results", QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS, ids=str)
def test_killed_at_one_point(matrix, reference, tmp_path, point):
    killed_at_all(matrix, reference, tmp_path / "results", [point])


# -- at random -------------------------------------------------------------------------------------------------------
class Hunt:
    """Kills a command at random moments, one after the other; what is told in the end is how many kills did no harm."""

    def __init__(self, matrix: Matrix, reference: Reference, seed: int, *words: object) -> None:
        self.matrix, self.reference, self.words = matrix, reference, words
        self.random = random.Random(seed)
        self.landed, self.tried, self.survived = 0, 0, 0
        self.phases: Counter[str] = Counter()

    def shoot(self, results: Path, whole: bool = True) -> bool:
        """Starts the command and kills it at a random moment; whether that ended it. whole: its workers too.

        The moment is counted from the start or from one of the first lines it prints, so that a busy machine, on which
        all takes longer, is shot at in the same places.
        """
        self.tried += 1
        before, lines, delay = inodes(results), self.random.randint(0, 6), self.random.uniform(0, 0.3)
        job = self.matrix.start(results, *self.words)
        while job.stderr.count("\n") < lines and job.poll() is None:
            time.sleep(0.002)
        until = time.monotonic() + delay
        while time.monotonic() < until and job.poll() is None:
            time.sleep(0.002)
        landed = job.kill(whole)
        gone = time.monotonic() + (1 if whole else 30)  # workers whose command died alone may end their step
        while job.members() and time.monotonic() < gone:
            time.sleep(0.02)
        assert job.members() == [], "a worker outlived its command"
        assert before.items() <= inodes(results).items(), "a finished stage was done again"
        assert contents(results).items() <= self.reference.contents.items(), "a finished stage is wrong"
        if landed:
            self.landed += 1
            self.phases[phase(job.stderr)] += 1
        else:
            assert job.wait() == 0, job.stderr
        return landed

    def live(self, results: Path, most: int, whole: bool = True) -> None:
        """A results folder from nothing to the end: up to so many kills, then the same command gives the reference."""
        landed = 0
        while landed < most and self.shoot(results, whole):
            landed += 1
        done = self.matrix.run(results, *self.words)
        assert done.returncode == 0, done.stderr
        equals(results, self.matrix, self.reference)
        self.survived += landed

    def tell(self) -> str:
        phases = ", ".join(f"{n} {name}" for name, n in self.phases.most_common())
        return f"{self.survived} of {self.landed} kills survived ({self.tried} commands): {phases}"


def phase(said: str) -> str:
    """What a killed run was doing, by the last line it printed."""
    lines = [line.rpartition("] ")[2] for line in said.splitlines() if line and not line.startswith("note: ")]
    if not lines or "stages to do" in lines[-1] or lines[-1].startswith("Stages run on"):
        return "planning" if not lines else "reading images, starting"
    return {"train": "training", "score": "scoring", "maps": "teacher maps"}.get(lines[-1].split()[0], "between stages")


def test_five_random_kills(matrix, reference, tmp_path):
    """Each command goes on from where the one before was killed, so that the kills spread over the whole run."""
    hunt = Hunt(matrix, reference, seed=0)
    for life in range(10):
        if hunt.landed < 5:
            hunt.live(tmp_path / str(life), 5 - hunt.landed)
    print(hunt.tell())
    assert hunt.survived == hunt.landed == 5, hunt.tell()
    assert len(hunt.phases) > 1, hunt.tell()


@pytest.mark.slow
def test_fifty_random_kills(matrix, reference, tmp_path):
    hunt = Hunt(matrix, reference, seed=1)
    for life in range(50):
        if hunt.landed < 50:  # a few kills a life, so that they reach its end
            hunt.live(tmp_path / str(life), min(8, 50 - hunt.landed))
    print(hunt.tell())
    assert hunt.survived == hunt.landed == 50, hunt.tell()
    assert len(hunt.phases) > 2, hunt.tell()


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False], ids=["with its workers", "alone"])
def test_random_kills_of_a_command_with_workers(matrix, reference, tmp_path, whole):
    """Workers die with their command, or end by themselves soon after it, and lose nothing that is done."""
    hunt = Hunt(matrix, reference, 2, "--jobs", 2)
    for life in range(20):
        if hunt.landed < 10:
            hunt.live(tmp_path / str(life), min(5, 10 - hunt.landed), whole)
    print(hunt.tell())
    assert hunt.survived == hunt.landed == 10, hunt.tell()
    assert len(hunt.phases) > 1, hunt.tell()
