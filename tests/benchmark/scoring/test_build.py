"""Building methods: the layout of weights, and a compiled backbone that hooks still see."""

import copy

import pytest
import torch

from wsolbench.benchmark.planning.config import TrainConfig
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring.build import build_method
from wsolbench.methods.classifier import Classifier
from wsolbench.methods.factory import compile_backbone


def build(name="classifier"):
    return build_method(Resolver({}).ref(name), "test_resnet", TrainConfig(), 2, 0).eval()


def test_convolutions_keep_their_weights_channels_last():
    weights = [p for p in build("negev").parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert len(weights) > 10
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_backbone_gives_the_same_and_hooks_still_see(backend):
    plain, compiled = build(), build()
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert compile_backbone(compiled, backend)
    for batch in (images, images[:2]):
        with torch.no_grad():
            torch.testing.assert_close(compiled.backbone.grid(batch), plain.backbone.grid(batch), rtol=1e-3, atol=1e-4)
    expected = plain.backbone.pyramid(images)
    for found, level in zip(compiled.backbone.pyramid(images), expected, strict=True):
        torch.testing.assert_close(found, level, rtol=1e-3, atol=1e-4)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    other = copy.deepcopy(compiled)  # an average of the weights, say: it has weights of its own
    with torch.no_grad():
        for parameter in other.backbone.parameters():
            parameter.zero_()
        assert not other.backbone.grid(images).any()


def test_other_layers_keep_their_layout(monkeypatch):
    class Odd(Classifier):
        def __init__(self, backbone, num_classes, options):
            super().__init__(backbone, num_classes, options)
            self.deep = torch.nn.Conv3d(2, 2, 3)
            self.table = torch.nn.Parameter(torch.zeros(2, 3, 4, 5))

    monkeypatch.setattr("wsolbench.benchmark.scoring.build.METHODS.load", lambda name: Odd)
    odd = build()
    assert odd.table.is_contiguous()
    assert odd.deep.weight.is_contiguous()


def test_a_method_without_a_backbone_is_left_alone():
    assert not compile_backbone(torch.nn.Linear(2, 2))
