"""Explainers read in one pass against plain passes of the network, and against pip grad-cam method by method.

Eight explainers at the last grid of one classifier against one forward pass without gradients, and against grad-cam's
seven classes of the same methods (it has no plain CAM). Those are called as its users call them: on the whole model,
whose parameters ask for gradients as a loaded model's do, with the module that gives the last grid as target layer;
each class then runs a forward pass, a backward pass through the whole network and, for its map, numpy and OpenCV.

The eight and LayerCAM at four shallow levels against a forward pass and a backward pass to the shallowest of them,
the parameters frozen, by a plain hook.

Maps must equal grad-cam's, before it scales them, within 1e-4 of their range; EigenCAM, whose sign there is arbitrary,
up to its sign, and GradCAM++ left out, as its added constant spoils it. Else the script exits with an error.

usage: python tests/speed/score_ratio.py [--backbone resnet18] [--size 224] [--stride 16] [--batch 16] [--rounds 5]
           [--shallow 0,1,2,3] [--device auto] [--json]
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_grad_cam as package
import torch
from alternate import measure
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from rows import Row, show

from wsolbench.benchmark.core.device import choose_device
from wsolbench.benchmark.planning.config import TrainConfig
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring.build import build_method
from wsolbench.benchmark.scoring.map_extractor import MapExtractor, MapRequest

PEERS = {
    "gradcam": package.GradCAM,
    "gradcampp": package.GradCAMPlusPlus,
    "xgradcam": package.XGradCAM,
    "layercam": package.LayerCAM,
    "hirescam": package.HiResCAM,
    "gradcam_elementwise": package.GradCAMElementWise,
    "eigencam": package.EigenCAM,
}
UNEQUAL = ("gradcampp",)  # grad-cam's constant is large beside the squares of these gradients
WITHIN = 1e-4


class Logits(torch.nn.Module):
    """The classifier as grad-cam wants it: images to logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.model.classify(self.model.features(images))


class Task:
    """One classifier and one batch of images, and what is timed on them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, resolver = choose_device(options.device), Resolver({})
        config = TrainConfig(stride=options.stride)
        self.model: Any = build_method(resolver.ref("classifier"), options.backbone, config, 2, 0)
        self.model.to(self.device).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        shape = (options.batch, 3, options.size, options.size)
        self.images = torch.randn(shape, generator=generator).to(self.device)
        self.labels = torch.zeros(options.batch, dtype=torch.long, device=self.device)
        self.ids = [str(k) for k in range(options.batch)]
        self.eight = tuple(self._view(resolver, name) for name in ("cam", *PEERS))
        self.levels = [int(level) for level in options.shallow.split(",")]
        self.shallow = tuple(self._view(resolver, f"layercam:{level}") for level in self.levels)

    @staticmethod
    def _view(resolver: Resolver, name: str) -> MapRequest:
        ref = resolver.ref(name)
        return MapRequest(ref, "true" if ref.spec.class_specific else "any")

    def read(self, views: tuple[MapRequest, ...]) -> Callable[[], dict[str, torch.Tensor]]:
        """Maps of the views, as scoring reads them."""
        reader = MapExtractor(self.model, views, (0, 1), 2)
        return lambda: reader.read(self.images, self.labels, self.ids)[1]

    def forward(self) -> None:
        """One plain pass."""
        with torch.no_grad():
            self.model.classify(self.model.features(self.images))

    def forward_and_backward(self) -> None:
        """A pass, and the gradient of the logits at the shallowest level."""
        body, leaves = self.model.backbone, []

        def leaf(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            leaves.append(output.detach().requires_grad_())
            return leaves[0].clone()  # as the next layer may work in place

        shallowest = min(level % len(body.strides) for level in self.levels)
        handle = body.net.get_submodule(body._levels[shallowest]).register_forward_hook(leaf)
        scores = self.model.classify(self.model.features(self.images))
        handle.remove()
        torch.autograd.grad(scores[:, 0].sum(), leaves)

    def package(self) -> None:
        """All seven of grad-cam, one by one."""
        self.model.requires_grad_(True)
        for kind in PEERS.values():
            with kind(model=Logits(self.model), target_layers=[self.model.backbone.out]) as explain:
                explain(input_tensor=self.images, targets=self.targets)
        self.model.requires_grad_(False).zero_grad()

    @property
    def targets(self) -> list[Any]:
        """Class 0 of every image."""
        return [ClassifierOutputTarget(0)] * len(self.images)

    def raw(self, kind: Any) -> np.ndarray:
        """Grad-cam's map (B, h, w) before it is rectified, scaled and resized."""
        layer = self.model.backbone.out
        self.model.requires_grad_(True)
        with kind(model=Logits(self.model), target_layers=[layer]) as tool:
            tool(self.images, self.targets)
            seen = tool.activations_and_grads
            read = [values[0].numpy() if values else None for values in (seen.activations, seen.gradients)]
            maps = tool.get_cam_image(self.images, layer, self.targets, *read, False)
        self.model.requires_grad_(False).zero_grad()
        return maps


def differences(task: Task) -> dict[str, float]:
    """Method -> largest difference from grad-cam's map as a share of that map's range, over all images."""
    found, maps = {}, task.read(task.eight)()
    for view in task.eight:
        name = view.method.label
        if name in UNEQUAL or name not in PEERS:
            continue
        ours, theirs = maps[view.name].cpu().numpy(), task.raw(PEERS[name])
        signs = (1, -1) if not view.method.spec.class_specific else (1,)
        gaps = [np.abs(ours - np.maximum(sign * theirs, 0)).max((1, 2)) for sign in signs]
        found[name] = float((np.min(gaps, 0) / np.ptp(theirs, (1, 2))).max())
    return found


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shallow", default="0,1,2,3", help="four pyramid levels before the last")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    task = Task(options)
    conditions = {k: getattr(options, k) for k in ("backbone", "size", "stride", "batch")}
    conditions |= {"threads": torch.get_num_threads(), "device": str(task.device)}

    unlike = differences(task)
    worst = max(unlike, key=unlike.__getitem__)
    equal = all(difference <= WITHIN for difference in unlike.values())  # a NaN is not
    eight, more = task.read(task.eight), task.read((*task.eight, *task.shallow))
    sides = {"explainers": eight, "forward": task.forward, "grad-cam": task.package}
    seconds = measure(sides, options.rounds, task.device)
    ours, plain, theirs = (seconds[name] for name in sides)
    show(Row("eight explainers", "one plain forward pass", ours / plain, "<= 1.3",
             {k: seconds[k] for k in ("explainers", "forward")}, conditions), options.json)  # fmt: skip
    note = (f"grad-cam took {theirs / plain:.1f} forward passes; largest difference {unlike[worst]:.1e} of a map's "
            f"range ({worst})")  # fmt: skip
    show(Row("eight explainers, times faster", "pip grad-cam, seven of them one by one", theirs / ours, ">= 15",
             {k: seconds[k] for k in ("explainers", "grad-cam")}, conditions, note, equal), options.json)  # fmt: skip

    seconds = measure({"explainers": more, "peer": task.forward_and_backward}, options.rounds, task.device)
    show(Row(f"eight explainers and LayerCAM at levels {options.shallow}",
             "forward and backward to the shallowest level", seconds["explainers"] / seconds["peer"], "<= 1.2",
             seconds, conditions), options.json)  # fmt: skip
    if not equal:
        sys.exit(f"maps differ from grad-cam's by more than {WITHIN} of their range: {unlike}")


if __name__ == "__main__":
    main()
