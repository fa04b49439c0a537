"""How often a 95% interval holds the truth when patients are drawn anew: simulated sets of real sizes.

Every patient has a level of their own, in how well maps separate foreground, how much foreground there is, and how
often images are classified right. The truth is that of very many such patients.
"""

import numpy as np
import pytest
from scipy.special import ndtr

from wsolbench.benchmark.core.intervals import jackknife_interval, wilson_interval, without_each
from wsolbench.benchmark.core.metrics import Histograms, pxap_rows

GLAS = [16, 14, 12, 8, 8, 5, 4, 4, 4, 2, 2, 1]  # test images a patient
ORDER = [0, 11, 6, 3, 9, 1, 7, 2, 5, 4, 8, 10]  # large and small ones mixed, whatever the number
SIZES = {groups: [GLAS[k] for k in np.resize(ORDER, groups)] for groups in (6, 12, 16, 48)}
# 48 slides with tumour and 80 without, as in the test set of Camelyon16: a few slides hold most of the patches
SLIDES = [*np.geomspace(700, 5, 48).astype(int).tolist(), *np.geomspace(250, 20, 80).astype(int).tolist()]
EDGES = np.linspace(-5, 6, 81)


def drawn(sizes, count, rng, spread):
    """Foreground and background counts of `count` sets by group, (count, G, bins); a group's images share its level."""
    groups = len(sizes)
    level, share = rng.normal(0, spread, (count, groups)), rng.normal(-0.2, 0.7, (count, groups))
    weight = np.asarray(sizes, float)
    level = level + rng.normal(0, 0.4, level.shape) / np.sqrt(weight)  # the images' own differences, averaged
    part = weight / (1 + np.exp(-share))
    inside, outside = (np.diff(ndtr(EDGES - centre[..., None])) for centre in (0.8 + level, -0.3 * level))
    return part[..., None] * inside, (weight - part)[..., None] * outside


def coverage(sizes, count, spread, seed=0, tumour=None):
    """Share of `count` simulated sets whose interval holds the truth, and the median width in points."""
    rng = np.random.default_rng(seed)
    foreground, background = drawn(sizes, count, rng, spread)
    true = drawn(sizes, max(4000 // len(sizes) * 12, 500), np.random.default_rng(99), spread)
    weights = np.asarray(sizes, float)
    if tumour is not None:  # slides without tumour: all of them is background
        weights = np.where(np.arange(len(sizes)) < tumour, weights, 0)
        for fg, bg in ((foreground, background), true):
            bg[:, tumour:] += fg[:, tumour:]
            fg[:, tumour:] = 0
    truth = pxap_rows(Histograms(*(t.sum((0, 1))[None] for t in true)))[0]
    held, widths = 0, []
    for fg, bg in zip(foreground, background, strict=True):
        estimate = pxap_rows(Histograms(fg.sum(0)[None], bg.sum(0)[None]))[0]
        low, high = jackknife_interval(estimate, pxap_rows(Histograms(without_each(fg), without_each(bg))), weights)
        held += low <= truth <= high
        widths.append(high - low)
    return held / count, float(np.median(widths))


def accuracy_coverage(sizes, count, share, resemblance, seed=0):
    """The same of the accuracy: images of a patient are right with the patient's own probability (beta-binomial)."""
    rng = np.random.default_rng(seed)
    a, b = (p * (1 - resemblance) / resemblance for p in (share, 1 - share))
    total = np.broadcast_to(np.asarray(sizes), (count, len(sizes)))
    found = wilson_interval(rng.binomial(total, rng.beta(a, b, total.shape)), total)
    return float(((found.low <= 100 * share) & (100 * share <= found.high)).mean())


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.5, 0.9])
@pytest.mark.parametrize("groups", SIZES)
def test_pxap_intervals_hold_what_they_say(groups, spread):
    """95% nominal; 1,000 sets tell a share to within 1.4 points (two standard errors)."""
    held, _ = coverage(SIZES[groups], 1000, spread)
    assert 0.90 - 0.014 <= held <= 0.96 + 0.014


@pytest.mark.slow
def test_intervals_over_slides_of_camelyon16():
    """Where few slides hold most of the patches the jackknife errs on the wide side."""
    held, _ = coverage(SLIDES, 400, 0.7, tumour=48)
    assert held >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("groups", SIZES)
@pytest.mark.parametrize(("share", "resemblance"), [(0.7, 0.2), (0.9, 0.2), (0.7, 0.5)])
def test_accuracy_intervals_hold_what_they_say(groups, share, resemblance):
    """At few patients the interval errs on the wide side, as little is known of how alike their images are."""
    assert 0.90 <= accuracy_coverage(SIZES[groups], 4000, share, resemblance) <= 0.99


def test_intervals_hold_roughly_what_they_say():
    """The slow tests in little."""
    held, width = coverage(SIZES[12], 150, 0.5)
    assert held >= 0.88
    assert 5 < width < 60
    assert 0.9 <= accuracy_coverage(SIZES[12], 1000, 0.9, 0.2) <= 0.99
