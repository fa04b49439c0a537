"""Triton kernels that count score maps on CUDA: each pixel and its mask are read once, nothing of that size is written.

Triton comes with torch's CUDA builds on Linux only, so that histograms.py imports this module to count on a GPU and
falls back on torch where it cannot. A program counts its share of one image in shared memory and adds what it found to
the image's counts; integers add up to the same in any order, so that the counts are deterministic.
"""
# ruff: noqa: ANN001, ANN202 - inside a kernel, an annotation is an instruction to Triton's compiler

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.metrics import BINS
from .histogram_layout import BITS, CELLS, axis_table

_TILE = 8192  # pixels a program counts at once; fewer, and emptying the 2,048 cells would weigh more
_RESIZED_TILE = 2048  # where it interpolates too: more, and the registers would let one program at a time on a core
_WARPS = 16
_PROGRAMS_PER_CORE = 4  # enough to hide latency, few enough that adding their counts up does not show
WIDEST = 4096  # px; a wider map has no tile of whole rows


@triton.jit
def _cells(values, inside, bits: tl.constexpr):
    """bin + 2^bits * inside; the product is exact in float64, and a stray value cannot leave its image's cells."""
    index = (values.to(tl.float64) * 1000.0).to(tl.int32)
    index = tl.minimum(tl.maximum(index, 0), 1000)
    return index + (inside.to(tl.int32) << bits)


@triton.jit
def _count(maps, masks, counts, pixels, tile: tl.constexpr, cells: tl.constexpr, bits: tl.constexpr):
    """One share of one image: tiles part, part + parts, … of the flat map. Grid (images, parts)."""
    image, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    maps += image.to(tl.int64) * pixels
    masks += image.to(tl.int64) * pixels
    total = tl.zeros((cells,), tl.int32)
    for start in range(part * tile, pixels, parts * tile):
        place = start + tl.arange(0, tile)
        real = place < pixels
        index = _cells(tl.load(maps + place, real, 0.0), tl.load(masks + place, real, 0), bits)
        total += tl.histogram(tl.where(real, index, cells - 1), cells)  # the last cell is no bin's
    cell = tl.arange(0, cells)
    tl.atomic_add(counts + image * cells + cell, total, mask=total > 0)


@triton.jit
def _count_resized(
    maps, lows, highs, masks, counts, tops, downs, lefts, rights, h, w, height, width,
    rows: tl.constexpr, columns: tl.constexpr, cells: tl.constexpr, bits: tl.constexpr,
):  # fmt: skip
    """The same of maps (h, w) seen at (height, width): tiles of whole rows, interpolated where they are counted.

    tops, lefts: first of the two source rows or columns; downs, rights: weight of the second. Sums are in the order of
    counting.resize_by_steps, and compiled without fused multiply-add, so that every rounding is the same.
    """
    image, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    maps += image.to(tl.int64) * (h * w)
    masks += image.to(tl.int64) * (height * width)
    low, high = tl.load(lows + image), tl.load(highs + image)
    column = tl.arange(0, columns)
    left = tl.load(lefts + column, column < width, 0)[None, :]
    right = tl.load(rights + column, column < width, 0.0)[None, :]
    beside = tl.minimum(left + 1, w - 1)
    total = tl.zeros((cells,), tl.int32)
    for start in range(part * rows, height, parts * rows):
        row = start + tl.arange(0, rows)
        top = tl.load(tops + row, row < height, 0)[:, None]
        down = tl.load(downs + row, row < height, 0.0)[:, None]
        upper, lower = maps + top * w, maps + tl.minimum(top + 1, h - 1) * w
        above = (1.0 - right) * tl.load(upper + left) + right * tl.load(upper + beside)
        below = (1.0 - right) * tl.load(lower + left) + right * tl.load(lower + beside)
        values = (1.0 - down) * above + down * below
        values = tl.minimum(tl.maximum(values, low), high)
        real = (row < height)[:, None] & (column < width)[None, :]
        inside = tl.load(masks + row[:, None] * width + column[None, :], real, 0)
        index = tl.where(real, _cells(values, inside, bits), cells - 1)
        total += tl.histogram(tl.ravel(index), cells)
    cell = tl.arange(0, cells)
    tl.atomic_add(counts + image * cells + cell, total, mask=total > 0)


def count(maps: Tensor, masks: Tensor) -> Tensor:
    """Counts int64 (B, 2, BINS) of maps (B, H, W) float32 under masks (B, H, W) bool on the same GPU."""
    maps, masks = maps.detach().float().contiguous(), masks.detach().bool().contiguous()
    images, pixels = len(maps), maps[0].numel() if len(maps) else 0
    counts = _empty(maps)
    launch: Any = _count[(images, _parts(maps, triton.cdiv(pixels, _TILE)))]  # its options are no parameters
    if counts.numel() and pixels:
        with torch.cuda.device_of(maps):
            launch(maps, masks.view(torch.uint8), counts, pixels, _TILE, CELLS, BITS, num_warps=_WARPS)
    return _bins(counts)


def count_resized(maps: Tensor, masks: Tensor) -> Tensor:
    """Counts of maps (B, h, w) float32 resized to masks (B, H, W) bool, W at most WIDEST, on the same GPU."""
    maps, masks = maps.detach().float().contiguous(), masks.detach().bool().contiguous()
    (h, w), (height, width) = maps.shape[1:], masks.shape[1:]
    counts = _empty(maps)
    lows, highs = torch.aminmax(maps.flatten(1), dim=1)
    tables = (*axis_table(h, height, maps.device), *axis_table(w, width, maps.device))
    columns = triton.next_power_of_2(width)
    rows = max(1, _RESIZED_TILE // columns)
    launch: Any = _count_resized[(len(maps), _parts(maps, triton.cdiv(height, rows)))]
    with torch.cuda.device_of(maps):
        launch(
            maps, lows, highs, masks.view(torch.uint8), counts, *tables, h, w, height, width,
            rows, columns, CELLS, BITS, num_warps=_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return _bins(counts)


def _empty(maps: Tensor) -> Tensor:
    return torch.zeros(len(maps), CELLS, dtype=torch.int32, device=maps.device)


def _bins(counts: Tensor) -> Tensor:
    return counts.view(len(counts), 2, CELLS // 2)[..., :BINS].long()


def _parts(maps: Tensor, tiles: int) -> int:
    """Programs per image: the whole GPU busy, whatever the batch, and no program without a tile."""
    cores = torch.cuda.get_device_properties(maps.device).multi_processor_count if maps.is_cuda else 1
    return max(1, min(tiles, triton.cdiv(_PROGRAMS_PER_CORE * cores, max(1, len(maps)))))
