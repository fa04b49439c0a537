"""Leaks between splits: images, patients or labels that training and test share, found before any training."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...benchmark.core.errors import BenchError, did_you_mean
from ..base import SPLITS, Item, Manifest, shared_groups
from ..open import FileFacts

KINDS = {
    "groups": "a patient or slide with images in several splits",
    "images": "images that stand in several splits, byte for byte",
    "labels": "one image, byte for byte, under different labels",
    "val-is-test": "a validation set that holds the very images of the test set",
}
PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))
MARK = "!"  # begins a note that every table shows, the terminal's too
_SHOWN = 5


@dataclass(frozen=True)
class Leak:
    """One leak. kind: of KINDS; text: what is shared, how many and the first five."""

    kind: str
    text: str


def check_kinds(allowed: Collection[str]) -> None:
    """Raises BenchError for a word of `--allow-leaks` that names no kind of leak."""
    for kind in allowed:
        if kind not in KINDS:
            known = "; ".join(f"{name}: {text}" for name, text in KINDS.items())
            raise BenchError(f"--allow-leaks: there is no '{kind}'.{did_you_mean(kind, KINDS)} Known: {known}.")


def find_leaks(manifest: Manifest, facts: Mapping[Path, FileFacts]) -> list[Leak]:
    """All leaks of a fold but those that its dataset declares itself (`manifest.declared`), which its notes report."""
    hashes = {i.id: facts[i.image].sha256 for i in manifest.items if i.image in facts}
    leaks = [*_groups(manifest), *_labels(manifest, hashes)]
    same = _val_is_test(manifest, hashes)
    leaks += same or _images(manifest, hashes)
    return [leak for leak in leaks if leak.kind not in manifest.declared]


def with_allowed(manifest: Manifest, facts: Mapping[Path, FileFacts], allowed: Collection[str]) -> Manifest:
    """The manifest with a marked note for every leak that `--allow-leaks` names. Raises BenchError for any other."""
    leaks = find_leaks(manifest, facts)
    refused = [leak for leak in leaks if leak.kind not in allowed]
    if refused:
        where = f"{manifest.card.name}, fold {manifest.fold}"
        kinds = ",".join(dict.fromkeys(leak.kind for leak in refused))
        lines = "\n  ".join(leak.text for leak in refused)
        raise BenchError(
            f"{where}: training and test are not apart, so scores would be too good:\n  {lines}\n"
            f"Correct the rows. To go on all the same, with a note in every table, add --allow-leaks {kinds}."
        )
    notes = tuple(f"{MARK} leak allowed by --allow-leaks {leak.kind}: {leak.text}" for leak in leaks)
    about = (*manifest.split_notes, *notes)
    return replace(manifest, notes=(*manifest.notes, *notes), split_notes=about) if notes else manifest


def _groups(manifest: Manifest) -> list[Leak]:
    splits: dict[str, list[str]] = defaultdict(list)
    for one, other in PAIRS:
        for group in shared_groups(manifest.items, one, other):
            splits[group].append(f"{one} and {other}")
    if not splits:
        return []
    some = [f"'{g}' is in {' and in '.join(pairs)}" for g, pairs in list(splits.items())[:_SHOWN]]
    more = " …" if len(splits) > _SHOWN else ""
    verb = "group is" if len(splits) == 1 else "groups are"
    return [Leak("groups", f"{len(splits)} {verb} in more than one split: {'; '.join(some)}{more}")]


def _labels(manifest: Manifest, hashes: Mapping[str, str]) -> list[Leak]:
    by_content: dict[str, list[Item]] = defaultdict(list)
    for item in manifest.items:
        if item.id in hashes:
            by_content[hashes[item.id]].append(item)
    bad = [rows for rows in by_content.values() if len({i.label for i in rows}) > 1]
    if not bad:
        return []
    classes = manifest.card.classes
    some = ["; ".join(f"{i.id} ({i.split}) is {classes[i.label]}" for i in rows[:3]) for rows in bad[:_SHOWN]]
    verb = "image has" if len(bad) == 1 else "images have"
    return [Leak("labels", f"{len(bad)} {verb} contradicting labels: {' | '.join(some)}{' …' * (len(bad) > _SHOWN)}")]


def _val_is_test(manifest: Manifest, hashes: Mapping[str, str]) -> list[Leak]:
    val, test = ({hashes[i.id] for i in manifest.split(s) if i.id in hashes} for s in ("val", "test"))
    if not val or val != test:
        return []
    return [Leak("val-is-test", f"the {len(manifest.split('val'))} validation images are the very test images")]


def _images(manifest: Manifest, hashes: Mapping[str, str]) -> list[Leak]:
    held = {split: _by_content(manifest.split(split), hashes) for split in SPLITS}
    leaks = []
    for one, other in PAIRS:
        twice = [(ids[0], held[one][content][0]) for content, ids in held[other].items() if content in held[one]]
        if twice:
            some = ", ".join(f"{b} = {a}" for b, a in twice[:_SHOWN]) + (", …" if len(twice) > _SHOWN else "")
            what = f"{len(twice)} of {len(manifest.split(other))} {other} images are, byte for byte, {one} images"
            leaks.append(Leak("images", f"{what}: {some}"))
    return leaks


def _by_content(items: Sequence[Item], hashes: Mapping[str, str]) -> dict[str, list[str]]:
    by_hash: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if item.id in hashes:
            by_hash[hashes[item.id]].append(item.id)
    return by_hash
