"""How much faster the histogram of PxAP is than its peers, on one core: ratios of medians, the sides alternating.

All get the same 512 x 512 maps and masks, one image after the other where the peer can do no other. numpy gets the
edges of the published evaluator, as the evaluator does; torchmetrics its binned precision-recall curve at the
thresholds of the histogram, from which the same PxAP follows. Counts are compared before anything is timed.

usage: python tests/speed/histogram_ratio.py [--images 16] [--rounds 15] [--json]
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from alternate import measure
from rows import Row, show
from torchmetrics.functional.classification import binary_precision_recall_curve

from wsolbench.benchmark.core.metrics import BINS, THRESHOLDS
from wsolbench.benchmark.scoring.map_scaling import histogram

EDGES = np.append(np.arange(0, 1, 0.001), [1.0, 2.0, 3.0])
LADDER = torch.from_numpy(THRESHOLDS)
SIDE = 512


def smooth(images: int, grid: int, seed: int) -> torch.Tensor:
    """Maps as methods give them: a coarse grid, resized."""
    coarse = torch.rand(images, 1, grid, grid, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")[:, 0].contiguous()


def by_numpy(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Foreground and background counts (images, 2, BINS)."""
    rows = [[np.histogram(m[w], EDGES)[0][:BINS] for w in (k, ~k)] for m, k in zip(maps, masks, strict=True)]
    return np.array(rows)


def by_torchmetrics(maps: torch.Tensor, masks: torch.Tensor, ladder: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Precision, recall and thresholds of each image."""
    return [binary_precision_recall_curve(m, k, thresholds=ladder) for m, k in zip(maps, masks, strict=True)]


def curves_agree(maps: torch.Tensor, masks: torch.Tensor, counts: np.ndarray) -> bool:
    """Whether torchmetrics finds the precision and recall of our counts at every threshold.

    It compares in the type of the thresholds against the map's own, so that it gets the map in float64 here. Where
    nothing is called foreground, it says precision 0 and we say undefined: left out.
    """
    above = counts[..., ::-1].cumsum(-1)[..., ::-1]
    for (tp, fp), (precision, recall, _) in zip(above, by_torchmetrics(maps.double(), masks, LADDER), strict=True):
        called = tp + fp > 0
        same = np.allclose(precision[:-1].numpy()[called], (tp / np.maximum(tp + fp, 1))[called], rtol=0, atol=1e-6)
        if not same or not np.allclose(recall[:-1].numpy(), tp / tp[0], rtol=0, atol=1e-6):
            return False
    return True


def rows(images: int, rounds: int) -> Iterator[Row]:
    """Both ratios. torchmetrics takes most of a second for an image, so that it gets two images and five rounds."""
    maps, masks = smooth(images, 28, 0), smooth(images, 7, 1) > 0.5
    arrays, few = (maps.numpy(), masks.numpy()), (maps[:2], masks[:2])
    counts = torch.stack(histogram(maps, masks), dim=1).numpy()
    cpu, about = torch.device("cpu"), {"threads": torch.get_num_threads(), "side_px": SIDE, "device": "cpu"}

    sides = {"numpy": lambda: by_numpy(*arrays), "ours": lambda: histogram(maps, masks)}
    seconds, same = measure(sides, rounds, cpu), np.array_equal(counts, by_numpy(*arrays))
    yield _row("numpy.histogram, 1003 edges", ">= 8", seconds, {**about, "images": images}, same)

    ladder = LADDER.float()  # as anybody would call it, and quicker than float64: the ratio is against its best
    sides = {"torchmetrics": lambda: by_torchmetrics(*few, ladder), "ours": lambda: histogram(*few)}
    seconds, same = measure(sides, 5, cpu), curves_agree(*few, counts[:2])
    yield _row("torchmetrics, binned curve", ">= 1", seconds, {**about, "images": 2}, same)


def _row(peer: str, reach: str, seconds: dict[str, float], conditions: dict[str, Any], same: bool) -> Row:
    theirs, ours = seconds.values()
    note = "" if same else "The counts differ: the ratio means nothing."
    return Row("histogram", peer, theirs / ours, reach, seconds, conditions, note, same)


def main() -> None:
    """Prints both ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print one JSON object per row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for row in rows(options.images, options.rounds):
        show(row, options.json)


if __name__ == "__main__":
    main()
