"""Contamination: scored sets that starting weights have seen, as declared by people and files, never guessed.

It changes no number and so no stage key. The results folder keeps it by the hash (or tag) of the weights, so that rows
which were stored before somebody knew are marked too, without training again.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...datasets.base import SPLITS
from ...methods.backbones.weights import metadata_of, weights_path
from ..core.errors import BenchError
from ..core.results_store import Store
from .config import Request
from .open_datasets import OpenDataset
from .stage import Plan, TrainStage

ALL = "all"  # in the header of a manifest: every split of this set
KEY = "weights_seen"  # of a manifest's header, and of the metadata of a weights file


def declared(plan: Plan, request: Request, datasets: Mapping[str, OpenDataset]) -> dict[str, list[str]]:
    """Sets that starting weights of a plan have seen: hash or tag of the weights -> `SET` or `SET:SPLIT`, sorted.

    From `--weights-seen`, the headers of manifests and the metadata of the weights file. Raises BenchError for names
    that are none, and where weights that are random are said to have seen something.
    """
    if request.weights_seen and request.weights == "none":
        raise BenchError("--weights-seen: random weights (--weights none) have seen nothing. Leave one of the two out.")
    titles = {name: dataset.title for name, dataset in datasets.items()}
    names = [_canonical(n, titles, "--weights-seen") for n in request.weights_seen]
    for name, dataset in datasets.items():
        names += [_own(word, titles, name) for word in dataset.dataset.weights_seen]
    if request.weights not in ("none", "imagenet"):
        path = weights_path(request.weights)
        names += [_canonical(n, titles, str(path)) for n in _in_metadata(path)]
    seen = defaultdict[str, set[str]](set)
    for stage in plan.kinds("train"):
        if key := _weights_of(stage):
            seen[key].update(names)
    return {key: sorted(sets) for key, sets in seen.items() if sets}


def mark_trainings(plan: Plan, seen: Mapping[str, list[str]]) -> None:
    """Puts what `declared` found into the inputs of the plan's trainings, whose records keep it."""
    for stage in plan.kinds("train"):
        if names := seen.get(_weights_of(stage)):
            plan.replace(replace(stage, inputs=replace(stage.inputs, weights_seen=tuple(names))))


def _weights_of(stage: TrainStage) -> str:
    """Name of the weights of a training: the hash of a file, an ImageNet tag, nothing for random ones."""
    identity = stage.identity["backbone"].get("weights", {})
    return identity.get("sha256") or identity.get("tag") or ""


def keep(declared: Mapping[str, list[str]], store: Store) -> None:
    """Adds declarations to those of the results folder; nothing is ever taken away here."""
    known = store.weights_seen()
    merged = {**known, **{key: sorted({*known.get(key, ()), *names}) for key, names in declared.items()}}
    if merged != known:
        store.note_weights_seen(merged)


def notices(seen: Mapping[str, list[str]], known: Sequence[str]) -> list[str]:
    """One sentence for each name: which rows it marks, or that no set of this command is called so.

    known: the names in tables of the sets of this command.
    """
    sentences = []
    for name in sorted({n for names in seen.values() for n in names}):
        stem, split = split_of(name)
        matching = [t for t in known if t.casefold() == stem or t.casefold().startswith(f"{stem}:")]
        if not matching:
            what = "no set of this command is called so; it is kept for later ones"
        elif split in ("", "test"):
            what = f"every row on {', '.join(matching)} is marked"
        else:
            what = f"no row is scored on the {split} images of {', '.join(matching)}, so none is marked"
        sentences.append(f"starting weights declared to have seen {name}: {what}.")
    return sentences


def split_of(name: str) -> tuple[str, str]:
    """A declared name as set, in small letters, and split, empty for all: `glas:test` is (glas, test)."""
    stem, colon, last = name.casefold().rpartition(":")
    return (stem, last) if colon and last in SPLITS else (name.casefold(), "")


def _canonical(name: str, titles: Mapping[str, str], where: str) -> str:
    """The name of a set as tables have it. Raises BenchError for what cannot be one."""
    name = name.strip()
    if not name or not name.isprintable() or name.startswith(":") or name.endswith(":"):
        raise BenchError(
            f"{where}: '{name}' is no name of a set. Give sets and splits, such as glas or glas:test,my.csv:val."
        )
    stem, colon, last = name.rpartition(":")
    if colon and last in SPLITS:
        return f"{titles.get(stem, stem)}:{last}"
    return titles.get(name, name)


def _own(word: str, titles: Mapping[str, str], name: str) -> str:
    """A word in the header of a manifest: one of its own splits, `all` of them, or the name of another set."""
    if word == ALL:
        return titles[name]
    return f"{titles[name]}:{word}" if word in SPLITS else _canonical(word, titles, f"{name}: '# {KEY}'")


def _in_metadata(path: Path) -> Iterable[str]:
    """Names in the metadata of a weights file: a JSON list of texts, or texts between commas."""
    text = metadata_of(path).get(KEY, "")
    if not text.lstrip().startswith("["):
        return [n for n in text.split(",") if n.strip()]
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise BenchError(
            f"{path}: the '{KEY}' in its metadata is neither a JSON list of names nor names between commas."
        )
    return names
