"""Score maps of many methods in one pass: one forward pass of the shared model, then the map of each method."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...methods.backbones.normalisation import Statistics
from ...methods.base import Evidence, EvidenceSettings, Method, Prediction, is_explainable
from ...methods.factory import statistics_of
from ..core.errors import BenchError
from ..core.seeds import seed_for
from ..core.timing import Stopwatch
from ..planning.method_refs import MethodRef
from .build import load_function, options
from .method_sandbox import check_stage, method_call, modes_unchanged


@dataclass(frozen=True)
class MapRequest:
    """One map to take of every image: a method's, of a class (`true`, `region`, `pred`, or `any`/`-` for none)."""

    method: MethodRef
    map_class: str

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def name(self) -> str:
        """A key for dictionaries: method, changed options and class."""
        return f"{self.method.label}|{self.method.changed}|{self.map_class}"


@dataclass(frozen=True)
class MapExtractor:
    """Reads views of one checkpoint. `model` is None for baselines; its own map comes from `predict`.

    region_classes: those of the model's classes that have a region of interest in the set at hand; `region` maps are of
    the most probable of them.

    watch: charged with the parts `forward` (the pass all views share), `gradient:CLASS` and `taps:CLASS` (backward to
    the last grid and to shallower levels), `read:NAME` for what the explainer of that view does by itself, and
    `predict:NAME` for all a trained method does. used: view name -> which of the shared parts it has read since the
    MapExtractor was made, perhaps worked out for another.
    """

    model: Method | None
    views: tuple[MapRequest, ...]
    region_classes: tuple[int, ...]
    num_classes: int
    seed: int = 0
    watch: Stopwatch | None = field(default=None, compare=False, repr=False)
    used: dict[str, set[str]] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def statistics(self) -> Statistics:
        """Mean and deviation its images must be normalised by."""
        return statistics_of(self.model)

    def read(self, images: Tensor, labels: Tensor, ids: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, K), NaN without a model, and native maps (B, h, w) by view name; all float32, detached.

        Raises BenchError when a method returns something of another shape, type or device, leaves the model in train
        mode, or changes settings of the process; MaskAccessError when it asks for a mask.
        """
        check_stage()
        own = [v for v in self.views if v.method.spec.trains and v.map_class != "-"]
        functions = [v for v in self.views if not v.method.spec.trains]
        maps: dict[str, Tensor] = {}
        logits = None
        with modes_unchanged(self.model):
            for view in own:
                with self.part(f"predict:{view.name}"), method_call(view.method.label):
                    prediction = self._predict(images, self._own_classes(view, images, labels))
                maps[view.name] = _checked(prediction.maps, images, view)
                self.used.setdefault(view.name, set())
                logits = prediction.logits if logits is None else logits
            if functions or not own:
                logits = self._read_functions(functions, images, labels, ids, maps)
            if logits is None:
                logits = images.new_full((len(images), self.num_classes), float("nan"))
            self._check_logits(logits, images)
        return logits.detach().float(), maps

    def _read_functions(
        self, views: Sequence[MapRequest], images: Tensor, labels: Tensor, ids: Sequence[str], maps: dict[str, Tensor]
    ) -> Tensor | None:
        """Explainers and baselines: one Evidence per class asked for, all sharing one forward pass."""
        levels, ids, known = _levels_by_class(views), [unreadable(i) for i in ids], self.statistics
        if self.model is None or is_explainable(self.model):
            every = [level for announced in levels.values() for level in announced]
            settings = EvidenceSettings(ids, self.seed, every, self.part, known)
            evidence = Evidence(images, model=self.model, settings=settings)
            logits = evidence.logits if self.model is not None else None
        else:
            with self.part("forward"):
                logits = self._predict(images, None).logits
            evidence = Evidence(images, settings=EvidenceSettings(ids, self.seed, statistics=known))
        by_class: dict[str, Evidence] = {}
        for view in views:
            if view.map_class not in by_class:
                classes = self._classes(view, logits, labels)
                of_class = evidence if classes is None else evidence.of(classes, levels[view.map_class], view.map_class)
                by_class[view.map_class] = of_class
            evidence.used.clear()
            with self.part(f"read:{view.name}"), method_call(view.method.label):
                native = load_function(view.method)(by_class[view.map_class], options(view.method))
            self.used.setdefault(view.name, set()).update(evidence.used)
            maps[view.name] = _checked(native, images, view)
        return logits

    def part(self, name: str) -> AbstractContextManager[None]:
        """Charges a block to a part of the watch, if there is one."""
        return nullcontext() if self.watch is None else self.watch.part(name)

    def _predict(self, images: Tensor, classes: Tensor | None) -> Prediction:
        if self.model is None:
            raise RuntimeError("a trained method's map was asked for without its model")
        with torch.no_grad():
            prediction = self.model.predict(images, classes)
        if not isinstance(prediction, Prediction):
            name = self.model.registered_name
            raise BenchError(
                f"Method '{name}': predict() returned {type(prediction).__name__}, not Prediction(logits, maps)."
            )
        return prediction

    def _check_logits(self, logits: Any, images: Tensor) -> None:
        wanted = (len(images), self.num_classes)
        name = self.model.registered_name if self.model is not None else "-"
        if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
            what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise BenchError(f"Method '{name}' gave logits {what}; {wanted} are expected (images, classes).")
        if logits.device != images.device:
            raise BenchError(f"Method '{name}' gave its logits on {logits.device}; the images are on {images.device}.")

    def _classes(self, view: MapRequest, logits: Tensor | None, labels: Tensor) -> Tensor | None:
        """The class to ask for; None for the predicted one, where the method knows none, or without a model."""
        match view.map_class:
            case "true":
                return labels
            case "region" if len(self.region_classes) == 1:
                return torch.full_like(labels, self.region_classes[0])
            case "region" if logits is not None:
                return likeliest(logits, self.region_classes)
        return None

    def _own_classes(self, view: MapRequest, images: Tensor, labels: Tensor) -> Tensor | None:
        """The class to ask a trained method for; None where that is its own prediction.

        Where some, but not all or one of its classes have a region, its logits must be known before its map is asked
        for, which takes a second forward pass.
        """
        some = 1 < len(self.region_classes) < self.num_classes
        ahead = self._predict(images, None).logits if view.map_class == "region" and some else None
        return self._classes(view, ahead, labels)


def likeliest(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """(B,) the class of highest logit (B, K) among `classes`; of equals the first of them."""
    if len(classes) == logits.shape[1]:
        return logits.argmax(1)
    among = torch.full_like(logits, float("-inf"))
    for index in classes:  # an index list would make a GPU's host wait
        among[:, index] = logits[:, index]
    return among.argmax(1)


def unreadable(name: str) -> str:
    """Digest that a method gets instead of an image's id: the same for the same image, telling no class or patient."""
    return f"{seed_for('image', name):x}"


def _levels_by_class(views: Sequence[MapRequest]) -> dict[str, tuple[int, ...]]:
    """Pyramid levels that the explainers asked about each class will read, as the functions' `levels` announce them."""
    levels: dict[str, tuple[int, ...]] = {}
    for view in views:
        announce = getattr(load_function(view.method), "levels", None)
        announced = announce(options(view.method)) if announce is not None else ()
        levels[view.map_class] = (*levels.get(view.map_class, ()), *announced)
    return levels


def _checked(native: Any, images: Tensor, view: MapRequest) -> Tensor:
    """The method's map if it keeps the contract."""
    name = view.method.label
    if not isinstance(native, Tensor):
        raise BenchError(f"Method '{name}' returned {type(native).__name__} as its map, not a tensor (B, h, w).")
    if native.ndim != 3 or len(native) != len(images):
        shape = tuple(native.shape)
        raise BenchError(f"Method '{name}' returned a map of shape {shape}; ({len(images)}, h, w) is expected.")
    if native.device != images.device:
        raise BenchError(f"Method '{name}' returned its map on {native.device}; the images are on {images.device}.")
    if not native.is_floating_point():
        raise BenchError(f"Method '{name}' returned a map of {native.dtype}; maps are floats (line 3 of the contract).")
    return native.detach().float()
