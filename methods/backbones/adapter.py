"""One adapter for the networks of timm: the last grid, a pyramid, tokens, and a grid stride setting.

The grid of a convolutional network is its last feature map; of a vision transformer its patch tokens after the final
norm, prefix tokens dropped and laid out as the image is. A pyramid is one map a scale, fine to coarse, and ends with
the grid. A transformer has one scale only: its pyramid holds the patch tokens after a quarter, half and three quarters
of its blocks, resized by bilinear interpolation, without parameters, to 4, 2 and 1 times the token grid (strides 4, 8
and 16 for patches of 16 px), and then the grid.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from ...benchmark.core.errors import BenchError
from . import quirks as quirks
from . import shapes as shapes
from .networks import Features, create_net, drop_heads, grid_or_refusal
from .normalisation import from_config
from .weights_hub import check_network

__all__ = [
    "Backbone", "Tap", "Tokens", "create_backbone", "frozen", "param_groups",
]  # fmt: skip

log = logging.getLogger(__name__)

TOKEN_SCALES = (4, 2, 1)  # of the resized levels of a transformer, as multiples of the token grid


class Tokens(NamedTuple):
    """prefix (B, P, D): class, distillation, register tokens; grid (B, D, h, w); attention (B, heads, N, N) by block.

    Rows of the attention sum to 1; N counts the prefix tokens first, then the patches row by row.
    """

    prefix: Tensor
    grid: Tensor
    attention: list[Tensor]


class Tap:
    """What a tapped forward leaves: activations (B, D, h, w) by index of their level, parts of the graph."""

    def __init__(self, indexes: list[int]) -> None:
        self.indexes, self.values = indexes, dict[int, Tensor]()

    @property
    def value(self) -> Tensor:
        """The shallowest, a leaf of the graph. Raises RuntimeError if no forward pass ran inside the `tapped` block."""
        if self.indexes[0] not in self.values:
            raise RuntimeError("nothing was tapped: run a forward pass inside the `tapped` block")
        return self.values[self.indexes[0]]


class Backbone(nn.Module):
    """A timm network without its head; see the module's text.

    Attributes: name; abilities (of methods.spec.ABILITIES); dims and strides, one a pyramid level, the last the grid's.
    Images are (B, 3, H, W), normalised. `net` is the timm network, with its own parameter names; `neck` holds published
    layers that timm does not have (VGG's conv6), else nothing. `fast`, where set, computes what net.forward_features
    does; passes with hooks go without it only if it sees to that itself.
    """

    fast: Callable[[Tensor], Tensor] | None = None

    def __init__(self, name: str, net: nn.Module, quirk: quirks.Quirk, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.name, self.quirk, self.net = name, quirk, net
        self.neck = neck or nn.Identity()
        self.out = nn.Identity()  # the place where the last grid can be read or replaced
        self.prefix_tokens = int(getattr(net, "num_prefix_tokens", 0) or 0)
        self.statistics = from_config(net.default_cfg)  # what its images are normalised by; the harness may set others
        self.input_size: tuple[int, int] = tuple(net.default_cfg["input_size"][1:])  # pyright: ignore
        self._levels: tuple[str, ...] = ()
        self._layouts: tuple[str, ...] = ()
        self._token_grid = (0, 0)
        self.abilities: frozenset[str] = frozenset()
        self.dims: tuple[int, ...] = ()
        self.strides: tuple[int, ...] = ()
        self._measure()

    # -- forward passes ----------------------------------------------------------------------------------------------
    def forward(self, images: Tensor) -> Tensor:
        """The same as `grid`."""
        return self.grid(images)

    def grid(self, images: Tensor) -> Tensor:
        """The last grid (B, D, h, w), by one forward pass. Raises BenchError for a size that cuts patches."""
        self._token_grid = self._patches(images)
        run: Callable[[Tensor], Tensor] = self.fast or self.net.forward_features  # pyright: ignore
        features = run(images)
        return self.out(self.neck(self._as_grid(features, self._layouts[-1])))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """One map a level, (B, dims[i], h_i, w_i), fine to coarse; the last is the grid. One forward pass.

        Raises BenchError if the network has none.
        """
        self._require("pyramid")
        raw, grid = self._catch(images)
        maps = [self._as_grid(value, layout) for value, layout in zip(raw, self._layouts, strict=False)]
        if self._layouts[-1] == "tokens":
            maps = [shapes.enlarge(m, scale) for m, scale in zip(maps, TOKEN_SCALES, strict=True)]
        return [*maps, grid]

    def tokens(self, images: Tensor) -> Tokens:
        """All tokens after the final norm, and the attention of every block. Raises BenchError for a CNN."""
        self._require("attention")
        attention: list[Tensor] = []
        with ExitStack() as stack:
            for block in self.net.blocks:  # pyright: ignore[reportGeneralTypeIssues]
                fused = block.attn.fused_attn
                stack.callback(setattr, block.attn, "fused_attn", fused)
                block.attn.fused_attn = False  # the fused kernel never forms the attention matrix
                handle = block.attn.attn_drop.register_forward_pre_hook(lambda _m, args: attention.append(args[0]))
                stack.callback(handle.remove)
            self._token_grid = self._patches(images)
            features = self.net.forward_features(images)  # pyright: ignore[reportCallIssue]
        return Tokens(features[:, : self.prefix_tokens], self.out(self._as_grid(features, "tokens")), attention)

    def level_index(self, level: int) -> int:
        """Index of a pyramid level, negative from the end. Raises BenchError for a level this network does not have."""
        count = len(self.strides)
        self._require("pyramid" if level not in (-1, count - 1) else "grid")
        if not -count <= level < count:
            raise BenchError(f"Backbone '{self.name}' has pyramid levels 0 to {count - 1}, not {level}.")
        return level % count

    @contextmanager
    def tapped(self, *levels: int) -> Iterator[Tap]:
        """Keeps activations of pyramid levels in forward passes inside the block, the shallowest a leaf of the graph.

        Layers before the shallowest build no graph, layers after it give the gradients of all, parameters get none. In
        a transformer activations are on the grid of the tokens, not resized. Hooks and flags are undone even if the
        block raises.
        """
        indexes = sorted({self.level_index(level) for level in levels})
        tap, handles = Tap(indexes), list[RemovableHandle]()
        try:
            for index in indexes:
                site, layout = self.out, "maps"
                if index != len(self.strides) - 1:
                    site, layout = self.net.get_submodule(self._levels[index]), self._layouts[index]
                hook = partial(self._tap, tap, index, layout)
                handles.append(site.register_forward_hook(hook))
            with frozen(self):
                yield tap
        finally:
            for handle in handles:
                handle.remove()

    def _tap(self, tap: Tap, index: int, layout: str, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        """Forward hook: keeps a level and lets the network go on from what was kept."""
        if index == tap.indexes[0]:
            output = output.detach()
        value = self._as_grid(output, layout)
        tap.values[index] = value if value.requires_grad else value.requires_grad_()
        return self._as_net(value, output, layout)

    def fast_parameters(self) -> list[nn.Parameter]:
        """Parameters that the published recipes train at the learning rate of the heads (ResNet: layer4)."""
        named = [p for n, p in self.net.named_parameters() if n.startswith(self.quirk.fast)] if self.quirk.fast else []
        return [*named, *self.neck.parameters()]

    # -- layouts -----------------------------------------------------------------------------------------------------
    def _as_grid(self, value: Tensor, layout: str) -> Tensor:
        """(B, D, h, w) from maps, maps with channels last, or tokens."""
        if layout == "tokens":
            patches = value[:, self.prefix_tokens :]
            return patches.transpose(1, 2).reshape(value.shape[0], value.shape[2], *self._token_grid)
        return value.permute(0, 3, 1, 2) if layout == "channels last" else value

    def _as_net(self, grid: Tensor, original: Tensor, layout: str) -> Tensor:
        """The inverse of `_as_grid`, with the prefix tokens of `original`."""
        if layout == "tokens":
            return torch.cat([original[:, : self.prefix_tokens], grid.flatten(2).transpose(1, 2)], 1)
        # a copy, as a layer after it may work in place, which a leaf does not allow
        return grid.permute(0, 2, 3, 1).clone() if layout == "channels last" else grid.clone()

    def _patches(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patch tokens, (0, 0) for a network without tokens."""
        height, width = images.shape[-2:]
        rows, columns = shapes.token_grid(self.net, (height, width))
        if not rows * columns:
            return (0, 0)
        patch = int(shapes.feature_info(self.net)[-1]["reduction"])
        if height % patch or width % patch:
            raise BenchError(
                f"Backbone '{self.name}' reads patches of {patch}x{patch} px, and an image of {height}x{width} "
                f"does not divide into them. Use sizes that are multiples of {patch}."
            )
        return (rows, columns)

    def possible_strides(self) -> list[int]:
        """Grid strides in px that `create_backbone` can give this network, its own among them."""
        own = self.strides[-1]
        if self.quirk.complete:
            return sorted([*self.quirk.edits, own])
        if self._layouts[-1] == "tokens":
            return [own]
        return quirks.possible_strides(quirks.strided_layers(self, self.net, self.input_size), own)

    def check_size(self, side: int) -> None:
        """Raises BenchError unless images of `side` px give a grid as fine as `strides` says; computes nothing."""
        try:
            grid = quirks.run_without_memory(self, (side, side))
        except BenchError:
            raise
        except Exception as problem:  # noqa: BLE001 - the networks of timm refuse sizes each in its own way
            log.debug("backbone %s at %d px: %r", self.name, side, problem)
            grid = None
        wanted = side / self.strides[-1]
        if grid is None or max(abs(s - wanted) for s in grid.shape[-2:]) > max(2.0, wanted / 4):
            own = self.input_size[0]
            raise BenchError(
                f"Backbone '{self.name}' gives no feature grid for images of {side}x{side} px; it is made for "
                f"{own}x{self.input_size[1]}. Use --set train.image_size={own} --set train.load_size={own * 8 // 7}, "
                "or choose another network."
            )

    # -- what this network is ----------------------------------------------------------------------------------------
    def _require(self, ability: str) -> None:
        if ability not in self.abilities:
            raise BenchError(
                f"Backbone '{self.name}' has no {ability}; it has {', '.join(sorted(self.abilities))}. "
                "Choose a backbone that fits the method."
            )

    def _catch(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Raw outputs of all levels but the last, and the grid, by one forward pass."""
        caught: dict[int, Tensor] = {}
        handles: list[RemovableHandle] = []
        try:
            for index, path in enumerate(self._levels):
                keep = partial(_keep, caught, index)
                handles.append(self.net.get_submodule(path).register_forward_hook(keep))
            grid = self.grid(images)
        finally:
            for handle in handles:
                handle.remove()
        return [caught[i] for i in range(len(self._levels))], grid

    def _measure(self) -> None:
        """Reads abilities, dims and strides off passes without memory. Raises BenchError if there is no grid."""
        size = self.input_size
        last = shapes.layout_of(quirks.run_without_memory(Features(self.net), size), self.net, size)
        if not last:
            raise shapes.no_grid(self.name)
        self._layouts = (last,)
        self._levels = self._usable_levels(last)
        raw, grid = quirks.run_without_memory(_Catcher(self), size)
        self._layouts = (*(shapes.layout_of(r, self.net, size) for r in raw), last)
        # tokens of a network that ends in maps, or that appends its class token late, lie in no order known here
        if any(not each or (each == "tokens") != (last == "tokens") for each in self._layouts):
            self._levels, self._layouts, raw = (), (last,), []
        maps = [*(self._as_grid(r, layout) for r, layout in zip(raw, self._layouts, strict=False)), grid]
        self.dims = tuple(m.shape[1] for m in maps)
        if last == "tokens":
            own = size[0] // grid.shape[-2]
            self.strides = (*(own // s for s in TOKEN_SCALES if raw), own)
        else:
            self.strides = tuple(quirks.power_of_two(size[0] / m.shape[-2]) for m in maps)
        self.abilities = frozenset({"grid", *(["pyramid"] if raw else []), *self._more_abilities(last if raw else "")})

    def _usable_levels(self, last: str) -> tuple[str, ...]:
        """Names of the modules whose outputs are the levels before the last; none where timm names no such modules."""
        info = shapes.feature_info(self.net)[:-1]
        paths = shapes.token_levels(self.net) if last == "tokens" else [str(i.get("module", "")) for i in info]
        modules = dict(self.net.named_modules())
        return tuple(paths) if all(p and p in modules for p in paths) else ()

    def _more_abilities(self, layout: str) -> list[str]:
        abilities = ["batchnorm"] if any(isinstance(m, _BatchNorm) for m in self.modules()) else []
        if layout != "tokens":
            return abilities
        blocks = list(getattr(self.net, "blocks", []))
        seen = blocks and all(
            hasattr(getattr(b, "attn", None), "fused_attn") and hasattr(b.attn, "attn_drop") for b in blocks
        )
        return [*abilities, "tokens", "attention"] if seen else abilities


class _Catcher(nn.Module):
    """Runs Backbone._catch where a forward is called for."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        return self.backbone._catch(images)


def _keep(caught: dict[int, Tensor], index: int, _module: nn.Module, _inputs: object, output: Tensor) -> None:
    caught[index] = output


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within the block no parameter asks for a gradient; afterwards each asks as before."""
    asking = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def param_groups(method: nn.Module, backbone: Backbone, lr: float, head_scale: float) -> list[dict[str, Any]]:
    """Optimizer groups as published: heads and the backbone's fast layers at lr * head_scale, the rest at lr.

    A family that is trained at one learning rate (DeiT) ignores head_scale.
    """
    scale = head_scale if backbone.quirk.scale_heads else 1.0
    fast = {id(p) for p in backbone.fast_parameters()}
    body_ids = {id(p) for p in backbone.parameters()} - fast
    trained = [p for p in method.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in body_ids], "lr": lr},
        {"params": [p for p in trained if id(p) not in body_ids], "lr": lr * scale},
    ]
    return [g for g in groups if g["params"]]


# -- making one -----------------------------------------------------------------------------------------------------
def create_backbone(name: str, stride: int | None = None, device: str | None = None) -> Backbone:
    """A timm network by name, randomly initialised. `stride`: of its grid in pixels, None for the network's own.

    Strides are removed, not dilated; `vgg16` and `inception_v3` at stride 8 are the published variants. device "meta"
    allocates nothing. Raises BenchError for an unknown name and for a stride the network cannot have.
    """
    quirk = quirks.quirk_of(name)
    check_network(name)
    with torch.device(device) if device else torch.device("cpu"):
        with grid_or_refusal(name):
            net = create_net(name, quirk)
            drop_heads(net)
            plain = Backbone(name, net, quirk)
        if stride is None or stride == plain.strides[-1]:
            return plain
        neck = _restride(plain, stride)
        changed = Backbone(name, net, quirk, neck)
    if changed.strides[-1] != stride:
        raise quirks.refuse_stride(name, stride, [plain.strides[-1]])
    return changed


def _restride(backbone: Backbone, stride: int) -> nn.Module | None:
    """Changes the network of `backbone` to a grid stride; returns the layers to put after it."""
    name, net, quirk = backbone.name, backbone.net, backbone.quirk
    possible = backbone.possible_strides()
    if stride not in possible:
        raise quirks.refuse_stride(name, stride, possible)
    edit = quirk.edits.get(stride)
    if not quirk.complete:
        quirks.remove_strides(net, quirks.strided_layers(backbone, net, backbone.input_size), stride)
    if edit is None:
        return None
    edit.prepare(net)
    return edit.neck()
