"""The order of the training images in an epoch: shuffled, or balanced by class or by group."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...methods.spec import MethodSpec
from ..core.seeds import seed_for


@dataclass(frozen=True)
class Sampling:
    """Batches as a method declares them in its spec: `order` is its `sampling`, with `views` and `groups`."""

    order: str = "shuffle"
    views: int = 1
    groups: bool = False


SHUFFLED = Sampling()


def sampling_of(spec: MethodSpec) -> Sampling:
    """Sampling of a method, from its spec."""
    return Sampling(spec.sampling, spec.views, spec.groups)


def epoch_order(count: int, batch_size: int, seed: int, epoch: int, strata: Tensor | None = None) -> tuple[Tensor, ...]:
    """The rows (int64, on the CPU) of every batch of an epoch, in order; a function of the arguments alone.

    strata: (count,) the class or group of every row, to balance by; None shuffles, and every row comes once. An epoch
    has `count` rows in either case, cut into nearly equal batches of at most `batch_size`.
    """
    generator = generator_of("order", seed, epoch)
    order = torch.randperm(count, generator=generator) if strata is None else balanced_order(strata, generator)
    return order.tensor_split(-(-count // batch_size))


def paired_order(count: int, sizes: Sequence[int], seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The rows of a target of `count` images that come beside batches of these sizes, in an epoch of the source.

    One shuffled pack of all rows after another: none comes again before all others have come.
    """
    return _dealt(torch.arange(count), sum(sizes), generator_of("target order", seed, epoch)).split(list(sizes))


def balanced_order(strata: Tensor, generator: torch.Generator) -> Tensor:
    """Rows (N,) of as many draws as there are rows (N,), in which every stratum comes equally often, up to one.

    They come in rounds of one row of each stratum, in random order, so that batches are balanced too. The rows of a
    stratum are dealt out from one shuffled pack after another: none comes again before all others of it have come.
    """
    names = strata.unique()
    rounds = -(-len(strata) // len(names))
    columns = [_dealt((strata == name).nonzero()[:, 0], rounds, generator) for name in names]
    shuffled = torch.rand(rounds, len(names), generator=generator).argsort(1)
    return torch.stack(columns, 1).gather(1, shuffled).flatten()[: len(strata)]


def _dealt(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    packs = [torch.randperm(len(rows), generator=generator) for _ in range(-(-count // len(rows)))]
    return rows[torch.cat(packs)[:count]]


def group_numbers(groups: Sequence[str]) -> np.ndarray:
    """(N,) int64: the group of every image as a number 0, 1, …; ordered by a digest, since names may tell the class."""
    names = sorted(set(groups), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    number = {name: k for k, name in enumerate(names)}
    return np.array([number[name] for name in groups], np.int64)


def generator_of(*address: str | int) -> torch.Generator:
    """A source of random numbers on the CPU at an address, such as ("order", seed, epoch)."""
    return torch.Generator().manual_seed(seed_for(*address))
