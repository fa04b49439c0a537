"""What a stage reads: the frames of a split, the teacher maps, batches of augmented training images on the device."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ...datasets.masks.rules import FOREGROUND, IGNORED
from ...methods.backbones.normalisation import Statistics
from ...methods.base import Batch
from ..core.mask_guard import WITHHELD
from ..core.seeds import seed_for
from ..core.timing import Stopwatch
from ..distributed.process_group import even
from ..planning.config import TrainConfig
from .augment import Draw, augment, crop, crop_maps, draw
from .image_cache import Frames
from .pixel_store import Rows
from .prefetch import ahead, staged, upload

UPLOAD = 1024  # images copied to a GPU at once


class Piece(NamedTuple):
    """A part of a batch that is trained on at once: its positions in the batch, and which of those are here."""

    whole: slice
    own: slice

    @property
    def within(self) -> slice:
        """The own positions, counted from the start of the part."""
        return slice(self.own.start - self.whole.start, self.own.stop - self.whole.start)


def pieces(count: int, most: int, rank: int = 0, size: int = 1) -> list[Piece]:
    """A batch of `count` images cut into nearly equal parts of at most `most` (0: one part).

    rank, size: each part is cut once more for `size` processes that train on it together, of which this is number
    `rank`; so a part holds the same images whatever their number.
    """
    found = []
    for part in even(count, -(-count // most) if most and most < count else 1):
        own = even(part.stop - part.start, size)[rank]
        found.append(Piece(part, slice(part.start + own.start, part.start + own.stop)))
    return found


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The rows of every batch of an epoch, in order."""
    order = torch.randperm(count, generator=_generator("order", seed, epoch))
    return order.tensor_split(-(-count // batch_size))


class Start(NamedTuple):
    """Where in an epoch to begin, and what of each batch this process takes (as `pieces` numbers processes)."""

    step: int = 0
    rank: int = 0
    size: int = 1


@dataclass(frozen=True)
class TrainingSet:
    """The training images of a stage, decoded.

    statistics: what they are normalised by. maps: (N, h, w) float32 maps in [0, 1] in row order, by name of teacher.

    The pixels stay memory-mapped on the CPU unless the device is a GPU with room for them, where they live as uint8.
    """

    frames: Frames
    config: TrainConfig
    device: torch.device
    statistics: Statistics
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)

    def on_device(self) -> "DeviceSet":
        """The arrays as tensors, on the device where they fit in a quarter of its free memory."""
        target = torch.device("cpu")
        if self.device.type == "cuda":
            size = self.frames.images.nbytes + (self.frames.masks.nbytes if self.frames.masks is not None else 0)
            free, _ = torch.cuda.mem_get_info(self.device)
            target = self.device if size < free // 4 else target
        masks = None if self.frames.masks is None else Pixels.of(self.frames.masks, target)
        maps = {name: torch.from_numpy(found).to(self.device) for name, found in self.maps.items()}
        labels = torch.from_numpy(self.frames.labels).to(self.device)
        return DeviceSet(
            Pixels.of(self.frames.images, target), labels, maps, masks, self.config, self.device, self.statistics
        )


@dataclass(frozen=True)
class Pixels:
    """Rows of a store as tensors. On the CPU: all its arrays, the memory map itself, and where each row stands.

    On a GPU (`rows` None): the arrays of the rows alone, in their order.
    """

    arrays: Tensor
    rows: Tensor | None

    @classmethod
    def of(cls, rows: Rows, target: torch.device) -> "Pixels":
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
        found = self.arrays[places.clamp(min=0)]
        return found.masked_fill_((places < 0).view(-1, *[1] * (found.ndim - 1)), 0)


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor over a memory map, without a copy; nothing here ever writes to it, so its read-only flag may go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that the array is read-only
        return torch.from_numpy(array)


class Raw(NamedTuple):
    """A batch before augmentation: rows on the CPU and on the device, what was drawn, pixels and masks as stored."""

    rows: Tensor
    places: Tensor
    drawn: Draw
    pixels: Tensor
    masks: Tensor | None


@dataclass(frozen=True)
class DeviceSet:
    """Training arrays as tensors; `epoch_batches` yields an epoch in its deterministic order. labels: on the device."""

    pixels: Pixels
    labels: Tensor
    maps: Mapping[str, Tensor]
    masks: Pixels | None
    config: TrainConfig
    device: torch.device
    statistics: Statistics

    def batches_per_epoch(self) -> int:
        """Updates per epoch: every image is seen once, in nearly equal batches."""
        return -(-len(self.labels) // self.config.batch_size)

    def epoch_batches(
        self, seed: int, epoch: int, watch: Stopwatch | None = None, start: Start | None = None
    ) -> Iterator[Batch]:
        """The batches of an epoch; order and augmentation depend on (seed, epoch, step) alone.

        Pixels that do not live on the GPU they go to are read ahead. watch: charged for `load` (waiting for pixels and
        their way to the device) and `augment`. start: leaves out the steps before it, and the images of other
        processes.
        """
        watch = watch or Stopwatch(self.device)
        raw = self._raw(seed, epoch, start or Start())
        source = iter(ahead(raw) if self.device.type == "cuda" and self.pixels.rows is not None else raw)
        while True:
            with watch.part("load"):
                found = next(source, None)
                if found is not None:
                    found = self._uploaded(found)
            if found is None:
                return
            with watch.part("augment"):
                batch = self._augmented(found)
            yield batch

    def share(self, count: int, start: Start) -> tuple[slice, ...]:
        """Which positions of a batch of `count` images `epoch_batches` yields to a process."""
        return tuple(p.own for p in pieces(count, self.config.micro_batch, start.rank, start.size))

    def _raw(self, seed: int, epoch: int, start: Start) -> Iterator[Raw]:
        batches = epoch_order(len(self.labels), self.config.batch_size, seed, epoch)[start.step :]
        owned = [self.share(len(rows), start) for rows in batches]
        mine = [torch.cat([rows[s] for s in own]) for rows, own in zip(batches, owned, strict=True)]
        if not mine:
            return
        places = upload(torch.cat(mine), self.device).split([len(rows) for rows in mine])
        for k, rows in enumerate(mine):
            drawn = draw(len(batches[k]), self.config, _generator("augment", seed, epoch, start.step + k))
            yield self._read(rows, places[k], drawn.of(owned[k]))

    def _read(self, rows: Tensor, places: Tensor, drawn: Draw) -> Raw:
        kept = (self.pixels, self.masks)
        pixels, masks = (p and staged(p.take(places if p.rows is None else rows), self.device) for p in kept)
        return Raw(rows, places, drawn, pixels, masks)  # pyright: ignore[reportArgumentType]

    def _uploaded(self, raw: Raw) -> Raw:
        masks = None if raw.masks is None else raw.masks.to(self.device, non_blocking=True)
        pixels = raw.pixels.to(self.device, non_blocking=True)
        return raw._replace(drawn=raw.drawn.to(self.device), pixels=pixels, masks=masks)

    def _augmented(self, raw: Raw) -> Batch:
        masks, ignored = WITHHELD, None
        if raw.masks is not None:
            masks, ignored = parted(crop(raw.masks, raw.drawn, self.config.image_size))
        taught = {
            name: crop_maps(maps[raw.places], raw.drawn, self.config).clamp_(0, 1) for name, maps in self.maps.items()
        }
        alone = next(iter(taught.values())) if len(taught) == 1 else None
        images = augment(raw.pixels, raw.drawn, self.config, self.statistics)
        return Batch(images, self.labels[raw.places], raw.places, alone, cast("Tensor", masks), ignored, taught)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """One augmented batch of the given rows."""
        drawn = draw(len(rows), self.config, generator)
        return self._augmented(self._uploaded(self._read(rows, upload(rows, self.device), drawn)))


def parted(masks: Tensor) -> tuple[Tensor, Tensor | None]:
    """Masks as stored to foreground (bool) and ignored pixels (bool, or None where they are stored as bool)."""
    return (masks, None) if masks.dtype == torch.bool else (masks == FOREGROUND, masks == IGNORED)


def _generator(*address: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(*address))
