"""How the outputs of timm's networks lie in memory, told by their shapes: maps, maps with channels last, or tokens."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...benchmark.core.errors import BenchError

MAPS, CHANNELS_LAST, TOKENS, UNKNOWN = "maps", "channels last", "tokens", ""


def no_grid(name: str) -> BenchError:
    """The error for a network that gives no feature grid."""
    return BenchError(f"Backbone '{name}' gives no feature grid; choose another network of timm.")


def layout_of(value: object, net: nn.Module, size: tuple[int, int]) -> str:
    """The layout of what a network made of an image of `size` (rows, columns in px), `UNKNOWN` if it is no grid.

    The two neighbouring axes in the proportion of the image are its rows and columns; where both pairs are, the network
    says which. Tokens are a grid only of a network that says how many of them come before those of the patches.
    """
    if not isinstance(value, Tensor):
        return UNKNOWN
    if value.ndim == 3:
        count = math.prod(token_grid(net, size))
        prefix = int(getattr(net, "num_prefix_tokens", 0) or 0)
        return TOKENS if count and value.shape[1] == prefix + count else UNKNOWN
    if value.ndim != 4 or min(value.shape) < 1:
        return UNKNOWN
    layouts = [layout for layout, first in ((MAPS, 2), (CHANNELS_LAST, 1)) if _proportional(value, first, size)]
    if len(layouts) == 2:
        return CHANNELS_LAST if getattr(net, "output_fmt", "") == "NHWC" else MAPS
    return layouts[0] if layouts else UNKNOWN


def _proportional(value: Tensor, first: int, size: tuple[int, int]) -> bool:
    """Whether two axes are an image of `size` made smaller alike, up to the rounding of layers without padding."""
    rows, columns = value.shape[first : first + 2]
    return 1 < rows <= size[0] and abs(columns - rows * size[1] / size[0]) <= 1 - (size[0] == size[1])


def token_grid(net: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patch tokens for an image of `size`, rounded down; (0, 0) for a network without tokens."""
    info = feature_info(net)
    if not hasattr(net, "num_prefix_tokens") or not info:
        return (0, 0)
    patch = int(info[-1].get("reduction", 0))
    return (size[0] // patch, size[1] // patch) if patch else (0, 0)


def feature_info(net: nn.Module) -> list[dict[str, Any]]:
    """timm's description of the levels of a network, fine to coarse; empty where it describes them in another way."""
    info: Any = getattr(net, "feature_info", None) or []
    try:
        levels = list(getattr(info, "info", info))
    except (KeyError, TypeError):
        return []
    return levels if all(isinstance(i, dict) for i in levels) else []


def token_levels(net: nn.Module) -> list[str]:
    """Names of the blocks after a quarter, half and three quarters of the depth."""
    depth = len(getattr(net, "blocks", []))
    return [f"blocks.{math.ceil(depth * quarter / 4) - 1}" for quarter in (1, 2, 3)] if depth else []


def enlarge(grid: Tensor, scale: int) -> Tensor:
    """(B, D, h, w) resized to `scale` times its sides, bilinear."""
    return F.interpolate(grid, scale_factor=scale, mode="bilinear", align_corners=False) if scale > 1 else grid
