"""Small models and batches for the tests of methods."""

from types import SimpleNamespace

import pytest
import torch

from wsolbench.methods.backbones.adapter import create_backbone
from wsolbench.methods.base import METHODS, Batch, Evidence, EvidenceSettings, Options, TrainContext
from wsolbench.methods.spec import method_spec

SIZE = (64, 96)


def build(name, backbone="test_resnet", stride=None, classes=3, **changed):
    """A method of random weights in eval mode, its classes and normalisation statistics not all alike."""
    torch.manual_seed(0)
    spec = method_spec(name)
    body = create_backbone(backbone, stride) if spec.backbone else None
    method = METHODS.load(spec.name)(body, classes, Options(**{**spec.options, **changed}))
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return method.eval()


def evidence(model, images=3, size=SIZE):
    """Evidence of a few random images, each asked about another class."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(images, 3, *size, generator=generator)
    classes = torch.arange(images) % 3
    return Evidence(pixels, classes, model, settings=EvidenceSettings([f"image-{i}" for i in range(images)], 7))


def explain(name, seen, **changed):
    """The maps of an explainer or baseline with its default options, some changed."""
    spec = method_spec(name)
    return METHODS.load(name)(seen, Options(**{**spec.options, **changed}))


def context(classes=2, regions=None):
    generator = torch.Generator().manual_seed(3)
    return TrainContext(0, 1, classes, regions or (True,) * classes, torch.device("cpu"), generator)


def batch(images=4, size=SIZE, classes=2, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(images, 3, *size, generator=generator),
        torch.arange(images) % classes,
        torch.arange(images),
        torch.rand(images, *size, generator=generator),
        torch.rand(images, *size, generator=generator) > 0.5,
    )


@pytest.fixture(autouse=True)
def one_thread():
    """Nets this small gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make():
    """The helpers above, since test files cannot import each other."""
    return SimpleNamespace(build=build, evidence=evidence, explain=explain, context=context, batch=batch, size=SIZE)
