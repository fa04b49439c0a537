"""How much faster the histogram of PxAP is than numpy's, on one core: a ratio of medians, the two sides alternating.

Both sides get 512 x 512 maps and masks; numpy gets the edges of the published evaluator, one image at a time, as the
evaluator does. Usage: python tests/speed/histogram_ratio.py [--json] [--images N] [--rounds N]
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F

from wsolbench.benchmark.maps import histogram
from wsolbench.benchmark.metrics import BINS

EDGES = np.append(np.arange(0, 1, 0.001), [1.0, 2.0, 3.0])
SIDE = 512


def smooth(images: int, grid: int, seed: int) -> torch.Tensor:
    """Maps as methods give them: a coarse grid, resized."""
    coarse = torch.rand(images, 1, grid, grid, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")[:, 0].contiguous()


def by_numpy(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    rows = [[np.histogram(m[w], EDGES)[0][:BINS] for w in (k, ~k)] for m, k in zip(maps, masks, strict=True)]
    return np.array(rows)


def measure(images: int, rounds: int) -> dict[str, float | int]:
    torch.set_num_threads(1)
    maps, masks = smooth(images, 28, 0), smooth(images, 7, 1) > 0.5
    arrays = maps.numpy(), masks.numpy()
    ours = torch.stack(histogram(maps, masks), dim=1).numpy()
    if not np.array_equal(ours, by_numpy(*arrays)):
        raise SystemExit("the counts differ: the ratio would mean nothing")
    seconds: dict[str, list[float]] = {"numpy": [], "ours": []}
    for _ in range(rounds):
        for side, call in (("numpy", lambda: by_numpy(*arrays)), ("ours", lambda: histogram(maps, masks))):
            start = time.perf_counter()
            call()
            seconds[side].append(time.perf_counter() - start)
    per_image = {side: 1000 * statistics.median(times) / images for side, times in seconds.items()}
    ratios = [n / o for n, o in zip(seconds["numpy"], seconds["ours"], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "numpy_ms_per_image": per_image["numpy"],
        "ours_ms_per_image": per_image["ours"],
        "images": images,
        "side_px": SIDE,
        "threads": 1,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    result = measure(options.images, options.rounds)
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"histogram of {SIDE} x {SIDE} maps on one core: {result['ratio']:.1f}x faster than numpy "
            f"({result['ours_ms_per_image']:.2f} against {result['numpy_ms_per_image']:.2f} ms an image)"
        )
