"""Rounds of active learning: how a training follows another in the plan, and which images have masks in the first.

A method declared rounds="rounds" learns in so many trainings. Round k has the masks of the start set and of what rounds
1 to k-1 asked for; a round is the same training whatever number of rounds was asked for, and so is shared.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from ...datasets.base import Item, Manifest
from ..core.errors import BenchError
from .method_refs import MethodRef

PREVIOUS = "previous"  # role of the round before


def last_round(method: MethodRef) -> MethodRef:
    """The last round of a method that learns in rounds; any other method as it is. Raises BenchError below 1 round."""
    if not method.spec.rounds:
        return method
    rounds = int(method.options[method.spec.rounds])
    if rounds < 1:
        raise BenchError(f"{method.spec.name}.{method.spec.rounds} = {rounds}: at least 1 is needed.")
    return replace(method, round=rounds)


def round_before(method: MethodRef) -> MethodRef | None:
    """The round that a training builds on; None for a first round and for methods without rounds."""
    return replace(method, round=method.round - 1) if method.round > 1 else None


def with_masks(manifest: Manifest) -> list[Item]:
    """The training images whose mask is known: those with a mask file, and those whose class has no region."""
    regions = manifest.card.region_classes
    return [item for item in manifest.split("train") if item.mask is not None or not regions[item.label]]


def start_set(items: Sequence[Item], count: int, seed: int) -> list[str]:
    """Ids of `count` of these images, as many of each class as there are, drawn by a hash of seed and id.

    So the draw depends on neither the order of the images nor a random generator, and a larger set holds a smaller one.
    """
    by_class: dict[int, list[str]] = {}
    for item in sorted(items, key=lambda item: hashlib.sha256(f"labelled {seed} {item.id}".encode()).digest()):
        by_class.setdefault(item.label, []).append(item.id)
    ranked = [(place, label, name) for label, names in by_class.items() for place, name in enumerate(names)]
    return [name for _, _, name in sorted(ranked)[:count]]


def check_rounds(method: MethodRef, manifest: Manifest) -> None:
    """Raises BenchError for numbers of images and rounds that this set cannot give."""
    options, name = method.options, method.spec.name
    numbers = {key: int(options[key]) for key in ("labelled", *(("acquire",) if method.round else ()))}
    for key, value in numbers.items():
        if value < 1:
            raise BenchError(f"{name}.{key} = {value}: at least 1 is needed.")
    there = len(with_masks(manifest))
    wanted = numbers["labelled"] + (max(method.round, 1) - 1) * numbers.get("acquire", 0)
    if wanted > there:
        how = f"{name}.labelled = {numbers['labelled']}"
        if method.round > 1:
            how += f" and {method.round} rounds of {name}.acquire = {numbers['acquire']}"
        raise BenchError(
            f"{how} need {wanted} training images with masks, and fold {manifest.fold} of {manifest.card.name} has "
            f"{there}. Ask for fewer."
        )
