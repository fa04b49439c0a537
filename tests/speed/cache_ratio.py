"""Images from files to batches: the first epoch against PIL in a plain DataLoader, later epochs against the training.

First epoch: `ImageCache.prepare` and reading every row, as the harness does it, against a torch DataLoader whose
dataset decodes with PIL and resizes by the same rule, with as many worker processes as ours has threads. Both sides
read the same files from the page cache, alternating; ours gets a fresh cache folder every round. Finding the hashes of
the files, which only the harness does, is timed beside it. Both sides must give the same pixels, bit for bit.

Later epochs: how much of an epoch of training goes to taking its batches out of the cache, before the arithmetic of
augmentation, which a bare loop with augmentation has as well.

usage: python tests/speed/cache_ratio.py [--images 200] [--rounds 5] [--train 0] [--device auto] [--json]
"""

import argparse
import resource
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from alternate import measure
from joblib import cpu_count
from PIL import Image
from rows import Row, show
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from wsolbench.benchmark.core.device import choose_device
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.core.timing import Stopwatch
from wsolbench.benchmark.data.image_cache import DecodeRequest, ImageCache, ImageSplit
from wsolbench.benchmark.data.train_loader import TrainingSet
from wsolbench.benchmark.planning.config import RunConfig, TrainConfig
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring.build import build_method
from wsolbench.benchmark.training.checkpoints import EpochCursor
from wsolbench.benchmark.training.trainer import Training, Validation, make_optimizer, run_epoch
from wsolbench.datasets.base import Dataset, DatasetCard, Item, Manifest
from wsolbench.datasets.open import content_hashes
from wsolbench.methods.base import TrainContext
from wsolbench.methods.factory import statistics_of

SIZE, BATCH = 256, 32
SHAPES = {"bmp": (522, 775), "png": (512, 512)}  # an image of GlaS, a patch of Camelyon16
CARD = DatasetCard("speed", 1, ("a", "b"), 1, (True, True), "nothing", "image", "none", "none")


class Folder(Dataset):
    """Training images of one format and nothing else."""

    card = CARD

    def __init__(self, folder: Path, ending: str, count: int) -> None:
        super().__init__(folder)
        self.items = tuple(
            Item(f"{k:04d}", folder / f"{k:04d}.{ending}", None, k % 2, "g", "train") for k in range(count)
        )
        rng = np.random.default_rng(0)
        for item in self.items:
            tissue(rng, *SHAPES[ending]).save(item.image)

    def manifest(self, fold: str) -> Manifest:
        """All of them."""
        return Manifest(self.card, fold, self.items)


def tissue(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A smooth image with the grain of a scanner, so that PNG compresses it as it does histology."""
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = rng.integers(-12, 12, smooth.shape, np.int16)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


class Plain(TorchDataset):
    """What a loader does without a suite around it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.paths[row]) as image:
            small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small))


def cpu_seconds() -> float:
    """Processor seconds of this process and its finished children: other work on the machine moves them little."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def first_epoch(dataset: Folder, place: Path, ending: str, rounds: int) -> Row:
    """Decoding all files and reading all batches, both ways."""
    items, folders = dataset.items, iter(range(10**9))
    hashes = {str(p): f.sha256 for p, f in content_hashes(dataset.manifest("0"), place / "facts.json").items()}
    workers = cpu_count()
    loader = DataLoader(Plain([i.image for i in items]), BATCH, num_workers=workers)  # pyright: ignore

    def ours() -> np.ndarray:
        cache = ImageCache(Store(place / f"cache{next(folders)}"), dataset, hashes)
        cache.prepare([DecodeRequest(items, SIZE)])
        images = cache.frames(items, SIZE).images
        return np.concatenate([images[start : start + BATCH] for start in range(0, len(images), BATCH)])

    def theirs() -> np.ndarray:
        return torch.cat(list(loader)).numpy()

    def hashing() -> None:
        content_hashes(dataset.manifest("0"), place / f"facts{next(folders)}.json")

    equal = np.array_equal(ours(), theirs())
    cpu = {"ours": list[float](), "dataloader": list[float]()}

    def counted(name: str, side: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            before = cpu_seconds()
            side()
            cpu[name].append(cpu_seconds() - before)

        return call

    sides = {"ours": counted("ours", ours), "dataloader": counted("dataloader", theirs), "hashing": hashing}
    seconds = measure(sides, rounds, torch.device("cpu"))
    busy = statistics.median(cpu["ours"]) / statistics.median(cpu["dataloader"])
    height, width = SHAPES[ending]
    whole = (seconds["ours"] + seconds["hashing"]) / seconds["dataloader"]
    return Row(
        what=f"first epoch from {ending.upper()} files",
        peer="PIL in a plain DataLoader",
        ratio=seconds["ours"] / seconds["dataloader"],
        reach="<= 1.0",
        seconds=seconds,
        conditions={
            "device": "cpu", "threads": workers, "images": len(items), "file": f"{width}x{height}", "size": SIZE,
            "batch": BATCH, "rounds": rounds,
        },
        note=f"pixels {'equal' if equal else 'DIFFERENT'}; in processor time {busy:.2f}; with the hashes of all files "
        f"{whole:.2f}",
        holds=equal,
    )  # fmt: skip


def training_on(dataset: Folder, place: Path, options: argparse.Namespace, device: torch.device) -> Training:
    """A classifier on the cached images."""
    items = dataset.items[: options.train or (96 if device.type == "cpu" else len(dataset.items))]
    hashes = {str(p): f.sha256 for p, f in content_hashes(dataset.manifest("0"), place / "facts.json").items()}
    cache = ImageCache(Store(place / "cache"), dataset, hashes)
    cache.prepare([DecodeRequest(items, SIZE)])
    frames = cache.frames(items, SIZE)
    config = TrainConfig(image_size=224, load_size=SIZE, stride=16, batch_size=BATCH)
    method = build_method(Resolver({}).ref("classifier"), options.backbone, config, 2, 0).to(device)
    context = TrainContext(1, 9, 2, (True, True), device, torch.Generator(device))
    data = TrainingSet(frames, config, device, statistics_of(method)).on_device()
    empty = Validation(ImageSplit((), frames.images), {}, (), 1)
    return Training(method, data, empty, context, config, RunConfig(), 0, place, watch=Stopwatch(device))


def cached_epochs(job: Training, options: argparse.Namespace) -> Row:
    """The share of a training epoch that goes to loading."""
    device = job.context.device
    optimizer = make_optimizer(job.method, job.config)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    epochs: list[dict[str, float]] = []
    before: dict[str, float] = {}
    for epoch in range(options.rounds + 1):
        whole = measure({"epoch": lambda e=epoch: run_epoch(job, optimizer, scaler, EpochCursor(e + 1))}, 1, device)[
            "epoch"
        ]
        parts = job.watch.seconds()
        # `measure` warms up by a call of its own, so what the watch saw are two epochs
        epochs.append({"epoch": whole, **{k: (v - before.get(k, 0.0)) / 2 for k, v in parts.items()}})
        before = parts
    seconds = {k: statistics.median(e[k] for e in epochs[1:]) for k in epochs[0]}
    kept = "GPU" if job.data.pixels.arrays.is_cuda else "memory map"
    return Row(
        what="loading a cached epoch",
        peer="the whole training epoch (share)",
        ratio=seconds["load"] / seconds["epoch"],
        reach="<= 0.05",
        seconds=seconds,
        conditions={
            "device": str(device), "threads": torch.get_num_threads(), "backbone": options.backbone, "size": 224,
            "stride": 16, "batch": BATCH, "images": len(job.data.labels), "pixels in": kept, "rounds": options.rounds,
        },
    )  # fmt: skip


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="of each format")
    parser.add_argument("--train", type=int, default=0, help="images of the training epoch; 0: 96 on a CPU, else all")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = choose_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        for ending in SHAPES:
            place = Path(folder) / ending
            place.mkdir()
            dataset = Folder(place, ending, options.images)
            show(first_epoch(dataset, place, ending, options.rounds), options.json)
        show(cached_epochs(training_on(dataset, place, options, device), options), options.json)


if __name__ == "__main__":
    main()
