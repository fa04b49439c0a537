"""Methods with an EMA teacher and with three updates a batch: stopped, killed, in parts, on two devices, checked."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.test_ddp import history, same
from tests.faults.test_stop import SETTINGS, Asked, chain
from tests.faults.training import Bare, trained
from wsolbench.benchmark.conformance.suite import run_checks

PLUGINS = Path(__file__).parents[1] / "plugins"
FILES = ["mean_teacher.py", "discrepancy.py"]
NUMBERS = itertools.count()


@pytest.mark.parametrize("file", FILES)
def test_stopped_at_every_step_it_goes_on_bit_for_bit(world, tmp_path, monkeypatch, file):
    train = {**SETTINGS, "micro_batch": "5"}
    Bare(world, str(PLUGINS / file), overrides={"train": dict(train)}).do(["train"])
    expected = trained(world)
    world.results = tmp_path / "stopped"
    left = chain(Bare(world, str(PLUGINS / file), overrides={"train": dict(train)}), Asked(monkeypatch))
    assert "0002-000001.safetensors" in left
    assert trained(world) == expected


KILLED = """
import os, signal
from pathlib import Path
from tests.benchmark.conftest import World
from tests.faults.training import Bare
from wsolbench.benchmark.training import train_step

honest = train_step.train_step

def killed(job, *rest):
    if job.context.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(job, *rest)

train_step.train_step = killed
world = World(Path({csv!r}), Path({results!r}))
Bare(world, {method!r}, overrides={{"train": {train!r}}}).do(["train"])
"""


@pytest.mark.parametrize("file", [FILES[0], pytest.param(FILES[1], marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_an_epoch_it_goes_on_from_the_last_one(world, tmp_path, file):
    """Four steps an epoch: SIGKILL strikes before the third of the second."""
    method, train = str(PLUGINS / file), {"epochs": "3", "batch_size": "8"}

    def made():
        return Bare(world, method, overrides={"train": dict(train)})

    made().do(["train"])
    expected = trained(world)
    world.results = tmp_path / "killed"
    program = KILLED.format(csv=str(world.csv), results=str(world.results), method=method, train=train)
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not trained(world)
    state = world.store.run_dir(made().last_training.key) / "resume" / "state.json"
    assert json.loads(state.read_text())["epoch"] == 1
    made().do(["train"])
    assert trained(world) == expected


COUNTS = '''
import json
from pathlib import Path

from wsolbench.methods.base import register
from wsolbench.methods.classifier import Classifier


@register("counts", family="test", kind="none", supervision="image", backbone=("grid",), options={"dropout": 0.0})
class Counts(Classifier):
    """Tells the counters it sees."""

    def tell(self, place, context):
        seen = [place, context.epoch, context.step, context.steps_per_epoch, context.progress]
        with Path(TOLD).open("a") as handle:
            print(json.dumps(seen), file=handle)

    def on_epoch_start(self, context):
        self.tell("start", context)

    def loss(self, batch, context):
        self.tell("loss", context)
        return super().loss(batch, context)

    def on_step_end(self, context):
        self.tell("step", context)

    def on_epoch_end(self, context):
        self.tell("end", context)

    def lr_scale(self, context):
        return 1 - context.progress
'''


def test_counters_run_over_the_whole_training(world, tmp_path):
    told = tmp_path / "told.jsonl"
    (tmp_path / "counts.py").write_text(COUNTS.replace("TOLD", repr(str(told))))
    Bare(world, str(tmp_path / "counts.py"), overrides={"train": {"epochs": "2", "batch_size": "11"}}).do(["train"])
    expected = []
    for epoch, done in ((1, 0), (2, 3)):
        expected.append(["start", epoch, done, 3, done / 6])
        for step in range(done, done + 3):
            expected += [["loss", epoch, step, 3, step / 6], ["step", epoch, step, 3, step / 6]]
        expected.append(["end", epoch, done + 3, 3, (done + 3) / 6])
    assert [json.loads(line) for line in told.read_text().splitlines()] == expected
    assert [line["lr"] for line in history(world)[1:]] == pytest.approx([0.05 * 0.5, 0.0])


DOUBLE = """

@register("NAME"FACTS)
class Precise(CLASS):
    def setup(self, context):
        super().setup(context)
        self.double()

    def augment(self, batch, context):
        batch.images, batch.views = batch.images.double(), tuple(v.double() for v in batch.views)
        return batch

    def predict(self, images, classes=None):
        logits, maps = super().predict(images.double(), classes)
        return Prediction(logits.float(), maps.float())
"""


def precise(folder, file):
    """The same method in double precision, where two ways to the same number differ by next to nothing."""
    name = f"precise-{Path(file).stem}-{next(NUMBERS)}"  # a name is registered once in a process
    before, _, rest = (PLUGINS / file).read_text().partition("@register(")
    facts, _, body = rest.partition(")\nclass ") if ")\nclass " in rest else rest.partition(")  # fmt: skip\nclass ")
    added = DOUBLE.replace("NAME", name).replace("CLASS", body.partition("(")[0])
    added = added.replace("FACTS", "," + facts.partition(",")[2])
    path = folder / f"{name}.py"
    path.write_text(f"{before}class {body}{added}")
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_two_processes_train_as_one_does(world, tmp_path, file):
    """Batch statistics of three forward passes a step, an EMA of buffers, and parts of batches."""
    method = precise(tmp_path, file)

    def made(**run):
        return Bare(
            world, method, overrides={"train": {"epochs": "2", "batch_size": "16", "micro_batch": "8"}}, run=run
        )

    made().do(["train"])
    expected = history(world)
    world.results = tmp_path / "shared"
    made(devices=2).do(["train"])
    same(history(world), expected, 1e-6)


BANK = '''
import torch
import torch.nn.functional as F

from wsolbench.methods.base import Prediction, register
from wsolbench.methods.classifier import Classifier


@register("bank", family="test", kind="none", supervision="image", backbone=("grid",), options={"dropout": 0.0})
class Bank(Classifier):
    """Pulls every image towards what it said in earlier epochs."""

    def __init__(self, backbone, num_classes, options):
        super().__init__(backbone, num_classes, options)
        self.register_buffer("bank", torch.full((32, num_classes), 1 / num_classes))

    def setup(self, context):
        self.double()

    def loss(self, batch, context):
        logits = self.classify(self.features(batch.images))
        rows = context.gathered(batch.indices)
        with torch.no_grad():
            self.bank[rows] = self.bank[rows].lerp(context.gathered(logits.softmax(1)), 0.5)
        agreement = (logits.softmax(1) * self.bank[batch.indices]).sum(1).clamp(max=0.999)
        return {"total": F.cross_entropy(logits, batch.labels) + (1 - agreement).log().mean(), "bank": self.bank.std()}

    def features(self, images):
        return super().features(images.double())

    def predict(self, images, classes=None):
        return Prediction(super().predict(images, classes).logits.float(), None)
'''


@pytest.mark.slow
def test_a_memory_bank_is_the_same_in_all_processes(world, tmp_path):
    (tmp_path / "bank.py").write_text(BANK)

    def made(**run):
        return Bare(world, str(tmp_path / "bank.py"), overrides={"train": {"epochs": "3", "batch_size": "16"}}, run=run)

    made().do(["train"])
    expected = history(world)
    world.results = tmp_path / "shared"
    made(devices=2).do(["train"])
    same(history(world), expected, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_it_keeps_the_contract(tmp_path, file):
    results = list(run_checks(str(PLUGINS / file), tmp_path, "test_resnet"))
    assert [(r.line, r.detail) for r in results if r.state == "broken"] == []
