"""Drawing pseudo-labels against a whole training step: time of both, ratio of medians, alternating.

The step is what the harness does with a batch: loss (the drawing is part of it), backward pass and update.

usage: python tests/speed/pseudo_labels_ratio.py [--methods pixelcam,fcam,negev] [--backbone resnet18] [--size 224]
           [--json]
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from alternate import measure
from rows import Row, show

from wsolbench.benchmark.core.device import choose_device
from wsolbench.benchmark.planning.config import TrainConfig
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring.build import build_method
from wsolbench.benchmark.training.trainer import make_optimizer
from wsolbench.methods.base import Batch, TrainContext
from wsolbench.methods.parts.pseudo_labels import sample_pseudo_labels


def sides(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], object]]:
    """A training step of a method on random images and smooth maps, and its drawing of pixels alone."""
    config = TrainConfig(image_size=options.size, load_size=options.size, stride=options.stride)
    method = build_method(Resolver({}).ref(name), options.backbone, config, 2, 0).to(device)
    context = TrainContext(1, 9, 2, (False, True), device, torch.Generator(device).manual_seed(0))
    method.setup(context)
    method.train()
    optimizer = make_optimizer(method, config)
    count, size = options.batch, options.size
    source = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 7, 7, generator=source)
    maps = F.interpolate(coarse, (size, size), mode="bilinear")[:, 0].to(device)
    images = torch.randn(count, 3, size, size, generator=source).to(device)
    batch = Batch(images, (torch.arange(count) % 2).to(device), torch.arange(count, device=device), maps)
    grid = size // options.stride
    seen = maps if name != "pixelcam" else F.interpolate(maps[:, None], (grid, grid), mode="bilinear")[:, 0]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        method.loss(batch, context)["total"].backward()
        optimizer.step()

    return {
        "step": step,
        "drawing": lambda: sample_pseudo_labels(seen, method.rule, context.generator, batch.labels == 1),
    }


def main() -> None:
    """Prints a ratio for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="pixelcam,fcam,negev")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = choose_device(options.device)
    for name in options.methods.split(","):
        seconds = measure(sides(name, options, device), options.rounds, device)
        row = Row(
            what=f"drawing pixels for {name}",
            peer="the whole training step (share)",
            ratio=seconds["drawing"] / seconds["step"],
            reach="<= 0.05",
            seconds=seconds,
            conditions={
                "device": str(device), "threads": torch.get_num_threads(), "backbone": options.backbone,
                "size": options.size, "stride": options.stride, "batch": options.batch, "rounds": options.rounds,
            },
        )  # fmt: skip
        show(row, options.json)


if __name__ == "__main__":
    main()
