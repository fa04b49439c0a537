"""What stands beside the numbers: which weights had seen the images they are scored on, what networks were fed."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from .row import Row

SEEN, BOUND, COLLAPSED = "§", "‡", "¶"
SYNTHETIC = "SYNTHETIC DATA"
_IMAGENET = "mean 0.485 0.456 0.406, std 0.229 0.224 0.225"


def seen_notes(rows: Iterable[Row]) -> list[str]:
    """One sentence a set: what the weights behind which backbones had seen, as declared."""
    backbones_of: dict[tuple[str, tuple[str, ...]], dict[str, None]] = defaultdict(dict)
    for row in rows:
        if row.weights_seen:
            backbones_of[row.eval, row.weights_seen][row.backbone] = None
    return [
        f"{SEEN} {evaluated}: the starting weights of {', '.join(backbones)} are declared to have seen "
        f"{', '.join(names)}, so these numbers say little about unseen images."
        for (evaluated, names), backbones in backbones_of.items()
    ]


def bound_notes(rows: Iterable[Row]) -> list[str]:
    """What the sign of methods that saw masks in training means, by whether they saw all or some."""
    seen = {row.supervision for row in rows}
    notes = [f"{BOUND} upper bound: trained with pixel masks, so no weakly supervised method."] * ("pixel" in seen)
    if "partial" in seen:
        notes.append(f"{BOUND} trained with the pixel masks of some images (option labelled): not weakly supervised.")
    return notes


def marked_sets(sets: str, rows: Iterable[Row]) -> str:
    """The heading of a group of columns, marked where weights had seen the set."""
    return f"{sets} {SEEN}" if any(row.weights_seen for row in rows) else sets


def normalisation_notes(rows: Sequence[Row]) -> list[str]:
    """What images were normalised by, a sentence a backbone, where it is not ImageNet's mean and deviation."""
    texts_of: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        if row.normalisation:
            texts_of[row.backbone][row.normalisation] = None
    return [
        f"{backbone}: images normalised by {' and, in other runs, '.join(texts)} (RGB in [0, 1])."
        for backbone, texts in sorted(texts_of.items())
        if list(texts) != [_IMAGENET]
    ]
