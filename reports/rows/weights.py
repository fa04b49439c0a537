"""What records say of starting weights: what they were fed by, and what they are declared to have seen."""

from collections.abc import Mapping, Sequence
from typing import Any


def fed(facts: Mapping[str, Any]) -> str:
    """What a score's images were normalised by, in words; empty for a baseline and in records from before."""
    known = facts.get("normalisation")
    if not known:
        return ""
    return ", ".join(f"{name} {' '.join(f'{v:g}' for v in known[name])}" for name in ("mean", "std"))


def seen_by(trained: Mapping[str, Any], dataset: str, kept: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Which declared names concern the test images of a set, for the weights a training started from.

    trained: its record. kept: what the results folder holds, by hash or tag of the weights.
    """
    start = (trained.get("identity", {}).get("backbone") or {}).get("weights") or {}
    key = start.get("sha256") or start.get("tag") or ""
    recorded = ((trained.get("facts") or {}).get("weights") or {}).get("seen", ())
    names = {*recorded, *(kept.get(key, ()) if key else ())}
    return tuple(sorted(name for name in names if _concerns(name.casefold(), dataset.casefold())))


def _concerns(name: str, dataset: str) -> bool:
    """Whether a declared name is that of the test images of a set, or of all sets of its family (`camelyon17`)."""
    stem, colon, last = name.rpartition(":")
    if colon and last in ("train", "val", "test"):
        name = stem if last == "test" else ""
    return bool(name) and (dataset == name or dataset.startswith(f"{name}:"))
