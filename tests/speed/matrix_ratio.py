"""A large finished matrix: seconds to plan it and find nothing to do, and seconds to report it, over their limits.

A request of about 1,000 rows is planned on synthetic images, and the records of all its stages are made up without any
training: the records of the real stages, histograms of random scores whose counts are those of 224 px maps, random
logits and smooth random example maps. Then the real command line runs in processes of its own, alternating with
`python -c pass`. The arrays are drawn from a small stock and linked, so they are read from the disk's cache.

What a first look leaves in `cache` counts: the numbers of the rows (every `bench run` that ends leaves them) and the
figures (every report does). Without either a report is a "first report, nothing kept", with the numbers a "report after
a run", with both a "report again".

Counted are the rows, one test score each; the validation scores, trainings and teacher maps behind them come on top.

study: GlaS, 13 methods x 5 folds x 3 seeds x 2 backbones. sets: two datasets, scored on each other and on five levels
of a shift, under both protocols.

usage: python tests/speed/matrix_ratio.py [--shape study|sets|all] [--rounds 3] [--keep FOLDER] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alternate import measure
from rows import Row, show
from scipy.ndimage import gaussian_filter

from wsolbench.benchmark.cli.run import make_request
from wsolbench.benchmark.core.files import write_npz
from wsolbench.benchmark.core.metrics import BINS
from wsolbench.benchmark.core.protocols import PROTOCOLS
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.core.seeds import seed_for
from wsolbench.benchmark.data.image_cache import DecodeRequest, mask_request
from wsolbench.benchmark.planning.checkpoint_slots import selecting_maps
from wsolbench.benchmark.planning.planner import Planner
from wsolbench.benchmark.planning.stage import Plan, Stage
from wsolbench.benchmark.stages.context import StageContext, common_facts, example_rows
from wsolbench.benchmark.stages.score_stage import _evaluation_facts, _synthetic, _write_pictures
from wsolbench.datasets.base import Item
from wsolbench.datasets.synthesis.synthetic import WRITERS

NAMES = {
    "plan": "bench run of a finished matrix", "plan, numbers not kept": "bench run of a finished matrix, nothing kept",
    "report, first": "first report, nothing kept",
    "report, after a run": "report after a run (numbers of rows kept, nothing drawn)", "report, again": "report again",
}  # fmt: skip
LIMITS = {"plan": 2.0, "report": 8.0}  # seconds
SIDE, VARIANTS, EXAMPLES = 224, 8, 256  # px; sets of arrays and of example maps in stock
TRAIN, TEST, PX = 85, 80, 64  # images as in GlaS, small


@dataclass(frozen=True)
class Shape:
    """One matrix: what is typed after `bench run`, without folders."""

    datasets: str
    words: dict[str, str]


SHAPES = {
    "study": Shape(
        "glas",
        {
            "methods": "cam,gradcam,gradcampp,xgradcam,layercam,deepmil,pixelcam,negev,fcam,twostep,unet,"
            "constant,darkness",
            "folds": "0,1,2,3,4", "seeds": "0,1,2", "backbones": "resnet18,resnet50",
        },
    ),
    "sets": Shape(
        "glas,camelyon16",
        {
            "methods": "cam,layercam,pixelcam,negev,unet,constant,random", "seeds": "0,1", "protocols": "fair,paper",
            "ood": "all,jpeg",
        },
    ),
}  # fmt: skip


@dataclass
class Forge:
    """Makes up what finished stages leave behind."""

    ctx: StageContext
    stock: Path
    folds: int

    def all(self, plan: Plan) -> None:
        """Every stage of a plan."""
        makers = {"train": self.train, "maps": self.maps, "score": self.score}
        for stage in plan.stages.values():
            self.ctx.store.run_dir(stage.key).mkdir(parents=True, exist_ok=True)
            makers[stage.kind](stage)

    def train(self, stage: Stage) -> None:
        """A training's record and history; no weights, as nothing here reads them."""
        ref, config = stage.inputs.method, stage.inputs.config
        rng, lines = np.random.default_rng(int(stage.key[:8], 16)), []
        names = [f"{p}/{m}" for p in PROTOCOLS for m in selecting_maps(ref)] if ref.spec.kind != "none" else []
        names = names or [f"{p}/{m}" for p in PROTOCOLS for m in ref.spec.selects]
        for epoch in range(config.epochs + 1):
            value = 60 + 30 * (1 - np.exp(-4 * epoch / config.epochs))
            entry: dict[str, Any] = {"epoch": epoch, "val": {"accuracy": value + rng.normal(), "loss": 1 / value}}
            entry["valpx"] = {n: {"pxap": value + rng.normal(), "dice_at_half": value / 2} for n in names}
            if epoch:
                entry.update(lr=config.lr, seconds=1.0, images=67, losses={"total": 9 / value, "ce": 5 / value})
            lines.append(json.dumps(entry))
        (self.ctx.store.run_dir(stage.key) / "history.jsonl").write_text("\n".join(lines) + "\n")
        role = {"epoch": config.epochs, "value": 90.0, "weights": "epoch.safetensors", "sha256": stage.key * 3}
        roles = {f"cl/{p}": role for p in PROTOCOLS} | {"last": role} | {f"loc/{n}": role for n in names}
        manifest = self.ctx.manifest(stage.inputs.experiment)
        more = {"roles": roles, "epochs": config.epochs, "seconds": 100 + rng.random(), "images_per_second": 80.0}
        size = {"parameters": 11_177_538, "peak_memory_mb": 900.0}
        self.ctx.store.finish(stage.key, {**common_facts(stage, self.ctx, manifest), **more, **size})

    def maps(self, stage: Stage) -> None:
        """The record of a set of teacher maps; the maps are read by trainings alone."""
        facts = common_facts(stage, self.ctx, self.ctx.manifest(stage.inputs.experiment))
        self.ctx.store.finish(stage.key, {**facts, "seconds": 1.0, "epoch": 9})

    def score(self, stage: Stage) -> None:
        """A score's arrays, example maps and record, as `score.py` writes them."""
        on, split = stage.inputs.on, stage.labels["split"]
        manifest, spec, folder = self.ctx.manifest(on), stage.inputs.method.spec, self.ctx.store.run_dir(stage.key)
        items = manifest.split("valpx" if split == "val" else "test")
        variant, trained = int(stage.key[:8], 16) % VARIANTS, stage.inputs.source_model is not None
        what = (on.dataset, on.fold, split, spec.kind != "none", trained, variant)
        self._link("-".join(map(str, what)), folder / "scores.npz", lambda: self._arrays(items, manifest.card, what))
        stem, common = "", common_facts(stage, self.ctx, manifest)
        if split == "test":
            shown = [items[row] for row in example_rows(items)]
            size = stage.inputs.protocol.size
            self.ctx.images(on).prepare([DecodeRequest(tuple(shown), size), mask_request(shown, size)])
            stem = _write_pictures(stage, self.ctx, shown)
            if spec.kind != "none":
                number = int(stage.key[:8], 16) % (EXAMPLES // self.folds)
                name = f"examples-{on.dataset}-{on.fold}-{number}"
                self._link(name, folder / "examples.npz", lambda: self._examples(shown, number))
        facts = {
            **common["facts"], "parameters": 11_177_538 if trained else 0, "epoch": 7 if trained else None,
            "weights_sha256": stage.key * 3 if trained else "", "left_unshifted": [], "kind": spec.kind,
            "classes": list(manifest.card.classes), "region_classes": list(manifest.card.region_classes),
            "foreground": manifest.card.foreground, "group": manifest.card.group,
            "evaluation": _evaluation_facts(stage, self.ctx, None), "licence": manifest.card.licence,
            "images": len(items), "synthetic": _synthetic(stage, self.ctx), "degenerate": 0, "family": spec.family,
            "examples": stem,
        }  # fmt: skip
        self.ctx.store.finish(stage.key, {**common, "seconds": 3.1, "facts": facts})

    def _link(self, name: str, path: Path, make: Any) -> None:
        source = self.stock / f"{name}.npz"
        if not source.is_file():
            write_npz(source, make())
        os.link(source, path)

    def _arrays(self, items: list[Item], card: Any, what: tuple[Any, ...]) -> dict[str, np.ndarray]:
        *_, with_maps, trained, variant = what
        rng = np.random.default_rng(seed_for("matrix", *map(str, what)))
        labels = np.array([i.label for i in items], np.int64)
        logits = rng.normal(0, 1, (len(items), len(card.classes))) + 2 * np.eye(len(card.classes))[labels]
        counts = np.zeros((2, len(items), 0), np.uint16)
        if with_maps:
            share = [np.random.default_rng(seed_for("share", i.id)).uniform(0.1, 0.7) for i in items]
            inside = (np.array(share) * np.array(card.region_classes)[labels] * SIDE**2).astype(int)
            x = (np.arange(BINS) + 0.5) / BINS
            pick = [x ** (1 + 0.2 * variant) * (1 - x) ** 0.5, x**0.5 * (1 - x) ** (1 + 0.3 * variant)]
            pixels = (inside, SIDE**2 - inside)
            counts = np.stack([rng.multinomial(n, p / p.sum()) for n, p in zip(pixels, pick, strict=True)])
        return {
            "ids": np.array([i.id for i in items]), "labels": labels, "groups": np.array([i.group for i in items]),
            "logits": np.where(trained, logits, np.nan).astype(np.float32), "scale": np.array([0.0, 1.0]),
            "foreground": counts[0].astype(np.uint16), "background": counts[1].astype(np.uint16),
        }  # fmt: skip

    def _examples(self, items: list[Item], variant: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed_for("examples", variant))
        smooth = gaussian_filter(rng.normal(0, 1, (len(items), SIDE, SIDE)), (0, 12, 12))
        return {"ids": np.array([i.id for i in items]), "maps": (1 / (1 + np.exp(-30 * smooth))).astype(np.float16)}


def forge(folder: Path, shape: Shape) -> tuple[list[str], Plan]:
    """Synthetic images and a finished matrix in a folder; the words after `bench` that ask for it, and its plan."""
    for name in shape.datasets.split(","):
        WRITERS[name](folder / "data", train=TRAIN, test=TEST, size=PX)
    typed = {"datasets": shape.datasets, **shape.words, "data_root": folder / "data", "results": folder / "results"}
    planner = Planner(make_request(dict(typed), (), None))
    plan = planner.build()
    os.fsync = lambda _: None  # made-up results need not survive a power cut
    ctx = StageContext(planner.request.run, planner.open_datasets)
    Forge(ctx, folder / "stock", len(planner.request.folds)).all(plan)
    option = {"protocols": "protocol", "data_root": "data-root"}
    return ["run", *(w for k, v in typed.items() for w in (f"--{option.get(k, k)}", str(v)))], plan


def bench(words: list[str]) -> str:
    """What the command line prints; raises where it fails."""
    command = [str(Path(sys.executable).with_name("bench")), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def rows_of(name: str, folder: Path, rounds: int) -> list[Row]:
    """The ratios of one matrix."""
    results = folder / "results"
    again, plan = forge(folder, SHAPES[name])
    if "Nothing to do" not in bench(again):
        raise RuntimeError("the made-up matrix is not finished")

    def unkept(words: list[str], *kept: str) -> None:
        for file in kept:
            (results / "cache" / file).unlink(missing_ok=True)
        bench(words)

    report = ["report", "--results", str(results)]
    sides = {
        "python": lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
        "plan, numbers not kept": lambda: unkept(again, "rows.json"),
        "plan": lambda: bench(again),
        "report, first": lambda: unkept(report, "rows.json", "figures.json"),
        "report, after a run": lambda: unkept(report, "figures.json"),
        "report, again": lambda: bench(report),
    }
    seconds = measure(sides, rounds, torch.device("cpu"))
    page = results / "report" / "index.html"
    shared = {
        "shape": name, "rows": len(plan.rows), "stages": len(plan.stages), "records": len(Store(results).records()),
        "test images": TEST, "cores": os.cpu_count(), "rounds": rounds,
    }  # fmt: skip
    seen = {
        "page MB": round(page.stat().st_size / 1e6, 1),
        "figures": len(list((page.parent / "figures").glob("*.png"))),
    }
    found = []
    for side in sides:
        kind = side.partition(", ")[0]
        if kind in LIMITS:
            times = {"seconds": seconds[side], "limit": LIMITS[kind], "python -c pass": seconds["python"]}
            about = {**shared, **(seen if kind == "report" else {})}
            found.append(Row(NAMES[side], "its limit", seconds[side] / LIMITS[kind], "<= 1", times, about))
    return found


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="an empty folder to build in, kept; without it a temporary one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for name in SHAPES if options.shape == "all" else [options.shape]:
        with tempfile.TemporaryDirectory() as temporary:
            for row in rows_of(name, (options.keep or Path(temporary)) / name, options.rounds):
                show(row, options.json)


if __name__ == "__main__":
    main()
