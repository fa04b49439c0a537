"""The images of an evaluation, batch after batch on the device; on a GPU the next ones are read meanwhile."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.backbones.normalisation import Statistics
from ..core.timing import Stopwatch
from ..distributed.batch_shards import even
from ..distributed.process_group import SINGLE_PROCESS, ProcessGroup
from .augment import normalise
from .image_cache import ImageSplit
from .prefetch import ahead, staged


class EvalBatch(NamedTuple):
    """A batch: its rows; images (B, 3, S, S) normalised; labels (B,); ids; masks (B, P, P) bool or None."""

    rows: slice
    images: Tensor
    labels: Tensor
    ids: list[str]
    masks: Tensor | None


@dataclass(frozen=True)
class EvalLoader:
    """Evaluation batches of `size` images in order, all tensors on the device; iterating reads them.

    statistics: what the images are normalised by. side: squash the images to this size in px on the device, 0 leaves
    them as they are. change: applied to the uint8 images (B, S, S, 3) with their ids before anything else. masks: bring
    the masks of the split too. watch: charged for `load`. process_group: every process gets batches of its own, the
    same ones as one process would see. Raises Stopped before a batch if a stop was requested, in all processes at once.
    """

    frames: ImageSplit
    size: int
    device: torch.device
    statistics: Statistics
    side: int = 0
    change: Callable[[np.ndarray, Sequence[str]], np.ndarray] | None = None
    masks: bool = False
    watch: Stopwatch | None = None
    process_group: ProcessGroup = SINGLE_PROCESS

    def __iter__(self) -> Iterator[EvalBatch]:
        """The batches of this process."""
        watch = self.watch or Stopwatch(self.device)
        shares = even(-(-len(self.frames.items) // self.size), self.process_group.size)
        raw = self._raw(shares[self.process_group.rank])
        source = iter(ahead(raw) if self.device.type == "cuda" else raw)
        for _ in range(shares[0].stop):  # the longest share; who has less asks as often whether to stop
            self.process_group.check()
            with watch.part("load"):
                batch = next(source, None)
                if batch is not None:
                    batch = self._uploaded(batch)
            if batch is not None:
                yield batch

    def _raw(self, share: slice) -> Iterator[EvalBatch]:
        """Batches as stored, where they can be uploaded from at once; `images` are uint8 (B, S, S, 3) still."""
        frames, size, device = self.frames, self.size, self.device
        labels, ids = torch.from_numpy(frames.labels), frames.ids
        for start in range(share.start * size, min(share.stop * size, len(ids)), size):
            rows = slice(start, start + size)
            pixels = frames.images[rows]
            pixels = pixels if self.change is None else self.change(pixels, ids[rows])
            truth = None
            if self.masks:
                if frames.masks is None:
                    raise ValueError("the masks of these images were asked for and never prepared")
                truth = staged(torch.from_numpy(frames.masks[rows]), device)
            images = staged(torch.from_numpy(pixels), device)
            yield EvalBatch(rows, images, staged(labels[rows], device), ids[rows], truth)

    def _uploaded(self, raw: EvalBatch) -> EvalBatch:
        images = normalise(raw.images.to(self.device, non_blocking=True), self.statistics)
        if self.side and images.shape[-1] != self.side:
            size = (self.side, self.side)
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        masks = None if raw.masks is None else raw.masks.to(self.device, non_blocking=True)
        return raw._replace(images=images, labels=raw.labels.to(self.device, non_blocking=True), masks=masks)


def part_of(seen: EvalBatch, some: slice) -> EvalBatch:
    """Some images of a batch."""
    rows = slice(seen.rows.start + some.start, seen.rows.start + some.stop)
    masks = None if seen.masks is None else seen.masks[some]
    return EvalBatch(rows, seen.images[some], seen.labels[some], seen.ids[some], masks)
