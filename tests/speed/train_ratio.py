"""Training inside the harness against a bare loop: time of one epoch, ratio of medians, both sides alternating.

The bare loop does forward, backward and optimizer step of the same network on float tensors that are already there; the
harness also orders, crops, flips, jitters and normalises the images and keeps its books.

usage: python tests/speed/train_ratio.py [--backbone resnet18] [--size 112] [--stride 8] [--rounds 5] [--json]
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from alternate import measure

from wsolbench.benchmark.build import build_method, choose_device
from wsolbench.benchmark.config import RunConfig, TrainConfig
from wsolbench.benchmark.data import TrainingSet
from wsolbench.benchmark.images import Frames
from wsolbench.benchmark.pixelstore import PixelStore, Rows
from wsolbench.benchmark.resolve import Resolver
from wsolbench.benchmark.train import Training, Validation, _run_epoch, make_optimizer
from wsolbench.datasets.base import Item
from wsolbench.methods.base import TrainContext

IMAGES, BATCH = 48, 16


def job(config: TrainConfig, backbone: str, device: torch.device) -> Training:
    """A classifier on random images."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, config.load_size, config.load_size, 3), dtype=np.uint8)
    items = tuple(Item(str(k), Path("none"), None, k % 2, "g", "train") for k in range(IMAGES))
    frames = Frames(items, stored(pixels))
    data = TrainingSet(frames, config, device).on_device()
    method = build_method(Resolver({}).ref("classifier"), backbone, config, 2, 0).to(device)
    context = TrainContext(1, 9, 2, (True, True), device, torch.Generator(device))
    empty = Validation(frames, {}, (), 1)
    return Training(method, data, empty, context, config, RunConfig(), 0, Path(tempfile.gettempdir()))


def stored(pixels: np.ndarray) -> Rows:
    """The images in a store on disk, as the harness has them."""
    digests = [f"{k:064x}" for k in range(len(pixels))]
    store = PixelStore(Path(tempfile.mkdtemp()) / "images", pixels.shape[1:], np.uint8)
    growth = store.begin(digests)
    for digest, image in zip(digests, pixels, strict=True):
        growth.put(digest, image)
    growth.commit()
    return store.rows(digests)


def main() -> None:
    """Prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = choose_device(options.device)
    config = TrainConfig(
        image_size=options.size, load_size=options.size * 8 // 7, stride=options.stride, batch_size=BATCH
    )
    training = job(config, options.backbone, device)
    bare = job(config, options.backbone, device)
    optimizers = [make_optimizer(t.method, config) for t in (training, bare)]
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    batches = [(b.images, b.labels) for b in bare.data.epoch_batches(0, 1)]

    def in_harness() -> None:
        _run_epoch(training, optimizers[0], scaler, 1)

    def bare_loop() -> None:
        bare.method.train()
        for images, labels in batches:
            optimizers[1].zero_grad(set_to_none=True)
            F.cross_entropy(bare.method.classify(bare.method.features(images)), labels).backward()
            optimizers[1].step()

    seconds = measure({"bare": bare_loop, "harness": in_harness}, options.rounds, device)
    ratio = seconds["harness"] / seconds["bare"]
    if options.json:
        print(json.dumps({"what": "training epoch", **seconds, "ratio": ratio, "threads": torch.get_num_threads()}))
    else:
        print(f"training, {options.backbone} at {options.size} px: harness {seconds['harness']:.3f} s, bare loop "
              f"{seconds['bare']:.3f} s an epoch of {IMAGES} images: {ratio:.3f}x (reach: 1.1x)")  # fmt: skip


if __name__ == "__main__":
    main()
