"""Folds whose test images are each other's rest: their images make one estimate over all patients.

Of five grouped folds each tests two to six patients of GlaS, too few for an interval; together they test all sixteen.
Published folds share one test set: nothing is pooled there, each is one more training.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .frame import alike
from .row import Row

if TYPE_CHECKING:
    from .measures import RowMeasures


_DATA = ("train", "eval", "scheme", "synthetic", "protocol")
MODEL = ("backbone", "method", "options", "settings", "supervision", "map_class", "gated", "selection")


def foldwise(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows of one model and seed that differ in their fold and in the images it tests, in the order of their folds."""
    for _, runs in alike(list(rows), (*_DATA, *MODEL, "seed")):
        folds = {str(r.fold) for r in runs}
        tested = {r.clusters.names for r in runs}
        # of equal groups the images are equal too, as in published folds; what is told apart otherwise is checked
        if 1 < len(folds) == len(runs) == len(tested):
            yield sorted(runs, key=lambda r: (len(str(r.fold)), str(r.fold)))


def pooled_row(rows: Sequence[Row], measured: "RowMeasures") -> Row:
    """The row of several folds: its numbers are those of all images together, each at the threshold of its fold."""
    first, images = rows[0], [r.images for r in rows]
    total = sum(images)
    shift = sum(n * (r.ap_sample - r.pxap_sample) for n, r in zip(images, rows, strict=True)) / total
    numbers: dict[str, Any] = {
        **measured.values, "by_class": measured.by_class, "clusters": measured.clusters,
        "tau_val": _mean(r.tau_val for r in rows), "degenerate": sum(r.degenerate for r in rows),
        "ap": measured.values["pxap"] + shift, "sample_pixels": sum(r.sample_pixels for r in rows),
        **{k: sum(n * getattr(r, k) for n, r in zip(images, rows, strict=True)) / total for k in _SAMPLED},
        **{k: _mean(getattr(r, k) for r in rows) for k in ("seconds_train", "seconds_parents", "seconds_score")},
        "unshifted": sum(r.unshifted for r in rows), "pixel_change": _change(rows),
        "notes": tuple(dict.fromkeys(n for r in rows for n in r.notes)),
        "folds": tuple(str(r.fold) for r in rows), "pooled_of": tuple(r.run for r in rows), "drop_pxap": math.nan,
        "drop_skill": math.nan, "drop_accuracy": math.nan,
    }  # fmt: skip
    return replace(first, **numbers)


_SAMPLED = ("ap_sample", "pxap_sample")


def _change(rows: Sequence[Row]) -> float:
    """RMS over the images of all folds."""
    return math.sqrt(sum(r.images * r.pixel_change**2 for r in rows) / sum(r.images for r in rows))


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
