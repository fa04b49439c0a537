"""What a stage reads: the frames of a split, the teacher maps, batches of augmented training images on the device."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..methods.base import Batch
from .augment import augment, crop, crop_maps, draw
from .config import TrainConfig
from .images import Frames
from .pixelstore import Rows
from .seeds import seed_for

UPLOAD = 1024  # images copied to a GPU at once


@dataclass(frozen=True)
class TrainingSet:
    """The training images of a stage, decoded. maps: (N, h, w) float32 teacher maps in [0, 1] in row order, or None.

    The pixels stay memory-mapped on the CPU unless the device is a GPU with room for them, where they live as uint8.
    """

    frames: Frames
    config: TrainConfig
    device: torch.device
    maps: np.ndarray | None = None

    def on_device(self) -> "DeviceSet":
        """The arrays as tensors, on the device where they fit in a quarter of its free memory."""
        target = torch.device("cpu")
        if self.device.type == "cuda":
            size = self.frames.images.nbytes + (self.frames.masks.nbytes if self.frames.masks is not None else 0)
            free, _ = torch.cuda.mem_get_info(self.device)
            target = self.device if size < free // 4 else target
        masks = None if self.frames.masks is None else Pixels.of(self.frames.masks, target)
        maps = None if self.maps is None else torch.from_numpy(self.maps).to(self.device)
        labels = torch.from_numpy(self.frames.labels)
        return DeviceSet(Pixels.of(self.frames.images, target), labels, maps, masks, self.config, self.device)


@dataclass(frozen=True)
class Pixels:
    """Rows of a store as tensors: all its arrays (on the CPU the memory map itself), and where each row stands."""

    arrays: Tensor
    rows: Tensor

    @classmethod
    def of(cls, rows: Rows, target: torch.device) -> "Pixels":
        """On the CPU without a copy; on a GPU only the rows asked for are uploaded, piece by piece."""
        if target.type == "cpu":
            return cls(_tensor(rows.mapped()), torch.from_numpy(rows.rows))
        arrays = torch.empty(rows.shape, dtype=torch.bool if rows.dtype == np.bool_ else torch.uint8, device=target)
        for start in range(0, len(rows), UPLOAD):
            arrays[start : start + UPLOAD] = torch.from_numpy(rows[start : start + UPLOAD]).to(target)
        return cls(arrays, torch.arange(len(rows), device=target))

    def take(self, chosen: Tensor, device: torch.device) -> Tensor:
        """The arrays of some rows on the device; a row without an array (maskless) is zeros."""
        places = self.rows[chosen.to(self.rows.device)]
        if len(self.arrays):
            found = self.arrays[places.clamp(min=0)].to(device, non_blocking=True)
        else:
            found = self.arrays.new_zeros((len(places), *self.arrays.shape[1:]), device=device)
        bare = places < 0
        return found.masked_fill(bare.to(device).view(-1, *[1] * (found.ndim - 1)), 0) if bare.any() else found


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor over a memory map, without a copy; nothing here ever writes to it, so its read-only flag may go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that the array is read-only
        return torch.from_numpy(array)


@dataclass(frozen=True)
class DeviceSet:
    """Training arrays as tensors; `epoch_batches` yields an epoch in its deterministic order."""

    pixels: Pixels
    labels: Tensor
    maps: Tensor | None
    masks: Pixels | None
    config: TrainConfig
    device: torch.device

    def batches_per_epoch(self) -> int:
        """Updates per epoch: every image is seen once, in nearly equal batches."""
        return -(-len(self.labels) // self.config.batch_size)

    def epoch_batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch; order and augmentation depend on (seed, epoch, step) alone."""
        order = torch.randperm(len(self.labels), generator=_generator("order", seed, epoch))
        for step, rows in enumerate(order.tensor_split(self.batches_per_epoch())):
            yield self.batch(rows, _generator("augment", seed, epoch, step))

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """One augmented batch of the given rows."""
        drawn = draw(len(rows), self.config, generator)
        pixels = self.pixels.take(rows, self.device)
        masks = maps = None
        if self.masks is not None:
            masks = crop(self.masks.take(rows, self.device), drawn, self.config.image_size)
        if self.maps is not None:
            maps = crop_maps(self.maps[rows.to(self.device)], drawn, self.config).clamp_(0, 1)
        labels = self.labels[rows].to(self.device)
        return Batch(augment(pixels, drawn, self.config), labels, rows.to(self.device), maps, masks)


def _generator(*address: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(*address))


def split_batch(batch: Batch, most: int) -> list[tuple[Batch, float]]:
    """Parts of a batch of at most `most` images (0 = whole) with their weight in the batch's mean."""
    count = len(batch.labels)
    if not most or most >= count:
        return [(batch, 1.0)]
    parts = -(-count // most)
    fields = (batch.images, batch.labels, batch.indices, batch.maps, batch.masks)
    columns = [t.tensor_split(parts) if t is not None else [None] * parts for t in fields]
    return [(Batch(*row), len(row[1]) / count) for row in zip(*columns, strict=True)]  # pyright: ignore[reportArgumentType]
