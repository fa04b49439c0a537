"""How a batch is cut: in parts for memory, and each part among the processes that train together."""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple


def even(count: int, parts: int) -> list[slice]:
    """`count` positions in nearly equal parts, the longer ones first, as torch.tensor_split cuts them."""
    edges = [k * (count // parts) + min(k, count % parts) for k in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


class MicroBatch(NamedTuple):
    """A part of a batch that is trained on at once: its positions in the batch, and which of those are here."""

    whole: slice
    own: slice

    @property
    def within(self) -> slice:
        """The own positions, counted from the start of the part."""
        return slice(self.own.start - self.whole.start, self.own.stop - self.whole.start)

    @property
    def images(self) -> int:
        """How many images of it are here."""
        return self.own.stop - self.own.start


@lru_cache(maxsize=64)  # a training has batches of two sizes, and asks at every step
def cut_batch(count: int, most: int, rank: int = 0, size: int = 1) -> tuple[MicroBatch, ...]:
    """A batch of `count` images cut into nearly equal parts of at most `most` (0: one part).

    rank, size: each part is cut once more for `size` processes that train on it together, of which this is number
    `rank`; so a part holds the same images whatever their number.
    """
    parts = []
    for part in even(count, -(-count // most) if most and most < count else 1):
        own = even(part.stop - part.start, size)[rank]
        parts.append(MicroBatch(part, slice(part.start + own.start, part.start + own.stop)))
    return tuple(parts)
