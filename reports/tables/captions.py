"""What stands above and below a table: what was tested, how sure its numbers are, and what a reader must know."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ...benchmark.core.intervals import MIN_GROUPS
from ...benchmark.core.protocols import named_protocol
from ..rows.declared import SYNTHETIC, bound_notes, normalisation_notes, seen_notes
from ..rows.frame import alike
from ..rows.row import Row
from .cells import ORACLE, UNDEFINED

FAR = 0.5  # points between PxAP and exact AP from which on a reader is warned
CRITERION = (
    "tau_val and the oracle tau are those of the best mean IoU of foreground and background, so that a Dice at another "
    "threshold can be higher; chance Dice is that of a map that calls everything foreground."
)
_Lines = Sequence[tuple[Sequence[Row], Sequence[Row]]]


def caption_of(head: str, runs: Sequence[Row], lines: _Lines) -> str:
    """The caption of a table. head: what it is about. lines: per line its runs, and the rows its numbers are of."""
    trained = sorted({r.train for r in runs})
    text = f"{SYNTHETIC}. " if any(r.synthetic for r in runs) else ""
    text += (
        f"{head}, trained on {', '.join(trained)}{_folds(runs)}: {tested([e for _, found in lines for e in found])}. "
    )
    masks = span(r.validation_masks for r in runs if r.kind != "none")
    text += f"tau_val was chosen on {masks} validation masks. " if masks else ""
    return f"{text}{spread_sentences(lines)}".rstrip()


def tested(estimates: Sequence[Row]) -> str:
    """How many images of how many groups stand behind a number, and how many equal groups those are worth."""
    group = estimates[0].group or "group"
    worth = sorted({f"{r.groups_effective:.1f}" for r in estimates}, key=float)
    worth = worth[0] if len(worth) == 1 else f"{worth[0]} to {worth[-1]}"
    regions, groups = span(r.groups_region for r in estimates if r.kind != "none"), span(r.groups for r in estimates)
    some = f", {regions} of them with foreground" if regions and regions != groups else ""
    return f"{span(r.images for r in estimates)} test images of {groups} {group}s{some} ({worth} effective)"


def spread_sentences(lines: _Lines) -> str:
    """What the brackets and the ± of these lines are."""
    estimates = [e for _, members in lines for e in members]
    group = estimates[0].group or "group"
    text = ""
    if any(not math.isnan(r.pxap_low) or not math.isnan(r.accuracy_low) for r in estimates):
        text += (
            f"[low, high]: 95% interval over {group}s (jackknife that leaves out one {group} at a time; accuracy: "
            "Wilson on the effective number of images). "
        )
    if any(r.groups_region < MIN_GROUPS and r.kind != "none" for r in estimates):
        text += f"[{UNDEFINED}]: fewer than {MIN_GROUPS} {group}s, too few for an interval. "
    if any(r.pooled_of for r in estimates):
        folds = span(len(r.pooled_of) for r in estimates if r.pooled_of)
        text += (
            f"The {folds} folds of a seed test different {group}s and are pooled into one estimate, each at its own "
            "tau_val. "
        )
    if any(len(members) > 1 for _, members in lines):
        text += f"± standard deviation over {_varied(lines)}, which the interval does not hold. "
    return text


def _varied(lines: _Lines) -> str:
    """What differs between the estimates of a line."""
    several = [members for _, members in lines if len(members) > 1]
    seeds = max(len({e.seed for e in members}) for members in several)
    folds = max(len({str(e.fold) for e in members if not e.pooled_of}) for members in several)
    counts = [f"{count} {what}" for count, what in ((seeds, "seeds"), (folds, "folds")) if count > 1]
    return " and ".join(counts) or "the runs of a line"


def _folds(runs: Sequence[Row]) -> str:
    """Which folds, of which scheme."""
    folds = sorted({str(r.fold) for r in runs}, key=lambda f: (len(f), f))
    if folds == ["0"] and runs[0].scheme != "published":
        return ""
    return f" ({runs[0].scheme} fold{'s' * (len(folds) > 1)} {', '.join(folds)})"


def span(numbers: Iterable[int]) -> str:
    """One number, or the lowest and the highest; nothing without any."""
    ordered = sorted(set(numbers))
    if not ordered:
        return ""
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def footnotes_of(runs: Sequence[Row], estimates: Sequence[Row]) -> tuple[str, ...]:
    """What a reader of a table must know of its rows; notes that begin with `!` also stand in a terminal."""
    notes = [
        f"{ORACLE} oracle: tau of the best mean IoU on the test masks themselves, only for comparison with papers.",
        CRITERION,
        "Bold: the highest value of a block, if it is above what a constant map (or always the largest class) reaches.",
    ]
    notes += bound_notes(runs)
    if any(r.gated for r in runs):
        notes.append(
            "gated: nothing is foreground in images that the model predicts as a class without a region; the other "
            "line scores the map of the most probable class with a region, whatever is predicted."
        )
    if any(math.isnan(r.pxap) or math.isnan(r.accuracy) for r in runs):
        notes.append(f"{UNDEFINED}: not defined, because the method makes no map or classifies no image.")
    notes += saturation_notes(estimates)
    seen = {r.foreground for r in runs if r.foreground}
    notes += [f"Foreground: {text}." if not text.endswith(".") else f"Foreground: {text}" for text in sorted(seen)]
    notes += [*seen_notes(runs), *constant_notes(runs), *_effort_notes(runs), *normalisation_notes(runs)]
    notes += [f"! Rows of an earlier version ({text}): compare them with each other only." for text in _earlier(runs)]
    return (*notes, *dict.fromkeys(note for r in runs for note in r.notes))


def _earlier(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(r.earlier for r in rows if r.earlier))


def saturation_notes(rows: Iterable[Row]) -> list[str]:
    """Where linear bins hide the order of scores: one warning a method, with what lies in the two end bins."""
    far_apart = [r for r in rows if not r.baseline and abs(r.ap - r.pxap) > FAR]
    notes = []
    for (method,), far in sorted(alike(far_apart, ("method",))):
        worst = max(far, key=lambda r: abs(r.ap - r.pxap))
        ends = worst.end_low + worst.end_high
        notes.append(
            f"! {method}: 1,001 linear bins hide the order of its scores: PxAP {worst.pxap:.1f}, exact average "
            f"precision {worst.ap:.1f}{_on([worst])}; {ends:.0f}% of its pixels lie in the two end bins."
        )
    return notes


def constant_notes(rows: Iterable[Row]) -> list[str]:
    """How many maps say the same everywhere, one sentence a method and evaluation set; baselines are meant to."""
    constant = [r for r in rows if r.degenerate and not r.baseline and not r.gated]
    return [
        f"{method}: {span(r.degenerate for r in runs)} of {span(r.images for r in runs)} maps are constant{_on(runs)}."
        for (_, method), runs in sorted(alike(constant, ("eval", "method")))
    ]


def _on(runs: Sequence[Row]) -> str:
    """The set, where it is not the one trained on."""
    return f" on {runs[0].eval}" if runs[0].ood else ""


def _effort_notes(rows: Sequence[Row]) -> list[str]:
    """Which runs were trained otherwise than asked, or on several devices; one sentence a method and kind."""
    trainings: dict[tuple[str, str], set[str]] = defaultdict(set)
    for r in rows:
        if r.micro_batch:
            wanted = str(r.micro_batch_asked) if r.micro_batch_asked else "whole batches"
            text = f"in parts of {r.micro_batch} images instead of {wanted} after memory ran out (same effective batch)"
            trainings[r.method, text].add(r.stage_train)
        if r.devices > 1:
            trainings[r.method, f"on {r.devices} devices at once (same effective batch)"].add(r.stage_train)
    of = {m: len({r.stage_train for r in rows if r.method == m}) for m, _ in trainings}
    return [f"{m}: {len(runs)} of {of[m]} trainings went {text}." for (m, text), runs in sorted(trainings.items())]


_PROTOCOLS = {
    "fair": (
        "Predictions use the test images only, never their labels or masks: of the classes that have a region of "
        "interest, the map of the most probable one is scored, on a scale fixed by maps of validation images, from the "
        "checkpoint of best validation accuracy. "
        "The threshold tau_val comes from the few validation masks, whose number is printed with every table."
    ),
    "paper": (
        "The rules of the published histology tables: the map of the true label, scaled to [0, 1] image by image, from "
        "the checkpoint of best PxAP on the validation masks. "
        "It lets the test label choose the map, so it serves comparison with published numbers and nothing else."
    ),
}
_CHANGED = (
    "It is changed from its named original in what stands in brackets, so its numbers compare with no other table."
)


def protocol_sentences(protocol: str) -> str:
    """Two sentences on what a protocol id stands for, and one more where settings of a named protocol were changed."""
    name = named_protocol(protocol)
    text = _PROTOCOLS.get(name, "A protocol of the user's own. Its settings stand in the records of its stages.")
    return f"{text} {_CHANGED}" if "(" in protocol.partition(" [")[0] else text
