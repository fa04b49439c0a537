"""One training by several processes: the numbers of one process, one answer to a stop, no survivors of a failure."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from tests.faults.training import Bare, trained
from wsolbench.benchmark.core import shutdown
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.shutdown import Stopped
from wsolbench.benchmark.data.eval_loader import EvalLoader
from wsolbench.benchmark.distributed import ddp_launcher
from wsolbench.benchmark.distributed.process_group import ProcessGroup
from wsolbench.benchmark.scoring.inference import _merged, _Part
from wsolbench.methods.backbones.normalisation import IMAGENET
from wsolbench.methods.spec import method_spec

NUMBERS = itertools.count()
DOUBLE = """
import torch

from wsolbench.methods import METHODS
from wsolbench.methods.base import Prediction, register


@register(
    "{name}", family="test", kind={spec.kind!r}, supervision={spec.supervision!r}, backbone={spec.backbone!r},
    needs={needs!r}, class_specific={spec.class_specific!r}, options={options!r},
)
class Precise(METHODS.load({base!r})):
    def setup(self, context):
        super().setup(context)
        self.double()

    def augment(self, batch, context):
        batch.images = batch.images.double()
        return batch

    def features(self, images):
        return super().features(images.double())

    def predict(self, images, classes=None):
        logits, maps = super().predict(images.double(), classes)
        return Prediction(logits.float(), maps)
"""


def precise(folder, base, **changes):
    """A method in double precision, where two ways to the same number differ by next to nothing."""
    spec = method_spec(base)
    options = {**spec.options, **changes}
    needs = tuple(n.format(**options) for n in spec.needs)
    name = f"precise-{base}-{next(NUMBERS)}"  # a name is registered once in a process
    path = folder / f"{name}.py"
    path.write_text(DOUBLE.format(name=name, base=base, spec=spec, options=options, needs=needs))
    return str(path)


@pytest.fixture(autouse=True)
def quiet():
    """No request to stop outlives its test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    shutdown._Request.code = 0
    torch.set_num_threads(before)


def history(world, part=-1):
    return list(trained(world).values())[part]["history"]


def same(one, other, tolerance):
    """Two histories: the same epochs, and numbers that agree."""
    assert [x["epoch"] for x in one] == [x["epoch"] for x in other]
    for a, b in zip(one, other, strict=True):
        flat = [({**x.get("losses", {}), **{f"val {k}": v for k, v in x["val"].items()}}) for x in (a, b)]
        assert flat[0].keys() == flat[1].keys()
        for name, value in flat[0].items():
            assert math.isclose(value, flat[1][name], rel_tol=tolerance), (a["epoch"], name, value, flat[1][name])


@pytest.mark.slow
def test_two_processes_stopped_and_one_going_on_train_as_one_does(world, tmp_path):
    """Batch statistics, dropout, drawn pixels and means over them, in parts of batches, with classes without region."""
    method = precise(tmp_path, "pixelcam", teacher="darkness", negatives="dense", head="gap")

    def made(**run) -> Bare:
        train = {"epochs": "4", "batch_size": "16", "micro_batch": "6"}
        return Bare(world, method, overrides={"train": train}, run={"score_batch": 5, **run})

    made().do(["train", "maps"])
    expected = history(world)
    world.results = tmp_path / "shared"
    shared = made(devices=2)
    shared.do(["maps"])
    seen = []

    def report(event):
        seen.append(event["epoch"])
        if event["epoch"] == 1:
            shutdown.request(130)

    shared.ctx.report = report
    with pytest.raises(Stopped):
        shared.do(["train"])
    assert seen[:2] == [0, 1], "the first process reports every epoch"
    folder = shared.ctx.store.run_dir(shared.last_training.key)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert 2 <= len(lines) < 5
    same(lines, expected[: len(lines)], 1e-6)
    shutdown._Request.code = 0
    made().do(["train"])
    same(history(world)[:4], expected[:4], 1e-6)
    same(history(world), expected, 1e-4)  # by now a change of 1e-8 in the first weights has grown to 2e-5
    assert history(world)[1]["losses"].keys() == {"total", "image", "pixel", "negative"}


@pytest.mark.slow
@pytest.mark.parametrize("base", ["classifier", "deepmil", "unet", "twostep"])
def test_two_processes_train_as_one_does(world, tmp_path, base):
    """Of methods with teachers the last training alone is shared, as a teacher that differs moves what is drawn."""
    # its size barrier is a mean over the images with a region alone
    method = precise(tmp_path, base, **({"lambda_size": 0.1} if base == "twostep" else {}))

    def made(**run) -> Bare:
        return Bare(world, method, overrides={"train": {"epochs": "2", "batch_size": "16"}}, run=run)

    made().do(["train", "maps"])
    expected = trained(world)
    world.results = tmp_path / "shared"
    shared, alone = made(devices=2), made()
    for stage in shared.plan.stages.values():
        if stage.kind != "score":
            (shared if stage.key == shared.last_training.key else alone).stage(stage)
    found = trained(world)
    assert found.keys() == expected.keys()
    own = shared.last_training.key
    same(found[own]["history"], expected[own]["history"], 1e-6)
    assert found[own]["facts"] == {**expected[own]["facts"], "devices": 2}


# -- validation is cut in parts ---------------------------------------------------------------------------------------
class Member(ProcessGroup):
    """One of several that never meet."""

    def __init__(self, rank, size):
        self.rank, self.size, self.asked = rank, size, 0

    def requested(self):
        self.asked += 1
        return 0


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_image_is_read_once_whatever_the_number_of_processes(world, size):
    bare = Bare(world, "classifier")
    cell = bare.last_training.inputs.experiment
    items = bare.ctx.manifest(cell).split("val")
    frames = bare.ctx.images(cell).frames(items, bare.last_training.inputs.config.image_size)
    alone = list(EvalLoader(frames, 5, torch.device("cpu"), statistics=IMAGENET))
    found, asked = [], set()
    for rank in range(size):
        member = Member(rank, size)
        found += EvalLoader(frames, 5, torch.device("cpu"), statistics=IMAGENET, process_group=member)
        asked.add(member.asked)
    assert [s.ids for s in found] == [s.ids for s in alone]
    assert [name for s in found for name in s.ids] == [i.id for i in items]
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, alone, strict=True))
    assert len(asked) == 1, "who has fewer batches asks as often, or the others would wait"


def test_parts_are_merged_by_row_and_refused_unless_each_image_is_there_once():
    def part(*rows):
        maps = {"cam": {r: torch.full((2, 2), float(r)) for r in rows if r % 2}}
        return _Part(list(rows), torch.tensor([[float(r)] for r in rows]), maps)

    logits, kept = _merged([part(2, 3), part(0, 1, 4)], 5, torch.device("cpu"))
    assert logits[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert {r: float(m[0, 0]) for r, m in kept["cam"].items()} == {1: 1.0, 3: 3.0}
    for wrong in ([part(0, 1), part(1)], [part(0), part(2)], [part(0, 1), part(2, 2)]):
        with pytest.raises(RuntimeError, match="once each"):
            _merged(wrong, 3, torch.device("cpu"))


# -- the real thing ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_killed_process_ends_the_training_and_the_same_command_goes_on(world, tmp_path, monkeypatch):
    method = precise(tmp_path, "classifier")
    bare = Bare(world, method, overrides={"train": {"epochs": "4"}}, run={"devices": 2})
    started, honest = [], ddp_launcher.Rank.start
    monkeypatch.setattr(ddp_launcher.Rank, "start", lambda *asked: started.append(honest(*asked)) or started[-1])

    def report(event):
        if event.get("epoch") == 2:
            os.kill(started[1].process.pid, signal.SIGKILL)

    bare.ctx.report = report
    with pytest.raises(BenchError, match=r"process 2 .* was ended by SIGKILL"):
        bare.do(["train"])
    assert all(r.process.poll() is not None for r in started)
    assert (bare.ctx.store.run_dir(bare.last_training.key) / "resume" / "state.json").is_file()
    bare.ctx.report = lambda event: None
    bare.do(["train"])
    found = history(world)
    world.results = tmp_path / "alone"
    Bare(world, method, overrides={"train": {"epochs": "4"}}).do(["train"])
    same(found, history(world), 1e-4)


@pytest.mark.slow
def test_nothing_stays_behind_a_killed_parent(world, tmp_path):
    program = f"""
        from pathlib import Path
        from tests.benchmark.conftest import World
        from tests.faults.training import Bare
        from wsolbench.benchmark.distributed import ddp_launcher
        honest = ddp_launcher.Rank.start
        def start(number, program):
            rank = honest(number, program)
            Path({str(tmp_path)!r}, f"pid{{number}}").write_text(str(rank.process.pid))
            return rank
        ddp_launcher.Rank.start = start
        world = World(Path({str(world.csv)!r}), Path({str(world.results)!r}))
        bare = Bare(world, "classifier", overrides={{"train": {{"epochs": "500"}}}}, run={{"devices": 2}})
        bare.ctx.report = lambda event: Path({str(tmp_path)!r}, "training").touch()
        bare.do(["train"])
    """
    code = textwrap.dedent(program)
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 240
    while not (tmp_path / "training").exists():
        assert parent.poll() is None
        assert time.monotonic() < until
        time.sleep(0.2)
    parent.kill()
    parent.wait()
    for name in ("pid0", "pid1"):
        pid = int((tmp_path / name).read_text())
        until = time.monotonic() + 20
        while alive(pid):
            assert time.monotonic() < until, "a process outlived its parent"
            time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be asked for its exit code does not."""
    try:
        with open(f"/proc/{pid}/stat") as handle:  # noqa: PTH123
            return handle.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_halves_the_batches_of_all(world, tmp_path):
    (tmp_path / "greedy.py").write_text(
        textwrap.dedent('''
            import torch
            from wsolbench.methods.base import register
            from wsolbench.methods.classifier import Classifier

            @register("greedy", family="test", kind="none", supervision="image", backbone=("grid",),
                      options={"dropout": 0.1})
            class Greedy(Classifier):
                """Holds four images a process."""

                def loss(self, batch, context):
                    if context.shard is not None and len(batch.labels) > 4 and context.shard.own[0].start:
                        raise torch.OutOfMemoryError("CUDA out of memory")
                    return super().loss(batch, context)
        ''')
    )
    bare = Bare(world, str(tmp_path / "greedy.py"), overrides={"train": {"batch_size": "16"}}, run={"devices": 2})
    bare.do(["train"])
    facts = bare.ctx.store.record(bare.last_training.key)["facts"]
    assert facts["micro_batch"] == {"asked": 0, "used": 8}
    assert facts["devices"] == 2


def test_what_is_gathered_survives_the_way():
    from wsolbench.benchmark.distributed.fabric_group import _on_cpu

    part = _Part([0], torch.ones(1, 1), {"a": {3: torch.zeros(2)}})
    there = _on_cpu(part)
    assert isinstance(there, _Part)
    assert there.rows == [0]
    assert np.array_equal(there.kept["a"][3].numpy(), [0, 0])
