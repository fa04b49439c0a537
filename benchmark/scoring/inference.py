"""The two passes of scoring: over validation images (constants, the histograms behind tau_val) and over a test set.

Training uses the validation pass too, to pick checkpoints, so that a `loc` selection and a `tau_val` are computed by
the very code that computes the table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...datasets.shifts.shift import Shift
from ..core.metrics import BINS, Histograms
from ..core.protocols import Protocol
from ..data.eval_loader import EvalBatch, EvalLoader
from ..data.image_cache import ImageSplit
from ..data.prefetch import HostCopy
from ..distributed.process_group import SINGLE_PROCESS, ProcessGroup
from .adaptive_batch import AdaptiveBatch
from .disk_buffer import DiskBuffer
from .map_extractor import MapExtractor, MapRequest
from .map_scaling import MapScale, Refusals, annotated_histogram, rank_levels, resize_maps, scale_constants, scale_later
from .method_sandbox import model_unchanged
from .pixel_sample import Sample, codes_at, interpolated, on_device, pixels_of_each


@dataclass(frozen=True)
class Scored:
    """Scores of one view: per-image histograms, how many maps were constant, the scale that was used.

    examples: (n, size, size) float16, scaled maps of the example rows. sample: some pixels of all images, unbinned.
    """

    histograms: Histograms
    degenerate: int
    scale: MapScale
    examples: np.ndarray | None = None
    sample: Sample | None = None


@dataclass
class _Parts:
    """Histograms and examples of one view while a pass is under way."""

    foreground: DiskBuffer
    background: DiskBuffer
    examples: list[Tensor] = field(default_factory=list)
    sampled: list[tuple[np.ndarray, ...]] = field(default_factory=list)  # values, clipped values, mask codes
    degenerate: int = 0

    @classmethod
    def of(cls, protocol: Protocol, folder: Path | None) -> "_Parts":
        """Empty parts; a folder keeps the counts on its disk instead of in memory."""
        counts = np.min_scalar_type(protocol.size**2)
        return cls(DiskBuffer(BINS, counts, folder), DiskBuffer(BINS, counts, folder))


@dataclass(frozen=True)
class Task:
    """One view scored under one protocol."""

    view: MapRequest
    protocol: Protocol

    @property
    def name(self) -> str:
        """A key for dictionaries."""
        return f"{self.protocol.id}|{self.view.name}"

    @property
    def uses_constants(self) -> bool:
        """Whether its scale comes from validation maps."""
        scaled = self.view.method.spec.kind == "score" or self.by_rank
        return self.protocol.scale == "validation" and scaled and self.view.map_class != "-"

    @property
    def by_rank(self) -> bool:
        """Whether its bins are of ranks among validation maps."""
        return self.protocol.binning == "validation"


@dataclass(frozen=True)
class PixelMasks:
    """Masks of some rows of a split: by way of reduction (len(rows), size, size), bool or codes with ignored pixels."""

    rows: tuple[int, ...] = ()
    by_reduction: Mapping[str, np.ndarray] = field(default_factory=dict)


def evaluation_mode(model: torch.nn.Module | None) -> torch.nn.Module | None:
    """Puts the model in eval mode, whatever its parts think of train()."""
    return model.eval() if model is not None else None


@dataclass(frozen=True)
class PassSettings:
    """Settings of a pass: its device, how many images at a time, and the processes that share it."""

    device: torch.device
    batch_size: int = 32
    process_group: ProcessGroup = SINGLE_PROCESS


def validation_pass(
    reader: MapExtractor,
    tasks: Sequence[Task],
    frames: ImageSplit,
    masks: PixelMasks,
    settings: PassSettings,
    inspect: Callable[[Tensor], None] = lambda logits: None,
) -> tuple[np.ndarray, dict[str, Scored]] | None:
    """Logits (N, K) of all validation images, and for every task its scale and the histograms of the masked ones.

    masks: those of the few validation images whose masks may be read. Constants are quantiles of
    the native map values of at most `protocol.scale_images` images, evenly spread; no mask enters them. Of
    several processes each reads some of the batches, and the first gets the result, the others None. inspect: called
    with the logits before anything is scored.
    """
    evaluation_mode(reader.model)
    chosen = {t.name: _spread(len(frames.items), t.protocol.scale_images) for t in tasks if t.uses_constants}
    wanted = {t.view.name: set(masks.rows) for t in tasks}
    for task in tasks:
        wanted[task.view.name] |= chosen.get(task.name, set())
    with model_unchanged(reader.model):
        parts = settings.process_group.gather(_read(reader, wanted, frames, settings))
    device = settings.device
    if not parts:
        return None
    logits, kept = _merged(parts, len(frames.items), device)
    inspect(logits)
    masked, refusals = masks.rows, Refusals()
    scored = {}
    for task in tasks:
        native = kept[task.view.name]
        scale = MapScale()
        if task.uses_constants:
            values = [native[r] for r in sorted(chosen[task.name])]
            levels = rank_levels(values) if task.by_rank else ()
            scale = MapScale(*scale_constants(values, task.protocol.scale_quantiles), levels)
        parts = _Parts.of(task.protocol, None)
        if masked and task.view.map_class != "-":
            truth = torch.from_numpy(masks.by_reduction[task.protocol.mask_reduction]).to(device)
            few = torch.stack([native[r] for r in masked])
            with reader.part(f"score:{task.name}"):
                counted = _count(task, scale, few, _Truth(truth, [frames.ids[r] for r in masked]), refusals)
            _keep(parts, HostCopy(counted).get())
        scored[task.name] = _collect(parts, scale)
    refusals.check()
    return logits.cpu().numpy(), scored


class _Part(NamedTuple):
    """Share of a pass that one process read: rows, their logits, and native maps by view and row."""

    rows: list[int]
    logits: Tensor
    kept: dict[str, dict[int, Tensor]]


def _read(reader: MapExtractor, wanted: Mapping[str, set[int]], frames: ImageSplit, settings: PassSettings) -> _Part:
    """The batches of this process. wanted: view -> rows whose maps are kept."""
    kept: dict[str, dict[int, Tensor]] = {name: {} for name in wanted}
    # one array for all, as in evaluation_pass
    device, group = settings.device, settings.process_group
    rows, logits = list[int](), torch.empty(len(frames.items), reader.num_classes, device=device)
    memory = AdaptiveBatch("validation", device)

    def read(seen: EvalBatch) -> tuple[EvalBatch, dict[str, Tensor]]:
        batch_logits, maps = reader.read(seen.images, seen.labels, seen.ids)
        logits[seen.rows] = batch_logits
        return seen, maps

    settled = {"watch": reader.watch, "process_group": group}
    for batch in EvalLoader(frames, settings.batch_size, device, reader.statistics, **settled):
        for seen, maps in memory.each(batch, read):
            start = seen.rows.start
            rows += range(start, start + len(seen.ids))
            for name, native in maps.items():
                kept_rows = (r for r in range(start, start + len(seen.ids)) if r in wanted[name])
                # copies: a view would keep the maps of its whole batch, and with few images of each batch thus of all
                kept[name].update({r: native[r - start].clone() for r in kept_rows})
    return _Part(rows, logits if group.size == 1 else logits[rows], kept)


def _merged(parts: Sequence[_Part], count: int, device: torch.device) -> tuple[Tensor, dict[str, dict[int, Tensor]]]:
    """All logits (N, K) and kept maps. Raises RuntimeError unless every image was read once."""
    rows = [row for part in parts for row in part.rows]
    if sorted(rows) != list(range(count)):
        raise RuntimeError(f"{len(rows)} images were read where {count} were to be read once each")
    if len(parts) == 1:
        return parts[0].logits, parts[0].kept
    logits = torch.cat([p.logits.to(device) for p in parts])[np.argsort(rows)]
    names = parts[0].kept
    return logits, {name: {r: m.to(device) for p in parts for r, m in p.kept[name].items()} for name in names}


@dataclass(frozen=True)
class EvalTarget:
    """The evaluation set of a pass.

    frames: its images and masks, labels in its own classes. label_map: for each of its classes the model's class of the
    same meaning. examples: rows whose scaled maps are kept. change: what is done to the images on the fly. spill:
    folder for the counts of many images.
    """

    frames: ImageSplit
    label_map: tuple[int, ...]
    examples: Sequence[int] = ()
    change: Shift | None = None
    spill: Path | None = None


def evaluation_pass(
    reader: MapExtractor,
    tasks: Sequence[Task],
    target: EvalTarget,
    scales: Mapping[str, MapScale],
    settings: PassSettings,
) -> tuple[np.ndarray, dict[str, Scored]]:
    """Logits (N, K) in the classes of the evaluation set, and scores of all its images under every task."""
    frames, device = target.frames, settings.device
    if frames.masks is None:
        raise ValueError("scoring needs the masks of the evaluation set")
    evaluation_mode(reader.model)
    parts = {t.name: _Parts.of(t.protocol, target.spill) for t in tasks}
    mapping = torch.tensor(target.label_map, device=device)
    # one array for all: small tensors kept from every batch would pin the memory of the large ones around them
    logits = torch.empty(len(frames.items), len(target.label_map), device=device)
    late, refusals, memory = None, Refusals(), AdaptiveBatch("scoring", device)
    each, side = pixels_of_each(len(frames.items)), frames.masks.shape[-1]

    def score(seen: EvalBatch) -> dict[str, HostCopy]:
        batch_logits, maps = reader.read(seen.images, mapping[seen.labels], seen.ids)
        logits[seen.rows] = batch_logits[:, mapping]
        shown = [r - seen.rows.start for r in target.examples if r in range(seen.rows.start, seen.rows.stop)]
        host_copies = {}
        places = on_device(seen.ids, each, side, device) if maps else None
        for task in tasks:
            if task.view.map_class != "-" and seen.masks is not None:
                with reader.part(f"score:{task.name}"):
                    native, scale = maps[task.view.name], scales[task.name]
                    truth = _Truth(seen.masks, seen.ids, shown, places)
                    host_copies[task.name] = HostCopy(_count(task, scale, native, truth, refusals))
        return host_copies

    with model_unchanged(reader.model):
        for batch in _target_loader(reader, target, settings):
            for host_copies in memory.each(batch, score):
                if device.type == "cuda":  # the counts of the batch before, whose way to the host took place meanwhile
                    _keep_all(parts, late)
                    late = host_copies
                else:
                    _keep_all(parts, host_copies)
                    refusals.check()
    _keep_all(parts, late)
    refusals.check()
    return logits.cpu().numpy(), {t.name: _collect(parts[t.name], scales[t.name]) for t in tasks}


def _target_loader(reader: MapExtractor, target: EvalTarget, settings: PassSettings) -> EvalLoader:
    """The images of an evaluation set with their masks, changed as it says."""
    return EvalLoader(
        target.frames,
        settings.batch_size,
        settings.device,
        reader.statistics,
        change=target.change,
        masks=True,
        watch=reader.watch,
        process_group=settings.process_group,
    )


class _Truth(NamedTuple):
    """Ground truth of a batch: masks (B, P, P) and ids; rows to show, and pixels of the sample (B, n) if any."""

    masks: Tensor
    ids: Sequence[str]
    shown: Sequence[int] = ()
    places: Tensor | None = None


def _count(task: Task, scale: MapScale, native: Tensor, truth: _Truth, refusals: Refusals) -> dict[str, Tensor]:
    """Counts (B, BINS) of native maps, how many maps are constant, the scaled maps of the rows to show, and the values
    at the pixels of the sample."""
    scaled = scale_later(native, task.view.method.spec.kind, task.protocol.scale, scale)
    refusals.add(scaled, truth.ids)
    foreground, background = annotated_histogram(scaled.maps, truth.masks)
    counted = {"foreground": foreground, "background": background, "degenerate": scaled.degenerate.sum()}
    side = truth.masks.shape[-1]
    if truth.shown:
        few = torch.stack([scaled.maps[k] for k in truth.shown])  # an index list would make a GPU's host wait
        counted["shown"] = resize_maps(few, side).half()
    if truth.places is not None:
        counted["values"], counted["clipped"] = (
            interpolated(m, truth.places, side) for m in (scaled.unclipped, scaled.maps)
        )
        counted["codes"] = codes_at(truth.masks, truth.places)
    return counted


def _keep_all(parts: Mapping[str, _Parts], host_copies: Mapping[str, HostCopy] | None) -> None:
    for name, host_copy in (host_copies or {}).items():
        _keep(parts[name], host_copy.get())


def _keep(parts: _Parts, counts: Mapping[str, Tensor]) -> None:
    parts.foreground.append(counts["foreground"].numpy())
    parts.background.append(counts["background"].numpy())
    parts.degenerate += int(counts["degenerate"])
    if "shown" in counts:
        parts.examples.append(counts["shown"])
    if "values" in counts:
        parts.sampled.append(tuple(counts[name].numpy() for name in ("values", "clipped", "codes")))


def _collect(parts: _Parts, scale: MapScale) -> Scored:
    if not len(parts.foreground):
        empty = np.zeros((0, 0), np.uint16)
        return Scored(Histograms(empty, empty), 0, scale)
    histograms = Histograms(parts.foreground.rows(), parts.background.rows())
    shown = torch.cat(parts.examples).numpy() if parts.examples else None
    sample = Sample(*(np.concatenate(p) for p in zip(*parts.sampled, strict=True))) if parts.sampled else None
    return Scored(histograms, parts.degenerate, scale, shown, sample)


def _spread(count: int, most: int) -> set[int]:
    """At most `most` of `count` rows, evenly spaced."""
    return set(range(count)) if count <= most else set(np.linspace(0, count - 1, most).round().astype(int).tolist())
