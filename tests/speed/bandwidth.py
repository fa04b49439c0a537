"""Resize, normalise and count on a GPU, batch 64 at 512 px, as a share of the bandwidth a plain copy reaches there.

Bytes are those that must move: native maps read, scaled maps written and read, masks read, counts written (int64). Full
maps are not among them, as the fused kernel never writes any; `share_with_full_maps` credits it with them, as a way to
do the same work in steps would move them. The second row counts full maps that are there already; its bytes are just
what that step moves. The copy counts reads and writes too. Sides alternate, ratios are of medians.

usage: python tests/speed/bandwidth.py [--batch 64] [--size 512] [--native 28] [--rounds 50] [--json]
"""

import argparse
from collections.abc import Iterator

import torch
from alternate import measure
from rows import Row, show

from wsolbench.benchmark.core.metrics import BINS
from wsolbench.benchmark.scoring.map_scaling import histogram, resize_maps, resized_histogram, scale_later

COPIED = 1 << 30  # bytes of the yardstick: far more than a GPU's cache holds
REACH = ">= 0.5"
STEPS = "resize + normalise + histogram, share of bandwidth"
COUNT = "histogram of full maps, share of bandwidth"
PEER = "device copy"


def rows(batch: int, size: int, native: int, rounds: int) -> Iterator[Row]:
    """The share of all three steps, and that of the last one alone."""
    about = {"threads": torch.get_num_threads(), "side_px": size, "images": batch, "native_px": native}
    if not torch.cuda.is_available():
        for what in (STEPS, COUNT):
            yield Row(what, PEER, None, REACH, conditions={**about, "device": "cpu"}, note="no CUDA device here")
        return
    device = torch.device("cuda")
    source = torch.Generator(device).manual_seed(0)
    maps = torch.rand(batch, native, native, generator=source, device=device)
    masks = torch.rand(batch, size, size, generator=source, device=device) < 0.3
    full = resize_maps(maps, size)
    whence, whither = (torch.zeros(COPIED, dtype=torch.uint8, device=device) for _ in range(2))
    sides = {
        "copy": lambda: whither.copy_(whence),
        "steps": lambda: resized_histogram(scale_later(maps, "score", "image").maps, masks),
        "count": lambda: histogram(full, masks),
    }
    seconds = measure(sides, rounds, device)
    small, large, counts = 4 * maps.numel(), 4 * full.numel(), 8 * 2 * BINS * batch
    moved = {"steps": 3 * small + masks.numel() + counts, "count": large + masks.numel() + counts}
    speed = 2 * COPIED / seconds["copy"]
    about |= {"device": torch.cuda.get_device_name(device), "copy_gb_s": round(speed / 1e9)}
    credited = (moved["steps"] + 2 * large) / seconds["steps"] / speed
    for what, side, more in ((STEPS, "steps", {"share_with_full_maps": credited}), (COUNT, "count", {})):
        taken, share = {"copy": seconds["copy"], side: seconds[side]}, moved[side] / seconds[side] / speed
        yield Row(what, PEER, share, REACH, taken, {**about, "bytes": moved[side], **more})


def main() -> None:
    """Prints both shares, or that there is no GPU to take them on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--native", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="print one JSON object per row")
    options = parser.parse_args()
    for row in rows(options.batch, options.size, options.native, options.rounds):
        show(row, options.json)


if __name__ == "__main__":
    main()
