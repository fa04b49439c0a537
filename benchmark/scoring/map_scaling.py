"""From score maps to histograms: scaling to [0, 1], resizing and counting, in batches, on the maps' own device.

The scoring loop of the harness and `bench score` both go through these functions and no others.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...datasets.masks.reader import FOREGROUND, IGNORED
from ..core.errors import BenchError
from ..core.seeds import seed_for
from ..data.prefetch import upload
from .histograms import GPU, count_on_cpu, count_with_torch

PROB_TOLERANCE = 1e-4  # how far outside [0, 1] a probability may lie and still pass for rounding
REFUSALS = {
    1: "is not finite (NaN or infinite values)",
    2: "leaves [0, 1] though its kind is `prob`; unbounded maps have the kind `score`",
}
_COUNTERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cpu": count_on_cpu, "cuda": GPU.count}


LEVELS = 1001  # quantiles of validation maps under binning `validation`, as many as there are bins
_VALUES = 4_000_000  # map values that quantiles are taken from, evenly spread over all there are
_FAR = 1e37  # unclipped values end here: interpolating between larger ones of float32 would leave its range


class MapScale(NamedTuple):
    """Scale of a view from its validation maps: how scores get to [0, 1].

    low, high: what becomes 0 and 1. levels: LEVELS rising quantiles of the values, of which a value becomes its rank;
    empty under linear binning.
    """

    low: float = 0.0
    high: float = 1.0
    levels: tuple[float, ...] = ()


@dataclass(frozen=True)
class Scaled:
    """Maps brought to [0, 1], with what is known of them, all still on their device: nothing has waited for it.

    maps: (B, h, w) float32; 0 everywhere where a map is refused. degenerate: (B,) bool. refused: (B,) uint8, 0 or the
    number of a reason in REFUSALS, for `Refusals` to raise. unclipped: (B, h, w) as maps, but with the order of values
    beyond 0 and 1, or between two ranks, still in them.
    """

    maps: Tensor
    unclipped: Tensor
    degenerate: Tensor
    refused: Tensor


def scale_maps(
    maps: Tensor, kind: str, scale: str, constants: Sequence[Any] | None = None, ids: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Brings maps (B, h, w) of any float type to [0, 1]; returns them as float32, and which images are degenerate.

    kind `prob`: used as they are. kind `score` with scale `image`: (m - min) / (max - min) of each image on its native
    grid, before any resizing, as in the published evaluation; with scale `validation`: (m - lo) / (hi - lo) clipped,
    `constants` = (lo, hi) or a MapScale. With levels, a value of either kind becomes its rank among them: k / 1000 for
    the k-th level, the middle between two levels, or of several equal ones.

    A map of one value is degenerate: (B,) bool. It says nothing, so that per-image scaling makes it 0 everywhere; the
    other two keep its value. If lo >= hi, the method's validation maps were constant: there is no scale, so every map
    becomes 0 and counts as degenerate.

    Raises BenchError, naming the image by `ids` (or its index), for NaN or infinite values and for a `prob` map outside
    [0, 1] by more than PROB_TOLERANCE. That makes the host wait for a GPU; `scale_later` does not.
    """
    scaled, refusals = scale_later(maps, kind, scale, constants), Refusals()
    refusals.add(scaled, ids)
    refusals.check()
    return scaled.maps, scaled.degenerate


def scale_later(maps: Tensor, kind: str, scale: str, constants: Sequence[Any] | None = None) -> Scaled:
    """Scaled maps as of scale_maps, but maps it would refuse become 0 and are marked, for `Refusals` to raise."""
    if kind not in ("prob", "score"):
        raise BenchError(f"Maps of kind '{kind}' cannot be scaled; the kinds are score and prob.")
    # float64 on the small native grid: the range of two finite float32 numbers can overflow float32
    maps = maps.double()
    low, high = torch.aminmax(maps.flatten(1), dim=1)  # NaN propagates, so these two tell all
    degenerate, refused = low == high, (~(high - low).isfinite()).byte()
    if kind == "prob":
        outside = (low < -PROB_TOLERANCE) | (high > 1 + PROB_TOLERANCE)
        refused = torch.where(refused.bool(), refused, 2 * outside.byte())
    known = None if constants is None else MapScale(*constants)
    if known is not None and known.levels:
        if not known.levels[0] < known.levels[-1]:
            return _nothing(maps, degenerate, refused)
        return _scaled(_ranks(maps, known.levels), maps, degenerate, refused)
    if kind == "prob":
        return _scaled(maps, maps, degenerate, refused)
    if scale == "image":
        span = torch.where(degenerate, 1.0, high - low)
        maps = (maps - low[:, None, None]) / span[:, None, None]
    elif scale == "validation":
        if known is None:
            raise BenchError("Maps of kind `score` need two constants (lo, hi) under scale `validation`.")
        if not known.low < known.high:
            return _nothing(maps, degenerate, refused)
        maps = (maps - known.low) / (known.high - known.low)
    else:
        raise BenchError(f"Score maps cannot be scaled by '{scale}'; the scales are image and validation.")
    return _scaled(maps, maps, degenerate, refused)


def _scaled(maps: Tensor, order: Tensor, degenerate: Tensor, refused: Tensor) -> Scaled:
    pair = maps.clamp(0, 1), order.clamp(-_FAR, _FAR)
    maps, order = (m.masked_fill(refused.bool()[:, None, None], 0) for m in pair)
    return Scaled(maps.float(), order.float(), degenerate, refused)


def _nothing(maps: Tensor, degenerate: Tensor, refused: Tensor) -> Scaled:
    """All maps 0: the validation maps were constant, so that there is no scale."""
    zeros = torch.zeros_like(maps, dtype=torch.float32)
    return Scaled(zeros, zeros, torch.ones_like(degenerate), refused)


def _ranks(maps: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Ranks in [0, 1] of values among levels: steps, not lines between them, so that any strictly monotone change of
    values and levels alike leaves every rank as it is."""
    there = _levels(levels, maps.device)
    values = maps.nan_to_num()  # refused anyway
    below, upto = (torch.searchsorted(there, values, right=side) for side in (False, True))
    return ((below + upto - 1).double() / (2 * (len(levels) - 1))).clamp(0, 1)


@lru_cache(64)
def _levels(levels: tuple[float, ...], device: torch.device) -> Tensor:
    """On the device, uploaded once."""
    return upload(torch.tensor(levels, dtype=torch.float64), device)


class Refusals:
    """Verdicts of scale_later on many batches and views, read back from the device in one go.

    Until `check` the maps in question count as 0 everywhere, so that the work under way stays defined; its results must
    be thrown away when `check` raises.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Sequence[str]]] = []

    def add(self, scaled: Scaled, ids: Sequence[str] = ()) -> None:
        """Notes the verdicts of a batch; ids name its images."""
        self._kept.append((scaled.refused, ids))

    def check(self) -> None:
        """Raises BenchError that names the first image refused of the first batch with one; forgets all else."""
        kept, self._kept = self._kept, []
        if not kept:
            return
        reasons = torch.cat([refused for refused, _ in kept]).cpu()
        for part, (_, ids) in zip(reasons.split([len(r) for r, _ in kept]), kept, strict=True):
            if part.any():
                raise BenchError(_refusal(part, ids))


def _refusal(reasons: Tensor, ids: Sequence[str]) -> str:
    """Fault of the first refused map of a batch, and how many share it; the lower reason goes first."""
    reason = int(reasons[reasons > 0].min())
    bad = (reasons == reason).nonzero()[:, 0].tolist()
    name = f"'{ids[bad[0]]}'" if ids else f"number {bad[0]} of the batch"
    more = f" ({len(bad)} such maps in this batch)" if len(bad) > 1 else ""
    return f"The score map of image {name} {REFUSALS[reason]}{more}."


def scale_constants(values: Iterable[Tensor | np.ndarray], quantiles: tuple[float, float]) -> tuple[float, float]:
    """The two values that become 0 and 1 under scale `validation`: exact quantiles of all map values together.

    values: maps of any shape and number; their order does not matter. lo == hi means that the values are constant;
    `scale_maps` then turns every map into zeros. Raises BenchError without values or for values that are not finite.
    """
    parts = [v.detach().double().cpu().numpy() if isinstance(v, Tensor) else np.asarray(v, np.float64) for v in values]
    flat = np.concatenate([p.ravel() for p in parts]) if parts else np.empty(0)
    if not flat.size:
        raise BenchError("The scale of the maps cannot be taken from the validation images: there are none.")
    if not np.isfinite(flat).all():
        raise BenchError("The scale of the maps cannot be taken from the validation images: a map is not finite.")
    low, high = np.quantile(flat, quantiles)
    return float(low), float(high)


def rank_levels(values: Iterable[Tensor]) -> tuple[float, ...]:
    """LEVELS rising quantiles of map values, each a value that is there: what `validation` binning takes ranks among.

    Of more than 4 million values as many are taken, evenly spread. Raises BenchError without values or for values that
    are not finite.
    """
    parts = [v.detach().flatten() for v in values]
    total = sum(len(p) for p in parts)
    share = min(1.0, _VALUES / max(total, 1))
    taken = [_spread(p, share, k).double().cpu().numpy() for k, p in enumerate(parts)]
    flat = np.concatenate(taken) if taken else np.empty(0)
    if not flat.size or not np.isfinite(flat).all():
        scale_constants([flat], (0, 1))  # says what is wrong
    return tuple(np.quantile(flat, np.linspace(0, 1, LEVELS), method="inverted_cdf").tolist())


def _spread(values: Tensor, share: float, number: int) -> Tensor:
    """A share of the values (n,) of one map, evenly spread: one at a seeded place of each of as many stretches.

    One step for all would divide the width of most maps, and so take the same few columns of every row.
    """
    if share >= 1:
        return values
    count = max(1, int(len(values) * share))
    within = np.random.default_rng(seed_for("levels", number)).random(count)
    places = ((np.arange(count) + within) * (len(values) / count)).astype(np.int64).clip(max=len(values) - 1)
    return values[upload(torch.from_numpy(places), values.device)]


def resize_maps(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bilinear resize of maps (B, h, w) in [0, 1] to (B, size, size) or (B, *size); pixel centres as in PIL and torch.

    Interpolation weights add up to 1 only within rounding, which would spread a constant map over two bins; therefore
    each result is clamped to the range of its own map.
    """
    target = (size, size) if isinstance(size, int) else tuple(size)
    if maps.shape[1:] == target:
        return maps
    low, high = torch.aminmax(maps.flatten(1), dim=1)
    resized = F.interpolate(maps[:, None], size=target, mode="bilinear", align_corners=False)[:, 0]
    return resized.clamp(low[:, None, None], high[:, None, None])


def histogram(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels per bin of metrics.THRESHOLDS, apart for foreground and background: two int64 tensors (B, BINS).

    maps: (B, H, W) float32 in [0, 1], finite (as scale_maps and resize_maps leave them). masks: (B, H, W) bool on the
    same device. The counts are exactly those of numpy.histogram with float64 edges; see histograms.py.
    """
    if maps.shape != masks.shape:
        raise ValueError(f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} differ in shape")
    count = _COUNTERS.get(maps.device.type, count_with_torch)
    background, foreground = count(maps, masks).unbind(1)
    return foreground, background


def annotated_histogram(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Histogram of maps (B, h, w) resized to their masks (B, H, W), bool or uint8 codes: ignored pixels count nowhere.

    With codes the maps are counted once more, under the ignored pixels, and those counts taken from the background.
    """
    if masks.dtype == torch.bool:
        return resized_histogram(maps, masks)
    foreground, rest = resized_histogram(maps, masks == FOREGROUND)
    ignored, _ = resized_histogram(maps, masks == IGNORED)
    return foreground, rest - ignored


def resized_histogram(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Histogram of maps (B, h, w) in [0, 1] resized to their masks (B, H, W), as `histogram` returns it.

    In main memory it is resize_maps and then histogram. On CUDA the map is never written at the size of the mask: one
    kernel interpolates and counts, with the arithmetic of counting.resize_by_steps, which differs from torch's own
    resize, in the order of roundings, by a unit in the last place of float32.
    """
    if maps.device.type != "cuda" or maps.shape[1:] == masks.shape[1:]:
        return histogram(resize_maps(maps, (masks.shape[1], masks.shape[2])), masks)
    background, foreground = GPU.count_resized(maps, masks).unbind(1)
    return foreground, background
