"""`bench score` without its command line: maps and masks on disk to the numbers of a table, with no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import metrics
from .errors import BenchError
from .mapfiles import LabelRow, MapPair, pair_files, read_labels, read_map, read_mask
from .maps import PROB_TOLERANCE, histogram, resize_maps, scale_maps
from .metrics import BINS, Histograms

INTERVAL_SEED = 0


@dataclass(frozen=True)
class ScoreRequest:
    """What to score. kind: `prob` or `score`; size: side in px, None for each mask's own; tau: threshold in [0, 1]."""

    maps: Path
    masks: Path
    labels: Path | None = None
    kind: str = "prob"
    size: int | None = None
    tau: float = 0.5


def score_folders(request: ScoreRequest) -> dict[str, Any]:
    """All numbers of a folder of maps, percentages except tau; undefined ones are NaN.

    Raises BenchError for whatever is wrong with the folders, a file in them, or the labels.
    """
    rows = read_labels(request.labels) if request.labels else None
    pairs = pair_files(request.maps, request.masks, None if rows is None else list(rows))
    histograms, degenerate = count_pairs(pairs, request.kind, request.size)
    groups = np.array([rows[p.id].group if rows else p.id for p in pairs])
    oracle = metrics.best_tau(histograms)
    fixed, best = metrics.at_tau(histograms, request.tau), metrics.at_tau(histograms, oracle)
    result: dict[str, Any] = {
        "pxap": metrics.pxap(histograms),
        "interval": list(metrics.pxap_interval(histograms, groups, INTERVAL_SEED)),
        "chance": metrics.chance_level(histograms),
        "images": len(pairs),
        "degenerate": int(degenerate.sum()),
        "groups": len(np.unique(groups)),
        "kind": request.kind,
        "size": request.size,
        "tau": request.tau,
        "dice": fixed["dice"],
        "iou": fixed["iou"],
        "tau_oracle": oracle,
        "dice_oracle": best["dice"],
        "iou_oracle": best["iou"],
        "positives": _part(histograms, _has_foreground(histograms)),
        "per_image": _per_image(histograms, request.tau),
    }
    if rows:
        result |= _by_label(histograms, [rows[p.id] for p in pairs])
    return result


def count_pairs(pairs: Sequence[MapPair], kind: str, size: int | None) -> tuple[Histograms, np.ndarray]:
    """Histograms of all images, int32 (N, BINS) each, and which maps are constant, bool (N,).

    Maps are scaled on their own grid, then resized to the mask, or map and mask both to size x size. Raises BenchError
    naming the file.
    """
    foreground, background = (np.zeros((len(pairs), BINS), np.int32) for _ in range(2))
    degenerate = np.zeros(len(pairs), bool)
    for i, pair in enumerate(pairs):
        values, mask = read_map(pair.map), read_mask(pair.mask)
        if kind == "prob":
            _check_range(pair.map, values)
        if size is None:
            _check_shape(pair, values.shape, mask.shape)
        else:
            mask = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)) > 0
        scaled, constant = scale_maps(torch.from_numpy(values)[None], kind, "image", ids=(pair.id,))
        height, width = mask.shape
        counts = histogram(resize_maps(scaled, (height, width)), torch.from_numpy(mask)[None])
        foreground[i], background[i] = (c[0].numpy() for c in counts)
        degenerate[i] = bool(constant)
    return Histograms(foreground, background), degenerate


def _check_range(path: Path, values: np.ndarray) -> None:
    low, high = float(values.min()), float(values.max())
    if low < -PROB_TOLERANCE or high > 1 + PROB_TOLERANCE:
        raise BenchError(
            f"{path} has values from {low:.6g} to {high:.6g}, outside [0, 1]. If they are unbounded scores, add --kind "
            "score (min-max per image); if they are probabilities in other units, divide them first."
        )


def _check_shape(pair: MapPair, map_shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> None:
    """A map may be coarser or finer than its mask if both show the same frame: equal aspect within a pixel."""
    (h, w), (height, width) = map_shape, mask_shape
    if abs(h * width - w * height) >= max(height, width, h, w):
        raise BenchError(
            f"{pair.map} is {w} x {h} px and its mask {pair.mask.name} {width} x {height} px: the aspects differ, so "
            "where the map lies on the image is unknown. Resize the map to the image, or, if it covers the whole image "
            "squashed to a square, give --size (224 in the published evaluation)."
        )


def _has_foreground(histograms: Histograms) -> np.ndarray:
    return histograms.foreground.sum(1, dtype=np.int64) > 0


def _part(histograms: Histograms, rows: np.ndarray) -> dict[str, Any]:
    """The pooled numbers of some images."""
    part = histograms.select(rows)
    return {"images": int(rows.sum()), "pxap": metrics.pxap(part), "chance": metrics.chance_level(part)}


def _per_image(histograms: Histograms, tau: float) -> dict[str, Any]:
    """Mean and median over images with foreground; one image, one voice, unlike the pooled numbers."""
    rows = histograms.select(_has_foreground(histograms))
    if not len(rows.foreground):
        return {"images": 0} | dict.fromkeys(("pxap_mean", "pxap_median", "dice_mean", "dice_median"), float("nan"))
    pxap, dice = metrics.pxap_rows(rows), metrics.dice_rows(rows, tau)
    return {
        "images": len(pxap),
        "pxap_mean": float(pxap.mean()),
        "pxap_median": float(np.median(pxap)),
        "dice_mean": float(dice.mean()),
        "dice_median": float(np.median(dice)),
    }


def _by_label(histograms: Histograms, rows: Sequence[LabelRow]) -> dict[str, Any]:
    labels = np.array([row.label for row in rows])
    found: dict[str, Any] = {"classes": {str(c): _part(histograms, labels == c) for c in np.unique(labels)}}
    if all(row.prediction is not None for row in rows):
        predictions = np.array([row.prediction for row in rows])
        if not set(predictions) & set(labels):
            raise BenchError(
                f"The labels CSV predicts '{predictions[0]}' and the like, but none of that is a label in it."
            )
        found["accuracy"] = 100 * float((predictions == labels).mean())
    return found
