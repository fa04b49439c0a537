"""The images of an evaluation, batch after batch on the device; on a GPU the next ones are read meanwhile."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .augment import normalise
from .images import Frames
from .stopwatch import Stopwatch
from .transfer import ahead, staged


class Seen(NamedTuple):
    """A batch: its rows; images (B, 3, S, S) normalised; labels (B,); ids; masks (B, P, P) bool or None."""

    rows: slice
    images: Tensor
    labels: Tensor
    ids: list[str]
    masks: Tensor | None


def batches(
    frames: Frames,
    size: int,
    device: torch.device,
    *,
    side: int = 0,
    change: Callable[[np.ndarray, Sequence[str]], np.ndarray] | None = None,
    masks: bool = False,
    watch: Stopwatch | None = None,
) -> Iterator[Seen]:
    """Evaluation batches of `size` images in order, all tensors on the device.

    side: squash the images to this size in px on the device, 0 leaves them as they are. change: applied to the uint8
    images (B, S, S, 3) with their ids before anything else. masks: bring the masks of the frames too. watch: charged
    for `load`.
    """
    watch = watch or Stopwatch(device)
    raw = _raw(frames, size, device, change, masks)
    source = iter(ahead(raw) if device.type == "cuda" else raw)
    while True:
        with watch.part("load"):
            found = next(source, None)
            if found is not None:
                found = _uploaded(found, device, side)
        if found is None:
            return
        yield found


def _raw(frames: Frames, size: int, device: torch.device, change: Callable | None, masks: bool) -> Iterator[Seen]:
    """Batches as stored, where they can be uploaded from at once; `images` are uint8 (B, S, S, 3) still."""
    labels, ids = torch.from_numpy(frames.labels), frames.ids
    for start in range(0, len(ids), size):
        rows = slice(start, start + size)
        pixels = frames.images[rows]
        pixels = pixels if change is None else change(pixels, ids[rows])
        truth = None
        if masks:
            if frames.masks is None:
                raise ValueError("the masks of these frames were asked for and never prepared")
            truth = staged(torch.from_numpy(frames.masks[rows]), device)
        yield Seen(rows, staged(torch.from_numpy(pixels), device), staged(labels[rows], device), ids[rows], truth)


def _uploaded(raw: Seen, device: torch.device, side: int) -> Seen:
    images = normalise(raw.images.to(device, non_blocking=True))
    if side and images.shape[-1] != side:
        images = F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)
    masks = None if raw.masks is None else raw.masks.to(device, non_blocking=True)
    return raw._replace(images=images, labels=raw.labels.to(device, non_blocking=True), masks=masks)
