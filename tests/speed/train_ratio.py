"""Training inside the harness against a bare loop: images a second of an epoch, both sides alternating.

The bare loop does forward, backward and optimizer step of the same network on float tensors that are already on the
device; the harness also orders, crops, flips, jitters and normalises the images, draws pseudo-labels from teacher maps
and keeps its books. With --compile a last row sets a compiled backbone against the plain one, both in the harness.

usage: python tests/speed/train_ratio.py [--methods classifier,pixelcam,negev] [--backbone resnet18] [--size 224]
           [--stride 16] [--batch 16] [--precision fp32] [--rounds 3] [--compile] [--json]
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from alternate import measure
from rows import Row, show

from wsolbench.benchmark.core.device import choose_device
from wsolbench.benchmark.core.timing import Stopwatch, shares
from wsolbench.benchmark.data.image_cache import ImageSplit
from wsolbench.benchmark.data.pixel_store import PixelStore, StoredRows
from wsolbench.benchmark.data.train_loader import TrainingSet
from wsolbench.benchmark.planning.config import RunConfig, TrainConfig
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring.build import build_method
from wsolbench.benchmark.training.checkpoints import EpochCursor
from wsolbench.benchmark.training.trainer import Training, Validation, autocast, make_optimizer, run_epoch
from wsolbench.datasets.base import Item
from wsolbench.methods.base import Batch, Method, TrainContext
from wsolbench.methods.factory import compile_backbone, statistics_of
from wsolbench.methods.parts.pseudo_labels import IGNORE

BATCHES = 3


def job(name: str, config: TrainConfig, options: argparse.Namespace, device: torch.device) -> Training:
    """A training on random images and smooth teacher maps; every other image has no region of interest."""
    rng, images = np.random.default_rng(0), BATCHES * config.batch_size
    pixels = rng.integers(0, 256, (images, config.load_size, config.load_size, 3), dtype=np.uint8)
    items = tuple(Item(str(k), Path("none"), None, k % 2, "g", "train") for k in range(images))
    frames = ImageSplit(items, stored(pixels))
    method = build_method(Resolver({}).ref(name), options.backbone, config, 2, 0).to(device)
    maps = rng.random((images, 14, 14), dtype=np.float32)
    data = TrainingSet(frames, config, device, statistics_of(method), {"layercam": maps}).on_device()
    context = TrainContext(1, 9, 2, (False, True), device, torch.Generator(device).manual_seed(0))
    method.setup(context)
    empty, folder = Validation(frames, {}, (), 1), Path(tempfile.gettempdir())
    watch = Stopwatch(device)
    return Training(method, data, empty, context, config, RunConfig(), 0, folder, lambda event: None, watch)


def stored(pixels: np.ndarray) -> StoredRows:
    """The images in a store on disk, as the harness has them."""
    digests = [f"{k:064x}" for k in range(len(pixels))]
    store = PixelStore(Path(tempfile.mkdtemp()) / "images", pixels.shape[1:], np.uint8)
    growth = store.begin(digests)
    for digest, image in zip(digests, pixels, strict=True):
        growth.put(digest, image)
    growth.commit()
    return store.rows(digests)


def bare_loss(name: str, method: Method, batch: Batch, pseudo_labels: torch.Tensor) -> torch.Tensor:
    """The same network and losses of the same size, on pixel labels that are already there."""
    if name == "classifier":
        return F.cross_entropy(method.classify(method.features(batch.images)), batch.labels)
    if name == "pixelcam":
        grid = method.features(batch.images)
        image, pixels = F.cross_entropy(method.classify(grid), batch.labels), method.pixel_head(grid)
    else:
        image, pixels = 0.0, method._logits(batch.images)[1]
    few = pseudo_labels[:, : pixels.shape[2], : pixels.shape[3]]
    return image + F.cross_entropy(pixels.float(), few, ignore_index=IGNORE)


def sides(
    name: str, config: TrainConfig, options: argparse.Namespace, device: torch.device
) -> tuple[dict[str, Callable], Stopwatch]:
    """An epoch in the harness and one of the bare loop, and what times the parts of the first."""
    training, bare = (job(name, config, options, device) for _ in range(2))
    fp16 = config.precision == "fp16" and device.type == "cuda"
    scalers = [torch.amp.GradScaler(device.type, enabled=fp16) for _ in range(2)]
    optimizers = [make_optimizer(t.method, config) for t in (training, bare)]
    batches = list(bare.data.epoch_batches(0, 1))
    source = torch.Generator().manual_seed(0)
    drawn = torch.rand(config.batch_size, config.image_size, config.image_size, generator=source)
    pseudo_labels = torch.where(drawn < 0.01, 0, torch.where(drawn > 0.99, 1, IGNORE)).to(device)

    def bare_loop() -> None:
        bare.method.train()
        for batch in batches:
            optimizers[1].zero_grad(set_to_none=True)
            with autocast(config.precision, device):
                loss = bare_loss(name, bare.method, batch, pseudo_labels[: len(batch.labels)])
            scalers[1].scale(loss).backward()
            scalers[1].step(optimizers[1])
            scalers[1].update()

    def harness():
        return run_epoch(training, optimizers[0], scalers[0], EpochCursor(1))

    return {"bare": bare_loop, "harness": harness}, training.watch


def compiled(config: TrainConfig, options: argparse.Namespace, device: torch.device) -> dict[str, Callable]:
    """An epoch of the classifier in the harness, as it is and with its backbone compiled."""
    found = {}
    for side in ("plain", "compiled"):
        training = job("classifier", config, options, device)
        if side == "compiled":
            compile_backbone(training.method)
        scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16" and device.type == "cuda")
        optimizer = make_optimizer(training.method, config)
        found[side] = lambda t=training, o=optimizer, s=scaler: run_epoch(t, o, s, EpochCursor(1))
    return found


def main() -> None:
    """Prints a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="classifier,pixelcam,negev")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = choose_device(options.device)
    config = TrainConfig(
        image_size=options.size, load_size=options.size * 8 // 7, stride=options.stride, batch_size=options.batch,
        precision=options.precision,
    )  # fmt: skip
    conditions = {
        "device": device.type, "threads": torch.get_num_threads(), "backbone": options.backbone, "size": options.size,
        "stride": options.stride, "batch": options.batch, "precision": options.precision, "rounds": options.rounds,
    }  # fmt: skip
    for name in options.methods.split(","):
        both, watch = sides(name, config, options, device)
        seconds = measure(both, options.rounds, device)
        ratio, note = seconds["bare"] / seconds["harness"], f"in the harness: {shares(watch.seconds())}"
        what = f"training step of {name} in the harness, images/s"
        peer = "bare forward, backward and step on tensors on the device"
        show(Row(what, peer, ratio, ">= 0.95", seconds, conditions, note), options.json)
    if options.compile:
        seconds = measure(compiled(config, options, device), options.rounds, device)
        ratio, what = seconds["plain"] / seconds["compiled"], "training with run.compile, images/s"
        note = "off unless it pays: the option is off by default"
        show(Row(what, "the same without", ratio, ">= 1.0", seconds, conditions, note), options.json)


if __name__ == "__main__":
    main()
