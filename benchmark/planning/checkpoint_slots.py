"""Checkpoints a training keeps, and the slot a score reads: the last, the best by accuracy, or the best by maps."""

from ..core.protocols import Protocol
from .method_refs import MethodRef


def selects_checkpoints(source_model: MethodRef) -> bool:
    """Whether a training picks checkpoints by validation images: a source-free adapter has none, and no labels."""
    return source_model.spec.source_images or not source_model.spec.adapts


def selecting_maps(source_model: MethodRef) -> tuple[str, ...]:
    """Methods whose maps pick the `loc` checkpoints of a training: declared explainers, or the method's own map."""
    return source_model.spec.selects or (source_model.label,)


def slot_of(method: MethodRef, source_model: MethodRef, selection: str, protocol: Protocol) -> str:
    """The name under which the training keeps the checkpoint of a selection."""
    if selection == "last" or not selects_checkpoints(source_model):
        return "last"
    if selection == "cl":
        return f"cl/{protocol.name}"
    own = method is source_model or method.label == source_model.label
    maps = selecting_maps(source_model)
    return f"loc/{protocol.name}/{method.own_label if not own and method.own_label in maps else maps[0]}"
