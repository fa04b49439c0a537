"""Targets of adapters: the other datasets asked for by `--ood`, whose training images a model is adapted to."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..core.errors import BenchError
from .config import TrainConfig
from .eval_sets import EvalSet
from .method_refs import MethodRef
from .open_datasets import OpenDataset, refuse_overlap

NETWORK = ("image_size", "load_size", "stride", "normalisation")  # settings that an adapter has from its source


def targets_of(
    method: MethodRef, sets: Sequence[EvalSet], open_datasets: Mapping[str, OpenDataset]
) -> tuple[EvalSet, ...]:
    """Targets of an adapter among the evaluation sets of a dataset's models, of which its own test set is the first.

    These are the other datasets as they are; shifted copies are scored and not adapted to. Raises BenchError for a
    target without training images, and for one whose training or validation images are among the source's test images.
    """
    home = sets[0]
    targets = tuple(on for on in sets if on.dataset != home.dataset and not on.shift)
    for on in targets:
        target, source = open_datasets[on.dataset], open_datasets[home.dataset]
        if target.dataset.card.evaluation_only or not target.manifest(on.fold).split("train"):
            raise BenchError(
                f"'{method.label}' adapts to the training images of its target, and {target.title} has none. Leave the "
                "method out, or give --ood a set with a train split; a CSV manifest can make one (docs/datasets.md)."
            )
        refuse_overlap(target, on.fold, source, home.fold)
    return targets


def scored_for(sets: Sequence[EvalSet], target: EvalSet | None) -> list[EvalSet]:
    """Sets a model is scored on: all, or of one adapted to a target the source and that target (shifts included)."""
    return [on for on in sets if target is None or on.dataset in (sets[0].dataset, target.dataset)]


def no_target(method: MethodRef) -> BenchError:
    """The error for a method that adapts and has nothing to adapt to."""
    return BenchError(
        f"'{method.label}' adapts a model to another dataset and has no target here. Name one that has training "
        "images, as in --datasets glas --ood camelyon16; shifts of a dataset are no targets."
    )


def on_network_of_source(method: MethodRef, config: TrainConfig, source: TrainConfig) -> TrainConfig:
    """The settings of an adapter with the network and the images of its source.

    source: the settings of its source. Raises BenchError where the user set one of these for the adapter alone.
    """
    if method.base and (fixed := [key for key in NETWORK if key in method.train]):
        raise BenchError(
            f"{method.own_label}.train.{fixed[0]}: an adapter's network and images are those of its source; set "
            f"{method.base.own_label}.train.{fixed[0]}, or train.{fixed[0]} for all."
        )
    return replace(config, **{key: getattr(source, key) for key in NETWORK})


def target_identity(target: EvalSet, open_datasets: Mapping[str, OpenDataset]) -> dict[str, Any]:
    """Identity of a target in the key of what is adapted to it: its training images by content, no label or mask."""
    return open_datasets[target.dataset].image_identity(target.fold, "train")
