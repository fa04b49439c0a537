"""LayerCAM: positive gradients weight the activations position by position, at one or more layers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..benchmark.core.errors import BenchError
from .base import Evidence, Options, register

NAMED = {"last": (-1,), "shallow": (-3, -2, -1)}


@register(
    "layercam",
    version=1,
    family="gradient",
    kind="score",
    needs=("checkpoint:classifier",),
    options={"layers": "last"},
    variant="layers",
    citation="Jiang et al., LayerCAM, IEEE TIP 2021",
    published={
        "glas/vgg16": 67.8, "glas/inception_v3": 66.1, "glas/resnet50": 70.9,
        "camelyon16/vgg16": 34.1, "camelyon16/inception_v3": 25.0, "camelyon16/resnet50": 29.1,
    },
)  # fmt: skip
def layercam(evidence: Evidence, options: Options) -> Tensor:
    """LayerCAM: positive gradients weight the activations, position by position.

    M = ReLU(sum_k ReLU(g_k) A_k), at the pyramid levels of `layers`: `last` (default), `shallow` (the last and the two
    before it) or level numbers such as `-2` or `1,2,-1`. Several maps are each divided by their maximum over the image,
    resized to the finest of them, averaged, and multiplied by the maximum of the deepest: layers count alike, and an
    image without evidence keeps a low map. With the plain classifier, at the last grid of n positions, the CAM of the
    positive weights / n. Returns (B, h, w), not negative. Raises BenchError for a level that does not exist.
    """
    maps = [_one_layer(*_read(evidence, level)) for level in _levels(options.layers)]
    if len(maps) == 1:
        return maps[0]
    size = max((m.shape[-2:] for m in maps), key=lambda s: s[0] * s[1])
    scaled = [F.interpolate(_to_one(m)[:, None], size, mode="bilinear", align_corners=False)[:, 0] for m in maps]
    mean = torch.stack(scaled).mean(0)
    return mean * maps[-1].amax((1, 2), keepdim=True)


def _check_options(options: Options) -> None:
    """Refuses unknown levels before anything trains."""
    _levels(options.layers)


def _announced(options: Options) -> tuple[int, ...]:
    """The pyramid levels that will be read, so that one pass can serve them together with those of others."""
    return _levels(options.layers)


setattr(layercam, "check_options", _check_options)  # noqa: B010 - a function has no such attribute to type
setattr(layercam, "levels", _announced)  # noqa: B010


def _levels(layers: str) -> tuple[int, ...]:
    """Pyramid levels, shallow first as written; negative numbers count from the end."""
    if layers in NAMED:
        return NAMED[layers]
    try:
        return tuple(int(part) for part in layers.split(","))
    except ValueError:
        raise BenchError(
            f"layercam: layers='{layers}' is not understood. Give {' or '.join(NAMED)}, or pyramid levels, "
            "shallow first, such as -2 or 1,2,-1."
        ) from None


def _read(evidence: Evidence, level: int) -> tuple[Tensor, Tensor]:
    """Activations and gradients; those of the last grid are shared by all explainers, without a pass of their own."""
    last = level in (-1, len(evidence.explained.backbone.strides) - 1)
    return (evidence.activations, evidence.gradients) if last else evidence.taps(level)


def _one_layer(activations: Tensor, gradients: Tensor) -> Tensor:
    return gradients.float().relu().mul_(activations.float()).sum(1).relu()


def _to_one(maps: Tensor) -> Tensor:
    peak = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(peak > 0, peak, 1.0)
