"""The plan: methods × datasets × backbones × seeds × folds as a graph of stages, each with a key of its identity.

Planning reads no image and imports no torch, so a finished matrix is recognised at once. A stage that several rows
need appears once: its key is the hash of what it is, not of who asked.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from ...methods.backbones.normalisation import IMAGENET, Origin, Statistics, normalisation_notice, origin_of
from ...methods.backbones.strides import takes_preset_stride
from ...methods.backbones.weights import offline_notice, weights_identity
from ...methods.needs import Need
from ...methods.spec import SUPERVISIONS
from ..core.errors import BenchError, did_you_mean
from ..core.files import key_of
from ..core.metrics import VERSION as METRICS_VERSION
from ..core.protocols import HARNESS_VERSION, PROTOCOLS, SELECTIONS, Protocol, get_protocol
from .checkpoint_slots import selects_checkpoints, slot_of
from .config import Request, TrainConfig, identity_fields, train_config, update
from .contamination import declared, mark_trainings, notices
from .eval_sets import EvalSet, EvalSetResolver
from .method_refs import MethodRef, Resolver
from .published_recipe import unlike_published
from .rounds import PREVIOUS, check_rounds, last_round, round_before
from .stage import Experiment, MapsInputs, Plan, RecipeKey, ScoreInputs, Stage, TrainInputs
from .targets import no_target, on_network_of_source, scored_for, target_identity, targets_of

Asked = TypeVar("Asked", bound=Callable[..., Any])


def _once(ask: Asked) -> Asked:
    """Memory of a planner's method: the rows of a matrix call it with the same arguments thousands of times."""

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
        self.eval_sets = EvalSetResolver(request, any(self.resolver.adapts(m) for m in self.methods))
        self.open_datasets = self.eval_sets.open_datasets
        self.answers: dict[tuple[Any, ...], Any] = {}
        self.plan = Plan()
        self.weights_seen: dict[str, list[str]] = {}  # by hash or tag of starting weights: sets they have seen
        self.notices: list[str] = []  # what was decided for the user, a sentence each

    @_once
    def _refuse_circles(self, method: MethodRef, recipe_key: RecipeKey, trail: tuple[str, ...] = ()) -> None:
        if method.label in trail:
            raise BenchError(f"{' learns from '.join((*trail, method.label))}: choose a teacher outside the circle.")
        for need in method.needs():
            self._refuse_circles(self._ref(need.method, recipe_key), recipe_key, (*trail, method.label))

    @_once
    def _ref(self, name: str, recipe_key: RecipeKey) -> MethodRef:
        """A method with the options its recipe has for this dataset and backbone."""
        return self._settled(self.resolver.ref(name), recipe_key)

    @_once
    def _settled(self, method: MethodRef, recipe_key: RecipeKey) -> MethodRef:
        return last_round(method.at(self.request.preset, *recipe_key))

    @_once
    def _supervision(self, method: MethodRef, recipe_key: RecipeKey) -> str:
        """The strongest supervision behind a method's maps: a student of a model that saw masks has seen them too."""
        behind = [self._supervision(self._ref(need.method, recipe_key), recipe_key) for need in method.needs()]
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

    def _statistics(self, method: MethodRef | None, config: TrainConfig, recipe_key: RecipeKey) -> Statistics:
        """Mean and deviation for the images of a model; ImageNet's where nothing has a backbone."""
        if method is None or not method.spec.backbone:
            return IMAGENET
        return self.normalisation(recipe_key.backbone, config.normalisation).statistics

    @_once
    def _rules(self, protocol: Protocol) -> tuple[str, dict[str, Any]]:
        """The id of a protocol and what of it enters a stage key."""
        return protocol.id, protocol.identity()

    def build(self) -> Plan:
        """The plan of the whole matrix."""
        waiting = {m.label: m for m in self.methods if self.resolver.adapts(m)}
        for experiment in self._cells():
            for method in self.methods:
                settled = self._settled(method, experiment.recipe_key)
                self._refuse_circles(settled, experiment.recipe_key)
                for target in self._targets(settled, experiment):
                    waiting.pop(method.label, None)
                    self._rows(settled, experiment._replace(target=target))
        if waiting:
            raise no_target(next(iter(waiting.values())))
        if not self.plan.rows:
            wanted = ", ".join(self.request.selections)
            raise BenchError(f"--selections {wanted}: no method of this run has such a checkpoint. Leave it out.")
        self.resolver.check_sections(("train", "protocol", "run", "shift"))
        self.plan.rows = list(dict.fromkeys(self.plan.rows))
        self.weights_seen = declared(self.plan, self.request, self.open_datasets)
        self.notices += notices(self.weights_seen, [d.title for d in self.open_datasets.values()])
        mark_trainings(self.plan, self.weights_seen)
        return self.plan

    def _cells(self) -> Iterator[Experiment]:
        for name in self.request.datasets:
            source = self.open_datasets[name]
            for fold in source.dataset.expand_folds(self.request.folds):
                for backbone in self.request.backbones:
                    for seed in self.request.seeds:
                        for protocol in self.protocols:
                            yield Experiment(name, fold, backbone, seed, protocol)

    @_once
    def _adapts(self, method: MethodRef, recipe_key: RecipeKey) -> bool:
        """Whether it, or what it builds on, adapts to a target."""
        behind = (self._ref(need.method, recipe_key) for need in method.needs())
        return method.spec.adapts or any(self._adapts(one, recipe_key) for one in behind)

    def _targets(self, method: MethodRef, experiment: Experiment) -> tuple[EvalSet | None, ...]:
        """Targets of a method in turn; one None for a method that adapts to nothing."""
        if not self._adapts(method, experiment.recipe_key):
            return (None,)
        return targets_of(method, self.eval_sets.sets(experiment.dataset, experiment.fold), self.open_datasets)

    def _behind(self, method: MethodRef, experiment: Experiment) -> Experiment:
        """The experiment in which a parent is made: without a target where it adapts to nothing, and so is shared."""
        return experiment if self._adapts(method, experiment.recipe_key) else experiment._replace(target=None)

    # -- rows and scores ---------------------------------------------------------------------------------------------
    def _rows(self, method: MethodRef, experiment: Experiment) -> None:
        source_model = self._source_model(method, experiment.recipe_key)
        selections = ("loc", "cl", "last") if source_model else ("-",)
        mapless = source_model is not None and source_model.spec.kind == "none" and not source_model.spec.selects
        masks = self.open_datasets[experiment.dataset].has_validation_masks(experiment.fold)
        if source_model and (method.spec.kind == "none" or mapless or not masks):
            selections = ("cl", "last")  # without maps, or masks to judge them by, there is no best map
        if source_model and not selects_checkpoints(source_model):
            selections = ("last",)
        if source_model and self.request.selections:
            selections = tuple(s for s in selections if s in self.request.selections)
        home = EvalSet(experiment.dataset, experiment.fold)
        for on in scored_for(self.eval_sets.sets(experiment.dataset, experiment.fold), experiment.target):
            for selection in selections:
                val = self._score(method, experiment, selection, home, "val")
                self.plan.rows.append(self._score(method, experiment, selection, on, "test", val))

    @_once
    def _score(
        self, method: MethodRef, experiment: Experiment, selection: str, on: EvalSet, split: str, val: str = ""
    ) -> str:
        """A score; val: the key of the validation score it takes threshold and scale from."""
        source_model = self._source_model(method, experiment.recipe_key)
        config = self._config(source_model or method, experiment.recipe_key)
        protocol, rules = self._rules(experiment.protocol)
        map_class = _map_class(method, experiment.protocol)
        parents = {"val": val} if val else {}
        identity: dict[str, Any] = {
            "harness": HARNESS_VERSION,
            "method": method.identity(),
            "protocol": rules,
            "map_class": map_class,
            "image_size": config.image_size,
            "eval": self.eval_sets.identity(experiment.dataset, on, split),
        }
        role = ""
        if source_model:
            parents = {"checkpoint": self._train(source_model, experiment), **parents}
            role = identity["role"] = slot_of(method, source_model, selection, experiment.protocol)
        if method.spec.uses_seed:
            identity["seed"] = experiment.seed
        labels = {
            **self._labels(method, experiment, experiment.backbone if source_model else "-", on),
            "eval": self.eval_sets.title(on),
            "split": split,
            "seed": experiment.seed if source_model or method.spec.uses_seed else 0,
            "selection": selection,
            "protocol": protocol,
            "map_class": map_class,
        }
        inputs = ScoreInputs(
            *self._shared_inputs(method, source_model, config, experiment),
            source_model=source_model,
            checkpoint_slot=role,
            protocol=experiment.protocol,
            on=on,
            label_map=self.eval_sets.label_map(experiment.dataset, on),
        )
        model = parents.get("checkpoint") or key_of([experiment.dataset, experiment.fold, experiment.seed])
        group = ("score", model, split, *(str(part) for part in on))
        return self.plan.add(Stage("score", identity, parents, labels, inputs, group))

    def _labels(
        self, method: MethodRef, experiment: Experiment, backbone: str, on: EvalSet | None = None
    ) -> dict[str, Any]:
        """Labels of a stage for people; no part of its key. A target is named where the evaluation set does not."""
        target = {"target": self.eval_sets.title(experiment.target)} if experiment.target else {}
        adapted = "" if on and experiment.target and on.dataset == experiment.target.dataset else target.get("target")
        return {
            "method": method.label,
            "options": ", ".join(text for text in (method.changed, adapted and f"target={adapted}") if text),
            "backbone": backbone,
            "train": self.open_datasets[experiment.dataset].title,
            "fold": experiment.fold,
            "scheme": self.open_datasets[experiment.dataset].dataset.scheme_of(experiment.fold),
            "seed": experiment.seed,
            **({"round": method.round} if method.round else {}),
            **target,
        }

    # -- trainings and teacher maps ----------------------------------------------------------------------------------
    @_once
    def _source_model(self, method: MethodRef, recipe_key: RecipeKey) -> MethodRef | None:
        """The trained method a method reads: itself, the classifier an explainer explains, or None for a baseline."""
        if method.spec.trains:
            return method
        for need in method.needs():
            if need.role == "checkpoint":
                return self._source_model(self._ref(need.method, recipe_key), recipe_key)
        return None

    @_once
    def _config(self, method: MethodRef, recipe_key: RecipeKey) -> TrainConfig:
        preset = self.request.preset
        own_stride = {} if takes_preset_stride(recipe_key.backbone) else {"stride": 0}
        recipe = method.spec.recipe(preset, *recipe_key)
        layers = (own_stride, recipe.train, self.request.overrides.get("train", {}), method.train)
        config = train_config(preset, *layers)
        source = method.base if method.spec.adapts else None
        return on_network_of_source(method, config, self._config(source, recipe_key)) if source else config

    @_once
    def _train(self, method: MethodRef, experiment: Experiment) -> str:
        config = self._config(method, experiment.recipe_key)
        parents: dict[str, str] = {}
        roles: dict[str, str] = {}
        models: dict[str, Any] = {}
        for parent, need in method.parents().items():
            teacher = self._ref(need.method, experiment.recipe_key)
            if need.role == "maps":
                place = experiment if need.on == "target" else self._behind(teacher, experiment)
                parents[parent] = self._maps(need, teacher, place)
            elif source_model := self._source_model(teacher, experiment.recipe_key):
                parents[parent] = self._train(source_model, self._behind(source_model, experiment))
                models[parent] = self.plan.stages[parents[parent]].inputs
                roles[parent] = slot_of(teacher, source_model, "cl", experiment.protocol)
        if method.spec.supervision == "partial":
            check_rounds(method, self.open_datasets[experiment.dataset].manifest(experiment.fold))
        if earlier := round_before(method):
            parents[PREVIOUS], roles[PREVIOUS] = self._train(earlier, experiment), "last"
            models[PREVIOUS] = self.plan.stages[parents[PREVIOUS]].inputs
        statistics, body = self._statistics(method, config, experiment.recipe_key), {}
        if method.spec.backbone:
            weights = self._weights_of(experiment.backbone)
            body = {"name": experiment.backbone, "weights": weights, **statistics.to_json()}
        identity = {
            "harness": HARNESS_VERSION,
            "method": method.identity(),
            "train": identity_fields(config),
            "data": self.open_datasets[experiment.dataset].identity(experiment.fold, ("train", "val")),
            "backbone": body,
            "seed": experiment.seed,
            "roles": roles,
            "selection": self._selection_identity(method),
        }
        if method.spec.adapts and experiment.target:
            identity["target"] = target_identity(experiment.target, self.open_datasets)
        labels = self._labels(method, experiment, experiment.backbone)
        inputs = TrainInputs(
            *self._shared_inputs(method, method, config, experiment),
            weights=self.weights(experiment.backbone),
            unlike_published=tuple(self._unlike_published(method, config, experiment.recipe_key)),
            parents=models,
        )
        return self.plan.add(Stage("train", identity, parents, labels, inputs))

    def _shared_inputs(
        self, method: MethodRef, model: MethodRef | None, config: TrainConfig, experiment: Experiment
    ) -> tuple[MethodRef, TrainConfig, Experiment, Statistics, str]:
        """The fields that the inputs of every kind of stage begin with. model: the trained method made or read."""
        statistics = self._statistics(model, config, experiment.recipe_key)
        return method, config, experiment, statistics, self._supervision(method, experiment.recipe_key)

    def _unlike_published(self, method: MethodRef, config: TrainConfig, recipe_key: RecipeKey) -> list[str]:
        """In what a training differs from the published recipe, which is that of the preset `paper`."""
        own_stride = {} if takes_preset_stride(recipe_key.backbone) else {"stride": 0}
        theirs = train_config("paper", own_stride, method.spec.recipe("paper", *recipe_key).train)
        return unlike_published(config, theirs, self._weights_of(recipe_key.backbone) if method.spec.backbone else {})

    @_once
    def _selection_identity(self, method: MethodRef) -> dict[str, Any]:
        """Identity of checkpoint selection: protocols, the maps they judge, and the code of the metrics."""
        plain = Resolver({})
        maps = [plain.ref(name).identity() for name in method.spec.selects] or [method.identity()]
        return {"protocols": [p.identity() for p in PROTOCOLS.values()], "maps": maps, "metrics": METRICS_VERSION}

    def _maps(self, need: Need, teacher: MethodRef, experiment: Experiment) -> str:
        """Teacher maps of the training images for their true (training) label, or as the need asks."""
        if teacher.spec.kind == "none":
            raise BenchError(f"'{teacher.label}' makes no maps and cannot be a teacher.")
        source_model = self._source_model(teacher, experiment.recipe_key)
        if (
            source_model
            and experiment.protocol.teacher_selection == "loc"
            and not self.open_datasets[experiment.dataset].has_validation_masks(experiment.fold)
        ):
            raise BenchError(
                f"Under protocol {experiment.protocol.id} a teacher is chosen by the masks of validation images, and "
                f"{self.open_datasets[experiment.dataset].title} has none. Use --protocol fair."
            )
        config = self._config(source_model or teacher, experiment.recipe_key)
        identity: dict[str, Any] = {
            "harness": HARNESS_VERSION,
            "method": teacher.identity(),
            "data": self.open_datasets[experiment.dataset].identity(experiment.fold, ("train",)),
            "image_size": config.image_size,
            "load_size": config.load_size,
        }
        if need.classes != "true":
            identity["classes"] = need.classes
        if need.on == "target" and experiment.target:
            identity["data"] = target_identity(experiment.target, self.open_datasets)
        parents, role = {}, ""
        if source_model:
            parents["checkpoint"] = self._train(source_model, self._behind(source_model, experiment))
            selection = experiment.protocol.teacher_selection
            role = identity["role"] = slot_of(teacher, source_model, selection, experiment.protocol)
        if teacher.spec.uses_seed:
            identity["seed"] = experiment.seed
        labels = self._labels(teacher, experiment, experiment.backbone if source_model else "-")
        shared = self._shared_inputs(teacher, source_model, config, experiment)
        form = {"classes": need.classes, "on_target": need.on == "target"}
        inputs = MapsInputs(*shared, source_model=source_model, checkpoint_slot=role, **form)
        model = parents.get("checkpoint") or key_of([experiment.dataset, experiment.fold, experiment.seed])
        group = ("maps", model, *(("target",) if need.on == "target" else ()))
        return self.plan.add(Stage("maps", identity, parents, labels, inputs, group))


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
