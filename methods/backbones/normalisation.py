"""The mean and deviation that images are normalised by before a network sees them. Importing this imports no torch.

They belong to the weights: a network that was pretrained on images in [-1, 1] must be fed such images.
"""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...benchmark.core.errors import BenchError
from .weights import IMAGENET_TAGS, imagenet_tag, metadata_of, weights_path
from .weights_hub import timm_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of the red, green and blue channel of images in [0, 1]. The default is ImageNet's."""

    mean: Channels = (0.485, 0.456, 0.406)
    std: Channels = (0.229, 0.224, 0.225)

    def normalise(self, images: "Tensor") -> "Tensor":
        """Images (B, 3, H, W) in [0, 1], normalised in place."""
        mean, std = _on_device(self, images.dtype, images.device)
        return images.sub_(mean).div_(std)

    def restore(self, images: "Tensor") -> "Tensor":
        """Normalised images (B, 3, H, W) back in [0, 1], up to rounding."""
        mean, std = _on_device(self, images.dtype, images.device)
        return images * std + mean

    def to_json(self) -> dict[str, list[float]]:
        """As stage keys and records hold them."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def __str__(self) -> str:
        """In words, as on screen and in tables."""
        if self == IMAGENET:
            return "ImageNet's mean and deviation"
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"mean {mean}, deviation {std}"


IMAGENET = Statistics()
HALF = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


# What timm states for the published networks and those of `bench demo` and tests: planning need not import timm.
STATISTICS = {
    **{name: HALF if name.startswith(("vit_", "inception_v3")) else IMAGENET for name in IMAGENET_TAGS},
    "resnet10t": IMAGENET,
    "test_resnet": HALF,
    "test_vit": HALF,
}


@functools.lru_cache
def _on_device(
    statistics: Statistics, dtype: "torch.dtype", device: "torch.device"
) -> tuple["Tensor", "Tensor"]:  # uploaded once: a GPU's host waits for every upload
    import torch

    mean, std = (torch.tensor(v, dtype=dtype, device=device).view(3, 1, 1) for v in (statistics.mean, statistics.std))
    return mean, std


def from_config(config: Any) -> Statistics:
    """Those of a timm configuration, an object or a mapping with `mean` and `std`."""
    read = config.get if isinstance(config, Mapping) else lambda name: getattr(config, name)
    return Statistics(_channels(read("mean")), _channels(read("std")))


def from_metadata(metadata: Mapping[str, str], where: str) -> Statistics | None:
    """Those that a weights file carries in its metadata as JSON lists `mean` and `std`; None if it has neither.

    Raises BenchError naming the file for one without the other, and for anything but three finite numbers each, the
    deviations above 0.
    """
    if not {"mean", "std"} & set(metadata):
        return None
    values = {}
    for name in ("mean", "std"):
        try:
            values[name] = _channels(json.loads(metadata[name]))
        except (KeyError, ValueError, TypeError):
            values[name] = ()
        if not values[name] or (name == "std" and min(values[name]) <= 0):
            given = repr(metadata[name])[:60] if name in metadata else "missing"
            raise BenchError(
                f"{where}: the '{name}' in its metadata is {given}. It must be a JSON list of three finite numbers for "
                f"images in [0, 1]{', each above 0' if name == 'std' else ''}, such as [0.5, 0.5, 0.5]. Save the file "
                "again with both `mean` and `std`, or with neither."
            )
    return Statistics(**values)


def _channels(values: Any) -> Channels:
    """Three numbers. Raises ValueError or TypeError for anything else."""
    if not isinstance(values, list | tuple) or any(
        isinstance(v, bool) or not isinstance(v, int | float) for v in values
    ):
        raise TypeError(values)
    numbers = tuple(float(v) for v in values)
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(values)
    return numbers


# -- which ones to take ------------------------------------------------------------------------------------------------
class Origin(NamedTuple):
    """What images are normalised by, and where that is from: `imagenet` (the rule), `timm` or `file`."""

    statistics: Statistics
    source: str


def origin_of(backbone: str, weights: str, rule: str = "weights") -> Origin:
    """Mean and deviation for a backbone and its starting weights under a rule (`train.normalisation`).

    `weights`: those in the metadata of the weights file, else those that timm states for the ImageNet weights, or for
    the network where it starts from random weights or a file that says nothing. `imagenet`: ImageNet's. Raises
    BenchError as `weights_identity` and `from_metadata` do.
    """
    if rule == "imagenet":
        return Origin(IMAGENET, "imagenet")
    if weights not in ("none", "imagenet"):
        path = weights_path(weights)
        own = from_metadata(metadata_of(path), f"Weights file {path}")
        if own is not None:
            return Origin(own, "file")
    name = imagenet_tag(backbone) if weights == "imagenet" else backbone
    architecture, _, tag = name.partition(".")
    if architecture in STATISTICS and tag in ("", IMAGENET_TAGS.get(architecture, "")):
        return Origin(STATISTICS[architecture], "timm")
    return Origin(from_config(timm_config(name)), "timm")


def normalisation_notice(backbone: str, weights: str, rule: str) -> str:
    """One sentence on what was taken and why; empty where it is ImageNet's and nothing else was to be expected."""
    statistics, source = origin_of(backbone, weights, rule)
    if source == "imagenet":
        own = origin_of(backbone, weights).statistics
        return "" if own == IMAGENET else (
            f"{backbone}: images are normalised by {statistics}, as in the papers; its weights were made for {own} "
            "(--set train.normalisation=weights takes these)."
        )  # fmt: skip
    if source == "file":
        return f"{backbone}: images are normalised by {statistics}, as the metadata of {Path(weights).name} say."
    if weights not in ("none", "imagenet"):
        return (
            f"{backbone}: {Path(weights).name} states no mean and deviation; images are normalised by {statistics}, as "
            f"timm states for {backbone}."
        )
    return (
        "" if statistics == IMAGENET else f"{backbone}: images are normalised by {statistics}, as timm states for it."
    )
