"""Checkpoint selection: the table of best epochs by the rules of `loc`, `cl` and `last`, updated after every epoch."""

import math
from collections.abc import Mapping

from ..core.protocols import PROTOCOLS, Protocol


def update_slots(
    slots: dict[str, dict], epoch: int, accuracy: float, loss: float, pxap: Mapping[tuple[str, str], float]
) -> bool:
    """Updates the checkpoint slots with this epoch; returns whether the epoch is the best by any rule.

    slots: name of a slot (`cl/fair`, `loc/paper/cam`, `last`) -> its epoch, and value and loss of that epoch.

    accuracy in percent and loss over the validation images; pxap by (protocol, map) over the masked ones, NaN where
    undefined. Ties go to the later epoch or to the lower loss (of equal losses the later), as the
    protocol says (B-CL, B-LOC).
    """
    taken = False
    for protocol in PROTOCOLS.values():
        if epoch < protocol.first_epoch:
            continue
        scores = {f"cl/{protocol.name}": accuracy}
        scores.update({f"loc/{p}/{m}": v for (p, m), v in pxap.items() if p == protocol.name})
        for slot, value in scores.items():
            if not math.isnan(value) and _better(value, loss, slots.get(slot), protocol):
                slots[slot] = {"epoch": epoch, "value": value, "loss": loss}
                taken = True
    slots["last"] = {"epoch": epoch, "value": accuracy, "loss": loss}
    return taken


def _better(value: float, loss: float, held: dict | None, protocol: Protocol) -> bool:
    if held is None or value > held["value"]:
        return True
    # Equal losses too go to the later epoch: where the classifier is frozen (negev, fcam) every epoch is equal, and the
    # first would be a decoder that has learned nothing.
    return value == held["value"] and (protocol.ties == "last" or loss <= held["loss"])
