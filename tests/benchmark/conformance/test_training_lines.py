"""The lines of `bench check` about training: each broken promise of losses, updates and hooks is found at its line."""

from pathlib import Path

import pytest

from wsolbench.benchmark.conformance import training_lines as lines
from wsolbench.benchmark.conformance.trial import BrokenError, SkippedError, exercise, prepare
from wsolbench.benchmark.core.errors import BenchError

PLUGINS = Path(__file__).parents[2] / "plugins"
METHOD = """
import copy

import torch
import torch.nn.functional as F
from torch import nn

from wsolbench.methods.base import Method, Prediction, Update, register


@register("NAME", family="test", kind="score", FACTS)
class Own(Method):
    def __init__(self, backbone, num_classes, options):
        super().__init__()
        self.backbone, self.head = backbone, nn.Conv2d(backbone.dims[-1], num_classes, 1)
        self.count = 0

    def loss(self, batch, context):
        logits = self.head(self.backbone.grid(batch.images)).mean((2, 3))
        return {"total": F.cross_entropy(logits, batch.labels)}

    def predict(self, images, classes=None):
        maps = self.head(self.backbone.grid(images))
        return Prediction(maps.mean((2, 3)), maps[:, 1])
BODY
"""


def bench(tmp_path, name, body="", facts='supervision="image"'):
    path = tmp_path / f"{name}.py"
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    path.write_text(METHOD.replace("NAME", name).replace("FACTS", facts).replace("BODY", indented))
    return prepare(str(path), tmp_path / "check", "test_resnet")


BROKEN = {
    "nan-update": (
        lines.check_loss, 'in update 2, the total is nan',
        "def updates(self, batch, context):\n"
        "    yield Update(self.loss)\n"
        "    yield Update(lambda b, c: {'total': self.loss(b, c)['total'] * float('nan')}, self.head.parameters())\n",
    ),
    "no-total": (
        lines.check_loss, 'on class 0 only, in update 2, there is no "total"',
        "def updates(self, batch, context):\n"
        "    yield Update(self.loss)\n"
        "    if len(batch.labels.unique()) == 1:\n"
        "        yield Update(lambda b, c: {'other': self.loss(b, c)['total']})\n",
    ),
    "foreign": (
        lines.check_loss, r"yielded parameters that param_groups\(\) does not give to the optimizer",
        "def updates(self, batch, context):\n"
        "    yield Update(self.loss, [nn.Parameter(torch.zeros(3))])\n",
    ),
    "uncut": (
        lines.check_loss, "The field 'twins' of a batch of 16 images holds a list of 16 entries",
        "def augment(self, batch, context):\n"
        "    batch.twins = [batch.images] * len(batch.labels)\n"
        "    return batch\n",
    ),
    "thawed": (
        lines.check_frozen, "frozen tensors moved, first backbone",
        "def setup(self, context):\n"
        "    self.backbone.requires_grad_(False)\n",
    ),
    "half": (
        lines.check_bf16, "under bfloat16 the loss 'total' is nan",
        "def augment(self, batch, context):\n"
        "    batch.scale = 1.0\n"
        "    return batch\n"
        "def loss(self, batch, context):\n"
        "    grid = self.head(self.backbone.grid(batch.images))\n"
        "    factor = batch.scale if grid.dtype == torch.float32 else float('nan')\n"
        "    return {'total': F.cross_entropy(grid.mean((2, 3)).float() * factor, batch.labels)}\n",
    ),
    "replaces": (
        lines.check_hooks, "changed the parameters or which of them train",
        "def on_step_end(self, context):\n"
        "    self.head = copy.deepcopy(self.head)\n",
    ),
    "switches": (
        lines.check_hooks, "changed the modes of modules",
        "def on_step_end(self, context):\n"
        "    self.backbone.eval()\n",
    ),
    "hooked": (
        lines.check_hooks, "changed the hooks",
        "def on_step_end(self, context):\n"
        "    self.head.register_forward_hook(lambda *a: None)\n",
    ),
    "infinite": (
        lines.check_hooks, "after a step head.bias is not finite",
        "def on_step_end(self, context):\n"
        "    self.head.bias.fill_(float('inf'))\n",
    ),
    "rates": (
        lines.check_hooks, r"lr_scale\(\) gave -1",
        "def lr_scale(self, context):\n"
        "    return -1\n",
    ),
    "forgets": (
        lines.check_resume, "stopped after 2 steps and resumed, .* tensors differ .* first ",
        "def loss(self, batch, context):\n"
        "    self.count += 1\n"
        "    logits = self.head(self.backbone.grid(batch.images)).mean((2, 3))\n"
        "    return {'total': F.cross_entropy(logits * self.count, batch.labels)}\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_promise_is_found(tmp_path, case):
    check, message, body = BROKEN[case]
    with pytest.raises((BrokenError, BenchError), match=message):
        check(bench(tmp_path, f"line-{case}", body))


LEANS_ON_AUGMENT = (
    "def augment(self, batch, context):\n"
    "    batch.noise = torch.rand(len(batch.labels), generator=context.generator)\n"
    "    batch.pairs = [torch.zeros(k, 2) for k in range(len(batch.labels))]\n"
    "    return batch\n"
    "def loss(self, batch, context):\n"
    "    assert len(batch.noise) == len(batch.pairs) == len(batch.labels)\n"
    "    logits = self.head(self.backbone.grid(batch.views[1])).mean((2, 3))\n"
    "    return {'total': F.cross_entropy(logits * batch.noise[:, None], batch.labels) + 0 * batch.groups.sum()}\n"
)


def test_losses_get_what_augment_made_views_and_groups(tmp_path):
    one = bench(tmp_path, "line-leans", LEANS_ON_AUGMENT, 'views=2, groups=True, sampling="class"')
    for check in (lines.check_loss, lines.check_bf16, lines.check_resume, exercise):
        assert check(one) is None
    with pytest.raises(SkippedError, match="nothing is frozen"):
        lines.check_frozen(one)
    with pytest.raises(SkippedError, match="neither updates"):
        lines.check_hooks(one)


@pytest.mark.parametrize("file", ["mean_teacher.py", "discrepancy.py"])
def test_sound_hooks_keep_every_line(tmp_path, file):
    one = prepare(str(PLUGINS / file), tmp_path, "test_resnet")
    for check in (lines.check_loss, lines.check_bf16, lines.check_hooks, lines.check_resume, exercise):
        assert check(one) is None


def test_what_is_frozen_beside_an_average_is_still_watched(tmp_path):
    body = (
        "def setup(self, context):\n"
        "    self.backbone.requires_grad_(False)\n"
        "    self.kept = copy.deepcopy(self.head).requires_grad_(False)\n"
        "def train(self, mode=True):\n"
        "    super().train(mode)\n"
        "    self.backbone.eval()\n"
        "    return self\n"
        "def on_step_end(self, context):\n"
        "    self.kept.weight.lerp_(self.head.weight, 0.1)\n"
    )
    one = bench(tmp_path, "line-kept", body)
    assert lines.check_frozen(one).endswith(" tensors")
