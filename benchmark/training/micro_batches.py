"""Cutting a batch without losing what a method added to it."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import Tensor

from ...methods.base import Batch
from ..core.errors import BenchError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

B = TypeVar("B", bound=Batch)
H = TypeVar("H", bound="DataclassInstance")


def split_batch(batch: B, sizes: Sequence[int]) -> list[B]:
    """A batch cut into parts of the given numbers of images, each with all its fields, of the batch's own class.

    Cut are tensors and arrays with as many rows as there are images, and lists of as many plain values; in mappings,
    sequences and dataclasses, what they hold. Everything else is passed on whole: masks withheld, None,
    numbers, and tensors with another number of rows (prototypes, two views of every image below each other: give those
    the shape (images, views, …) to have them cut).
    """
    if sum(sizes) != len(batch.labels):
        raise BenchError(
            f"A batch of {len(batch.labels)} images cannot be cut into {list(sizes)}: augment() must keep their number."
        )
    if len(sizes) == 1:
        return [batch]
    starts = np.cumsum([0, *sizes])
    return [take_images(batch, slice(int(a), int(b))) for a, b in pairwise(starts)]


def take_images(batch: B, chosen: "slice | Tensor") -> B:
    """Some images of a batch, by the rule of `split_batch`. chosen: a slice, or their indices (n,) int64."""
    return _fields_taken(batch, chosen, len(batch.labels))


def _fields_taken(holder: H, chosen: "slice | Tensor", count: int) -> H:
    """A copy of a dataclass with all its fields cut, those that a method has merely set included."""
    declared = {f.name: getattr(holder, f.name) for f in dataclasses.fields(holder)}
    found = copy.copy(holder)
    for name, value in (declared | getattr(holder, "__dict__", {})).items():
        object.__setattr__(found, name, _taken(value, chosen, count))  # a method's own class may be frozen
    return found


def _taken(value: Any, chosen: "slice | Tensor", count: int) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        rows = chosen.cpu().numpy() if isinstance(value, np.ndarray) and isinstance(chosen, Tensor) else chosen
        return value[rows] if value.ndim and len(value) == count else value
    if isinstance(value, Mapping):
        held = {key: _taken(one, chosen, count) for key, one in value.items()}
        return held if type(value) is dict else _alike(value, held)
    if isinstance(value, list | tuple):
        return _taken_from_list(value, chosen, count)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields_taken(value, chosen, count)
    return value


def _taken_from_list(value: "list[Any] | tuple[Any, ...]", chosen: "slice | Tensor", count: int) -> Any:
    plain = not any(isinstance(one, Tensor | np.ndarray | Mapping | list | tuple) for one in value)
    if plain and isinstance(value, list) and len(value) == count:  # ids and the like; a tuple is a size or a setting
        return value[chosen] if isinstance(chosen, slice) else [value[k] for k in chosen.tolist()]
    if plain:
        return value
    held = [_taken(one, chosen, count) for one in value]
    if isinstance(value, tuple):
        make = getattr(type(value), "_make", tuple)  # of a NamedTuple
        return make(held)
    return held


def _alike(value: Mapping[Any, Any], held: dict[Any, Any]) -> Any:
    """A mapping of the same kind, where it can be made from a dictionary."""
    try:
        return type(value)(held)  # pyright: ignore[reportCallIssue]
    except TypeError:
        return held
