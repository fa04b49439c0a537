"""What is special about some families of timm networks, found by a pattern of the name; and the removal of strides."""

import fnmatch
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ...benchmark.core.errors import BenchError


class Edit(NamedTuple):
    """A published change of a network at one stride: layers put after it, and how to prepare the network itself."""

    prepare: Callable[[nn.Module], None]
    neck: Callable[[], nn.Module]


@dataclass(frozen=True)
class Quirk:
    """One family's facts.

    pattern: of the timm name, as in a shell. build: keywords for timm.create_model.
    fast: prefixes of its parameters that the published recipes train at the learning rate of the heads.
    scale_heads: False where everything, heads included, is trained at one learning rate.
    edits: published changes at a stride, made together with the removal of strides.
    complete: edits of this family replace the general removal of strides, which would not work on it.
    """

    pattern: str
    build: dict[str, Any] = field(default_factory=dict)
    fast: tuple[str, ...] = ()
    scale_heads: bool = True
    edits: dict[int, Edit] = field(default_factory=dict)
    complete: bool = False


PLAIN = Quirk("*")
_QUIRKS: list[Quirk] = []


def register_quirk(quirk: Quirk) -> Quirk:
    """Adds a family. The first pattern that matches wins, so register the special before the general."""
    _QUIRKS.append(quirk)
    return quirk


def quirk_of(name: str) -> Quirk:
    """The facts of a timm name (a tag after a dot is ignored), or PLAIN."""
    architecture = name.partition(".")[0]
    return next((q for q in _QUIRKS if fnmatch.fnmatchcase(architecture, q.pattern)), PLAIN)


# -- the general rule -----------------------------------------------------------------------------------------------
class Strided(NamedTuple):
    """A layer that makes the map smaller: where it stands, and the stride of what it reads."""

    path: str
    layer: nn.Module
    stride_before: int


def power_of_two(ratio: float) -> int:
    """The nearest power of two: networks without padding give 25 positions where 28 are meant."""
    return 2 ** max(0, round(math.log2(ratio)))


@functools.cache
def _meta_knows_autocast() -> bool:
    try:
        torch.autocast("meta", enabled=False)
    except RuntimeError:  # torch 2.6: unsupported scalarType
        return False
    return True


def run_without_memory(module: nn.Module, size: tuple[int, int]) -> Any:
    """Runs module(images) for one image of `size` on the meta device: shapes only, nothing computed or changed.

    On the oldest torch, whose meta device has no autocast (some networks switch it off), zeros on the CPU do it.
    """
    device = "meta" if _meta_knows_autocast() else "cpu"
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shadows = {name: torch.zeros_like(t, device=device) for name, t in state.items()}
    modes = {m: m.training for m in module.modules()}
    try:
        with torch.no_grad():
            return functional_call(module.eval(), shadows, (torch.zeros(1, 3, *size, device=device),))
    finally:
        for m, mode in modes.items():
            m.training = mode


def strided_layers(runner: nn.Module, net: nn.Module, size: tuple[int, int]) -> list[Strided]:
    """All layers of `net` with a stride above 1 that runner(images) really runs, in their order."""
    layers: list[Strided] = []
    paths = {m: name for name, m in net.named_modules()}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _output: object) -> None:
        layers.append(Strided(paths[layer], layer, power_of_two(size[0] / inputs[0].shape[-2])))

    handles = [m.register_forward_hook(note) for m in paths if not list(m.children()) and _stride(m) > 1]
    try:
        run_without_memory(runner, size)
    finally:
        for handle in handles:
            handle.remove()
    return layers


def _stride(layer: nn.Module) -> int:
    stride = getattr(layer, "stride", 1)
    return max(stride) if isinstance(stride, tuple | list) else int(stride or 1)


def _even(layer: nn.Module) -> bool:
    kernel = getattr(layer, "kernel_size", 1)
    return any(k % 2 == 0 for k in (kernel if isinstance(kernel, tuple | list) else (kernel,)))


def _is_conv(layer: nn.Module) -> bool:
    return bool(list(layer.parameters()))


def possible_strides(layers: list[Strided], own: int) -> list[int]:
    """Grid strides that the general rule can reach: it stops at the last strided convolution with an even kernel."""
    stuck = [s.stride_before * _stride(s.layer) for s in layers if _is_conv(s.layer) and _even(s.layer)]
    floor = max(stuck, default=1)
    return [s for s in (2**k for k in range(own.bit_length())) if floor <= s <= own]


def _set(net: nn.Module, path: str, **values: object) -> None:
    """Sets attributes of the layer at `path`."""
    vars(net.get_submodule(path)).update(values)


def remove_strides(net: nn.Module, layers: list[Strided], stride: int) -> None:
    """Takes the stride from every layer that would make the map coarser than `stride`; nothing is dilated.

    A pool with an even kernel is dropped, since at stride 1 it would shift the map by half a position.
    """
    for path, layer, before in layers:
        if before < stride:
            continue
        if not _is_conv(layer) and _even(layer):
            parent, _, leaf = path.rpartition(".")
            setattr(net.get_submodule(parent), leaf, nn.Identity())
        else:
            _set(net, path, stride=(1, 1) if isinstance(layer.stride, tuple) else 1)


def refuse_stride(name: str, stride: int, possible: list[int]) -> BenchError:
    """The error for a stride that this network cannot have."""
    return BenchError(
        f"Backbone '{name}' cannot have a grid stride of {stride}: strides are removed only from convolutions with odd "
        f"kernels and from pools. Possible here: {', '.join(map(str, possible))}. Set one of these, or 0 for its own."
    )


# -- families -------------------------------------------------------------------------------------------------------
class _PaddedReduction(nn.Module):
    """Inception-v3's first grid reduction with stride 1 and padding, so that it keeps the size of the map."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.get_submodule("branch3x3")(x)
        double = x
        for step in ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"):
            double = self.get_submodule(step)(double)
        return torch.cat([branch, double, F.max_pool2d(x, 3, stride=1, padding=1)], 1)


def _large_inception(net: nn.Module) -> None:
    """Ends after the Mixed_6 blocks at stride 8; the unpadded stem is padded, so that 224 px give 28x28."""
    block = _PaddedReduction(net.get_submodule("Mixed_6a"))
    net.add_module("Mixed_6a", block)
    for path in ("Mixed_6a.branch3x3", "Mixed_6a.branch3x3dbl_3"):
        _set(net, f"{path}.conv", stride=(1, 1), padding=(1, 1))
    for path in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_4a_3x3"):
        _set(net, f"{path}.conv", padding=(1, 1))
    for path in ("Pool1", "Pool2"):
        _set(net, path, padding=1)
    for path in ("Mixed_7a", "Mixed_7b", "Mixed_7c"):
        net.add_module(path, nn.Identity())


def _inception_neck() -> nn.Module:
    steps: list[nn.Module] = []
    for channels in (768, 1024):
        steps += [nn.Dropout(0.5), nn.Conv2d(channels, 1024, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*steps)


def _vgg_neck() -> nn.Module:
    return nn.Sequential(nn.Conv2d(512, 1024, 3, padding=1), nn.ReLU(inplace=True))


def _as_it_is(_net: nn.Module) -> None:
    """Nothing to prepare."""


register_quirk(Quirk("resnet*", fast=("layer4.",)))
register_quirk(Quirk("vgg*", edits={8: Edit(_as_it_is, _vgg_neck)}))
register_quirk(Quirk("inception_v3", edits={8: Edit(_large_inception, _inception_neck)}, complete=True))
register_quirk(
    Quirk("deit*distilled*", build={"dynamic_img_size": True, "global_pool": "token"}, scale_heads=False)
)  # it has no other pooling
register_quirk(Quirk("deit*", build={"dynamic_img_size": True}, scale_heads=False))
register_quirk(Quirk("beit*", scale_heads=False))
for _pattern in ("vit_*", "eva02*", "flexivit*", "test_vit*"):
    register_quirk(Quirk(_pattern, build={"dynamic_img_size": True}, scale_heads=False))
for _pattern in ("swin_*", "swinv2_*"):
    register_quirk(Quirk(_pattern, build={"strict_img_size": False}))
