"""A training that diverges and one that fails: told by status, report and table as what they are, never as a number."""

import csv
import json
from pathlib import Path

import pytest

METHOD = '''"""A linear head whose loss goes wrong in its second epoch."""
import torch
import torch.nn.functional as F
from torch import nn
from wsolbench.methods.base import Method, Prediction, register


@register("{name}", family="test")
class Wrong(Method):
    """Learns one epoch."""

    def __init__(self, backbone, num_classes, options):
        super().__init__()
        self.backbone, self.head, self.epoch = backbone, nn.Linear(backbone.dims[-1], num_classes), 0

    def on_epoch_start(self, context):
        self.epoch = context.epoch

    def loss(self, batch, context):
        total = F.cross_entropy(self.head(self.backbone.grid(batch.images).mean((2, 3))), batch.labels)
        if self.epoch == 2:
            {deed}
        return {{"total": total}}

    def predict(self, images, classes=None):
        grid = self.backbone.grid(images)
        logits = self.head(grid.mean((2, 3)))
        classes = logits.argmax(1) if classes is None else classes
        return Prediction(logits, torch.einsum("bd,bdhw->bhw", self.head.weight[classes], grid))
'''
DEEDS = {"explosive": 'total = total * float("nan")', "faulty": 'raise ValueError("<b>no idea</b> | _x_")'}


@pytest.fixture(scope="module")
def ran(matrix, tmp_path_factory):
    """A run of a sound method, one whose loss becomes NaN, and one that raises; and its results folder."""
    folder = tmp_path_factory.mktemp("failed")
    files = []
    for name, deed in DEEDS.items():
        files.append(folder / f"{name}.py")
        files[-1].write_text(METHOD.format(name=name, deed=deed))
    return matrix.run(folder / "r", methods=",".join(["cam", *map(str, files)])), folder / "r"


@pytest.fixture(scope="module")
def written(matrix, ran) -> dict[str, str]:
    """The text of every file of its report but the pages with figures."""
    made = matrix.bench("report", "--results", ran[1], "--format", "tex,csv")
    assert made.returncode == 0, made.stderr
    return {p.name: p.read_text() for p in (ran[1] / "report").iterdir() if p.is_file()}


def test_the_run_ends_with_1_and_the_sound_method_is_there(ran):
    done, results = ran
    assert done.returncode == 1, done.stderr
    assert "PxAP" in done.stdout
    kinds = {json.loads(p.read_text())["labels"]["method"] for p in results.glob("runs/*/record.json")}
    assert kinds == {"cam", "classifier"}


def test_status_says_which_diverged_and_which_failed(matrix, ran):
    text = matrix.bench("status", "--results", ran[1]).stdout
    assert any(line.startswith("DIVERGED") and "train explosive" in line for line in text.splitlines())
    assert any(line.startswith("FAILED") and "train faulty" in line for line in text.splitlines())
    told = json.loads(matrix.bench("status", "--results", ran[1], "--json").stdout)
    found = {f["method"]: f for f in told["failed"]}
    assert (found["explosive"]["status"], found["explosive"]["epoch"]) == ("diverged", 2)
    assert found["explosive"]["ids"]
    assert all(i.startswith("train_") for i in found["explosive"]["ids"])
    assert found["faulty"]["status"] == "failed"


def test_the_report_has_them_without_numbers(written):
    assert "diverged (epoch 2)" in written["report.tex"]
    assert "Not finished, so in no number here: explosive on" in written["report.tex"]
    rows = list(csv.DictReader(written["rows.csv"].splitlines()))
    (explosive,) = [r for r in rows if r["method"] == "explosive"]
    (faulty,) = [r for r in rows if r["method"] == "faulty"]
    assert (explosive["status"], faulty["status"]) == ("diverged", "failed")
    for row in (explosive, faulty):
        assert not any(row[k] for k in ("pxap", "accuracy", "dice_tau_val", "chance", "images", "seconds_train"))
    assert "no idea" in faulty["error"]
    assert {r["status"] for r in rows if r["method"] == "cam"} == {"finished"}


def test_json_rows_are_the_finished_ones_alone(matrix, ran):
    told = json.loads(matrix.bench("report", "--results", ran[1], "--json").stdout)
    assert {r["method"] for r in told} == {"cam"}


def test_nothing_but_failures_is_said_so(matrix, ran, tmp_path: Path):
    for path in ran[1].glob("runs/*/failure.json"):
        target = tmp_path / "runs" / path.parent.name
        target.mkdir(parents=True)
        (target / "failure.json").write_bytes(path.read_bytes())
    done = matrix.bench("report", "--results", tmp_path)
    assert done.returncode == 2
    assert "no finished row yet" in done.stderr
    assert "1 diverged and 1 failed" in done.stderr
