import json

import pytest
from click.testing import CliRunner

from wsolbench.benchmark.cli import listing
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.methods.backbones.adapter import create_backbone
from wsolbench.methods.backbones.weights import IMAGENET_TAGS, PUBLISHED_SHAPES


def listed(*words):
    done = CliRunner().invoke(listing.list_, ["backbones", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("name", IMAGENET_TAGS)
def test_what_is_listed_is_what_the_network_is(name):
    body = create_backbone(name, device="meta")
    measured = (body.strides[-1], tuple(body.possible_strides()), tuple(sorted(body.abilities)))
    assert PUBLISHED_SHAPES[name] == measured


def test_published_backbones_with_statistics_strides_and_abilities():
    rows = {r["name"]: r for r in json.loads(listed("--json"))}
    assert set(rows) == {*IMAGENET_TAGS, "any timm name"}
    vit = rows["vit_tiny_patch16_224"]
    assert (vit["mean"], vit["std"], vit["stride"]) == ([0.5] * 3, [0.5] * 3, 16)
    assert rows["inception_v3"]["strides"] == [8, 32]
    text = listed()
    assert (
        "mean 0.485 0.456 0.406, std 0.229 0.224 0.225; stride 32 (or 1, 2, 4, 8, 16); batchnorm grid pyramid" in text
    )
    assert "imagenet = deit_tiny_patch16_224.fb_in1k" in text


def test_a_pattern_measures_the_networks_of_timm_that_fit():
    first, second = json.loads(listed("--json", "test_vit*"))[:2]
    assert (first["name"], first["stride"], first["mean"]) == ("test_vit", 16, [0.5] * 3)
    assert "attention" in first["abilities"]
    assert second["name"].startswith("test_vit")
    (refused,) = json.loads(listed("--json", "hiera_tiny_224"))
    assert (refused["abilities"], "gives no feature grid" in refused["summary"]) == ([], True)
    (one,) = json.loads(listed("--json", "test_convnext"))
    assert one["strides"] == [32]


def test_a_pattern_that_fits_nothing_or_too_much_is_refused():
    with pytest.raises(BenchError, match="Did you mean resnet50"):
        listing._measured_backbones("resnet5O")
    with pytest.raises(BenchError, match=r"networks of timm fit '\*vit\*', more than"):
        listing._measured_backbones("*vit*")
    done = CliRunner().invoke(listing.list_, ["methods", "vit*"])
    assert done.exit_code == 2
    assert "a pattern goes with backbones" in done.output
