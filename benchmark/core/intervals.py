"""95% intervals over groups (patients, slides): the images of a group resemble each other, so groups are the sample.

Thresholded quality (PxAP, Dice, means over patients) has the delete-one-group jackknife on the logit, accuracy the
interval of Wilson on the effective number of images. No random draws: the same counts give the same interval, and one
needs as many evaluations as there are groups. Undefined is NaN: with fewer than MIN_GROUPS groups nothing is claimed.

Sources: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 11 (jackknife); Kish, Survey Sampling, 1965
(effective sample size); Wilson, JASA 22, 1927; Korn & Graubard, Survey Methodology 24, 1998 (effective n of a
proportion with its degrees of freedom).
"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, stdtrit

from .metrics import Histograms, group_sums, pxap_rows

MIN_GROUPS = 5
_TAIL = 0.975
_NORMAL = 1.959963984540054  # its quantile in the normal distribution


class Interval(NamedTuple):
    """Two ends in percent, arrays of one shape or numbers; NaN where no interval is claimed."""

    low: np.ndarray
    high: np.ndarray


def effective_groups(sizes: np.ndarray) -> np.ndarray:
    """Effective number of groups of sizes (…, G): the equal ones that say as much, (sum n)^2 / sum n^2 (Kish).

    Between 1, where one group holds all, and G; 0 where all sizes are 0.
    """
    sizes = np.asarray(sizes, np.float64)
    squares = (sizes**2).sum(-1)
    return np.divide(sizes.sum(-1) ** 2, squares, out=np.zeros_like(squares), where=squares > 0)


def degrees_of_freedom(sizes: np.ndarray) -> np.ndarray:
    """Of the t distribution behind an interval over groups of these sizes (…, G): effective groups - 1, at least 1.

    The usual G - 1 counts a patient with one image as one with sixteen; with the patients of GlaS its intervals cover
    91 to 93%, these 93 to 96% (tests/benchmark/test_coverage.py).
    """
    return np.maximum(effective_groups(sizes) - 1, 1)


def jackknife_interval(estimate: np.ndarray, without: np.ndarray, sizes: np.ndarray) -> Interval:
    """95% intervals of estimates in percent, shape (…), from the estimates without each group, (…, G).

    logit(estimate) ± t sqrt((G-1)/G sum_g (l_g - mean l)^2) with l_g = logit of the estimate without group g, brought
    back to percent. sizes: (…, G) what a group weighs, such as its images with foreground. A group of size 0 (a slide
    without tumour) takes part, as leaving it out changes the estimate, but does not count among the groups; one whose
    `without` is NaN is none.

    NaN with fewer than MIN_GROUPS groups of a size, where the estimate is 0 or 100, and where no group makes a
    difference: of such counts no spread can be learned, and none is claimed.
    """
    estimate, without, sizes = np.broadcast_arrays(np.asarray(estimate, np.float64)[..., None], without, sizes)
    estimate, there = estimate[..., 0] / 100, np.isfinite(without)
    sizes = np.where(there, sizes, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = _spread(estimate, np.where(there, without, np.nan) / 100, there.sum(-1))
        reach = stdtrit(degrees_of_freedom(sizes), _TAIL) * spread
        centre = logit(estimate)
        defined = ((sizes > 0).sum(-1) >= MIN_GROUPS) & (spread > 0) & np.isfinite(reach) & np.isfinite(centre)
        ends = (np.where(defined, 100 * expit(centre + sign * reach), np.nan) for sign in (-1, 1))
        return Interval(*ends)


def _spread(estimate: np.ndarray, without: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Standard error of logit(estimate) by the delete-one jackknife over `count` values (…, G); NaN ones are left out.

    Where leaving one group out gives exactly 0 or 1, whose logit is infinite, the error of the estimate itself is taken
    and carried to the logit by its slope, 1 / (p (1 - p)).
    """
    ends = (without <= 0) | (without >= 1)
    straight = np.any(ends, axis=-1)
    slope = np.where(straight, 1 / (estimate * (1 - estimate)), 1)
    values = np.where(np.expand_dims(straight, -1), without, logit(np.where(ends, 0.5, without)))
    mean = np.nansum(values, -1, keepdims=True) / np.maximum(count, 1)[..., None]
    squares = np.nansum((values - mean) ** 2, -1)
    return np.sqrt((count - 1) / np.maximum(count, 1) * squares) * slope


def wilson_interval(right: np.ndarray, total: np.ndarray) -> Interval:
    """95% intervals of an accuracy in percent, from the right and all images of each group, (…, G).

    The interval of Wilson for the share of right images, on the effective number of images: their number divided by
    the design effect (variance between groups over that of independent images, at least 1) and by (t / z)^2 for the
    uncertainty of that variance (Korn & Graubard 1998). Never of width zero. NaN with fewer than MIN_GROUPS groups.
    """
    right, total = np.broadcast_arrays(np.asarray(right, np.float64), np.asarray(total, np.float64))
    images, groups = total.sum(-1), (total > 0).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = right.sum(-1) / images
        between = groups / (groups - 1) * ((right - share[..., None] * total) ** 2).sum(-1) / images**2
        alone = share * (1 - share) / images
        effect = np.maximum(np.where(alone > 0, between / alone, 1), 1)
        count = images / effect * (_NORMAL / stdtrit(degrees_of_freedom(total), _TAIL)) ** 2
        centre = (share + _NORMAL**2 / 2 / count) / (1 + _NORMAL**2 / count)
        reach = _NORMAL / (1 + _NORMAL**2 / count)
        reach = reach * np.sqrt(share * (1 - share) / count + _NORMAL**2 / 4 / count**2)
        defined = (groups >= MIN_GROUPS) & np.isfinite(share)
        ends = (np.where(defined, 100 * np.clip(centre + sign * reach, 0, 1), np.nan) for sign in (-1, 1))
        return Interval(*ends)


def without_each(sums: np.ndarray) -> np.ndarray:
    """Totals without each group, (G, …), from the sums of groups (G, …)."""
    return sums.sum(0, keepdims=True) - sums


def pxap_without_each(histograms: Histograms, groups: np.ndarray) -> np.ndarray:
    """PxAP in percent without each group (in sorted order), (G,); NaN where the others hold no foreground."""
    return pxap_rows(Histograms(*(without_each(group_sums(h, groups)) for h in histograms)))


def foreground_images(histograms: Histograms, groups: np.ndarray) -> np.ndarray:
    """Images with foreground in each group, (G,): what the group weighs in an interval of PxAP."""
    return group_sums((histograms.foreground.sum(1, dtype=np.int64) > 0).astype(np.float64), groups)


def accuracy_interval(logits: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """95% interval of the accuracy in percent over groups (N,), from logits (N, K) and labels (N,)."""
    if not len(labels) or np.isnan(logits).any():
        return float("nan"), float("nan")
    right = group_sums((logits.argmax(1) == labels).astype(np.float64), groups)
    interval = wilson_interval(right, group_sums(np.ones(len(labels)), groups))
    return float(interval.low), float(interval.high)


def pxap_interval(histograms: Histograms, groups: np.ndarray) -> tuple[float, float]:
    """95% interval of PxAP in percent over groups (N,)."""
    pooled = pxap_rows(histograms.pooled())[0]
    interval = jackknife_interval(pooled, pxap_without_each(histograms, groups), foreground_images(histograms, groups))
    return float(interval.low), float(interval.high)
