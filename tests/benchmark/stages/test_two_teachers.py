"""Two teachers are two names: no map is lost by its role."""

import json
from dataclasses import replace
from textwrap import dedent

import pytest
import torch

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.execution.preflight import preflight
from wsolbench.benchmark.execution.scheduler import execute
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.planning.planner import Planner
from wsolbench.methods.spec import Need, parse_need, twins

PUPIL = """
    import json
    from pathlib import Path

    import torch
    from torch import nn

    from wsolbench.methods.base import Method, Prediction, register

    @register("{name}", family="two-step", kind="prob", needs=({needs}))
    class Pupil(Method):
        \"\"\"Learns the mean of two teachers.\"\"\"

        def __init__(self, backbone, num_classes, options):
            super().__init__()
            self.backbone, self.head = backbone, nn.Linear(backbone.dims[-1], num_classes)
            self.pixel = nn.Conv2d(backbone.dims[-1], 1, 1)

        def augment(self, batch, context):
            batch.twice = 2 * batch.indices
            return batch

        def loss(self, batch, context):
            assert batch.twice.equal(2 * batch.indices)
            one, two = batch.teachers.values()
            seen = {{"names": list(batch.teachers), "maps": batch.maps is None, "images": len(batch.labels),
                    "apart": float((one - two).abs().mean()), "parents": sorted(context.parents)}}
            Path({told!r}).write_text(json.dumps(seen))
            grid = self.backbone.grid(batch.images)
            wanted = nn.functional.interpolate(((one + two) / 2)[:, None], grid.shape[-2:])
            logits = self.head(grid.mean((2, 3)))
            return {{"total": nn.functional.cross_entropy(logits, batch.labels)
                    + (self.pixel(grid).sigmoid() - wanted).square().mean()}}

        def predict(self, images, classes=None):
            grid = self.backbone.grid(images)
            return Prediction(self.head(grid.mean((2, 3))), self.pixel(grid)[:, 0].sigmoid())
"""


def written(tmp_path, needs, name):
    """A method with these needs as a file, and where it tells what it saw."""
    told = tmp_path / "seen.json"
    path = tmp_path / f"{name}.py"
    path.write_text(dedent(PUPIL).format(needs=needs, told=str(told), name=name))
    return path, told


def run(world, request):
    planner = Planner(request)
    plan = planner.build()
    preflight(list(plan.stages.values()), planner)
    outcome = execute(plan, request.run, planner.open_datasets, lambda event: None)
    assert outcome.exit_code == 0, outcome.failed
    return plan


@pytest.mark.parametrize(
    ("needs", "names", "parents"),
    [
        ('"maps:cam", "maps:darkness"', ["cam", "darkness"], []),
        (
            '"maps@first:cam", "maps@second:darkness", "init:classifier", "init@again:classifier"',
            ["first", "second"],
            ["init:again", "init:classifier"],
        ),
    ],
)
def test_a_student_sees_both(world, tmp_path, needs, names, parents):
    name = f"pupil_of_{len(needs)}"
    path, told = written(tmp_path, needs, name)
    request = world.request(str(path))
    overrides = {**request.overrides, "train": {**request.overrides.get("train", {}), "micro_batch": "3"}}
    plan = run(world, replace(request, overrides=overrides))
    seen = json.loads(told.read_text())
    assert (seen["names"], seen["maps"], seen["parents"]) == (names, True, parents)
    assert seen["apart"] > 0.01
    assert seen["images"] <= 3
    student = next(s for s in plan.kinds("train") if s.labels["method"] == name)
    taught = [plan.stages[student.parents[f"maps:{name}"]].labels["method"] for name in names]
    assert taught == ["cam", "darkness"]
    assert Store(world.results).is_done(student.key)


def test_needs_as_text():
    assert parse_need("maps:layercam") == Need("maps", "layercam", "layercam")
    assert parse_need("maps@soft:pixelcam:deepmil") == Need("maps", "pixelcam:deepmil", "soft")
    assert parse_need("init:classifier").role == "init"
    assert not twins(map(parse_need, ("maps:cam", "maps:layercam", "init:cam")))
    assert "nothing tells apart" in twins(map(parse_need, ("maps:cam", "maps:cam")))


def test_two_needs_of_one_name_are_refused(tmp_path):
    path, _ = written(tmp_path, '"maps:cam", "maps:cam"', "pupil_of_one_name")
    with pytest.raises(BenchError, match="needs two stages 'maps:cam' that nothing tells apart"):
        Resolver({}).expand([str(path)])


def test_a_single_teacher_is_batch_maps(world):
    """As ever: `maps` is the tensor, and its stage is known by its role alone."""
    from wsolbench.benchmark.conformance.trial import prepare

    bench = prepare("pixelcam", world.results, "test_resnet")
    batch = bench.batch()
    assert list(batch.teachers) == ["layercam"]
    assert torch.equal(batch.maps, batch.teachers["layercam"])
    assert "maps" in bench.train_stage.parents
