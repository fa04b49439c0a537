"""Batches of augmented training images on the device, with teacher maps and masks, in a deterministic order."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ...datasets.masks.reader import FOREGROUND, IGNORED
from ...methods.backbones.normalisation import Statistics
from ...methods.base import Batch
from ..core.mask_guard import WITHHELD, WITHHELD_LABELS
from ..core.timing import Stopwatch
from ..distributed.batch_shards import cut_batch
from ..planning.config import TrainConfig
from .augment import Draw, augment, crop, crop_maps, draw
from .epoch_order import SHUFFLED, Sampling, epoch_order, generator_of, group_numbers, paired_order
from .image_cache import ImageSplit
from .pixel_store import StoredRows
from .prefetch import ahead, staged, upload
from .several_maps import SeveralMaps

UPLOAD = 1024  # images copied to a GPU at once


class StepCursor(NamedTuple):
    """The step of an epoch to begin at, and which of the processes that share its batches this is."""

    step: int = 0
    rank: int = 0
    size: int = 1


@dataclass(frozen=True)
class TrainingSet:
    """The training images of a stage, decoded.

    statistics: what they are normalised by. maps: (N, h, w) float32 maps in [0, 1] in row order, by name of teacher.
    sampling: what the method declares of the order of its images, their views and their groups. withheld: whether these
    are images of a target, whose labels no method sees. beside: the target that comes along with labelled images.
    labelled: (N,) bool, whose masks are real, where there are masks of some images alone.

    The pixels stay memory-mapped on the CPU unless the device is a GPU with room for them, where they live as uint8.
    """

    frames: ImageSplit
    config: TrainConfig
    device: torch.device
    statistics: Statistics
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    sampling: Sampling = SHUFFLED
    withheld: bool = False
    beside: "TrainingSet | None" = None
    labelled: np.ndarray | None = None

    def on_device(self) -> "DeviceSet":
        """The arrays as tensors, on the device where they fit in a quarter of its free memory."""
        target = torch.device("cpu")
        if self.device.type == "cuda":
            size = self.frames.images.nbytes + (self.frames.masks.nbytes if self.frames.masks is not None else 0)
            free, _ = torch.cuda.mem_get_info(self.device)
            target = self.device if size < free // 4 else target
        masks = None if self.frames.masks is None else DevicePixels.of(self.frames.masks, target)
        maps = {name: torch.from_numpy(array).to(self.device) for name, array in self.maps.items()}
        pixels, labels = DevicePixels.of(self.frames.images, target), torch.from_numpy(self.frames.labels)
        wanted = self.sampling.groups or self.sampling.order == "group"
        groups = torch.from_numpy(group_numbers([item.group for item in self.frames.items])) if wanted else None
        data = DeviceSet(pixels, labels.to(self.device), maps, masks, self.config, self.device, self.statistics)
        return replace(
            data,
            sampling=self.sampling,
            strata={"class": labels, "group": groups}.get(self.sampling.order),
            groups=groups.to(self.device) if self.sampling.groups and groups is not None else None,
            withheld=self.withheld,
            beside=self.beside and self.beside.on_device(),
            labelled=None if self.labelled is None else torch.from_numpy(self.labelled).to(self.device),
        )


@dataclass(frozen=True)
class DevicePixels:
    """Rows of a store as tensors. On the CPU: all its arrays, the memory map itself, and where each row stands.

    On a GPU (`rows` None): the arrays of the rows alone, in their order.
    """

    arrays: Tensor
    rows: Tensor | None

    @classmethod
    def of(cls, rows: StoredRows, target: torch.device) -> "DevicePixels":
        """On the CPU without a copy; on a GPU only the rows asked for are uploaded, piece by piece."""
        if target.type == "cpu":
            return cls(_tensor(rows.mapped()), torch.from_numpy(rows.rows))
        arrays = torch.empty(rows.shape, dtype=torch.bool if rows.dtype == np.bool_ else torch.uint8, device=target)
        for start in range(0, len(rows), UPLOAD):
            arrays[start : start + UPLOAD] = torch.from_numpy(rows[start : start + UPLOAD]).to(target)
        return cls(arrays, None)

    def take(self, chosen: Tensor) -> Tensor:
        """The arrays of some rows, where they live; a row without an array (maskless) is zeros. `chosen` (B,) int64
        is on the CPU for arrays there, else on their device."""
        if self.rows is None:
            return self.arrays[chosen]
        places = self.rows[chosen]
        if not len(self.arrays):
            return self.arrays.new_zeros((len(places), *self.arrays.shape[1:]))
        pixels = self.arrays[places.clamp(min=0)]
        return pixels.masked_fill_((places < 0).view(-1, *[1] * (pixels.ndim - 1)), 0)


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor over a memory map, without a copy; nothing here ever writes to it, so its read-only flag may go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that the array is read-only
        return torch.from_numpy(array)


class Raw(NamedTuple):
    """A batch before augmentation: rows on the CPU and the device, draws of each view, pixels and masks as stored."""

    rows: Tensor
    places: Tensor
    drawn: tuple[Draw, ...]
    pixels: Tensor
    masks: Tensor | None
    beside: "Raw | None" = None  # of the target


@dataclass(frozen=True)
class DeviceSet:
    """Training arrays as tensors; `epoch_batches` yields an epoch in its deterministic order.

    labels: (N,) on the device. strata: (N,) int64 on the CPU, the classes or groups that an epoch is balanced by, None
    for plain shuffling. groups: (N,) int64 on the device, for methods that ask for them. withheld, beside, labelled: as
    of a TrainingSet.
    """

    pixels: DevicePixels
    labels: Tensor
    maps: Mapping[str, Tensor]
    masks: DevicePixels | None
    config: TrainConfig
    device: torch.device
    statistics: Statistics
    sampling: Sampling = SHUFFLED
    strata: Tensor | None = None
    groups: Tensor | None = None
    withheld: bool = False
    beside: "DeviceSet | None" = None
    labelled: Tensor | None = None

    def epoch_order(self, seed: int, epoch: int) -> tuple[Tensor, ...]:
        """The rows of every batch of an epoch, in order."""
        return epoch_order(len(self.labels), self.config.batch_size, seed, epoch, self.strata)

    def batches_per_epoch(self) -> int:
        """Training steps of an epoch, which has as many images as the set, in nearly equal batches."""
        return -(-len(self.labels) // self.config.batch_size)

    def epoch_batches(
        self, seed: int, epoch: int, watch: Stopwatch | None = None, start: StepCursor | None = None
    ) -> Iterator[Batch]:
        """The batches of an epoch; order and augmentation depend on (seed, epoch, step) alone.

        Pixels that do not live on the GPU they go to are read ahead. watch: charged for `load` (waiting for pixels and
        their way to the device) and `augment`. start: leaves out the steps before it, and the images of other
        processes.
        """
        watch = watch or Stopwatch(self.device)
        raw = self._raw(seed, epoch, start or StepCursor())
        source = iter(ahead(raw) if self.device.type == "cuda" and self.pixels.rows is not None else raw)
        while True:
            with watch.part("load"):
                loaded = next(source, None)
                if loaded is not None:
                    loaded = self._uploaded(loaded)
            if loaded is None:
                return
            with watch.part("augment"):
                batch = self._augmented(loaded)
            yield batch

    def share(self, count: int, start: StepCursor) -> tuple[slice, ...]:
        """Which positions of a batch of `count` images `epoch_batches` yields to a process."""
        return tuple(p.own for p in cut_batch(count, self.config.micro_batch, start.rank, start.size))

    def _raw(self, seed: int, epoch: int, start: StepCursor) -> Iterator[Raw]:
        batches = self.epoch_order(seed, epoch)
        alone = self._read_batches(batches, ("augment", seed, epoch), start)
        if self.beside is None:
            return alone
        target = self.beside
        rows = paired_order(len(target.labels), [len(b) for b in batches], seed, epoch)
        pairs = zip(alone, target._read_batches(rows, ("target", seed, epoch), start), strict=True)
        return (own._replace(beside=beside) for own, beside in pairs)

    def _read_batches(self, whole: Sequence[Tensor], place: tuple[str | int, ...], start: StepCursor) -> Iterator[Raw]:
        """The batches of an epoch, each with the random numbers of its own address, of which `place` is the start."""
        batches = whole[start.step :]
        owned = [self.share(len(rows), start) for rows in batches]
        mine = [torch.cat([rows[s] for s in own]) for rows, own in zip(batches, owned, strict=True)]
        if not mine:
            return
        places = upload(torch.cat(mine), self.device).split([len(rows) for rows in mine])
        for k, rows in enumerate(mine):
            address = (*place, start.step + k)
            sources = [generator_of(*address, *(("view", view) if view else ())) for view in range(self.sampling.views)]
            drawn = tuple(draw(len(batches[k]), self.config, source).of(owned[k]) for source in sources)
            yield self._read(rows, places[k], drawn)

    def _read(self, rows: Tensor, places: Tensor, drawn: tuple[Draw, ...]) -> Raw:
        kept = (self.pixels, self.masks)
        pixels, masks = (p and staged(p.take(places if p.rows is None else rows), self.device) for p in kept)
        return Raw(rows, places, drawn, pixels, masks)  # pyright: ignore[reportArgumentType]

    def _uploaded(self, raw: Raw) -> Raw:
        masks = None if raw.masks is None else raw.masks.to(self.device, non_blocking=True)
        pixels = raw.pixels.to(self.device, non_blocking=True)
        beside = raw.beside and self._uploaded(raw.beside)
        drawn = tuple(d.to(self.device) for d in raw.drawn)
        return raw._replace(drawn=drawn, pixels=pixels, masks=masks, beside=beside)

    def _augmented(self, raw: Raw) -> Batch:
        masks, ignored, first = WITHHELD, None, raw.drawn[0]
        if raw.masks is not None:
            masks, ignored = parted(crop(raw.masks, first, self.config.image_size))
        taught = {
            name: crop_maps(maps[raw.places], first, self.config).clamp_(0, 1) for name, maps in self.maps.items()
        }
        alone = SeveralMaps(list(taught)) if len(taught) > 1 else next(iter(taught.values()), None)
        views = tuple(augment(raw.pixels, drawn, self.config, self.statistics) for drawn in raw.drawn)
        labels, groups = self.labels[raw.places], None if self.groups is None else self.groups[raw.places]
        batch = Batch(
            views[0],
            labels,
            raw.places,
            cast("Tensor | None", alone),
            cast("Tensor", masks),
            ignored,
            taught,
            groups=groups,
        )
        batch = replace(batch, views=views) if len(views) > 1 else batch
        if raw.masks is not None:
            known = self.labelled
            batch.has_mask = torch.ones_like(labels, dtype=torch.bool) if known is None else known[raw.places]
        if self.withheld:
            batch = replace(batch, labels=cast("Tensor", WITHHELD_LABELS))
            return replace(batch, target=batch)
        if self.beside is None or raw.beside is None:
            return batch
        return replace(batch, target=self.beside._augmented(raw.beside).target)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """One augmented batch of the given rows."""
        return self._augmented(self._uploaded(self._drawn(rows, generator)))

    def _drawn(self, rows: Tensor, generator: torch.Generator) -> Raw:
        drawn = tuple(draw(len(rows), self.config, generator) for _ in range(self.sampling.views))
        raw = self._read(rows, upload(rows, self.device), drawn)
        target = self.beside
        return raw if target is None else raw._replace(beside=target._drawn(rows % len(target.labels), generator))


def parted(masks: Tensor) -> tuple[Tensor, Tensor | None]:
    """Masks as stored to foreground (bool) and ignored pixels (bool, or None where they are stored as bool)."""
    return (masks, None) if masks.dtype == torch.bool else (masks == FOREGROUND, masks == IGNORED)
