"""Checks of the values of one mask: soft edges, lossy compression, labels that start at 1, values to be ignored.

Object numbers and soft values are told apart by where they stand, not by how many there are. Along a row or column of
an annotation the value jumps from one region to the next; in a mask that was interpolated or compressed with loss, it
passes through values between the two. BETWEEN is how many of the places where the value changes may hold such a value.
Measured: 0 of them in all 165 masks of GlaS (up to 32 numbers a mask), 15 % and more in masks that were JPEG once,
80 % in masks enlarged by bilinear interpolation.
"""

from pathlib import Path

import numpy as np

from ...benchmark.core.errors import BenchError
from .rule import MaskRule

BETWEEN = 0.03
_ENDS = 1 / 16  # of the range of an 8- or 16-bit value: how far from an end "near" reaches
_CLASSES = 8  # distinct values of a mask that may still be classes
_STRIP = 512  # rows compared at once, so that memory stays small
_LABELS = 2  # values of other classes beside the declared foreground, such as a border, that raise no doubt


def check_values(
    path: Path, values: np.ndarray, distinct: np.ndarray, ignored: np.ndarray | None, rule: MaskRule
) -> None:
    """Raises BenchError where the rule does not make clear which pixels are foreground.

    values (H, W) as stored; distinct: its distinct values, ascending; ignored (H, W) bool or None.
    """
    _check_numbers(path, values, rule)
    known = distinct[~np.isin(distinct, rule.ignore)] if rule.ignore else distinct
    if rule.meaning == "black-white":
        _check_black_white(path, known)
        return
    if rule.threshold is not None or not len(known):
        return
    whole = known == np.floor(known)
    if not whole.all():
        raise BenchError(
            f"{path}: the mask holds {int((~whole).sum())} values that are no whole numbers, such as "
            f"{known[~whole][0]:g}. Declare mask_threshold: a value above it is then foreground."
        )
    if known[0] < 0:
        raise BenchError(
            f"{path}: the mask holds the negative value {known[0]:g}. If it means 'not annotated', declare "
            f"mask_ignore: {known[0]:g}."
        )
    if rule.meaning == "any":
        return
    if rule.foreground is not None:
        others = known[~np.isin(known, (0, *rule.foreground))]
        if len(others) > _LABELS:
            _check_soft(path, values, known, ignored, rule)
        return
    if np.count_nonzero(known) > 1:
        _check_ends(path, values, known, rule)
        _check_soft(path, values, known, ignored, rule)
        _check_start(path, known, rule)


def _check_numbers(path: Path, values: np.ndarray, rule: MaskRule) -> None:
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    bad = int((~np.isfinite(values)).sum())
    raise BenchError(
        f"{path}: the mask is not finite, {bad} of {values.size} values are NaN or infinite. Write a number instead"
        + (", such as -1, and declare mask_ignore: -1 if they mean 'not annotated'." if rule.declarable else ".")
    )


def _check_black_white(path: Path, known: np.ndarray) -> None:
    """0 and 255 alone; a grey between says that the mask was resized or saved with loss."""
    if known.dtype != np.uint8:
        raise BenchError(f"{path}: the mask has more than 8 bits a pixel instead of 0 and 255. Export it anew.")
    odd = [int(v) for v in known if v not in (0, 255)]
    if odd:
        raise BenchError(f"{path}: the mask holds {_some(odd)} besides 0 and 255. Export it anew, without resizing.")


def _check_ends(path: Path, values: np.ndarray, known: np.ndarray, rule: MaskRule) -> None:
    """Values near 0 and near the highest at once: a lossy mask, or a value to be ignored beside real ones.

    Object numbers in any order fill the range between, too; the highest value alone above a gap is no number of theirs.
    """
    top = 255 if known[-1] <= 255 else 65535
    near = known[(known > 0) & (known < top * _ENDS)]
    far = known[known > top * (1 - _ENDS)]
    spread = np.count_nonzero(known) - len(near) - len(far) >= len(near) + len(far)
    if not len(near) or not len(far) or (spread and not (len(far) == 1 and far[0] == top)):
        return
    odd = int(np.isin(values, near).sum())
    raise BenchError(
        f"{path}: the mask holds values near 0 ({_some(near.tolist())}: {odd} of {values.size} pixels) and near {top} "
        f"({_some(far.tolist())}). A lossy or resized mask looks so, and so does one in which {far[-1]:g} means "
        f"'ignore'. {_remedy(rule, f'mask_ignore: {far[-1]:g}, mask_threshold: {top // 2}, or mask_foreground: any')}"
    )


def _check_soft(path: Path, values: np.ndarray, known: np.ndarray, ignored: np.ndarray | None, rule: MaskRule) -> None:
    """Values that stand between their neighbours along edges: greys, or a thin class between two others."""
    between, changes = between_neighbours(values, ignored)
    if not changes or between <= BETWEEN * changes:
        return
    greys = f"mask_threshold: {255 // 2 if known[-1] <= 255 else 65535 // 2} for greys"
    few = len(known) <= _CLASSES
    classes = f"mask_foreground: {known[-1]:g}, or a list, where {_some(known.tolist())} are classes"
    raise BenchError(
        f"{path}: along its edges the mask passes through values between those of the regions ({between} of {changes} "
        f"places), as masks do that were resized, smoothed or compressed with loss"
        f"{', or that hold a thin class between two others' if few else ''}. "
        f"{_remedy(rule, f'{classes}; {greys}' if few else greys)}"
    )


def between_neighbours(values: np.ndarray, ignored: np.ndarray | None = None) -> tuple[int, int]:
    """How often a value lies strictly between its two neighbours in a row or column, and how often the three differ.

    Places with an ignored pixel among the three count for nothing.
    """
    between = changes = 0
    for start in range(0, len(values), _STRIP):
        across, down = values[start : start + _STRIP], values[start : start + _STRIP + 2]
        hidden = None if ignored is None else (ignored[start : start + _STRIP], ignored[start : start + _STRIP + 2])
        for v, out in ((across, hidden and hidden[0]), (down.T, hidden and hidden[1].T)):
            inner, unlike = _between(v, out)
            between, changes = between + inner, changes + unlike
    return between, changes


def _between(v: np.ndarray, out: np.ndarray | None) -> tuple[int, int]:
    """As `between_neighbours`, along the rows alone."""
    a, b, c = v[:, :-2], v[:, 1:-1], v[:, 2:]
    inner, unlike = ((a < b) & (b < c)) | ((a > b) & (b > c)), (a != b) | (b != c)
    if out is not None:
        keep = ~(out[:, :-2] | out[:, 1:-1] | out[:, 2:])
        inner, unlike = inner & keep, unlike & keep
    return int(np.count_nonzero(inner)), int(np.count_nonzero(unlike))


def _check_start(path: Path, known: np.ndarray, rule: MaskRule) -> None:
    """Several values and no 0 among them: every pixel would be foreground."""
    if known[0] > 0:
        advice = _remedy(
            rule, f"mask_foreground: {known[1]:g} if {known[0]:g} is the background, or mask_foreground: any"
        )
        raise BenchError(
            f"{path}: the mask has no background: its values are {_some(known.tolist())}, and 0 is not among them. "
            f"{advice}"
        )


def _remedy(rule: MaskRule, declare: str) -> str:
    if not rule.declarable:
        return "Restore the file from the archive of the data set."
    return f"Declare what its values mean ({declare}), or export the mask anew."


def _some(values: list[int]) -> str:
    text = ", ".join(f"{v:g}" for v in values[:8])
    return text if len(values) <= 8 else f"{text}, … ({len(values)} values)"
