"""What is checked after planning and before any training: data, weights, device, code of methods."""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..datasets.verify import quick_checks
from ..methods import METHODS
from ..methods.backbones import Backbone, check_weights_fit, create_backbone
from ..methods.weights import PINS
from .build import choose_device, options
from .config import Request
from .doctor_gpu import why_no_gpu
from .engines import check_backend
from .errors import BenchError
from .images import Need
from .masknotes import notes_of_needs
from .plan import Stage
from .resolve import MethodRef
from .slots import workers
from .stages import Desk, know_files, needs_of, place_of, pool_needs

if TYPE_CHECKING:
    from .plan import Planner

log = logging.getLogger(__name__)


def preflight(stages: Sequence[Stage], planner: "Planner") -> list[str]:
    """Raises BenchError for anything that would stop the work later; decodes the images that will be needed.

    Returns what a person must know about the masks, one line each, before they are scored against.
    """
    choose_device(planner.request.run.device)
    _refuse_slow_fallback(stages, planner.request)
    check_backend(planner.request.run)
    workers(planner.request.run)
    know_files(list(_unlike(stages, _methods).values()))
    _check_options(stages)
    _check_backbones(stages, planner)
    _check_training_masks(stages, planner)
    desk = Desk(planner.request.run, planner.sources)
    needed: dict[tuple[str, str], dict[Need, None]] = {}
    places, notes = {}, list[str]()
    for stage in _unlike(stages, _reads).values():
        for place, need in [*((place_of(stage), n) for n in needs_of(stage, desk)), *pool_needs(stage, desk)]:
            key = (place.dataset, place.fold)
            places.setdefault(key, place)
            needed.setdefault(key, {})[need] = None
    for key, needs in needed.items():
        dataset, fold = key
        quick_checks(desk.manifest(places[key]), planner.sources[dataset].facts(fold))
        cache = desk.images(places[key])
        cache.prepare(list(needs))
        found = notes_of_needs(desk.manifest(places[key]), cache, list(needs))
        notes += [f"{planner.sources[dataset].title}: {note}" for note in found]
    return list(dict.fromkeys(notes))


def _refuse_slow_fallback(stages: Sequence[Stage], request: Request) -> None:
    """Raises BenchError where `auto` would mean days on a processor that nobody asked for; smoke is made for one."""
    trainings = sum(s.kind == "train" for s in stages)
    run = request.run
    if run.device == "auto" and request.preset != "smoke" and trainings and not run.scheduler and (why := why_no_gpu()):
        raise BenchError(
            f"No GPU can be used, and {trainings} trainings with the preset {request.preset} may take days on a "
            f"processor. {why} To train on the processor all the same, say --device cpu."
        )


def _unlike(stages: Sequence[Stage], look: Callable[[Stage], Hashable]) -> dict[Hashable, Stage]:
    """One stage of each kind: a matrix has thousands of stages and few that differ in what is asked here."""
    found: dict[Hashable, Stage] = {}
    for stage in stages:
        found.setdefault(look(stage), stage)
    return found


def _methods(stage: Stage) -> Hashable:
    refs = (stage.work["method"], stage.work.get("carrier"))
    return tuple(ref.spec.module for ref in refs if ref is not None)


def _reads(stage: Stage) -> Hashable:
    """All that `needs_of` and `pool_needs` make a difference of."""
    place, config, protocol, on = place_of(stage), stage.work["config"], *map(stage.work.get, ("protocol", "on"))
    lender = (on.lender, on.lender_fold) if on else ()  # of a shift that needs none it is empty
    what = (stage.kind, place.dataset, place.fold, lender, stage.labels.get("split"))
    sizes = (config.image_size, config.load_size, *((protocol.size, protocol.mask_reduction) if protocol else ()))
    return (*what, *sizes, stage.work["method"].spec.supervision)


def _check_options(stages: Sequence[Stage]) -> None:
    """Each set of options of each method once; a recipe may give one name other options on another dataset."""
    seen: dict[str, list[Mapping[str, Any]]] = {}
    for stage in stages:
        ref = stage.work["method"]
        known = seen.setdefault(ref.spec.name, [])
        if ref.options in known:
            continue
        known.append(ref.options)
        check = getattr(METHODS.load(ref.spec.name), "check_options", None)
        if check is not None:
            _spared(ref, lambda check=check, ref=ref: check(options(ref)))


def _check_training_masks(stages: Sequence[Stage], planner: "Planner") -> None:
    """An upper bound learns from the masks of the training images, so each must be there."""
    learning = [s for s in stages if s.kind == "train" and s.work["method"].spec.supervision == "pixel"]
    for stage in _unlike(learning, lambda s: (s.work["cell"].dataset, s.work["cell"].fold)).values():
        cell = stage.work["cell"]
        manifest = planner.sources[cell.dataset].manifest(cell.fold)
        regions = manifest.card.region_classes
        bare = [i for i in manifest.split("train") if i.mask is None and regions[i.label]]
        if bare:
            raise BenchError(
                f"Method '{stage.labels['method']}' learns from masks, but {len(bare)} training images of "
                f"{cell.dataset} have none, the first '{bare[0].id}'. Leave the method out or name their masks."
            )


def _check_backbones(stages: Sequence[Stage], planner: "Planner") -> None:
    """Builds every backbone once without memory and lays its weights against it."""
    seen = set()
    for stage in stages:
        ref = stage.work.get("carrier") or stage.work["method"]
        if not (ref.spec.backbone and ref.spec.trains):
            continue
        name, stride = stage.work["cell"].backbone, stage.work["config"].stride
        place = (name, stride, ref.label, ref.changed, stage.labels["method"])
        if place in seen:
            continue
        seen.add(place)
        backbone = create_backbone(name, stride or None, device="meta")
        needed = {*ref.spec.backbone, *stage.work["method"].spec.backbone}
        if missing := needed - set(backbone.abilities):
            raise BenchError(
                f"Method '{stage.labels['method']}' needs a backbone with {', '.join(sorted(missing))}; {name} offers "
                f"{', '.join(sorted(backbone.abilities))}. Choose another with --backbones."
            )
        check_weights_fit(name, planner.request.weights, stride or None, planner.request.run.results / PINS)
        _check_construction(ref, backbone, stage, planner)


def _check_construction(ref: MethodRef, backbone: Backbone, stage: Stage, planner: "Planner") -> None:
    """Builds a method without memory, so that options it refuses are known before anything trains."""
    classes = len(planner.sources[stage.work["cell"].dataset].dataset.card.classes)

    def build() -> None:
        with torch.device("meta"):
            METHODS.load(ref.spec.name)(backbone, classes, options(ref))

    _spared(ref, build)


def _spared(ref: MethodRef, act: Callable[[], object]) -> None:
    """Calls code of a method. Options it refuses (BenchError) end the command; its own run tells of other faults."""
    try:
        act()
    except BenchError:
        raise
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - faulty code of one method must not stop the others
        log.debug("method %s: %s", ref.label, problem)
