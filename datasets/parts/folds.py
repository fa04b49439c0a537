"""Division into splits and folds where no published list exists: deterministic, stratified, by image or by group."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product

from ...benchmark.core.errors import BenchError
from ...benchmark.core.seeds import seed_for

PIXEL_VAL_PER_CLASS = 3  # as in the published GlaS folds
_MAX_PASSES, _MAX_SWAPPED = 50, 400


def deal_images(labels: Mapping[str, int], parts: int) -> dict[str, int]:
    """Image id to part 0..parts-1, each class dealt evenly; the order is a hash of the ids."""
    order = sorted(labels, key=lambda i: (labels[i], seed_for("deal", i), i))
    return {image: rank % parts for rank, image in enumerate(order)}


def choose_pixel_val(rows: Iterable[tuple[str, int, str]], per_class: int = PIXEL_VAL_PER_CLASS) -> frozenset[str]:
    """Ids whose masks may be read for selection, from (id, label, group) of the validation images.

    At most `per_class` of each class, one group after the other so that a threshold is not tuned to one patient.
    """
    by_class: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for image, label, group in rows:
        by_class[label][group].append(image)
    chosen: list[str] = []
    for groups in by_class.values():
        ranked = []
        for group, images in groups.items():
            images.sort(key=lambda i: (seed_for("valpx", i), i))
            ranked += [(turn, seed_for("valpx", group), group, image) for turn, image in enumerate(images)]
        chosen += [image for *_, image in sorted(ranked)[:per_class]]
    return frozenset(chosen)


def divide_groups(rows: Iterable[tuple[int, str]], parts: int) -> dict[str, int]:
    """Group to part 0..parts-1, from (label, group) of every image; all images of a group stay together.

    The parts come out as equal in images of each class as greedy placement and then moves and swaps can make them.
    Raises BenchError if a part cannot hold every class.
    """
    part, complete = divide_by_weight(rows, (1,) * parts)
    if not complete:
        raise BenchError(
            f"Grouped folds need {parts} sets of patients or slides with every class in each; {len(part)} groups "
            "with these labels do not allow it. Use the image-level folds, or data of more patients."
        )
    return part


def divide_by_weight(rows: Iterable[tuple[int, str]], weights: Sequence[float]) -> tuple[dict[str, int], bool]:
    """Group to part, as `divide_groups`, with parts as large as their positive weights, and if all hold every class.

    Groups of equal size are placed in the order of their names. Swaps are tried among at most 400 groups: with more,
    greedy placement and moves leave nothing to gain by them, and their number is quadratic.
    """
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for label, group in rows:
        counts[group][label] += 1
    classes = sorted({label for c in counts.values() for label in c})
    sizes = {group: [counts[group][label] for label in classes] for group in counts}
    search = _Division(sizes, weights)
    search.improve()
    return search.part, all(n > 0 for part in search.totals for n in part)


class _Division:
    """Groups placed in parts, with the cost of a placement: squared relative deviation from the parts asked for."""

    def __init__(self, sizes: Mapping[str, Sequence[int]], weights: Sequence[float]) -> None:
        self.sizes, self.parts = sizes, len(weights)
        columns = [sum(column) for column in zip(*sizes.values(), strict=True)]
        self.goals = [[n * w / sum(weights) for n in columns] for w in weights]
        self.totals = [[0] * len(columns) for _ in weights]
        self.part: dict[str, int] = {}
        for group in sorted(sizes, key=lambda g: (-sum(sizes[g]), g)):
            best = min(range(self.parts), key=lambda p: (self._cost(p, self.sizes[group]) - self._cost(p), p))
            self._place(group, best)

    def _cost(self, part: int, change: Sequence[int] = ()) -> float:
        goal = self.goals[part]
        change = change or [0] * len(goal)
        return sum(((n + c - g) / g) ** 2 for n, c, g in zip(self.totals[part], change, goal, strict=True))

    def _place(self, group: str, part: int) -> None:
        for label, n in enumerate(self.sizes[group]):
            if group in self.part:
                self.totals[self.part[group]][label] -= n
            self.totals[part][label] += n
        self.part[group] = part

    def _gain(self, change: Sequence[int], source: int, target: int) -> float:
        """How much cheaper it gets when `change` images of each class go from source to target."""
        back = [-n for n in change]
        before = self._cost(source) + self._cost(target)
        return before - self._cost(source, back) - self._cost(target, change)

    def improve(self) -> None:
        """Moves and swaps groups while that makes the parts more equal."""
        groups = sorted(self.sizes)
        for _ in range(_MAX_PASSES):
            moved = self._move(groups)
            swapped = len(groups) <= _MAX_SWAPPED and self._swap(groups)
            if not (moved or swapped):
                return

    def _move(self, groups: Sequence[str]) -> bool:
        moved = False
        for group, target in product(groups, range(self.parts)):
            source = self.part[group]
            if source != target and self._gain(self.sizes[group], source, target) > 1e-9:
                self._place(group, target)
                moved = True
        return moved

    def _swap(self, groups: Sequence[str]) -> bool:
        swapped = False
        for one, other in combinations(groups, 2):
            source, target = self.part[one], self.part[other]
            change = [a - b for a, b in zip(self.sizes[one], self.sizes[other], strict=True)]
            if source != target and self._gain(change, source, target) > 1e-9:
                self._place(one, target)
                self._place(other, source)
                swapped = True
        return swapped
