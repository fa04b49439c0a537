"""Selection of patches among candidate places: the draw over tumour shares, and the normal patches a slide gives."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...benchmark.core.seeds import seed_for
from .sample import PatchPlace
from .settings import PatchSettings

DENSE = 0.5  # a patch with a larger tumour share is dense
BINS = 10  # of dense shares, each 0.05 wide: (0.5, 0.55], …, (0.95, 1]
_PUBLISHED_TRIALS = 100

Offer = tuple[str, PatchPlace]  # slide and place


def calibrate(
    offers: Mapping[str, Sequence[PatchPlace]], settings: PatchSettings, split: str
) -> dict[str, list[PatchPlace]]:
    """The tumour patches of one split: all of share <= 0.5, and a draw that is uniform over bins of the dense ones.

    The number of dense ones is `dense_share` times that of the others, rounded up, at least one if there are any. With
    `one_of_each` off, the published draw is followed instead: each of as many draws makes 100 trials of a random bin
    and a random patch in it, and keeps every patch it meets rather than the first.
    """
    rng = np.random.default_rng(seed_for("patches", "calibrate", settings.seed, split))
    sparse: list[Offer] = []
    bins: list[list[Offer]] = [[] for _ in range(BINS)]
    for slide in sorted(offers):
        for place in offers[slide]:
            share = place.tumor or 0.0
            home = sparse if share <= DENSE else bins[dense_bin(share)]
            home.append((slide, place))
    draw = _draw_one_each if settings.one_of_each else _draw_published
    chosen = set(sparse) | draw(bins, settings.dense_share * len(sparse), rng)
    kept = {slide: [p for p in offers[slide] if (slide, p) in chosen] for slide in offers}
    return {slide: thin(places, settings, slide) for slide, places in kept.items()}


def dense_bin(share: float) -> int:
    """Bin 0..9 of a tumour share in (0.5, 1]; the upper edge belongs to a bin."""
    return min(BINS - 1, max(0, math.ceil((share - DENSE) / ((1 - DENSE) / BINS) - 1e-9) - 1))


def thin(places: Sequence[PatchPlace], settings: PatchSettings, slide: str) -> list[PatchPlace]:
    """At most `max_per_slide` of the places, drawn at random, in their order."""
    most = settings.max_per_slide
    if not most or len(places) <= most:
        return list(places)
    rng = np.random.default_rng(seed_for("patches", "thin", settings.seed, slide))
    return [places[k] for k in sorted(rng.permutation(len(places))[:most].tolist())]


def _draw_one_each(bins: Sequence[Sequence[Offer]], wanted: float, rng: np.random.Generator) -> set[Offer]:
    """Exactly ceil(wanted) patches (all if there are fewer), each from a bin drawn among those not yet empty."""
    left = [[places[k] for k in rng.permutation(len(places))] for places in bins]
    chosen: set[Offer] = set()
    for _ in range(min(max(1, math.ceil(wanted - 1e-9)), sum(map(len, left)))):
        full = [places for places in left if places]
        chosen.add(full[int(rng.integers(len(full)))].pop())
    return chosen


def _draw_published(bins: Sequence[Sequence[Offer]], wanted: float, rng: np.random.Generator) -> set[Offer]:
    """The draw without its break: up to 100 patches for each one that was meant."""
    chosen: set[Offer] = set()
    for _ in range(round(wanted) * _PUBLISHED_TRIALS):
        places = bins[int(rng.integers(BINS))]
        if places:
            chosen.add(places[int(rng.integers(len(places)))])
    return chosen


def share_out(total: int, slides: Sequence[str], most: Mapping[str, int]) -> dict[str, int]:
    """`total` patches over the slides, as equally as the limits `most` allow; the first slides get the remainder."""
    quota = dict.fromkeys(slides, 0)
    while (rest := total - sum(quota.values())) > 0:
        free = [s for s in slides if quota[s] < most.get(s, total)]
        if not free:
            break
        each = max(1, rest // len(free))
        for slide in free[:rest]:
            quota[slide] = min(quota[slide] + each, most.get(slide, total))
    return quota


def normal_quotas(
    total: int,
    slides: Sequence[str],
    settings: PatchSettings,
    split: str,
    offer: Callable[[dict[str, int]], dict[str, int]],
) -> dict[str, int]:
    """How many patches each normal slide of a split gives, so that together they are `total` if the slides have them.

    offer: from the number asked of each slide to the number it has, at most that. Slides that have fewer pass the rest
    on to the others, round by round.
    """
    rng = np.random.default_rng(seed_for("patches", "quota", settings.seed, split))
    order: list[str] = [str(s) for s in rng.permutation(list(slides))]
    most = dict.fromkeys(order, settings.max_per_slide) if settings.max_per_slide else {}
    while True:
        quota = share_out(total, order, most)
        has = offer(quota)
        short = {s: n for s, n in has.items() if n < quota[s]}
        if not short:
            return quota
        most = {**most, **short}
