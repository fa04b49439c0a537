"""Facts of the masks of a store, found while they were decoded: one line of JSON a mask, beside its array."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ...datasets.masks.reader import MaskFacts
from ..core.files import atomic_path


@dataclass(frozen=True)
class StoredFacts:
    """Facts of a mask as it is in its file, and pixels of foreground and ignored ones at the size it is stored in."""

    facts: MaskFacts
    foreground: int
    ignored: int


def read_facts(path: Path) -> dict[str, StoredFacts]:
    """Digest -> facts, up to the first line that is damaged; empty without the file."""
    by_digest: dict[str, StoredFacts] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return by_digest
    for line in lines[:-1]:  # what follows the last line break was never finished
        try:
            entry = json.loads(line)
            facts = MaskFacts(**{**entry["facts"], "values": tuple(entry["facts"]["values"])})
            by_digest[entry["digest"]] = StoredFacts(facts, entry["foreground"], entry["ignored"])
        except (ValueError, TypeError, KeyError):
            break
    return by_digest


def add_facts(path: Path, by_digest: Mapping[str, StoredFacts]) -> None:
    """Adds lines; what is damaged goes."""
    if not by_digest:
        return
    known = read_facts(path)
    text = "".join(json.dumps({"digest": d, **asdict(f)}) + "\n" for d, f in {**known, **by_digest}.items())
    with atomic_path(path) as temporary:  # others may read it at this moment
        temporary.write_text(text, encoding="ascii")
