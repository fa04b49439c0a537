"""The plan: methods × datasets × backbones × seeds × folds as a graph of stages, each with a key of its identity.

Planning reads no image and imports no torch, so a finished matrix is recognised at once. A stage that several rows
need appears once: its key is the hash of what it is, not of who asked.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..datasets.shift import SHIFTS, shift_identity
from ..methods.spec import SUPERVISIONS
from ..methods.strides import takes_preset_stride
from ..methods.weights import weights_identity
from .config import Request, TrainConfig, identity_fields, train_config, update
from .errors import BenchError, did_you_mean
from .evalsets import EvalSet, Target, fold_of, map_labels, read_targets
from .metrics import VERSION as METRICS_VERSION
from .protocols import PROTOCOLS, Protocol, get_protocol
from .resolve import MethodRef, Resolver
from .sources import Source, refuse_namesakes, refuse_overlap
from .store import key_of

log = logging.getLogger(__name__)
HARNESS_VERSION = 2  # raised when training or scoring itself gives other numbers


@dataclass(frozen=True)
class Stage:
    """One cached unit of work. `work` holds what is needed to do it and is not part of the key."""

    kind: str  # train, maps or score
    identity: dict[str, Any]
    parents: dict[str, str] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    work: dict[str, Any] = field(default_factory=dict)
    group: tuple[str, ...] = ()  # stages of one group are done in one pass
    key: str = ""

    def keyed(self) -> "Stage":
        """The stage with its key, a function of kind, identity and parents alone."""
        return replace(self, key=key_of({"kind": self.kind, "identity": self.identity, "parents": self.parents}))


@dataclass
class Plan:
    """Stages by key, parents first, and the keys of the rows (test scores) the user asked for."""

    stages: dict[str, Stage] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)

    def add(self, stage: Stage) -> str:
        """Adds a stage if it is new and returns its key."""
        stage = stage.keyed()
        self.stages.setdefault(stage.key, stage)
        return stage.key

    def kinds(self, kind: str) -> list[Stage]:
        """All stages of one kind."""
        return [s for s in self.stages.values() if s.kind == kind]


class Cell(NamedTuple):
    """One combination of the matrix."""

    dataset: str
    fold: str
    backbone: str
    seed: int
    protocol: Protocol


class Planner:
    """Builds the plan of a request. Raises BenchError for anything that cannot work, before any training."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.resolver = Resolver(request.overrides)
        self.methods = self.resolver.expand(request.methods)
        changes = request.overrides.get("protocol", {})
        self.protocols = [_protocol(name, changes) for name in request.protocols]
        cache = request.run.results / "cache"
        self.targets = read_targets(request.ood, request.datasets)
        names = dict.fromkeys([*request.datasets, *(t.dataset for t in self.targets if t.dataset)])
        self.sources = {name: _open(name, request, cache) for name in names}
        refuse_namesakes(self.sources)
        for name in request.datasets:
            if self.sources[name].dataset.card.evaluation_only:
                raise BenchError(f"Dataset {name} has no training images; score models of another on it: --ood {name}.")
        self._weights: dict[str, dict[str, str]] = {}
        self._evaluated: dict[tuple[str, str], list[EvalSet]] = {}
        self.plan = Plan()

    def _refuse_circles(self, method: MethodRef, cell: Cell, trail: tuple[str, ...] = ()) -> None:
        if method.label in trail:
            raise BenchError(f"{' learns from '.join((*trail, method.label))}: choose a teacher outside the circle.")
        for _, name in method.needs():
            self._refuse_circles(self._ref(name, cell), cell, (*trail, method.label))

    def _ref(self, name: str, cell: Cell) -> MethodRef:
        """A method with the options its recipe has for this dataset and backbone."""
        return self.resolver.ref(name).at(self.request.preset, cell.dataset, cell.backbone)

    def _supervision(self, method: MethodRef, cell: Cell) -> str:
        """The strongest supervision behind a method's maps: a student of a model that saw masks has seen them too."""
        behind = [self._supervision(self._ref(name, cell), cell) for _, name in method.needs()]
        return max((method.spec.supervision, *behind), key=SUPERVISIONS.index)

    def _weights_of(self, backbone: str) -> dict[str, str]:
        if backbone not in self._weights:
            self._weights[backbone] = weights_identity(self.request.weights, backbone)
        return self._weights[backbone]

    def build(self) -> Plan:
        """The plan of the whole matrix."""
        for cell in self._cells():
            for method in self.methods:
                settled = method.at(self.request.preset, cell.dataset, cell.backbone)
                self._refuse_circles(settled, cell)
                self._rows(settled, cell)
        self.resolver.check_sections(("train", "protocol", "run"))
        return self.plan

    def _cells(self) -> Iterator[Cell]:
        for name in self.request.datasets:
            source = self.sources[name]
            for fold in source.dataset.expand_folds(self.request.folds):
                for backbone in self.request.backbones:
                    for seed in self.request.seeds:
                        for protocol in self.protocols:
                            yield Cell(name, fold, backbone, seed, protocol)

    # -- what is scored on -------------------------------------------------------------------------------------------
    def _eval_sets(self, cell: Cell) -> list[EvalSet]:
        """The cell's own test set first, then every other set asked for."""
        place = (cell.dataset, cell.fold)
        if place not in self._evaluated:
            found = [EvalSet(*place)]
            for target in self.targets:
                name = target.dataset or cell.dataset
                fold = cell.fold if name == cell.dataset else fold_of(cell.fold, self.sources[name].dataset.folds)
                wanted = EvalSet(name, fold, target.shift, target.level)
                if wanted not in found and self._fits(cell, wanted, target):
                    found.append(wanted)
            self._evaluated[place] = found
        return self._evaluated[place]

    def _fits(self, cell: Cell, wanted: EvalSet, target: Target) -> bool:
        """Whether models of a cell may be scored there. Raises BenchError for a set that was named and does not fit."""
        source, other = self.sources[cell.dataset], self.sources[wanted.dataset]
        if source is other:
            return True
        if map_labels(source.dataset.card, other.dataset.card) is None:
            text = (
                f"The classes of {other.title} ({', '.join(other.dataset.card.classes)}) cannot be told by a model of "
            )
            text += f"{source.title} ({', '.join(source.dataset.card.classes)})"
            if target.named:
                raise BenchError(f"--ood: {text}. Leave it out.")
            log.warning("%s: not scored there.", text)
            return False
        refuse_overlap(source, cell.fold, other, wanted.fold)
        return True

    def _evaluation(self, cell: Cell, on: EvalSet, split: str) -> dict[str, Any]:
        """What of an evaluation set enters a stage key."""
        splits = ("train", "test") if on.shift and SHIFTS[on.shift].pooled else (split,)
        found = self.sources[on.dataset].identity(on.fold, splits)
        if on.shift:
            found = {**found, "shift": shift_identity(on.shift, on.level)}
        if on.dataset != cell.dataset:
            found = {**found, "label_map": list(self.label_map(cell, on))}
        return found

    def label_map(self, cell: Cell, on: EvalSet) -> tuple[int, ...]:
        """For every class of the evaluation set, the class of the training set that means the same."""
        cards = (self.sources[name].dataset.card for name in (cell.dataset, on.dataset))
        mapping = map_labels(*cards)
        if mapping is None:
            raise ValueError(f"no label map from {cell.dataset} to {on.dataset}")
        return mapping

    # -- rows and scores ---------------------------------------------------------------------------------------------
    def _rows(self, method: MethodRef, cell: Cell) -> None:
        carrier = self._carrier(method, cell)
        selections = ("loc", "cl", "last") if carrier else ("-",)
        mapless = carrier is not None and carrier.spec.kind == "none" and not carrier.spec.selects
        masks = self.sources[cell.dataset].has_validation_masks(cell.fold)
        if carrier and (method.spec.kind == "none" or mapless or not masks):
            selections = ("cl", "last")  # without maps, or masks to judge them by, there is no best map
        home = EvalSet(cell.dataset, cell.fold)
        for on in self._eval_sets(cell):
            for selection in selections:
                for map_class in self._map_classes(method, cell, on):
                    val = self._score(method, cell, selection, map_class, home, "val", {})
                    key = self._score(method, cell, selection, map_class, on, "test", {"val": val})
                    if key not in self.plan.rows:
                        self.plan.rows.append(key)

    def _map_classes(self, method: MethodRef, cell: Cell, on: EvalSet) -> list[str]:
        if method.spec.kind == "none":
            return ["-"]
        if not method.spec.class_specific:
            return ["any"]
        extra = cell.protocol.also_positive and self.sources[on.dataset].dataset.card.background_class is not None
        return list(dict.fromkeys([cell.protocol.map_class, *(["positive"] if extra else [])]))

    def _score(
        self, method: MethodRef, cell: Cell, selection: str, map_class: str, on: EvalSet, split: str,
        parents: dict[str, str],
    ) -> str:  # fmt: skip
        carrier = self._carrier(method, cell)
        config = self._config(carrier or method, cell)
        identity: dict[str, Any] = {
            "harness": HARNESS_VERSION,
            "method": method.identity(),
            "protocol": cell.protocol.identity(),
            "map_class": map_class,
            "image_size": config.image_size,
            "eval": self._evaluation(cell, on, split),
        }
        role = ""
        if carrier:
            parents = {"checkpoint": self._train(carrier, cell), **parents}
            role = identity["role"] = self._role(method, carrier, selection, cell.protocol)
        if method.spec.uses_seed:
            identity["seed"] = cell.seed
        labels = {
            **self._labels(method, cell, cell.backbone if carrier else "-"),
            "eval": self.sources[on.dataset].title + on.suffix,
            "split": split,
            "seed": cell.seed if carrier or method.spec.uses_seed else 0,
            "selection": selection,
            "protocol": cell.protocol.id,
            "map_class": map_class,
        }
        work = {
            "method": method,
            "carrier": carrier,
            "role": role,
            "protocol": cell.protocol,
            "config": config,
            "cell": cell,
            "on": on,
            "label_map": self.label_map(cell, on),
            "supervision": self._supervision(method, cell),
        }
        model = parents.get("checkpoint") or key_of([cell.dataset, cell.fold, cell.seed])
        group = ("score", model, split, on.dataset, on.fold, on.suffix)
        return self.plan.add(Stage("score", identity, parents, labels, work, group))

    def _labels(self, method: MethodRef, cell: Cell, backbone: str) -> dict[str, Any]:
        """What people call a stage by; no part of its key."""
        return {
            "method": method.label,
            "options": method.changed,
            "backbone": backbone,
            "train": self.sources[cell.dataset].title,
            "fold": cell.fold,
            "seed": cell.seed,
        }

    def _role(self, method: MethodRef, carrier: MethodRef, selection: str, protocol: Protocol) -> str:
        """The name under which the training keeps the checkpoint of a selection."""
        if selection == "last":
            return "last"
        if selection == "cl":
            return f"cl/{protocol.name}"
        own = method is carrier or method.label == carrier.label
        maps = selecting_maps(carrier)
        return f"loc/{protocol.name}/{method.label if not own and method.label in maps else maps[0]}"

    # -- trainings and teacher maps ----------------------------------------------------------------------------------
    def _carrier(self, method: MethodRef, cell: Cell) -> MethodRef | None:
        """The trained method a method reads: itself, the classifier an explainer explains, or None for a baseline."""
        if method.spec.trains:
            return method
        for role, name in method.needs():
            if role == "checkpoint":
                return self._carrier(self._ref(name, cell), cell)
        return None

    def _config(self, method: MethodRef, cell: Cell) -> TrainConfig:
        preset = self.request.preset
        own_stride = {} if takes_preset_stride(cell.backbone) else {"stride": 0}
        recipe = method.spec.recipe(preset, cell.dataset, cell.backbone)
        return train_config(preset, own_stride, recipe.train, self.request.overrides.get("train", {}), method.train)

    def _train(self, method: MethodRef, cell: Cell) -> str:
        config = self._config(method, cell)
        parents: dict[str, str] = {}
        roles: dict[str, str] = {}
        for role, name in method.needs():
            teacher = self._ref(name, cell)
            if role == "maps":
                parents[role] = self._maps(teacher, cell)
            elif carrier := self._carrier(teacher, cell):
                parents[role] = self._train(carrier, cell)
                roles[role] = self._role(teacher, carrier, "cl", cell.protocol)
        body = {"name": cell.backbone, "weights": self._weights_of(cell.backbone)} if method.spec.backbone else {}
        identity = {
            "harness": HARNESS_VERSION,
            "method": method.identity(),
            "train": identity_fields(config),
            "data": self.sources[cell.dataset].identity(cell.fold, ("train", "val")),
            "backbone": body,
            "seed": cell.seed,
            "roles": roles,
            "selection": self._selection_identity(method),
        }
        labels = self._labels(method, cell, cell.backbone)
        work = {"method": method, "config": config, "cell": cell, "weights": self.request.weights}
        work["supervision"] = self._supervision(method, cell)
        return self.plan.add(Stage("train", identity, parents, labels, work))

    def _selection_identity(self, method: MethodRef) -> dict[str, Any]:
        """What picks the checkpoints a training keeps: protocols, the maps they judge, and the code of the metrics."""
        plain = Resolver({})
        maps = [plain.ref(name).identity() for name in method.spec.selects] or [method.identity()]
        return {"protocols": [p.identity() for p in PROTOCOLS.values()], "maps": maps, "metrics": METRICS_VERSION}

    def _maps(self, teacher: MethodRef, cell: Cell) -> str:
        """Teacher maps of the training images, for their true (training) label."""
        if teacher.spec.kind == "none":
            raise BenchError(f"'{teacher.label}' makes no maps and cannot be a teacher.")
        carrier = self._carrier(teacher, cell)
        if (
            carrier
            and cell.protocol.teacher_selection == "loc"
            and not self.sources[cell.dataset].has_validation_masks(cell.fold)
        ):
            raise BenchError(
                f"Under protocol {cell.protocol.id} a teacher is chosen by the masks of validation images, and "
                f"{self.sources[cell.dataset].title} has none. Use --protocol fair."
            )
        config = self._config(carrier or teacher, cell)
        identity: dict[str, Any] = {
            "harness": HARNESS_VERSION,
            "method": teacher.identity(),
            "data": self.sources[cell.dataset].identity(cell.fold, ("train",)),
            "image_size": config.image_size,
            "load_size": config.load_size,
        }
        parents, role = {}, ""
        if carrier:
            parents["checkpoint"] = self._train(carrier, cell)
            role = identity["role"] = self._role(teacher, carrier, cell.protocol.teacher_selection, cell.protocol)
        if teacher.spec.uses_seed:
            identity["seed"] = cell.seed
        labels = self._labels(teacher, cell, cell.backbone if carrier else "-")
        work = {"method": teacher, "carrier": carrier, "role": role, "config": config, "cell": cell}
        work["supervision"] = self._supervision(teacher, cell)
        model = parents.get("checkpoint") or key_of([cell.dataset, cell.fold, cell.seed])
        return self.plan.add(Stage("maps", identity, parents, labels, work, ("maps", model)))


def _open(name: str, request: Request, cache: Path) -> Source:
    """A dataset by name. Raises BenchError for an unknown one, with the shifts it may have meant."""
    try:
        return Source(name, request.run.data_root, cache)
    except BenchError as problem:
        last = name.rpartition(":")[2]
        near = did_you_mean(last, [f"{shift}-{k}" for shift, card in SHIFTS.items() for k in card.levels])
        if name in request.datasets or ":" not in name or not near:
            raise
        raise BenchError(f"--ood {name}: {problem}{near} Shifts: {', '.join(SHIFTS)}, each with its levels.") from None


def selecting_maps(carrier: MethodRef) -> tuple[str, ...]:
    """Whose maps pick the `loc` checkpoints of a training: declared explainers, or the method's own map."""
    return carrier.spec.selects or (carrier.label,)


def _protocol(name: str, changes: Mapping[str, Any]) -> Protocol:
    fixed = {"name", "version", "ties", "first_epoch"} & set(changes)
    if fixed:
        raise BenchError(
            f"protocol.{min(fixed)} belongs to the named protocols and cannot be changed: trainings keep their "
            "checkpoints by it. Choose --protocol paper or fair."
        )
    return update(get_protocol(name), changes, "protocol")
