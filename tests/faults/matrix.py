"""A tiny matrix as one types it, and what it leaves: what must be equal, bit for bit, whatever happened on the way."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmark.conftest import TINY
from tests.faults.warm import Bench, Job
from wsolbench.benchmark.core.files import read_npz

METHODS = "layercam,pixelcam"  # 2 trainings, teacher maps, an explainer, scores of validation and test
SETTINGS = {
    **{f"train.{k}": v for k, v in TINY.items()}, "protocol.size": 64, "run.snapshot_seconds": 0, "run.score_batch": 8,
}  # fmt: skip
LONG = {"train_epochs": 12}  # enough to meet a training in its middle
TWO_CORES = {**os.environ, "LOKY_MAX_CPU_COUNT": "2"}  # each of two workers has one thread, as the reference
# What may differ between two runs that did the same: time and memory, who did it, and the state of the checkout.
VOLATILE = re.compile(
    r"(seconds|times|images_per_second|ms_per_image|peak_memory_mb|environment|worker|cost)(_\w+)?|versions"
)


class Matrix:
    """`bench run` on the blobs, through the warm command line."""

    def __init__(self, bench: Bench, csv: Path) -> None:
        self.bench, self.csv = bench, csv

    def words(self, results: Path, *more: object, methods: str = METHODS, **settings: object) -> list[str]:
        """The command; settings: `train_epochs=5` for `--set train.epochs=5`."""
        changed = {k.replace("_", ".", 1): v for k, v in settings.items()}
        sets = [f"--set={k}={v}" for k, v in {**SETTINGS, **changed}.items()]
        return [
            "run", "--methods", methods, "--datasets", str(self.csv), "--backbones", "test_resnet", "--weights", "none",
            "--preset", "smoke", "--results", str(results), "--device", "cpu", *sets, *map(str, more),
        ]  # fmt: skip

    def start(self, results: Path, *more: object, inject: str = "", **changes: Any) -> Job:
        """Starts the command."""
        return self.bench.start(*self.words(results, *more, **changes), inject=inject)

    def run(self, results: Path, *more: object, inject: str = "", **changes: Any) -> Any:
        """Runs the command to its end, as subprocess.run does."""
        return self.bench(*self.words(results, *more, **changes), inject=inject)

    def rows(self, results: Path, **changes: Any) -> list[dict[str, Any]]:
        """What `bench run --json` prints; it must succeed."""
        done = self.run(results, "--json", **changes)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def contents(results: Path) -> dict[str, dict[str, Any]]:
    """Everything a results folder holds of its finished stages, without what may differ: name -> value, by stage.

    Arrays with type, shape and bytes; the weights files that the record names by their hash; the curve of a training.
    """
    found = {}
    for path in sorted((results / "runs").glob("*/record.json")):
        folder, record = path.parent, json.loads(path.read_text())
        assert record["key"] == folder.name
        names = {r["weights"] for r in record.get("roles", {}).values()}
        found[folder.name] = {
            "record": steady(record),
            **{p.name: arrays(p) for p in sorted(folder.glob("*.npz"))},
            **{n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in sorted(names)},
            **({"history": history(folder)} if record["kind"] == "train" else {}),
        }
    return found


def arrays(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> type, shape and bytes of the arrays of a file."""
    return {n: (str(a.dtype), a.shape, np.ascontiguousarray(a).tobytes()) for n, a in read_npz(path).items()}


def history(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a training without their times."""
    return [steady(json.loads(line)) for line in (folder / "history.jsonl").read_text().splitlines()]


def steady(value: Any) -> Any:
    """A JSON value without the fields that may differ."""
    if isinstance(value, Mapping):
        return {k: steady(v) for k, v in value.items() if not VOLATILE.fullmatch(k)}
    return [steady(v) for v in value] if isinstance(value, list) else value


def inodes(results: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every record: a stage that is done again gets others."""
    found = {}
    for path in (results / "runs").glob("*/record.json"):
        status = path.stat()
        found[path.parent.name] = (status.st_ino, status.st_mtime_ns)
    return found


def leftovers(results: Path) -> list[str]:
    """Temporary files anywhere in a results folder."""
    return sorted(str(p.relative_to(results)) for p in results.rglob("*.tmp"))
