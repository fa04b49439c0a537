"""Checks after planning and before any training: data, weights, device, code of methods."""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...datasets.verify import quick_checks
from ...methods import METHODS
from ...methods.backbones.adapter import Backbone, create_backbone
from ...methods.backbones.loading import check_weights_fit
from ...methods.backbones.weights import PINS
from ...methods.backbones.weights_hub import UnreachableError
from ...methods.evidence import is_explainable
from ..core.device import choose_device, why_no_gpu
from ..core.errors import BenchError
from ..data.image_cache import DecodeRequest
from ..data.mask_notes import notes_of_needs
from ..planning.config import Request
from ..planning.eval_sets import EvalSet
from ..planning.method_refs import MethodRef
from ..planning.stage import AnyStage, Experiment, ScoreInputs
from ..scoring.build import construct, options
from ..stages.context import StageContext, load_method_files, needs_elsewhere, needs_of, place_of
from .gpu_slots import worker_count
from .parallel_backends import check_backend

if TYPE_CHECKING:
    from ..planning.planner import Planner

log = logging.getLogger(__name__)


def preflight(stages: Sequence[AnyStage], planner: "Planner") -> list[str]:
    """Raises BenchError for anything that would stop the work later; decodes the images that will be needed.

    Returns what a person must know about the masks, one line each, before they are scored against.
    """
    _check_machine(stages, planner.request)
    ctx, needed = _check_work(stages, planner, fetch=True)
    notes: list[str] = []
    for place, needs in needed.items():
        cache = ctx.images(place)
        cache.prepare(list(needs))
        title = planner.open_datasets[place.dataset].title
        notes += [f"{title}: {note}" for note in notes_of_needs(ctx.manifest(place), cache, list(needs))]
    return list(dict.fromkeys(notes))


def rehearse(stages: Sequence[AnyStage], planner: "Planner") -> list[str]:
    """Checks of `preflight` without decoding images and without fetching weights.

    Raises BenchError for what no machine could do. Returns what is missing here alone, which another machine may have:
    the GPU, the weights of a hub.
    """
    missing = []
    try:
        _check_machine(stages, planner.request)
    except BenchError as problem:
        missing.append(str(problem))
    try:
        _check_work(stages, planner, fetch=False)
    except UnreachableError as problem:
        missing.append(str(problem))
    return missing


def _check_machine(stages: Sequence[AnyStage], request: Request) -> None:
    """Raises BenchError for a device or backend that is not here."""
    choose_device(request.run.device)
    _refuse_slow_fallback(stages, request)
    check_backend(request.run)
    worker_count(request.run)


def _check_work(
    stages: Sequence[AnyStage], planner: "Planner", fetch: bool
) -> tuple[StageContext, dict[Experiment | EvalSet, dict[DecodeRequest, None]]]:
    """Checks methods, backbones, weights and data; returns the arrays that will be needed, by where they are from.

    Weights that cannot be had here are told last: what is wrong anywhere matters more.
    """
    load_method_files(list(distinct_by(stages, _methods).values()))
    _check_options(stages)
    _check_training_masks(stages, planner)
    unreachable = _check_backbones(stages, planner, fetch)
    ctx = StageContext(planner.request.run, planner.open_datasets)
    places: dict[tuple[str, str], Experiment | EvalSet] = {}
    needed: dict[Experiment | EvalSet, dict[DecodeRequest, None]] = {}
    for stage in distinct_by(stages, _reads).values():
        for place, need in [*((place_of(stage), n) for n in needs_of(stage, ctx)), *needs_elsewhere(stage, ctx)]:
            place = places.setdefault((place.dataset, place.fold), place)
            needed.setdefault(place, {})[need] = None
    for place in needed:
        quick_checks(ctx.manifest(place), planner.open_datasets[place.dataset].facts(place.fold))
    if unreachable is not None:
        raise unreachable
    return ctx, needed


def _refuse_slow_fallback(stages: Sequence[AnyStage], request: Request) -> None:
    """Raises BenchError where `auto` would mean days on a processor that nobody asked for; smoke is made for one."""
    trainings = sum(s.kind == "train" for s in stages)
    run = request.run
    if run.device == "auto" and request.preset != "smoke" and trainings and not run.scheduler and (why := why_no_gpu()):
        raise BenchError(
            f"No GPU can be used, and {trainings} trainings with the preset {request.preset} may take days on a "
            f"processor. {why} To train on the processor all the same, say --device cpu."
        )


def distinct_by(stages: Sequence[AnyStage], look: Callable[[AnyStage], Hashable]) -> dict[Hashable, AnyStage]:
    """One stage of each kind: a matrix has thousands of stages and few that differ in what is asked here."""
    distinct: dict[Hashable, AnyStage] = {}
    for stage in stages:
        distinct.setdefault(look(stage), stage)
    return distinct


def _methods(stage: AnyStage) -> Hashable:
    refs = (stage.inputs.method, stage.inputs.model)
    return tuple(one.spec.module for ref in refs if ref is not None for one in ref.chain)


def _reads(stage: AnyStage) -> Hashable:
    """All that `needs_of` and `needs_elsewhere` make a difference of."""
    place, inputs, config = place_of(stage), stage.inputs, stage.inputs.config
    what = (stage.kind, place.dataset, place.fold, stage.labels.get("split"), config.image_size, config.load_size)
    if not isinstance(inputs, ScoreInputs):
        return (*what, inputs.method.spec.supervision, inputs.method.spec.adapts, inputs.experiment.target)
    stains = (inputs.on.stain_source, inputs.on.stain_fold)  # of a shift that needs none they are empty
    return (*what, *stains, inputs.protocol.size, inputs.protocol.mask_reduction)


def _check_options(stages: Sequence[AnyStage]) -> None:
    """Each set of options of each method once; a recipe may give one name other options on another dataset."""
    seen: dict[str, list[Mapping[str, Any]]] = {}
    for stage in stages:
        ref = stage.inputs.method
        known = seen.setdefault(ref.spec.name, [])
        if ref.options in known:
            continue
        known.append(ref.options)
        check_options(ref)


def check_options(ref: MethodRef) -> None:
    """Check of a method's options by the method itself. Raises BenchError where it refuses them."""
    check = getattr(METHODS.load(ref.spec.name), "check_options", None)
    if check is not None:
        ignore_method_faults(ref, lambda: check(options(ref)))


def _check_training_masks(stages: Sequence[AnyStage], planner: "Planner") -> None:
    """An upper bound learns from the masks of the training images, so each must be there."""
    learning = [s for s in stages if s.kind == "train" and s.inputs.method.spec.supervision == "pixel"]
    for stage in distinct_by(learning, lambda s: (s.inputs.experiment.dataset, s.inputs.experiment.fold)).values():
        place = stage.inputs.experiment
        manifest = planner.open_datasets[place.dataset].manifest(place.fold)
        regions = manifest.card.region_classes
        bare = [i for i in manifest.split("train") if i.mask is None and regions[i.label]]
        if bare:
            raise BenchError(
                f"Method '{stage.labels['method']}' learns from masks, but {len(bare)} training images of "
                f"{place.dataset} have none, the first '{bare[0].id}'. Leave the method out or name their masks."
            )


def _check_backbones(stages: Sequence[AnyStage], planner: "Planner", fetch: bool) -> UnreachableError | None:
    """Builds every backbone once without memory and lays its weights against it.

    Returns the error for the first weights that are not here and cannot be fetched, for the caller to raise.
    """
    seen = set()
    unreachable: UnreachableError | None = None
    for stage in stages:
        ref = stage.inputs.model
        if ref is None or not ref.spec.backbone:
            continue
        name, config = stage.inputs.experiment.backbone, stage.inputs.config
        stride, side = config.stride, config.image_size
        place = (name, stride, side, ref.label, ref.changed, stage.labels["method"])
        if place in seen:
            continue
        seen.add(place)
        backbone = create_backbone(name, stride or None, device="meta")
        needed = {*ref.spec.backbone, *stage.inputs.method.spec.backbone}
        if missing := needed - set(backbone.abilities):
            raise BenchError(
                f"Method '{stage.labels['method']}' needs a backbone with {', '.join(sorted(missing))}; {name} offers "
                f"{', '.join(sorted(backbone.abilities))}. Choose another with --backbones."
            )
        backbone.check_size(side)
        _check_construction(ref, backbone, stage, planner)
        try:
            check_weights_fit(name, planner.weights(name), stride or None, planner.request.run.results / PINS, fetch)
        except UnreachableError as problem:
            unreachable = unreachable or problem
    return unreachable


def _check_construction(ref: MethodRef, backbone: Backbone, stage: AnyStage, planner: "Planner") -> None:
    """Builds a method without memory, so that options it refuses are known before anything trains."""
    classes = len(planner.open_datasets[stage.inputs.experiment.dataset].dataset.card.classes)

    def build() -> None:
        with torch.device("meta"):
            model = construct(ref, backbone, classes)
        if stage.inputs.method.base and not stage.inputs.method.spec.trains and not is_explainable(model):
            raise BenchError(
                f"'{stage.labels['method']}': '{ref.label}' cannot be explained, it has no features() and classify()."
            )

    ignore_method_faults(ref, build)


def ignore_method_faults(ref: MethodRef, act: Callable[[], object]) -> None:
    """Calls code of a method. Options it refuses (BenchError) end the command; its own run tells of other faults."""
    try:
        act()
    except BenchError:
        raise
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - faulty code of one method must not stop the others
        log.debug("method %s: %s", ref.label, problem)
