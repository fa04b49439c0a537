"""Metrics as pure functions of per-image score histograms and logits; an undefined value is NaN, never 0.

A histogram counts, for one image, the pixels of a score map in [0, 1] that fall in each bin, apart for foreground and
background. Bins follow the evaluator of Choe et al. (CVPR 2020), which the histology papers use: left edges 0, 0.001,
…, 0.999 and a last bin for the value 1 itself. Everything a threshold can tell is in these counts, so that every
metric, interval and curve is recomputed from them without a GPU or an image.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

THRESHOLDS: np.ndarray = np.append(np.arange(0, 1, 0.001), 1.0)  # left edges of the bins, ascending
BINS = len(THRESHOLDS)
_ROWS_AT_ONCE = 512  # rows of float64 bins in memory at once
VERSION = 1


class Histograms(NamedTuple):
    """Counts per image and bin, shape (N, BINS), of foreground and of background pixels."""

    foreground: np.ndarray
    background: np.ndarray

    def pooled(self) -> "Histograms":
        """All images in one row each, as int64 of shape (1, BINS)."""
        return Histograms(*(h.sum(0, dtype=np.int64, keepdims=True) for h in self))

    def select(self, rows: np.ndarray) -> "Histograms":
        """The images given by a boolean mask or by indices."""
        return Histograms(self.foreground[rows], self.background[rows])


@dataclass(frozen=True)
class Curve:
    """Pixel counts at every threshold of THRESHOLDS (a pixel is called foreground if score >= tau); float64 (BINS,)."""

    tp: np.ndarray
    fp: np.ndarray
    positives: float
    negatives: float

    @property
    def tau(self) -> np.ndarray:
        """The thresholds, ascending in [0, 1]."""
        return THRESHOLDS

    @property
    def precision(self) -> np.ndarray:
        """TP / (TP + FP); NaN where nothing is called foreground."""
        return _divide(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> np.ndarray:
        """TP / foreground pixels; NaN without foreground."""
        return _divide(self.tp, self.positives)

    @property
    def dice(self) -> np.ndarray:
        """2 TP / (2 TP + FP + FN) of the foreground; NaN without foreground."""
        value = _divide(2 * self.tp, self.tp + self.fp + self.positives)
        return value if self.positives else np.full_like(value, np.nan)

    @property
    def iou(self) -> np.ndarray:
        """TP / (TP + FP + FN) of the foreground; NaN without foreground."""
        value = _divide(self.tp, self.fp + self.positives)
        return value if self.positives else np.full_like(value, np.nan)

    @property
    def iou_background(self) -> np.ndarray:
        """TN / (TN + FP + FN); NaN without background."""
        tn, fn = self.negatives - self.fp, self.positives - self.tp
        value = _divide(tn, tn + self.fp + fn)
        return value if self.negatives else np.full_like(value, np.nan)

    @property
    def miou(self) -> np.ndarray:
        """Mean of foreground and background IoU: the criterion that picks tau."""
        return (self.iou + self.iou_background) / 2


def curve(histograms: Histograms) -> Curve:
    """The threshold curve of all images pooled (micro average over pixels)."""
    foreground, background = (h.sum(0, dtype=np.float64) for h in histograms)
    tp, fp = (np.cumsum(h[::-1])[::-1] for h in (foreground, background))
    return Curve(tp, fp, float(tp[0]), float(fp[0]))


def pxap(histograms: Histograms) -> float:
    """Pixel average precision in percent, all pixels pooled; NaN if there is no foreground pixel.

    100 * sum_i P_i (R_i - R_{i-1}) from high to low threshold, a right-rectangle sum without interpolation
    (Choe et al. 2020, PxAP). A constant map gives the share of foreground pixels.
    """
    return float(pxap_rows(histograms.pooled())[0])


def pxap_rows(histograms: Histograms) -> np.ndarray:
    """PxAP in percent of every row on its own, shape (N,); rows may be float (resampled sums). NaN where undefined."""
    parts = range(0, len(histograms.foreground), _ROWS_AT_ONCE)
    chunks = [_pxap_rows(Histograms(*(h[k : k + _ROWS_AT_ONCE] for h in histograms))) for k in parts]
    return np.concatenate(chunks) if chunks else np.zeros(0)


def _pxap_rows(histograms: Histograms) -> np.ndarray:
    tp, fp = (np.cumsum(h[:, ::-1], axis=1, dtype=np.float64) for h in histograms)
    precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp + fp > 0)
    gain = np.diff(tp, axis=1, prepend=0.0)
    return 100 * _divide((precision * gain).sum(1), tp[:, -1])


def chance_level(histograms: Histograms) -> float:
    """PxAP of a constant map in percent: the share of foreground pixels; NaN without foreground."""
    foreground, background = (float(h.sum(dtype=np.float64)) for h in histograms)
    return 100 * foreground / (foreground + background) if foreground else float("nan")


def chance_dice(histograms: Histograms) -> float:
    """Dice of a constant map at its best threshold in percent: with a share p of foreground, all of it called
    foreground, 2 p / (1 + p). NaN without foreground. Its IoU is p itself, `chance_level`.
    """
    share = chance_level(histograms) / 100
    return 100 * 2 * share / (1 + share)


def end_bins(histograms: Histograms) -> tuple[float, float]:
    """Share of all pixels, in percent, below 0.001 and from 0.999 on: where saturated maps lie; NaN without pixels."""
    foreground, background = (h.sum(0, dtype=np.float64) for h in histograms)
    counts = foreground + background
    low, high = _divide(100 * np.array([counts[0], counts[-2:].sum()]), counts.sum())
    return float(low), float(high)


def best_tau(histograms: Histograms) -> float:
    """The threshold of highest pooled mean IoU (the lowest of equals); NaN where that is undefined.

    Chosen on validation histograms it is `tau_val`; chosen on the scored set itself it is an oracle.
    """
    score = curve(histograms).miou
    return float("nan") if np.isnan(score).all() else float(THRESHOLDS[int(np.nanargmax(score))])


def at_tau(histograms: Histograms, tau: float) -> dict[str, float]:
    """Pooled `dice`, `iou`, `miou`, `sensitivity` and `specificity` in percent at a threshold; NaN for a NaN tau.

    Between two of THRESHOLDS the higher one is taken. Raises ValueError for a tau outside [0, 1].
    """
    names = ("dice", "iou", "miou", "sensitivity", "specificity")
    if np.isnan(tau):
        return dict.fromkeys(names, float("nan"))
    c = curve(histograms)
    i = _tau_index(tau)
    specificity = 1 - c.fp[i] / c.negatives if c.negatives else float("nan")
    values = (c.dice[i], c.iou[i], c.miou[i], c.recall[i], specificity)
    return {name: 100 * float(value) for name, value in zip(names, values, strict=True)}


class Confusion(NamedTuple):
    """Pixel counts at a threshold, float64 of one shape: TP, FP, foreground and background pixels."""

    tp: np.ndarray
    fp: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    @property
    def dice(self) -> np.ndarray:
        """2 TP / (2 TP + FP + FN) in percent; NaN without foreground."""
        percent = 100 * _divide(2 * self.tp, self.tp + self.fp + self.positives)
        return np.where(self.positives > 0, percent, np.nan)

    @property
    def iou(self) -> np.ndarray:
        """TP / (TP + FP + FN) in percent; NaN without foreground."""
        percent = 100 * _divide(self.tp, self.fp + self.positives)
        return np.where(self.positives > 0, percent, np.nan)

    @property
    def miou(self) -> np.ndarray:
        """Mean of the IoU of foreground and of background, TN / (TN + FP + FN), in percent; NaN without either."""
        right = self.negatives - self.fp
        outer = 100 * _divide(right, self.negatives + self.positives - self.tp)
        return (self.iou + np.where(self.negatives > 0, outer, np.nan)) / 2

    @property
    def called(self) -> np.ndarray:
        """Share of the pixels called foreground, in percent."""
        return 100 * _divide(self.tp + self.fp, self.positives + self.negatives)


def confusion(histograms: Histograms, tau: float | np.ndarray) -> Confusion:
    """Counts of every image, (N,), at one threshold or at one an image (N,). All NaN for a NaN tau.

    Raises ValueError for a tau outside [0, 1].
    """
    fg, bg = histograms
    positives, negatives = (h.sum(1, dtype=np.float64) for h in (fg, bg))
    called = [np.full(len(fg), np.nan), np.full(len(fg), np.nan)]
    taus = np.broadcast_to(np.asarray(tau, np.float64), (len(fg),))
    for value in np.unique(taus[~np.isnan(taus)]):
        rows, i = taus == value, _tau_index(float(value))
        for counts, h in zip(called, (fg, bg), strict=True):
            counts[rows] = h[rows, i:].sum(1, dtype=np.float64)
    return Confusion(called[0], called[1], positives, negatives)


def dice_rows(histograms: Histograms, tau: float | np.ndarray) -> np.ndarray:
    """Dice of the foreground in percent for every row on its own, (N,); NaN without foreground."""
    return confusion(histograms, tau).dice


def _tau_index(tau: float) -> int:
    if not 0 <= tau <= 1:
        raise ValueError(f"tau = {tau} is outside [0, 1]")
    return int(np.searchsorted(THRESHOLDS, tau - 1e-9))  # 0.3 typed by a user is not the 0.3 of numpy's ladder


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose highest logit is their label, in percent; NaN without logits or images."""
    if not len(labels) or np.isnan(logits).any():
        return float("nan")
    return 100 * float((logits.argmax(1) == labels).mean())


def group_sums(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Sums of the rows of each group, groups in sorted order: (N, …) -> (G, …), float64."""
    _, index = np.unique(groups, return_inverse=True)
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(int(index.max()) + 1))
    # in the type of the values' sum, group by group: a float64 copy of all rows would be the largest array of a report
    return np.stack([values[rows].sum(0, dtype=np.float64) for rows in np.split(order, starts[1:])])


def _divide(top: np.ndarray, bottom: np.ndarray | float) -> np.ndarray:
    top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
