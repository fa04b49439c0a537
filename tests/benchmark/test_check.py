"""`bench check`: sound methods pass, and each broken promise is found at its own line."""

import pytest

from wsolbench.benchmark.check import CHECKS, run_checks
from wsolbench.benchmark.cli.new_method import TEMPLATE

EXPLAINER = '''"""An explainer."""
import torch
from wsolbench.methods.base import register

@register("NAME", needs=("checkpoint:classifier",)FACTS)
def NAME(evidence, options):
    """A map."""
    m = (evidence.gradients * evidence.activations).sum(1)
    BODY
'''

FAULTS = {
    "upside_down": (6, "return -m", ""),
    "random_map": (1, "return m + torch.rand_like(m)", ""),
    "changes_model": (1, "evidence.explained.head.weight.data.mul_(2); return m", ""),
    "leaves_hook": (1, "evidence.explained.backbone.register_forward_hook(lambda *a: None); return m", ""),
    "wrong_shape": (3, "return m[:, None]", ""),
    "mixes_batch": (3, "return m - m.mean()", ""),
    "not_prob": (3, "return m * 9", ', kind="prob"'),
    "class_agnostic": (5, "return m", ", class_specific=False"),
    "tilted": (7, "return m + 5 * m.std() * torch.arange(m.shape[-1])", ""),
}


def results(path, folder):
    return {r.line: r for r in run_checks(str(path), folder, "test_resnet")}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_at_its_line(name, tmp_path):
    line, body, facts = FAULTS[name]
    path = tmp_path / f"{name}.py"
    path.write_text(EXPLAINER.replace("NAME", name).replace("BODY", body).replace("FACTS", facts))
    found = results(path, tmp_path / "check")
    assert found[line].state == "broken", found[line]
    assert found[line].detail


def test_the_template_keeps_the_contract_in_sixty_lines(tmp_path):
    path = tmp_path / "fresh_one.py"
    text = TEMPLATE.replace("CLASS", "FreshOne").replace("NAME", "fresh_one")
    path.write_text(text)
    assert len(text.splitlines()) <= 60
    found = results(path, tmp_path / "check")
    assert len(found) == len(CHECKS)
    assert not [r for r in found.values() if r.state == "broken"]


TRAINED = {
    "nan_alone": (2, "loss", "F.cross_entropy(logits, batch.labels) / batch.labels.float().std(unbiased=False)"),
    "thaws": (4, "freeze", ""),
}


@pytest.mark.parametrize("name", TRAINED)
def test_faults_of_training(name, tmp_path):
    line, what, body = TRAINED[name]
    text = TEMPLATE.replace("CLASS", "Trained").replace("NAME", name)
    if what == "loss":
        old = 'return {"total": F.cross_entropy(self.classify(self.features(batch.images)), batch.labels)}'
        text = text.replace(
            old, f'logits = self.classify(self.features(batch.images))\n        return {{"total": {body}}}'
        )
    else:  # frozen by flag alone: BatchNorm statistics still move in train mode
        old = "    def features(self"
        text = text.replace(
            old, "    def setup(self, context):\n        self.backbone.requires_grad_(False)\n\n" + old, 1
        )
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    found = results(path, tmp_path / "check")
    assert found[line].state == "broken", found
    assert not [r for r in found.values() if r.state == "broken" and r.line < line]


def test_a_vision_transformer_keeps_the_contract_too(tmp_path):
    assert not [r for r in run_checks("layercam", tmp_path, "test_vit") if r.state == "broken"]


@pytest.mark.parametrize("name", ["layercam", "pixelcam", "darkness", "random", "classifier"])
def test_the_suites_own_methods_keep_the_contract(name, tmp_path):
    assert not [r for r in run_checks(name, tmp_path, "test_resnet") if r.state == "broken"]
