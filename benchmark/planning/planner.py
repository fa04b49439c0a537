"""The plan: methods × datasets × backbones × seeds × folds as a graph of stages, each with a key of its identity.

Planning reads no image and imports no torch, so a finished matrix is recognised at once. A stage that several rows
need appears once: its key is the hash of what it is, not of who asked.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar, cast

from ...methods.backbones.normalisation import IMAGENET, Origin, Statistics, normalisation_notice, origin_of
from ...methods.backbones.strides import takes_preset_stride
from ...methods.backbones.weights import offline_notice, weights_identity
from ...methods.spec import SUPERVISIONS
from ..core.errors import BenchError, did_you_mean
from ..core.metrics import VERSION as METRICS_VERSION
from ..core.protocols import PROTOCOLS, SELECTIONS, Protocol, get_protocol
from ..core.results_store import key_of
from ..core.versions import HARNESS_VERSION
from .config import Request, TrainConfig, identity_fields, train_config, update
from .contamination import declare
from .eval_sets import EvalSet
from .method_refs import MethodRef, Resolver
from .ood_sets import Evaluated
from .published_recipe import unlike_published

Asked = TypeVar("Asked", bound=Callable[..., Any])


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


class Site(NamedTuple):
    """What of a combination settles a method's options and training: its recipe knows no more."""

    dataset: str
    backbone: str


class Cell(NamedTuple):
    """One combination of the matrix."""

    dataset: str
    fold: str
    backbone: str
    seed: int
    protocol: Protocol

    @property
    def site(self) -> Site:
        """Its dataset and backbone."""
        return Site(self.dataset, self.backbone)


def _once(ask: Asked) -> Asked:
    """Answers a question of a planner once: the rows of a matrix ask the same thousands of times."""

    @functools.wraps(ask)
    def answer(self: "Planner", *about: Any) -> Any:
        place = (ask.__name__, *about)
        if place not in self.answers:
            self.answers[place] = ask(self, *about)
        return self.answers[place]

    return cast("Asked", answer)


class Planner:
    """Builds the plan of a request. Raises BenchError for anything that cannot work, before any training."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.resolver = Resolver(request.overrides)
        self.methods = self.resolver.expand(request.methods)
        changes = request.overrides.get("protocol", {})
        self.protocols = [_protocol(name, changes) for name in request.protocols]
        for name in request.selections:
            if name not in SELECTIONS:
                raise BenchError(f"--selections: there is no checkpoint '{name}'.{did_you_mean(name, SELECTIONS)}")
        self.evaluated = Evaluated(request)
        self.sources = self.evaluated.sources
        self.answers: dict[tuple[Any, ...], Any] = {}
        self.plan = Plan()
        self.weights_seen: dict[str, list[str]] = {}  # by hash or tag of starting weights: sets they have seen
        self.notices: list[str] = []  # what was decided for the user, a sentence each

    @_once
    def _refuse_circles(self, method: MethodRef, site: Site, trail: tuple[str, ...] = ()) -> None:
        if method.label in trail:
            raise BenchError(f"{' learns from '.join((*trail, method.label))}: choose a teacher outside the circle.")
        for need in method.needs():
            self._refuse_circles(self._ref(need.method, site), site, (*trail, method.label))

    @_once
    def _ref(self, name: str, site: Site) -> MethodRef:
        """A method with the options its recipe has for this dataset and backbone."""
        return self._settled(self.resolver.ref(name), site)

    @_once
    def _settled(self, method: MethodRef, site: Site) -> MethodRef:
        return method.at(self.request.preset, *site)

    @_once
    def _supervision(self, method: MethodRef, site: Site) -> str:
        """The strongest supervision behind a method's maps: a student of a model that saw masks has seen them too."""
        behind = [self._supervision(self._ref(need.method, site), site) for need in method.needs()]
        return max((method.spec.supervision, *behind), key=SUPERVISIONS.index)

    @_once
    def weights(self, backbone: str) -> str:
        """The starting weights of a backbone: those asked for, or under `smoke` none where these cannot be had."""
        if self.request.preset != "smoke" or not (notice := offline_notice(self.request.weights, backbone)):
            return self.request.weights
        self.notices.append(notice)
        return "none"

    @_once
    def _weights_of(self, backbone: str) -> dict[str, str]:
        return weights_identity(self.weights(backbone), backbone)

    @_once
    def normalisation(self, backbone: str, rule: str) -> Origin:
        """Mean and deviation under `train.normalisation` = rule, and where they are from."""
        weights = self.weights(backbone)
        if notice := normalisation_notice(backbone, weights, rule):
            self.notices.append(notice)
        return origin_of(backbone, weights, rule)

    def _statistics(self, method: MethodRef | None, config: TrainConfig, site: Site) -> Statistics:
        """What the images of a model are normalised by; ImageNet's where nothing has a backbone."""
        if method is None or not method.spec.backbone:
            return IMAGENET
        return self.normalisation(site.backbone, config.normalisation).statistics

    @_once
    def _rules(self, protocol: Protocol) -> tuple[str, dict[str, Any]]:
        """The id of a protocol and what of it enters a stage key."""
        return protocol.id, protocol.identity()

    def build(self) -> Plan:
        """The plan of the whole matrix."""
        for cell in self._cells():
            for method in self.methods:
                settled = self._settled(method, cell.site)
                self._refuse_circles(settled, cell.site)
                self._rows(settled, cell)
        if not self.plan.rows:
            asked = ", ".join(self.request.selections)
            raise BenchError(f"--selections {asked}: no method of this run has such a checkpoint. Leave it out.")
        self.resolver.check_sections(("train", "protocol", "run", "shift"))
        self.plan.rows = list(dict.fromkeys(self.plan.rows))
        self.weights_seen = declare(self)
        return self.plan

    def _cells(self) -> Iterator[Cell]:
        for name in self.request.datasets:
            source = self.sources[name]
            for fold in source.dataset.expand_folds(self.request.folds):
                for backbone in self.request.backbones:
                    for seed in self.request.seeds:
                        for protocol in self.protocols:
                            yield Cell(name, fold, backbone, seed, protocol)

    # -- rows and scores ---------------------------------------------------------------------------------------------
    def _rows(self, method: MethodRef, cell: Cell) -> None:
        carrier = self._carrier(method, cell.site)
        selections = ("loc", "cl", "last") if carrier else ("-",)
        mapless = carrier is not None and carrier.spec.kind == "none" and not carrier.spec.selects
        masks = self.sources[cell.dataset].has_validation_masks(cell.fold)
        if carrier and (method.spec.kind == "none" or mapless or not masks):
            selections = ("cl", "last")  # without maps, or masks to judge them by, there is no best map
        if carrier and self.request.selections:
            selections = tuple(s for s in selections if s in self.request.selections)
        home = EvalSet(cell.dataset, cell.fold)
        for on in self.evaluated.sets(cell.dataset, cell.fold):
            for selection in selections:
                val = self._score(method, cell, selection, home, "val")
                self.plan.rows.append(self._score(method, cell, selection, on, "test", val))

    @_once
    def _score(self, method: MethodRef, cell: Cell, selection: str, on: EvalSet, split: str, val: str = "") -> str:
        """A score; val: the key of the validation score it takes threshold and scale from."""
        carrier = self._carrier(method, cell.site)
        config = self._config(carrier or method, cell.site)
        protocol, rules = self._rules(cell.protocol)
        map_class = _map_class(method, cell.protocol)
        parents = {"val": val} if val else {}
        identity: dict[str, Any] = {
            "harness": HARNESS_VERSION,
            "method": method.identity(),
            "protocol": rules,
            "map_class": map_class,
            "image_size": config.image_size,
            "eval": self.evaluated.identity(cell.dataset, on, split),
        }
        role = ""
        if carrier:
            parents = {"checkpoint": self._train(carrier, cell), **parents}
            role = identity["role"] = self._role(method, carrier, selection, cell.protocol)
        if method.spec.uses_seed:
            identity["seed"] = cell.seed
        labels = {
            **self._labels(method, cell, cell.backbone if carrier else "-"),
            "eval": self.evaluated.title(on),
            "split": split,
            "seed": cell.seed if carrier or method.spec.uses_seed else 0,
            "selection": selection,
            "protocol": protocol,
            "map_class": map_class,
        }
        work = {
            "method": method,
            "carrier": carrier,
            "statistics": self._statistics(carrier, config, cell.site),
            "role": role,
            "protocol": cell.protocol,
            "config": config,
            "cell": cell,
            "on": on,
            "label_map": self.evaluated.label_map(cell.dataset, on),
            "supervision": self._supervision(method, cell.site),
        }
        model = parents.get("checkpoint") or key_of([cell.dataset, cell.fold, cell.seed])
        group = ("score", model, split, *(str(part) for part in on))
        return self.plan.add(Stage("score", identity, parents, labels, work, group))

    def _labels(self, method: MethodRef, cell: Cell, backbone: str) -> dict[str, Any]:
        """What people call a stage by; no part of its key."""
        return {
            "method": method.label,
            "options": method.changed,
            "backbone": backbone,
            "train": self.sources[cell.dataset].title,
            "fold": cell.fold,
            "scheme": self.sources[cell.dataset].dataset.scheme_of(cell.fold),
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
    @_once
    def _carrier(self, method: MethodRef, site: Site) -> MethodRef | None:
        """The trained method a method reads: itself, the classifier an explainer explains, or None for a baseline."""
        if method.spec.trains:
            return method
        for need in method.needs():
            if need.role == "checkpoint":
                return self._carrier(self._ref(need.method, site), site)
        return None

    @_once
    def _config(self, method: MethodRef, site: Site) -> TrainConfig:
        preset = self.request.preset
        own_stride = {} if takes_preset_stride(site.backbone) else {"stride": 0}
        recipe = method.spec.recipe(preset, *site)
        return train_config(preset, own_stride, recipe.train, self.request.overrides.get("train", {}), method.train)

    @_once
    def _train(self, method: MethodRef, cell: Cell) -> str:
        config = self._config(method, cell.site)
        parents: dict[str, str] = {}
        roles: dict[str, str] = {}
        for parent, need in method.parents().items():
            teacher = self._ref(need.method, cell.site)
            if need.role == "maps":
                parents[parent] = self._maps(teacher, cell)
            elif carrier := self._carrier(teacher, cell.site):
                parents[parent] = self._train(carrier, cell)
                roles[parent] = self._role(teacher, carrier, "cl", cell.protocol)
        statistics, body = self._statistics(method, config, cell.site), {}
        if method.spec.backbone:
            body = {"name": cell.backbone, "weights": self._weights_of(cell.backbone), **statistics.to_json()}
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
        work = {"method": method, "config": config, "cell": cell, "weights": self.weights(cell.backbone)}
        work |= {"statistics": statistics, "supervision": self._supervision(method, cell.site)}
        work["unlike_published"] = self._unlike_published(method, config, cell.site)
        return self.plan.add(Stage("train", identity, parents, labels, work))

    def _unlike_published(self, method: MethodRef, config: TrainConfig, site: Site) -> list[str]:
        """In what a training differs from the published recipe, which is that of the preset `paper`."""
        own_stride = {} if takes_preset_stride(site.backbone) else {"stride": 0}
        theirs = train_config("paper", own_stride, method.spec.recipe("paper", *site).train)
        return unlike_published(config, theirs, self._weights_of(site.backbone) if method.spec.backbone else {})

    @_once
    def _selection_identity(self, method: MethodRef) -> dict[str, Any]:
        """What picks the checkpoints a training keeps: protocols, the maps they judge, and the code of the metrics."""
        plain = Resolver({})
        maps = [plain.ref(name).identity() for name in method.spec.selects] or [method.identity()]
        return {"protocols": [p.identity() for p in PROTOCOLS.values()], "maps": maps, "metrics": METRICS_VERSION}

    def _maps(self, teacher: MethodRef, cell: Cell) -> str:
        """Teacher maps of the training images, for their true (training) label."""
        if teacher.spec.kind == "none":
            raise BenchError(f"'{teacher.label}' makes no maps and cannot be a teacher.")
        carrier = self._carrier(teacher, cell.site)
        if (
            carrier
            and cell.protocol.teacher_selection == "loc"
            and not self.sources[cell.dataset].has_validation_masks(cell.fold)
        ):
            raise BenchError(
                f"Under protocol {cell.protocol.id} a teacher is chosen by the masks of validation images, and "
                f"{self.sources[cell.dataset].title} has none. Use --protocol fair."
            )
        config = self._config(carrier or teacher, cell.site)
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
        work["statistics"] = self._statistics(carrier, config, cell.site)
        work["supervision"] = self._supervision(teacher, cell.site)
        model = parents.get("checkpoint") or key_of([cell.dataset, cell.fold, cell.seed])
        return self.plan.add(Stage("maps", identity, parents, labels, work, ("maps", model)))


def selecting_maps(carrier: MethodRef) -> tuple[str, ...]:
    """Whose maps pick the `loc` checkpoints of a training: declared explainers, or the method's own map."""
    return carrier.spec.selects or (carrier.label,)


def _map_class(method: MethodRef, protocol: Protocol) -> str:
    """The class whose map is scored: the protocol's, `any` for maps that know no class, `-` without maps."""
    if method.spec.kind == "none":
        return "-"
    return protocol.map_class if method.spec.class_specific else "any"


def _protocol(name: str, changes: Mapping[str, Any]) -> Protocol:
    fixed = {"name", "version", "ties", "first_epoch"} & set(changes)
    if fixed:
        raise BenchError(
            f"protocol.{min(fixed)} belongs to the named protocols and cannot be changed: trainings keep their "
            "checkpoints by it. Choose --protocol paper or fair."
        )
    return update(get_protocol(name), changes, "protocol")
