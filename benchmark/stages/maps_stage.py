"""The stage of teacher maps: score maps of the training images, which another method learns from."""

import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.files import write_npz
from ..core.timing import Stopwatch, cost_of, own_times
from ..data.eval_loader import EvalBatch, EvalLoader
from ..data.image_cache import ImageSplit
from ..data.prefetch import HostCopy
from ..planning.stage import MapsStage
from ..scoring.adaptive_batch import AdaptiveBatch
from ..scoring.map_extractor import MapExtractor, MapRequest
from ..scoring.map_scaling import Refusals, scale_later
from ..scoring.method_sandbox import model_unchanged
from .context import StageContext, common_facts, load_model, place_of, target_items
from .sandbox import sandbox

MAPS_SIDE = 56  # px; stored teacher maps are at most so large


def run_maps(stages: Sequence[MapsStage], ctx: StageContext) -> None:
    """Maps of training images, of their label or the predicted class, at native size, in [0, 1] per image, float16."""
    alike: dict[tuple[str, int, int, bool], list[MapsStage]] = {}
    for stage in stages:
        inputs = stage.inputs
        place = inputs.checkpoint_slot, inputs.config.image_size, inputs.config.load_size, inputs.on_target
        alike.setdefault(place, []).append(stage)
    with sandbox(stages, ctx):
        for group in alike.values():
            _run_checkpoint(group, ctx)


def _run_checkpoint(stages: Sequence[MapsStage], ctx: StageContext) -> None:
    """The maps of all methods that read one checkpoint, in one pass over the training images."""
    first = stages[0].inputs
    manifest = ctx.manifest(first.experiment)
    model, entry = load_model(stages[0], ctx)
    requests = tuple(_request_of(stage) for stage in stages)
    watch, card = Stopwatch(ctx.device), manifest.card
    extractor = MapExtractor(model, requests, card.regions, len(card.classes), first.experiment.seed, watch)
    # the copy that trainings read, squashed to the network's size on the device: no second decoded copy
    items = target_items(first, ctx) if first.on_target else manifest.split("train")
    split = ctx.images(place_of(stages[0])).frames(items, first.config.load_size)
    began = time.monotonic()
    with model_unchanged(model):
        maps = _extract(extractor, split, ctx, first.config.image_size)
    seconds, measured = (time.monotonic() - began) / len(stages), watch.seconds()
    for stage, request in zip(stages, requests, strict=True):
        arrays = {"ids": np.array(split.ids), "maps": maps[request.name]}
        write_npz(ctx.store.run_dir(stage.key) / "maps.npz", arrays)
        own = own_times(measured, extractor.used.get(request.name, set()), request.name, request.name)
        cost = cost_of(seconds, len(split.items), own)
        ctx.store.finish(stage.key, {**common_facts(stage, ctx, manifest), **cost, "epoch": entry["epoch"]})
        ctx.report({"stage": stage, "kind": "done", **cost})


def _request_of(stage: MapsStage) -> MapRequest:
    method = stage.inputs.method
    return MapRequest(method, stage.inputs.classes if method.spec.class_specific else "any")


def _extract(extractor: MapExtractor, split: ImageSplit, ctx: StageContext, side: int) -> dict[str, np.ndarray]:
    """Scaled maps (N, h, w) float16 of all images by the name of their request. side: of the network's input, px."""
    copies: dict[str, list[HostCopy]] = {request.name: [] for request in extractor.views}
    refusals, memory = Refusals(), AdaptiveBatch("teacher maps", ctx.device)

    def read(batch: EvalBatch) -> dict[str, HostCopy]:
        scaled_maps = {}
        _, maps = extractor.read(batch.images, batch.labels, batch.ids)
        for request in extractor.views:
            with extractor.part(f"score:{request.name}"):
                scaled = scale_later(maps[request.name], request.method.spec.kind, "image")
                refusals.add(scaled, batch.ids)
                scaled_maps[request.name] = HostCopy({"maps": _shrunk(scaled.maps).half()})
        return scaled_maps

    size, watch = ctx.run.score_batch, extractor.watch
    for batch in EvalLoader(split, size, ctx.device, extractor.statistics, side=side, watch=watch):
        for scaled_maps in memory.each(batch, read):
            for name, copy in scaled_maps.items():
                copies[name].append(copy)
    refusals.check()
    return {name: torch.cat([c.get()["maps"] for c in parts]).numpy() for name, parts in copies.items()}


def _shrunk(maps: Tensor) -> Tensor:
    """Maps of decoders, as large as the image, cut down: pseudo-labels need smooth maps only, and 26,000 must fit."""
    if max(maps.shape[-2:]) <= MAPS_SIDE:
        return maps
    small = F.interpolate(maps[:, None], (MAPS_SIDE, MAPS_SIDE), mode="bilinear", align_corners=False, antialias=True)
    return small[:, 0].clamp(0, 1)
