"""Differences of a training from the published one: a published number stands beside ours only where there are none."""

from collections.abc import Mapping

from .config import TrainConfig, identity_fields

FIRST = ("stride", "epochs")


def unlike_published(ours: TrainConfig, theirs: TrainConfig, weights: Mapping[str, str]) -> list[str]:
    """A phrase for each setting that is not that of the published recipe, the starting weights first.

    weights: identity of the starting weights, with their `source` (`imagenet`, as published, `none`, `file`); empty
    without a backbone.
    """
    own, published = identity_fields(ours), identity_fields(theirs)
    names = [*FIRST, *(name for name in own if name not in FIRST)]
    differences = [f"{name} {own[name]}, published {published[name]}" for name in names if own[name] != published[name]]
    source = weights.get("source", "imagenet")
    return [*([f"starting weights {source}, published ImageNet's"] if source != "imagenet" else []), *differences]
