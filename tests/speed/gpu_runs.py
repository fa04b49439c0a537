"""Whole runs on a GPU, by the real command, read from their records: what only hours on a device can tell.

Training: GlaS fold 0, ResNet50 at stride 8, batch 32, the published 1,000 epochs, for the classifier, PixelCAM and
NEGEV. The ratio is an epoch in the harness (the median of its history, evaluation apart) against a bare loop of the
same network and loss on tensors that are there already. Scoring: 15,664 images of 224 px (the test set of Camelyon16)
with eight explainers in one pass, against forward passes alone over as many images.

Without CUDA nothing is taken and the rows say so; `--device cpu` with a tiny network exercises the same path.

usage: python tests/speed/gpu_runs.py [--data-root DIR] [--weights FILE] [--epochs 1000] [--results DIR] [--json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from alternate import measure
from memory_ratio import write_set
from rows import Row, show

from wsolbench.benchmark.core.device import choose_device
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.planning.config import TrainConfig
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring.build import build_method
from wsolbench.benchmark.training.trainer import autocast, make_optimizer
from wsolbench.methods.base import Batch, Method, TrainContext

TRAINED = ("classifier", "pixelcam", "negev")
EXPLAINERS = ("cam", "gradcam", "gradcampp", "xgradcam", "layercam", "hirescam", "gradcam_elementwise", "eigencam")
MAIN = "import sys; from wsolbench.benchmark.cli import main; main(sys.argv[1:])"


def bench(*words: str) -> None:
    """The real command in a process of its own; its progress goes to stderr."""
    subprocess.run([sys.executable, "-c", MAIN, *words], check=True, stdout=sys.stderr)


def run(methods: str, dataset: str, results: Path, options: argparse.Namespace, *more: str) -> dict[str, dict]:
    """Runs methods on a dataset and returns the records of the folder."""
    extra = [word for pair in options.set for word in ("--set", pair)]
    bench(
        "run", "--methods", methods, "--datasets", dataset, "--ood", "none", "--backbones", options.backbone,
        "--weights", options.weights, "--preset", "paper", "--protocol", "fair", "--device", options.device,
        "--results", str(results), *more, *extra,
    )  # fmt: skip
    return Store(results).records()


def train_rows(options: argparse.Namespace, place: Path, device: torch.device) -> list[Row]:
    """One row for each training of `TRAINED`."""
    root, data = options.data_root, "GlaS fold 0"
    if root is None:
        root, data = place / "data", "synthetic GlaS, 85 + 80 images"
        bench("data", "synth", "--datasets", "glas", "--out", str(root), "--train", "85", "--test", "80")
    results = options.results / "train" if options.results else place / "train"
    more = ("--data-root", str(root), "--folds", "0", "--set", f"train.epochs={options.epochs}")
    records = run(f"cam,{','.join(TRAINED[1:])}", "glas", results, options, *more)
    rows = []
    for key, record in records.items():
        name = record["labels"]["method"]
        if record["kind"] == "train" and name in TRAINED:
            rows.append(train_row(name, record, history_of(results, key), data, options, device))
    return sorted(rows, key=lambda r: [name in r.what for name in TRAINED], reverse=True)


def history_of(results: Path, key: str) -> list[dict[str, Any]]:
    """The epochs of a training that have a duration (epoch 0 only evaluates)."""
    lines = (Store(results).run_dir(key) / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if "seconds" in entry]


def train_row(
    name: str, record: Mapping[str, Any], history: list[dict], data: str, options: argparse.Namespace, device: Any
) -> Row:
    """The epochs of one training against its bare loop."""
    settings = record["config"]
    config = TrainConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    images = record["facts"]["images"]
    epoch = statistics.median(entry["seconds"] for entry in history)
    bare = measure({"bare": bare_epoch(name, options.backbone, config, images, device)}, options.rounds, device)["bare"]
    times = {f"whole training: {part}": s for part, s in record.get("times", {}).items()}
    return Row(
        what=f"epoch of {name} in a whole training",
        peer="a bare loop",
        ratio=epoch / bare,
        reach="<= 1.1",
        seconds={"epoch": epoch, "bare": bare, "whole training": record["seconds"], **times},
        conditions={
            **conditions(options, device), "data": data, "images": images, "size": config.image_size,
            "stride": config.stride, "batch": config.batch_size, "precision": config.precision,
            "epochs": config.epochs, "weights": Path(options.weights).name,
        },
        note=f"{images / epoch:.0f} images/s, bare {images / bare:.0f}, with evaluation "
        f"{record['images_per_second']:.0f}; peak {record['peak_memory_mb']:.0f} MB",
    )  # fmt: skip


def bare_epoch(name: str, backbone: str, config: TrainConfig, images: int, device: torch.device) -> Callable[[], None]:
    """An epoch without a harness: loss, backward pass and update on one batch that lies on the device."""
    method: Method = build_method(Resolver({}).ref(name), backbone, config, 2, 0).to(device)
    context = TrainContext(1, 9, 2, (True, True), device, torch.Generator(device).manual_seed(0))
    method.setup(context)
    method.train()
    optimizer = make_optimizer(method, config)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16" and device.type == "cuda")
    steps = -(-images // config.batch_size)
    count, size = round(images / steps), config.image_size
    source = torch.Generator().manual_seed(0)
    maps = F.interpolate(torch.rand(count, 1, 7, 7, generator=source), (size, size), mode="bilinear")[:, 0].to(device)
    pixels = torch.randn(count, 3, size, size, generator=source).to(device)
    numbers = torch.arange(count, device=device)
    batch = Batch(pixels, numbers % 2, numbers, maps)

    def epoch() -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with autocast(config.precision, device):
                loss = method.loss(batch, context)["total"]
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    return epoch


def score_row(options: argparse.Namespace, place: Path, device: torch.device) -> Row:
    """Eight explainers over many images in one pass against forward passes."""
    csv = write_set(place / "many", options.images, options.size)
    results = options.results / "score" if options.results else place / "score"
    size = ("--set", f"train.image_size={options.size}", "--set", f"train.load_size={options.size}")
    records = run(",".join(EXPLAINERS), str(csv), results, options, "--set", "train.epochs=1", *size)
    seconds, methods, peak, config = longest_pass(records)
    forward = forward_seconds(options, config, device) * options.images
    return Row(
        what=f"scoring {options.images} images with {methods} explainers, whole pass",
        peer="forward passes alone",
        ratio=seconds / forward,
        reach="",
        seconds={"pass": seconds, "forward": forward},
        conditions={
            **conditions(options, device), "size": config["image_size"], "stride": config["stride"], "batch": 32,
            "precision": "fp32", "data": "noise, half of the images without a mask",
        },
        note=f"{options.images / seconds:.0f} images/s" + (f"; peak {peak:.0f} MB" if peak else ""),
        holds=methods == len(EXPLAINERS),
    )  # fmt: skip


def longest_pass(records: Mapping[str, Mapping[str, Any]]) -> tuple[float, int, float, Mapping[str, Any]]:
    """Seconds of the pass over the test images that read most methods, their number, its peak in MB (0: not recorded),
    its settings.

    A record holds an equal part of its pass: one of as many as there are different maps.
    """
    passes: dict[int, list[Mapping[str, Any]]] = {}
    for record in records.values():
        if record["kind"] == "score" and record["labels"]["split"] == "test":
            passes.setdefault(record["facts"]["epoch"], []).append(record)
    fullest = max(passes.values(), key=lambda p: len({r["labels"]["method"] for r in p}))
    parts = {(r["labels"]["method"], r["labels"]["map_class"]): r["seconds"] for r in fullest}
    methods = {method for method, _ in parts}
    peak = max(r.get("peak_memory_mb", 0.0) for r in fullest)
    return sum(parts.values()), len(methods), peak, fullest[0]["config"]


def forward_seconds(options: argparse.Namespace, config: Mapping[str, Any], device: torch.device) -> float:
    """Seconds an image of a plain forward pass."""
    settings = TrainConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
    model = build_method(Resolver({}).ref("classifier"), options.backbone, settings, 2, 0).to(device).eval()
    images = torch.randn(32, 3, settings.image_size, settings.image_size, device=device)

    def forward() -> None:
        with torch.no_grad():
            for _ in range(options.rounds):
                model.classify(model.features(images))

    return measure({"forward": forward}, options.rounds, device)["forward"] / options.rounds / len(images)


def conditions(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What both kinds of rows depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "backbone": options.backbone}


def not_taken(why: str) -> list[Row]:
    """The rows where no device is at hand."""
    found = [Row(f"epoch of {name} in a whole training", "a bare loop", None, "<= 1.1", note=why) for name in TRAINED]
    return [*found, Row("scoring with eight explainers, whole pass", "forward passes alone", None, "", note=why)]


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder with GlaS; without it a synthetic copy is made")
    parser.add_argument("--weights", default="none", help="none, imagenet or a file")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--images", type=int, default=15664, help="test images to score")
    parser.add_argument("--size", type=int, default=224, help="their side in px")
    parser.add_argument("--results", type=Path, help="keep the results here; the same call then goes on")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="as of bench run")
    parser.add_argument("--rounds", type=int, default=5, help="of the bare loops")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        for row in not_taken("no CUDA device here"):
            show(row, options.json)
        return
    device = choose_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        for row in train_rows(options, Path(folder), device):
            show(row, options.json)
        show(score_row(options, Path(folder), device), options.json)


if __name__ == "__main__":
    main()
