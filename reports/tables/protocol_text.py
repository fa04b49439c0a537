"""The sentences that explain a protocol wherever its numbers are shown."""

from ...benchmark.core.protocols import named_protocol

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
