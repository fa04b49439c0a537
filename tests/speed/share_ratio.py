"""Seven methods in one command against the same seven, each alone with nothing shared: wall time of the real command.

One side is `bench run --methods cam,…,pixelcam` into a fresh results folder. The other side is seven commands of one
method each, every one into a fresh folder of its own, so that it decodes, trains its own teacher and scores by itself.
Demo data, preset smoke. Both sides must give the same rows, digit for digit, and the shared side must train exactly
what is distinct. The seven take minutes, therefore one round unless asked.

usage: python tests/speed/share_ratio.py [--rounds 1] [--epochs 0] [--jobs 1] [--device auto] [--json]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rows import Row, show

from wsolbench.benchmark.core.results_store import Store

METHODS = ("cam", "layercam", "gradcampp", "deepmil", "negev", "fcam", "pixelcam")
MAIN = "import sys; from wsolbench.benchmark.cli import main; main(sys.argv[1:])"
TIMES = ("seconds_train", "seconds_parents", "seconds_score", "versions")  # all else of a row must be equal


@dataclass(frozen=True)
class Side:
    """What one side did. seconds: wall time by command; cpu: processor seconds of all of them; stages: seconds inside
    each stage by kind and name."""

    seconds: Mapping[str, float]
    cpu: float
    rows: Mapping[str, Mapping[str, Any]]
    trainings: Sequence[str]
    stages: Mapping[str, float]

    @property
    def total(self) -> float:
        """Wall seconds of all its commands."""
        return sum(self.seconds.values())


def bench(*words: str) -> str:
    """The real command in a process of its own; its output."""
    return subprocess.run([sys.executable, "-c", MAIN, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def cpu_seconds() -> float:
    """Processor seconds of all finished child processes: other work on the machine moves them less than wall time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def command(methods: Sequence[str], data: Path, results: Path, options: argparse.Namespace) -> list[str]:
    """`bench run` of some methods into a folder."""
    return [
        "run", "--methods", ",".join(methods), "--datasets", "glas", "--data-root", str(data), "--json",
        "--backbones", options.backbone, "--weights", "none", "--preset", "smoke", "--device", options.device,
        "--jobs", str(options.jobs), "--results", str(results),
        *(("--set", f"train.epochs={options.epochs}") if options.epochs else ()),
    ]  # fmt: skip


def run(groups: Sequence[Sequence[str]], data: Path, place: Path, options: argparse.Namespace) -> Side:
    """Runs groups of methods one after the other, each into its own fresh folder."""
    seconds: dict[str, float] = {}
    rows: dict[str, Mapping[str, Any]] = {}
    trainings: list[str] = []
    stages: dict[str, float] = {}
    before = cpu_seconds()
    for group in groups:
        name = ",".join(group)
        folder = place / name
        began = time.perf_counter()
        text = bench(*command(group, data, folder, options))
        seconds[name] = time.perf_counter() - began
        rows |= {r["stage"]: {k: v for k, v in r.items() if k not in TIMES} for r in json.loads(text)}
        for key, record in Store(folder).records().items():
            kind = record["kind"]
            what = f"{kind} {record['labels']['method']}" if kind == "train" else kind
            stages[what] = stages.get(what, 0.0) + record["seconds"]
            trainings += [key] if kind == "train" else []
        print(f"{name}: {seconds[name]:.1f} s", file=sys.stderr, flush=True)
    return Side(seconds, cpu_seconds() - before, rows, trainings, stages)


def distinct_trainings(data: Path, place: Path, options: argparse.Namespace) -> int:
    """How many trainings the plan of all methods holds."""
    words = command(METHODS, data, place / "plan", options)
    return json.loads(bench(*words, "--dry-run"))["trainings"]


def row_of(shared: Sequence[Side], alone: Sequence[Side], distinct: int, options: argparse.Namespace) -> Row:
    """The ratio, and whether both sides agree."""
    one, many = shared[0], alone[0]
    equal = one.rows == many.rows and len(one.rows) > 0
    counted = sorted(one.trainings) == sorted(set(many.trainings)) and len(one.trainings) == distinct
    seconds = {
        "shared": statistics.median(s.total for s in shared),
        "one by one": statistics.median(s.total for s in alone),
    }
    cpu = statistics.median(s.cpu for s in shared), statistics.median(s.cpu for s in alone)
    parts = {"shared: processor": cpu[0], "one by one: processor": cpu[1]} | {
        f"shared: {k}": v for k, v in one.stages.items()
    }
    parts["shared: rest (start, decode, evaluate, tables)"] = one.total - sum(one.stages.values())
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    return Row(
        what=f"{len(METHODS)} methods in one command",
        peer="one by one, nothing shared (times faster)",
        ratio=seconds["one by one"] / seconds["shared"],
        reach=">= 2.0",
        seconds=seconds | parts,
        conditions={
            "device": options.device, "threads": threads, "backbone": options.backbone, "size": 96, "batch": 16,
            "epochs": options.epochs or "20, two-step 10", "jobs": options.jobs, "rounds": len(shared),
            "data": "synthetic GlaS, 64 + 20",
        },
        note=f"{len(one.trainings)} trainings of {distinct} distinct ones, {len(many.trainings)} one by one; "
        f"{len(one.rows)} rows {'equal' if equal else 'DIFFERENT'} on both sides; "
        f"in processor time {cpu[1] / cpu[0]:.2f}",
        holds=equal and counted,
    )  # fmt: skip


def main() -> None:
    """Prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet10t")
    parser.add_argument("--epochs", type=int, default=0, help="0: those of the preset")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place, data = Path(folder), Path(folder) / "data"
        bench("data", "synth", "--datasets", "glas", "--out", str(data))
        distinct = distinct_trainings(data, place, options)  # also brings the libraries into the page cache
        shared, alone = [], []
        for round_ in range(options.rounds):
            shared.append(run([METHODS], data, place / f"shared{round_}", options))
            alone.append(run([(m,) for m in METHODS], data, place / f"alone{round_}", options))
        show(row_of(shared, alone, distinct, options), options.json)


if __name__ == "__main__":
    main()
