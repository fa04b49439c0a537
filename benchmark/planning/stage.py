"""A stage: one cached unit of work, its key, and the typed inputs each kind of stage is done with."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeVar

from ...methods.backbones.normalisation import Statistics
from ..core.files import key_of
from ..core.protocols import Protocol
from .config import TrainConfig
from .eval_sets import EvalSet
from .method_refs import MethodRef


class RecipeKey(NamedTuple):
    """Place of a recipe: the part of an experiment that settles a method's options and training."""

    dataset: str
    backbone: str


class Experiment(NamedTuple):
    """One combination of the matrix: where a model is trained, on which backbone, from which seed, by which rules.

    target: the set whose training images, without labels, a model is adapted to; None where nothing adapts.
    """

    dataset: str
    fold: str
    backbone: str
    seed: int
    protocol: Protocol
    target: EvalSet | None = None

    @property
    def recipe_key(self) -> RecipeKey:
        """Its dataset and backbone."""
        return RecipeKey(self.dataset, self.backbone)


@dataclass(frozen=True)
class StageInputs:
    """Inputs that every kind of stage has.

    method: whose weights, maps or scores the stage makes. config: the training settings of the model behind it.
    statistics: mean and deviation its images are normalised by. supervision: the strongest behind the method's maps.
    """

    method: MethodRef
    config: TrainConfig
    experiment: Experiment
    statistics: Statistics
    supervision: str

    @property
    def model(self) -> MethodRef | None:
        """The trained method whose weights are made or read; None for a baseline, which has none."""
        return self.method


@dataclass(frozen=True)
class TrainInputs(StageInputs):
    """Inputs of a training.

    weights: where the backbone starts (`none`, `imagenet`, a file). weights_seen: sets and splits that these are
    declared to have seen. unlike_published: in what the training differs from the published recipe, a phrase each.
    parents: inputs of the trainings that it starts from, by role.
    """

    weights: str
    unlike_published: tuple[str, ...] = ()
    weights_seen: tuple[str, ...] = ()
    parents: Mapping[str, "TrainInputs"] = field(default_factory=dict)


@dataclass(frozen=True)
class MapsInputs(StageInputs):
    """Inputs of teacher maps.

    source_model: the trained method that the maps are read from, None for a baseline. checkpoint_slot: the name under
    which its training keeps the checkpoint, e.g. `cl/fair`; empty for a baseline. classes: whose maps a teacher makes,
    those of the `true` label or of the predicted class (`pred`). on_target: whether of the images of the target.
    """

    source_model: MethodRef | None
    checkpoint_slot: str
    classes: str = field(default="true", kw_only=True)
    on_target: bool = field(default=False, kw_only=True)

    @property
    def model(self) -> MethodRef | None:
        """The trained method whose weights are read; None for a baseline."""
        return self.source_model


@dataclass(frozen=True)
class ScoreInputs(MapsInputs):
    """Inputs of a score.

    protocol: the rules the maps are scored by. on: the evaluation set. label_map: for each of its classes the class of
    the same meaning of the set that the model was trained on.
    """

    protocol: Protocol
    on: EvalSet
    label_map: tuple[int, ...]


Inputs = TypeVar("Inputs", bound=StageInputs, covariant=True)


@dataclass(frozen=True)
class Stage(Generic[Inputs]):
    """One cached unit of work.

    kind: `train`, `maps` (teacher maps of the training set) or `score` (one checkpoint on one evaluation set).
    identity and parents (role -> key of the parent stage) make the key. inputs: what the stage is done with, no part of
    the key. labels: what people call it by. group: stages of one group are done in one pass over the images.
    """

    kind: str
    identity: Mapping[str, Any]
    parents: Mapping[str, str]
    labels: Mapping[str, Any]
    inputs: Inputs
    group: tuple[str, ...] = ()
    key: str = ""

    def keyed(self) -> "Stage[Inputs]":
        """The stage with its key, a function of kind, identity and parents alone."""
        return replace(self, key=key_of({"kind": self.kind, "identity": self.identity, "parents": self.parents}))

    @property
    def title(self) -> str:
        """A stage in a few words, e.g. `score pixelcam · resnet18 · glas fold 0 seed 0 → camelyon16`."""
        labels = self.labels
        where = f"{labels['train']} fold {labels['fold']} seed {labels['seed']}"
        if labels.get("round", 0):
            where += f" round {labels['round']}"
        if labels.get("target"):
            where += f" adapted to {labels['target']}"
        if labels.get("eval", labels["train"]) != labels["train"]:
            where += f" → {labels['eval']}"
        parts = [labels["method"], labels["backbone"], where]
        return f"{self.kind} " + " · ".join(p for p in parts if p != "-")


AnyStage = Stage[StageInputs]
TrainStage = Stage[TrainInputs]
MapsStage = Stage[MapsInputs]
ScoreStage = Stage[ScoreInputs]


@dataclass
class Plan:
    """Stages by key, parents first, and the keys of the rows (test scores) the user asked for."""

    stages: dict[str, AnyStage] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)

    def add(self, stage: AnyStage) -> str:
        """Adds a stage if it is new and returns its key."""
        stage = stage.keyed()
        self.stages.setdefault(stage.key, stage)
        return stage.key

    def replace(self, stage: AnyStage) -> None:
        """Puts a stage with other inputs in the place of the one with its key."""
        self.stages[stage.key] = stage

    def kinds(self, kind: str) -> list[Stage[Any]]:
        """All stages of one kind."""
        return [s for s in self.stages.values() if s.kind == kind]
