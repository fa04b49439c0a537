"""Checks over all masks of a dataset: errors where they cannot be meant so, notes on what a reader must know."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...benchmark.core.errors import BenchError
from ..base import Manifest
from .reader import FOREGROUND, IGNORED, LISTED, MaskFacts, MaskPixels, MaskRule, listed
from .sizes import reduce_mask

_THOUGH = "though their class has a region"
NAMED = 5  # images that a message names
_BINARY = 2  # distinct values of a mask that needs no reading: background and one more


@dataclass(frozen=True)
class Surveyed:
    """The mask of one image. expected: its class has a region, so that its mask should hold foreground."""

    id: str
    rule: MaskRule
    facts: MaskFacts
    expected: bool = True


def check_masks(where: str, masks: Sequence[Surveyed]) -> None:
    """Raises BenchError, naming the remedy, where no mask of a set has any background, or none any foreground.

    A declared `mask_foreground` says that the first is meant. where: begins the message.
    """
    if masks:
        _refuse_everywhere(where, masks)
        _refuse_nowhere(where, masks)


def survey(masks: Sequence[Surveyed]) -> list[str]:
    """Notes on the masks of a set, each a sentence with counts and the first images."""
    notes = [
        _note(masks, lambda m: not m.facts.background and m.facts.foreground > 0, "foreground everywhere"),
        _note(masks, lambda m: m.expected and not m.facts.foreground, f"without foreground, {_THOUGH}"),
        _note(masks, lambda m: m.facts.ignored == m.facts.pixels, "ignored as a whole"),
        _several(masks),
        _codings(masks),
        _ignored(masks),
        *_unused(masks),
    ]
    return [n for n in notes if n]


def vanished(masks: Mapping[str, "SizedMask"], size: int, reduction: str, kind: str = "") -> str:
    """The note on masks, by image id, whose foreground is gone at the scoring size; or nothing.

    kind: the split they are of, for the words.
    """
    gone = [name for name, m in masks.items() if m.facts.foreground and not m.foreground]
    if not gone:
        return ""
    counted = f"{len(gone)} of {sum(m.facts.foreground > 0 for m in masks.values())} {f'{kind} masks'.strip()}"
    return (
        f"{counted} lost all foreground at {size} px (mask_reduction={reduction}): "
        f"{_names(gone)}. They stay images of their class, but without a region: all their pixels count as background. "
        "protocol.mask_reduction=any keeps every region, a larger protocol.size more"
    )


@dataclass(frozen=True)
class SizedMask:
    """Facts of a mask, and pixels of foreground and ignored ones where it is squashed to `pixels` of them."""

    facts: MaskFacts
    foreground: int
    ignored: int
    pixels: int


def sized_mask(mask: MaskPixels, size: int, reduction: str = "nearest") -> SizedMask:
    """The facts of a mask, also at a size."""
    small = reduce_mask(mask.foreground if mask.ignored is None else mask.codes, size, reduction)
    left, out = (int(np.count_nonzero(small == code)) for code in (FOREGROUND, IGNORED))
    return SizedMask(mask.facts, left, out, size * size)


def mask_notes(manifest: Manifest, masks: Mapping[str, SizedMask], size: int, reduction: str = "nearest") -> list[str]:
    """Notes on those masks of a manifest that were read, by image id, and on what is left of them at a size.

    Raises BenchError where those of the test set cannot be meant so (`check_masks`).
    """
    check_masks(f"{manifest.card.name}, fold {manifest.fold}", surveyed(manifest, masks, "test"))
    gone = vanished(masks, size, reduction)
    return [*survey(surveyed(manifest, masks)), *([gone] if gone else [])]


def surveyed(manifest: Manifest, masks: Mapping[str, SizedMask], split: str = "") -> list[Surveyed]:
    """Those masks of a manifest, or of one split of it, that were read, by image id."""
    card = manifest.card
    return [
        Surveyed(i.id, i.mask_rule or card.mask_rule, masks[i.id].facts, card.region_classes[i.label])
        for i in manifest.items
        if i.id in masks and split in ("", i.split)
    ]


def _refuse_everywhere(where: str, masks: Sequence[Surveyed]) -> None:
    open_ones = [m for m in masks if m.rule.foreground is None and m.rule.meaning == "auto"]
    if len(open_ones) < len(masks) or any(m.facts.background or not m.facts.foreground for m in masks):
        return
    values = sorted({v for m in masks for v in m.facts.values})
    if len(masks) == 1 and len(values) == 1 and values[0] != 1:
        return  # one white mask: an image that is foreground as a whole
    remedy = "mask_foreground: 2 where 1 is the background and 2 the object" if values[0] == 1 else "mask_foreground"
    raise BenchError(
        f"{where}: {_count(len(masks), len(masks))} foreground everywhere, with the values {listed(values)} "
        f"({_names([m.id for m in masks])}). A method cannot be scored against that. Declare {remedy}, or "
        "mask_foreground: any if it is meant."
    )


def _refuse_nowhere(where: str, masks: Sequence[Surveyed]) -> None:
    wanted = [m for m in masks if m.expected]
    if not wanted or any(m.facts.foreground for m in masks):
        return
    values = sorted({v for m in wanted for v in m.facts.values})
    raise BenchError(
        f"{where}: {_count(len(wanted), len(wanted))} without foreground though their class has a region "
        f"({_names([m.id for m in wanted])}). Their values are {listed(values)}; {wanted[0].rule.words} is foreground. "
        "Correct mask_foreground or mask_threshold, or export the masks again."
    )


def _note(masks: Sequence[Surveyed], fits: Callable[[Surveyed], bool], what: str) -> str:
    names = [m.id for m in masks if fits(m)]
    return f"{_count(len(names), len(masks))} {what}: {_names(names)}" if names else ""


def _several(masks: Sequence[Surveyed]) -> str:
    """Which way numbers were read that may be objects or classes."""
    rows = [m for m in masks if _read_as_objects(m.rule) and len(_above(m)) >= _BINARY]
    if not rows:
        return ""
    values = sorted({v for m in rows for v in _above(m)})
    return (
        f"{_count(len(rows), len(masks), 'holds', 'hold')} several values above 0 ({listed(values)}): all are read as "
        "foreground, as numbers of objects are. If they are classes, declare mask_foreground"
    )


def _codings(masks: Sequence[Surveyed]) -> str:
    """Masks of one value each, which differ from mask to mask."""
    single = [_above(m)[0] for m in masks if _read_as_objects(m.rule) and len(_above(m)) == 1]
    kinds = sorted(set(single))
    if len(kinds) < 2 or len(single) < len([m for m in masks if m.facts.foreground]):
        return ""
    counts = ", ".join(f"{v:g} in {single.count(v)}" for v in kinds[:NAMED])
    return f"masks hold one value above 0 each, not the same ({counts}): each is read as foreground"


def _ignored(masks: Sequence[Surveyed]) -> str:
    if not any(m.rule.ignore for m in masks):
        return ""
    pixels, out = sum(m.facts.pixels for m in masks), sum(m.facts.ignored for m in masks)
    values = sorted({v for m in masks for v in m.rule.ignore})
    if not out:
        return f"the declared mask_ignore ({listed(values)}) occurs in none of {len(masks)} masks"
    some = sum(m.facts.ignored > 0 for m in masks)
    share = f"{100 * out / pixels:.1f} %"
    return f"{share} of the pixels of masks (in {some} of {len(masks)}) are ignored: they count nowhere"


def _unused(masks: Sequence[Surveyed]) -> list[str]:
    """Declared foreground values that no mask holds."""
    notes = []
    for rule in dict.fromkeys(m.rule for m in masks):
        rows = [m for m in masks if m.rule == rule]
        if rule.foreground is None or any(m.facts.distinct > LISTED for m in rows):
            continue
        seen = {v for m in rows for v in m.facts.values}
        if gone := [v for v in rule.foreground if v not in seen]:
            notes.append(f"the declared mask_foreground {listed(gone)} occurs in none of {len(rows)} masks")
    return notes


def _read_as_objects(rule: MaskRule) -> bool:
    return rule.meaning == "auto" and rule.foreground is None and rule.threshold is None


def _above(mask: Surveyed) -> list[float]:
    return [v for v in mask.facts.values if v > 0 and v not in mask.rule.ignore]


def _count(some: int, of: int, one: str = "is", many: str = "are") -> str:
    return f"{some} of {of} masks {one if some == 1 else many}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
