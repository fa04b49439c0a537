"""Mean and deviation belong to the weights: which ones are taken, said and refused."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.methods.backbones import normalisation
from wsolbench.methods.backbones.adapter import create_backbone
from wsolbench.methods.backbones.loading import load_weights
from wsolbench.methods.backbones.normalisation import HALF, IMAGENET, Statistics, normalisation_notice, origin_of
from wsolbench.methods.backbones.weights import IMAGENET_TAGS, imagenet_tag


def weights_file(folder, metadata=None, name="w.safetensors"):
    torch.manual_seed(0)
    state = {n: t.clone() for n, t in create_backbone("test_resnet").net.state_dict().items()}
    save_file(state, folder / name, metadata)
    return str(folder / name)


def test_the_table_says_what_timm_says():
    for name, known in normalisation.STATISTICS.items():
        tags = [name, *([imagenet_tag(name)] if name in IMAGENET_TAGS else [])]
        for tag in tags:
            config = timm.get_pretrained_cfg(tag)
            assert known == Statistics(tuple(config.mean), tuple(config.std)), tag


@pytest.mark.parametrize(
    ("backbone", "weights", "wanted"),
    [
        ("resnet50", "imagenet", IMAGENET),
        ("vit_tiny_patch16_224", "imagenet", HALF),
        ("deit_tiny_patch16_224", "imagenet", IMAGENET),
        ("inception_v3", "none", HALF),
        ("inception_v3.gluon_in1k", "imagenet", IMAGENET),  # another tag of the same network has others
        ("tf_efficientnet_lite0", "imagenet", HALF),
        ("vit_base_patch16_clip_224.openai", "none", "clip"),
    ],
)
def test_statistics_are_those_of_the_exact_tag(backbone, weights, wanted):
    found = origin_of(backbone, weights)
    if wanted == "clip":
        wanted = Statistics(*(tuple(v) for v in (timm.data.OPENAI_CLIP_MEAN, timm.data.OPENAI_CLIP_STD)))
    assert found == (wanted, "timm")
    assert origin_of(backbone, weights, "imagenet") == (IMAGENET, "imagenet")


def test_a_backbone_knows_its_own(tmp_path):
    assert create_backbone("test_vit", device="meta").statistics == HALF
    assert create_backbone("resnet18", device="meta").statistics == IMAGENET


def test_a_file_carries_its_own(tmp_path):
    path = weights_file(tmp_path, {"mean": "[0.7, 0.5, 0.6]", "std": "[0.1, 0.2, 1]", "format": "pt"})
    assert origin_of("test_resnet", path) == (Statistics((0.7, 0.5, 0.6), (0.1, 0.2, 1.0)), "file")
    load_weights(create_backbone("test_resnet"), path)
    assert "mean 0.7 0.5 0.6, deviation 0.1 0.2 1, as the metadata of w.safe" in normalisation_notice(
        "test_resnet", path, "weights"
    )


def test_a_file_that_says_nothing_takes_those_of_the_network_and_says_so(tmp_path):
    path = weights_file(tmp_path)
    assert origin_of("test_resnet", path) == (HALF, "timm")
    said = normalisation_notice("test_resnet", path, "weights")
    assert said == (
        "test_resnet: w.safetensors states no mean and deviation; images are normalised by mean 0.5 0.5 0.5, "
        "deviation 0.5 0.5 0.5, as timm states for test_resnet."
    )
    assert "by ImageNet's mean and deviation" in normalisation_notice("resnet18", path, "weights")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"mean": "[0.5, 0.5, 0.5]"}, r"w.safetensors: the 'std' in its metadata is missing"),
        ({"std": "[0.5, 0.5, 0.5]"}, "the 'mean' in its metadata is missing"),
        ({"mean": "0.5", "std": "[1, 1, 1]"}, "'mean' in its metadata is '0.5'"),
        ({"mean": "[0.5, 0.5]", "std": "[1, 1, 1]"}, "three finite numbers"),
        ({"mean": "[0, 0, NaN]", "std": "[1, 1, 1]"}, "three finite numbers"),
        ({"mean": "[0, 0, 0]", "std": "[1, 0, 1]"}, "each above 0"),
        ({"mean": "[0, 0, 0]", "std": "[1, 1, Infinity]"}, "each above 0"),
        ({"mean": "[0, 0, 0]", "std": '["1", "1", "1"]'}, "three finite numbers"),
        ({"mean": "[true, 0, 0]", "std": "[1, 1, 1]"}, "three finite numbers"),
        ({"mean": "(0, 0, 0)", "std": "[1, 1, 1]"}, "JSON list"),
    ],
)
def test_statistics_that_make_no_sense_are_refused_by_file(tmp_path, metadata, message):
    with pytest.raises(BenchError, match=message):
        origin_of("test_resnet", weights_file(tmp_path, metadata))


def test_what_was_taken_is_said_where_it_is_not_to_be_expected():
    assert normalisation_notice("resnet18", "imagenet", "weights") == ""
    assert normalisation_notice("resnet18", "imagenet", "imagenet") == ""
    assert "mean 0.5 0.5 0.5" in normalisation_notice("test_vit", "none", "weights")
    said = normalisation_notice("inception_v3", "imagenet", "imagenet")
    assert said.startswith("inception_v3: images are normalised by ImageNet's mean and deviation, as in the papers")
    assert "its weights were made for mean 0.5 0.5 0.5" in said


def test_normalising_and_back():
    images = torch.rand(2, 3, 4, 5)
    for known in (IMAGENET, HALF):
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (known.mean, known.std))
        there = known.normalise(images.clone())
        torch.testing.assert_close(there, (images - mean) / std)
        torch.testing.assert_close(known.restore(there), images)
    white = HALF.normalise(torch.ones(1, 3, 1, 1))
    assert white.flatten().tolist() == [1, 1, 1]


def test_published_networks_are_known_without_torch():
    code = (
        "import json, sys; from wsolbench.methods.backbones.normalisation import origin_of as o;"
        "print(json.dumps([o('resnet18', 'imagenet')[0].mean, o('vit_tiny_patch16_224', 'none')[0].mean,"
        "o('resnet50.tv_in1k', 'imagenet')[0].mean]), 'torch' in sys.modules, 'timm' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    numbers, _, modules = out.strip().partition("]] ")
    assert json.loads(numbers + "]]") == [list(IMAGENET.mean), list(HALF.mean), list(IMAGENET.mean)]
    assert modules == "False False"


def test_real_imagenet_weights_load_and_are_fed_what_they_were_made_for(shared_imagenet):
    body = create_backbone("tf_efficientnet_lite0")
    found = load_weights(body, str(shared_imagenet))
    assert (found["source"], found["ignored"]) == ("file", ["classifier.bias", "classifier.weight"])
    assert body.statistics == origin_of("tf_efficientnet_lite0", str(shared_imagenet)).statistics == HALF
    assert origin_of("resnet18", str(shared_imagenet)).statistics == IMAGENET  # the file itself says nothing
    body.eval()
    grey = torch.full((1, 3, 224, 224), 0.5)
    with torch.no_grad():
        grid = body.grid(HALF.normalise(grey))
    assert grid.shape[1:] == (1280, 7, 7)
    assert torch.isfinite(grid).all()
