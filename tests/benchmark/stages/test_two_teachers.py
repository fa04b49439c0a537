"""Two teachers are two names: no map is lost by its role."""

import copy
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.test_stop import Asked, chain
from tests.faults.training import Bare, trained
from wsolbench.benchmark.conformance.suite import run_checks
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.registry import scan_source
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.data.several_maps import SeveralMaps
from wsolbench.benchmark.execution.preflight import preflight
from wsolbench.benchmark.execution.scheduler import execute
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.planning.planner import Planner
from wsolbench.benchmark.scoring.build import build_method
from wsolbench.benchmark.stages.context import checkpoint
from wsolbench.benchmark.stages.train_stage import training_set_of
from wsolbench.methods import METHODS
from wsolbench.methods.needs import CLASSES, SETS, Need, need_text, parse_need, twins
from wsolbench.methods.spec import spec_from_entry

PLUGIN = Path(__file__).parents[2] / "plugins" / "two_teachers.py"
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
            seen = {{"names": list(batch.teachers), "maps": repr(batch.maps), "images": len(batch.labels),
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
        pytest.param('"maps:cam", "maps:darkness"', ["cam", "darkness"], [], marks=pytest.mark.slow),
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
    assert (seen["names"], seen["parents"]) == (names, parents)
    assert seen["maps"] == f"<batch.maps of {', '.join(names)}: see batch.teachers>"
    assert seen["apart"] > 0.01
    assert seen["images"] <= 3
    student = next(s for s in plan.kinds("train") if s.labels["method"] == name)
    taught = [plan.stages[student.parents[f"maps:{name}"]].labels["method"] for name in names]
    assert taught == ["cam", "darkness"]
    assert Store(world.results).is_done(student.key)


WORD = st.text("abz_-{}1", min_size=1, max_size=6)


@given(
    st.builds(
        Need, WORD, st.lists(WORD, min_size=1, max_size=2).map(":".join), st.one_of(st.just(""), WORD),
        st.sampled_from(CLASSES), st.sampled_from(SETS),
    )
)  # fmt: skip
def test_both_forms_of_a_need_say_the_same(need):
    assert parse_need(need_text(need)) == need._replace(name=need.name or need.method)


@pytest.mark.parametrize(
    "text",
    ["maps@:cam", "maps:", ":cam", "maps", "maps@a@b:cam", "maps(pred:cam", "maps pred):cam", "maps():cam",
     "maps(pred,true):cam", "maps(train,target):cam", "maps(x):cam", "maps: cam", "maps(pred)(target):cam", "@a:cam",
     "maps:cam:", "maps:cam@", "maps:a@@b"],
)  # fmt: skip
def test_a_malformed_text_is_refused(text):
    with pytest.raises(BenchError, match="needs '"):
        parse_need(text)


@pytest.mark.parametrize(
    ("needs", "words"),
    [('(Need("maps"),)', "line 3: Need.'maps'.: .*missing 1 required positional argument: 'method'"),
     ('(Need("maps", "cam", klass="pred"),)', "unexpected keyword argument 'klass'"),
     ('(Need("maps", "cam", classes="all"),)', "'all' is none of true, pred"),
     ('(Need("maps", 3),)', "neither a text such as 'maps:layercam' nor"),
     ('(Need("lesson", "cam"),)', "needs 'lesson' .*is not one of"),
     ('(Other("maps", "cam"),)', "must be literals"), ('(Need(*["maps", "cam"]),)', "must be literals"),
     ('(Need("maps", "cam"), "maps:cam")', "needs two stages 'maps:cam'"), ('"maps:cam"', "must be a tuple of needs"),
     ('Need("maps", "cam")', "must be a tuple of needs"),
     ('(Need("maps", "cam", name="a:b"),)', "holds a sign that separates parts"),
     ('(Need("maps:x", "cam"),)', "holds a sign that separates parts"),
     ('(Need("maps(pred)", "cam"),)', "holds a sign that separates parts"),
     ('("maps:{",)', "curly brackets hold the name of an option"),
     ('("maps:{teachr}",)', "there is no option 'teachr'"),
     ('("maps@:cam",)', "needs 'maps@:cam', which is not ROLE")],
)  # fmt: skip
def test_needs_that_say_nothing_are_refused_where_a_method_is_registered(tmp_path, needs, words):
    text = f'from wsolbench.methods.base import Method, Need, register\n\n@register("refused", needs={needs})\n'
    (tmp_path / "refused.py").write_text(f"{text}class Refused(Method):\n    pass\n")
    (entry,) = scan_source((tmp_path / "refused.py").read_text(), "refused.py", "file", calls={"Need": Need})
    if entry.error:
        assert re.search(words, entry.error)
        return
    with pytest.raises(BenchError, match=words):
        spec_from_entry(entry)


def test_the_call_and_the_text_are_one_plan(world, tmp_path):
    """The same needs written as text: the same parents, by the same names."""
    call = PLUGIN.read_text()
    text = call.replace('Need("maps", "cam", name="first")', '"maps@first:cam"')
    text = text.replace('Need("maps", "layercam", classes="pred", name="second")', '"maps(pred)@second:layercam"')
    assert "Need(" not in text
    specs = [spec_from_entry(scan_source(t, "x.py", "file", calls={"Need": Need})[0]) for t in (call, text)]
    assert specs[0].needs == specs[1].needs == ("maps@first:cam", "maps(pred)@second:layercam")


def test_batch_maps_of_several_teachers_says_how_to_read_them():
    maps = SeveralMaps(["cam", "layercam"])
    words = r"several teachers .cam, layercam.: its maps are batch.teachers..cam.."
    for use in (
        len, bool, float, abs, lambda x: x**2, lambda x: 2 // x,
        lambda x: x + 1, lambda x: 1 - x, lambda x: x[:2], lambda x: x["cam"], lambda x: x.mean(),
        lambda x: torch.stack([x, x]), lambda x: torch.nn.functional.relu(input=x), lambda x: x == 3, np.asarray,
        lambda x: torch.zeros_like(x),
    ):  # fmt: skip
        with pytest.raises(BenchError, match=words):
            use(maps)
    for twin in (copy.deepcopy(maps), pickle.loads(pickle.dumps(maps))):  # noqa: S301 - our own bytes
        assert repr(twin) == "<batch.maps of cam, layercam: see batch.teachers>"


def test_needs_as_text():
    assert parse_need("maps:layercam") == Need("maps", "layercam", "layercam")
    assert parse_need("maps@soft:pixelcam:deepmil") == Need("maps", "pixelcam:deepmil", "soft")
    assert parse_need("init:classifier").role == "init"
    assert not twins(map(parse_need, ("maps:cam", "maps:layercam", "init:cam")))
    assert "nothing tells apart" in twins(map(parse_need, ("maps:cam", "maps:cam")))


def test_two_needs_of_one_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))  # a refused method stays in no list
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


# -- a file of one's own: trained, stopped, on two devices, checked ---------------------------------------------------
TRAIN = {"epochs": "2", "batch_size": "16", "micro_batch": "6"}


def bare(world, **run):
    METHODS.load_file(PLUGIN)
    return Bare(world, "two-teachers", overrides={"train": dict(TRAIN), "classifier": {"dropout": "0"}}, run=run)


def student(plan):
    return next(s for s in plan.kinds("train") if s.labels["method"] == "two-teachers")


def test_training_is_a_hand_written_loop(world):
    made = bare(world)
    made.do(["train", "maps"])
    stage, ctx = student(made.plan), made.ctx
    inputs = stage.inputs
    model = build_method(inputs.method, "test_resnet", inputs.config, 2, 0, inputs.statistics)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-4, nesterov=True)
    data = training_set_of(stage, ctx, replace(inputs.config, micro_batch=0)).on_device()
    maps = data.maps
    assert float((maps["first"] - maps["second"]).abs().mean()) > 1e-3
    for epoch in (1, 2):
        sgd.param_groups[0]["lr"] = inputs.config.lr_at(epoch)
        model.train()
        for batch in data.epoch_batches(0, epoch):
            sgd.zero_grad()
            for part in torch.arange(len(batch.labels)).tensor_split(3):
                grid = model.backbone.grid(batch.images[part])
                both = (batch.teachers["first"] * batch.teachers["second"])[part]
                wanted = torch.nn.functional.adaptive_avg_pool2d(both[:, None], grid.shape[2:])[:, 0]
                log = torch.log_softmax(model.head(grid.mean((2, 3))), 1)
                planes = model.pixel_head(grid)[:, 0].sigmoid()
                image = -log[torch.arange(len(part)), batch.labels[part]].mean()
                pixel = -(wanted * planes.log() + (1 - wanted) * (1 - planes).log()).mean()
                ((image + pixel) * len(part) / len(batch.labels)).backward()
            sgd.step()
    kept, _ = checkpoint(ctx, stage.key, "last")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_stopped_at_every_step_it_goes_on_bit_for_bit(world, tmp_path, monkeypatch):
    bare(world).do(["train", "maps"])
    expected = trained(world)
    world.results = tmp_path / "stopped"
    made = bare(world)
    for stage in made.plan.stages.values():
        if stage.kind != "score" and stage.key != student(made.plan).key:
            made.stage(stage)
    assert "0002-000001.safetensors" in chain(made, Asked(monkeypatch))
    assert trained(world) == expected


@pytest.mark.slow
def test_two_processes_learn_as_one_does(world, tmp_path):
    bare(world).do(["train", "maps"])
    alone = list(trained(world).values())
    world.results = tmp_path / "shared"
    bare(world, devices=2).do(["train", "maps"])
    for one, two in zip(alone, trained(world).values(), strict=True):
        for a, b in zip(one["history"], two["history"], strict=True):
            assert b.get("losses", {}) == pytest.approx(a.get("losses", {}), rel=2e-3)


@pytest.mark.slow
def test_the_contract_holds(tmp_path):
    assert not [line for line in run_checks(str(PLUGIN), tmp_path, "test_resnet") if line.state == "broken"]
