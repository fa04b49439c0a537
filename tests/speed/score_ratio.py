"""Five gradient explainers in one pass against one plain forward pass, and against pip grad-cam method by method.

Ratio of medians, the sides alternating in one process; maps at native resolution on every side.

usage: python tests/speed/score_ratio.py [--backbone resnet18] [--size 224] [--batch 16] [--rounds 5] [--json]
"""

import argparse
import json

import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, LayerCAM, XGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from train_ratio import measure

from wsolbench.benchmark.build import build_method, choose_device
from wsolbench.benchmark.config import TrainConfig
from wsolbench.benchmark.resolve import Resolver
from wsolbench.benchmark.views import Reader, View

EXPLAINERS = ("cam", "gradcam", "gradcampp", "xgradcam", "layercam")
PACKAGE = (GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM)


class Logits(torch.nn.Module):
    """The classifier as grad-cam wants it: images to logits, with a layer whose output is the grid."""

    def __init__(self, method: torch.nn.Module) -> None:
        super().__init__()
        self.method, self.grid = method, torch.nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.method.classify(self.grid(self.method.features(images)))


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device, resolver = choose_device(options.device), Resolver({})
    config = TrainConfig(stride=options.stride)
    model = build_method(resolver.ref("classifier"), options.backbone, config, 2, 0).to(device).eval()
    reader = Reader(model, tuple(View(resolver.ref(name), "pred") for name in EXPLAINERS), 1, 2)
    images = torch.randn(options.batch, 3, options.size, options.size, device=device)
    labels, ids = torch.zeros(options.batch, dtype=torch.long, device=device), [str(k) for k in range(options.batch)]
    wrapped = Logits(model).eval()
    targets = [ClassifierOutputTarget(0)] * options.batch

    def forward() -> None:
        with torch.no_grad():
            model.classify(model.features(images))

    def package() -> None:
        for method in PACKAGE:
            with method(model=wrapped, target_layers=[wrapped.grid]) as explain:
                explain(input_tensor=images, targets=targets)

    sides = {"forward": forward, "explainers": lambda: reader.read(images, labels, ids), "grad-cam": package}
    seconds = measure(sides, options.rounds, device)
    ratio, faster = seconds["explainers"] / seconds["forward"], seconds["grad-cam"] / seconds["explainers"]
    if options.json:
        found = {
            "what": "five explainers",
            **seconds,
            "ratio": ratio,
            "package_forwards": seconds["grad-cam"] / seconds["forward"],
        }
        print(json.dumps({**found, "times_faster": faster, "threads": torch.get_num_threads()}))
    else:
        print(f"scoring, {options.backbone} at {options.size} px, batch {options.batch}: five explainers "
              f"{ratio:.2f}x one forward pass (reach: 1.5x); pip grad-cam, four of them one by one, "
              f"{seconds['grad-cam'] / seconds['forward']:.1f}x, so {faster:.1f}x slower")  # fmt: skip


if __name__ == "__main__":
    main()
