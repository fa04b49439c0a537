"""Notes on all masks of a run: made before anything trains, shown on screen and kept in every record."""

from collections.abc import Sequence

from ...datasets.base import Item, Manifest
from ...datasets.masks.sets import SizedMask, check_masks, survey, surveyed, vanished
from ..core.errors import BenchError
from .image_cache import DecodeRequest, ImageCache, MaskForm


def notes_of_needs(manifest: Manifest, cache: ImageCache, needs: Sequence[DecodeRequest]) -> list[str]:
    """Notes on all prepared masks of a fold, each mask counted once, and per size on those that lost all foreground.

    Raises BenchError where the masks cannot be meant so, or where no region of the test set is left at a size.
    """
    whole: dict[str, SizedMask] = {}
    lines: list[str] = []
    for need in needs:
        if not need.reduction:
            continue
        form = MaskForm(need.size, need.reduction)
        sizes = sized_masks(cache, need.items, form)
        whole.update(sizes)
        for split, kind in (("val", "validation"), ("test", "test")):
            scored = {i.id: sizes[i.id] for i in need.items if i.id in sizes and i.split == split}
            lines.append(vanished(scored, *form, kind))
        _refuse_lost(manifest, [i for i in need.items if i.split == "test"], sizes, form)
    check_masks(f"{manifest.card.name}, fold {manifest.fold}", surveyed(manifest, whole, "test"))
    return [*survey(surveyed(manifest, whole)), *dict.fromkeys(filter(None, lines))]


def notes_of_rows(manifest: Manifest, cache: ImageCache, items: Sequence[Item], form: MaskForm) -> list[str]:
    """Notes on the masks of some rows of a test set at the size they are scored at."""
    sizes = sized_masks(cache, items, form)
    return [*survey(surveyed(manifest, sizes)), *filter(None, [vanished(sizes, *form, "test")])]


def sized_masks(cache: ImageCache, items: Sequence[Item], form: MaskForm) -> dict[str, SizedMask]:
    """By id, what is known of those rows that have a mask."""
    masked = [i for i in items if i.mask is not None]
    facts = cache.mask_facts(masked, form)
    return {i.id: SizedMask(f.facts, f.foreground, f.ignored, form.size**2) for i, f in zip(masked, facts, strict=True)}


def _refuse_lost(manifest: Manifest, items: Sequence[Item], masks: dict[str, SizedMask], form: MaskForm) -> None:
    regions = [masks[i.id] for i in items if i.id in masks and masks[i.id].facts.foreground]
    if regions and not any(m.foreground for m in regions):
        raise BenchError(
            f"{manifest.card.name}, fold {manifest.fold}: all {len(regions)} test masks lose all their foreground at "
            f"{form.size} px (mask_reduction={form.reduction}), so nothing is left to score. Choose --set "
            "protocol.mask_reduction=any, a larger protocol.size, or cut the images into patches."
        )
