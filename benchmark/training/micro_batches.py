"""Cutting a batch in parts without losing what a method added to it."""

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping, Sequence
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

    Cut are tensors and arrays with as many rows as there are images; lists with one entry an image, whatever the
    entries are; and in mappings (which keep their class), tuples, other lists and dataclasses what they hold.
    Everything else is passed on whole: masks withheld, None, numbers, and tensors with another number of rows
    (prototypes, two views of every image below each other: give those the shape (images, views, …) to have them cut).

    Raises BenchError where the sizes are not those of the batch, and for a list of as many entries as images that each
    hold a tensor with as many rows: it may be one entry an image, or a few for all images.
    """
    if sum(sizes) != len(batch.images):
        raise BenchError(
            f"A batch of {len(batch.images)} images cannot be cut into {list(sizes)}: augment() must keep their number."
        )
    if len(sizes) == 1:
        return [batch]
    starts = np.cumsum([0, *sizes])
    return [take_images(batch, slice(int(a), int(b))) for a, b in pairwise(starts)]


def take_images(batch: B, chosen: "slice | Tensor") -> B:
    """Some images of a batch, by the rule of `split_batch`. chosen: a slice, or their indices (n,) int64."""
    return _take_fields(batch, chosen, len(batch.images))


def _take_fields(holder: H, chosen: "slice | Tensor", count: int) -> H:
    """A copy of a dataclass with all its fields cut, those that a method has merely set included."""
    declared = {f.name: getattr(holder, f.name) for f in dataclasses.fields(holder)}
    part = copy.copy(holder)
    for name, value in (declared | getattr(holder, "__dict__", {})).items():
        try:
            object.__setattr__(part, name, _take(value, chosen, count))  # a method's own class may be frozen
        except _AmbiguousError:
            raise BenchError(
                f"The field '{name}' of a batch of {count} images holds a list of {count} entries with {count} rows "
                "each: it cannot be told whether there is one an image. Make it a tuple to have each entry cut by "
                "rows, or a NumPy array of objects to have one entry an image."
            ) from None
    return part


class _AmbiguousError(Exception):
    """A list that may be cut in two ways."""


def _take(value: Any, chosen: "slice | Tensor", count: int) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        rows = chosen.cpu().numpy() if isinstance(value, np.ndarray) and isinstance(chosen, Tensor) else chosen
        return value[rows] if _has_rows(value, count) else value
    if isinstance(value, Mapping):
        return _like(value, {key: _take(one, chosen, count) for key, one in value.items()})
    if isinstance(value, list):
        return _take_list(value, chosen, count)
    if isinstance(value, tuple):
        make = getattr(type(value), "_make", tuple)  # of a NamedTuple
        return make([_take(one, chosen, count) for one in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _take_fields(value, chosen, count)
    return value


def _take_list(value: list[Any], chosen: "slice | Tensor", count: int) -> list[Any]:
    """One entry an image: those of the images. Else what the entries hold, such as the levels of a pyramid."""
    if len(value) != count:
        return [_take(one, chosen, count) for one in value]
    if count > 1 and all(_holds_rows(one, count) for one in value):
        raise _AmbiguousError
    return value[chosen] if isinstance(chosen, slice) else [value[k] for k in chosen.tolist()]


def _has_rows(value: Any, count: int) -> bool:
    """Whether it is a tensor or array with a row for every image."""
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0 and len(value) == count


def _holds_rows(value: Any, count: int) -> bool:
    """Whether anything in it has a row for every image."""
    if isinstance(value, Mapping):
        return any(_holds_rows(one, count) for one in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_rows(one, count) for one in value)
    return _has_rows(value, count)


def _like(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of the same kind with these items; a dictionary where its class cannot be made from one."""
    if type(value) is dict:
        return items
    if isinstance(value, MutableMapping):  # a defaultdict keeps its default
        part = copy.copy(value)
        part.clear()
        part.update(items)
        return part
    try:
        return type(value)(items)  # pyright: ignore[reportCallIssue]
    except TypeError:
        return items
