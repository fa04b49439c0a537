"""In what a training differs from the published one: a published number stands beside ours only where nothing does."""

from .config import TrainConfig, identity_fields

FIRST = ("stride", "epochs")


def unlike_published(ours: TrainConfig, theirs: TrainConfig, weights: str) -> list[str]:
    """A phrase for each setting that is not that of the published recipe, the starting weights first.

    weights: where the backbone starts: `imagenet`, as published, `none` or `file`; empty without a backbone.
    """
    own, published = identity_fields(ours), identity_fields(theirs)
    names = [*FIRST, *(name for name in own if name not in FIRST)]
    found = [f"{name} {own[name]}, published {published[name]}" for name in names if own[name] != published[name]]
    other = weights not in ("", "imagenet")
    return [*([f"starting weights {weights}, published ImageNet's"] if other else []), *found]
