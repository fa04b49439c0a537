"""The stage on which `bench check` tests a method: the synthetic task, its parents trained, itself not yet."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ...methods.base import Batch, Evidence, EvidenceSettings, Method, TrainContext, is_explainable
from ...methods.factory import statistics_of
from ..core.timing import Stopwatch
from ..data.image_cache import DecodeRequest
from ..data.train_loader import DeviceSet, TrainingSet
from ..distributed.process_group import SINGLE_PROCESS
from ..execution.preflight import check_options
from ..execution.scheduler import execute
from ..planning.config import Request, RunConfig
from ..planning.eval_sets import EvalSet
from ..planning.method_refs import MethodRef, Resolver
from ..planning.planner import Planner
from ..planning.stage import Experiment, Plan, ScoreStage, TrainStage
from ..scoring.build import build_method, load_function, options
from ..stages.context import StageContext, load_model, needs_elsewhere, needs_of, place_of
from ..stages.labelled_set import labelled_set
from ..stages.train_stage import ParentModels, parent_states, starting_model, training_set_of, validation, whole_sets_of
from ..training.full_pass import WholeSets
from ..training.train_step import Training, make_optimizer, make_scaler, train_step
from .synthetic_task import target_of, write_blobs, write_target

SOME_IMAGES = 16  # a batch of a pass over a whole set
SETTINGS = {
    "image_size": "64",
    "load_size": "72",
    "epochs": "14",
    "batch_size": "8",  # four steps an epoch: enough for a decoder to learn the blob
    "lr": "0.05",
    "head_lr_scale": "1",
    "jitter": "0.1,0.1,0.1,0.0",
    "step_epochs": "11",
    "warmup_epochs": "1",
}


class BrokenError(Exception):
    """A line of the contract does not hold."""


class SkippedError(Exception):
    """The method makes no such promise."""


@dataclass
class Bench:
    """A method on the synthetic task: its parents are trained, itself is not yet."""

    planner: Planner
    plan: Plan
    ctx: StageContext
    ref: MethodRef
    train_stage: TrainStage | None
    score_stage: ScoreStage

    @property
    def device(self) -> torch.device:
        """The CPU: the contract is about behaviour, not speed."""
        return torch.device("cpu")

    def context(self, method: Method | None = None) -> TrainContext:
        """Context as training hands it to the method. method: the one whose passes over whole sets it gives."""
        card = self.planner.open_datasets[self.score_stage.inputs.experiment.dataset].dataset.card
        stage = self.train_stage
        parents = parent_states(stage, self.ctx) if stage else {}
        generator = torch.Generator().manual_seed(0)
        epochs, steps = int(SETTINGS["epochs"]), self.data.batches_per_epoch()
        context = TrainContext(1, epochs, len(card.classes), card.region_classes, self.device, generator, parents)
        context.steps_per_epoch = steps
        if stage:
            context.models = ParentModels(stage, self.ctx, parents)
            if some := labelled_set(stage, self.ctx):
                some.tell(context, stage.inputs.method.round)
        if method is not None:
            side, sets, watch = int(SETTINGS["image_size"]), whole_sets_of(self.training_set), Stopwatch(self.device)
            context.whole_set = WholeSets(
                method, sets, len(card.classes), side, SOME_IMAGES, self.device, watch, SINGLE_PROCESS
            )
        return context

    def fresh(self) -> tuple[Method, TrainContext]:
        """The method as training starts it."""
        method = self._built()
        context = self.context(method)
        method.setup(context)
        return method, context

    def _built(self) -> Method:
        if self.train_stage is None:
            raise SkippedError("nothing is trained")
        if self.ref.spec.adapts:
            return starting_model(self.train_stage, self.ctx)[0]
        inputs, classes = self.train_stage.inputs, self.context().num_classes
        backbone = inputs.experiment.backbone
        return build_method(self.ref, backbone, inputs.config, classes, 0, inputs.statistics)

    def training(self, set_up: bool = True) -> Training:
        """A training of the method as the harness has it. set_up: with `setup` done, as its first step finds it."""
        method, context = self.fresh() if set_up else self._bare()
        stage, run = self.train_stage or self.score_stage, self.planner.request.run
        experiment, config = stage.inputs.experiment, stage.inputs.config
        judged = validation(self.ref, self.ctx, experiment, config)
        return Training(method, self.data, judged, context, config, run, 0, run.results)

    def _bare(self) -> tuple[Method, TrainContext]:
        """The method before `setup`."""
        method = self._built()
        return method, self.context(method)

    @cached_property
    def training_set(self) -> TrainingSet:
        """The training images of both classes, or of the target, with what the method is entitled to."""
        if self.train_stage is not None:
            return training_set_of(self.train_stage, self.ctx, self.train_stage.inputs.config)
        inputs = self.score_stage.inputs
        items = self.ctx.manifest(inputs.experiment).split("train")
        frames = self.ctx.images(inputs.experiment).frames(items, inputs.config.load_size)
        return TrainingSet(frames, inputs.config, self.device, inputs.statistics)

    @cached_property
    def data(self) -> DeviceSet:
        """These images as tensors."""
        return self.training_set.on_device()

    def batch(self) -> Batch:
        """Sixteen training images."""
        return self.data.batch(torch.arange(16), torch.Generator().manual_seed(0))

    def augmented(self, job: Training, batch: Batch) -> Batch:
        """A batch as the method's losses get it; the batch itself stays as it is."""
        job.method.train()
        return job.method.augment(replace(batch), job.context)

    @cached_property
    def draws(self) -> bool:
        """Whether a method that may draw random numbers really does: another seed gives another map."""
        if not self.ref.spec.uses_seed or self.ref.spec.trains:
            return self.ref.spec.uses_seed
        images = self.batch().images[:2]
        one, two = (self.reading(seed)[1](images, torch.ones(2, dtype=torch.long)) for seed in (0, 1))
        return not torch.equal(one, two)

    def reading(self, seed: int = 0) -> tuple[Method | None, Callable[[Tensor, Tensor | None], Tensor]]:
        """The model behind the map (trained where its parents are), and a function from images and classes to maps.

        seed: of the run, for methods that draw.
        """
        if self.ref.spec.trains:
            method = self.fresh()[0].eval()
            return method, lambda images, classes: own_maps(method, images, classes)
        model, _ = load_model(self.score_stage, self.ctx)
        explain, settings = load_function(self.ref), options(self.ref)

        def read(images: Tensor, classes: Tensor | None) -> Tensor:
            ids = [f"{float(i.double().sum()):.6f}" for i in images]  # an image keeps its id in any batch
            source = model if is_explainable(model) else None
            about = EvidenceSettings(ids, seed, statistics=statistics_of(model))
            return explain(Evidence(images, classes, source, settings=about), settings)

        return model, read


def own_maps(method: Method, images: Tensor, classes: Tensor | None) -> Tensor:
    """The maps (B, h, w) a trained method makes itself. Raises SkippedError if it makes none."""
    with torch.no_grad():
        maps = method.predict(images, classes).maps
    if maps is None:
        raise SkippedError("the method makes no maps")
    return maps


def exercise(bench: Bench) -> None:
    """One training step with all its hooks, and one map, as training and scoring ask for them."""
    batch = bench.batch()
    if bench.ref.spec.trains:
        job = bench.training()
        job.method.lr_scale(job.context)
        train_step(job, bench.augmented(job, batch), make_optimizer(job.method, job.config), make_scaler(job))
    _, read = bench.reading()
    with contextlib.suppress(SkippedError):  # a classifier makes no maps
        read(batch.images[:4], None)


def prepare(name: str, folder: Path, backbone: str) -> Bench:
    """Writes the task, plans the method on it and trains what it builds on, with the real harness."""
    csv = write_blobs(folder / "data")
    write_target(csv)
    planner = make_planner(name, csv, folder / "results", backbone)
    ref = planner.methods[0]
    check_options(ref)
    plan = planner.build()
    scores = {s.key: s for s in plan.kinds("score")}
    trainings = {s.key: s for s in plan.kinds("train")}
    score = scores[plan.rows[0]]
    train = trainings.get(score.parents.get("checkpoint", "")) if ref.spec.trains else None
    ctx = StageContext(planner.request.run, planner.open_datasets)
    experiment = score.inputs.experiment
    # baselines have no training that asks for these
    needs = DecodeRequest(tuple(ctx.manifest(experiment).split("train")), score.inputs.config.load_size)
    decoded: dict[tuple[str, str], list[tuple[Experiment | EvalSet, DecodeRequest]]] = {}
    every = [(experiment, needs)]
    for stage in plan.stages.values():
        every += [*((place_of(stage), n) for n in needs_of(stage, ctx)), *needs_elsewhere(stage, ctx)]
    for place, need in every:
        decoded.setdefault((place.dataset, place.fold), []).append((place, need))
    for requests in decoded.values():
        ctx.images(requests[0][0]).prepare(list(dict.fromkeys(need for _, need in requests)))
    target = train or score
    parents = replace_rows(
        plan, list(target.parents.values()) if train else [k for k in [score.parents.get("checkpoint")] if k]
    )
    do(parents, planner)
    return Bench(planner, plan, ctx, ref, train, score)


def make_planner(name: str, csv: Path, results: Path, backbone: str, **changes: str) -> Planner:
    """A plan of one method on the synthetic task; one that adapts has the other stain as its target."""
    resolver = Resolver({})
    adapts = any(resolver.adapts(ref) for ref in resolver.expand([name]))
    request = Request(
        (name,),
        (str(csv),),
        (backbone,),
        "none",
        preset="smoke",
        ood=(str(target_of(csv)),) if adapts else ("all",),
        selections=("last",),  # the one whose rows are judged: slow explainers end in their minute
        overrides={"train": {**SETTINGS, **changes}},
        run=RunConfig(results=results, device="cpu"),
    )
    return Planner(request)


def replace_rows(plan: Plan, rows: list[str]) -> Plan:
    """The same stages with other targets."""
    return replace(plan, rows=rows)


def do(plan: Plan, planner: Planner) -> None:
    """Does the stages a plan still misses. Raises BrokenError with the first failure."""
    outcome = execute(plan, planner.request.run, planner.open_datasets, lambda event: None)
    if outcome.failed:
        raise BrokenError(next(iter(outcome.failed.values())))
