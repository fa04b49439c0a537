"""Stages done one by one in this process, without the scheduler: for faults that strike inside one."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.benchmark.conftest import World
from wsolbench.benchmark.core.files import read_npz
from wsolbench.benchmark.execution.preflight import preflight
from wsolbench.benchmark.planning.stage import Stage
from wsolbench.benchmark.stages.context import StageContext, load_method_files
from wsolbench.benchmark.stages.run import RUNNERS

HOOKS = '''
"""A method with a state of its own: it changes at the start and the end of epochs, in augment and in loss."""

import torch
import torch.nn.functional as F

from wsolbench.methods.base import Method, Prediction, register


@register("hooks", family="test", kind="score", supervision="image", backbone=("grid",), class_specific=True)
class Hooks(Method):
    def __init__(self, backbone, num_classes, options):
        super().__init__()
        self.backbone = backbone
        self.head = torch.nn.Conv2d(backbone.dims[-1], num_classes, 1)
        self.register_buffer("drift", torch.zeros(()))
        self.scale = 0.0  # set anew whenever an epoch starts

    def on_epoch_start(self, context):
        self.scale = 1 / context.epoch
        self.drift += torch.rand((), generator=context.generator)

    def on_epoch_end(self, context):
        self.drift *= 0.5 + torch.rand(())

    def augment(self, batch, context):
        batch.images = batch.images + 0.1 * torch.randn(batch.images.shape, generator=context.generator)
        return batch

    def loss(self, batch, context):
        self.drift += 0.01
        noise = F.dropout(self.head(self.backbone.grid(batch.images)), 0.3, self.training)
        return {"total": F.cross_entropy(noise.mean((2, 3)) * self.scale + self.drift, batch.labels)}

    def predict(self, images, classes=None):
        maps = self.head(self.backbone.grid(images)) + self.drift
        logits = maps.mean((2, 3))
        asked = logits.argmax(1) if classes is None else classes
        return Prediction(logits, maps[torch.arange(len(maps)), asked])
'''


class Bare:
    """A plan on the tiny world whose stages are done here, in order."""

    def __init__(self, world: World, methods: str, **changes) -> None:
        planner, self.plan = world.plan(methods, **changes)
        todo = [s for s in self.plan.stages.values() if not world.store.is_done(s.key)]
        preflight(todo, planner)
        self.ctx = StageContext(planner.request.run, planner.open_datasets)
        load_method_files(list(self.plan.stages.values()))

    @property
    def last_training(self) -> Stage:
        """The training whose parents are all there."""
        return self.plan.kinds("train")[-1]

    def do(self, kinds: Sequence[str] = ("train", "maps", "score")) -> None:
        """Does what is not done yet; whatever is raised comes through."""
        for stage in self.plan.stages.values():
            if stage.kind in kinds and not self.ctx.store.is_done(stage.key):
                self.stage(stage)

    def some(self) -> list[Stage]:
        """All trainings and maps, one validation and the test that builds on it."""
        test = next(s for s in self.plan.stages.values() if s.labels.get("split") == "test")
        score = [self.plan.stages[test.parents["val"]], test]
        return [*(s for s in self.plan.stages.values() if s.kind != "score"), *score]

    def do_some(self) -> None:
        """Does these."""
        for stage in self.some():
            self.stage(stage)

    def stage(self, stage: Stage) -> None:
        """Does one stage."""
        RUNNERS[stage.kind]([stage], self.ctx)


def trained(world: World) -> dict[str, dict]:
    """What trainings left, without times: roles with the hashes of their weights, facts, and the history."""
    found = {}
    for path in sorted((world.results / "runs").glob("*/record.json")):
        record = json.loads(path.read_text())
        if record["kind"] == "train":
            lines = [json.loads(line) for line in (path.parent / "history.jsonl").read_text().splitlines()]
            history = [{**line, "seconds": 0} for line in lines]
            found[path.parent.name] = {"roles": record["roles"], "facts": record["facts"], "history": history}
    return found


def scores(results: Path) -> dict[str, dict[str, np.ndarray]]:
    """All stored arrays of scores and maps."""
    paths = [*results.glob("runs/*/scores.npz"), *results.glob("runs/*/maps.npz")]
    return {p.parent.name: read_npz(p) for p in paths}


def as_bytes(found: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, bytes]]:
    """Arrays as bytes, which compare as they are stored."""
    return {key: {n: a.tobytes() for n, a in arrays.items()} for key, arrays in found.items()}
