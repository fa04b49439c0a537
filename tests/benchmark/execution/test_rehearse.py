"""What `--dry-run` refuses is what a run would refuse, without decoding images or fetching weights."""

import csv
from dataclasses import replace

import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.data.image_cache import ImageCache
from wsolbench.benchmark.execution import preflight as checks
from wsolbench.benchmark.execution.preflight import rehearse
from wsolbench.benchmark.planning.planner import Planner
from wsolbench.methods.backbones import weights_hub


@pytest.fixture
def tried(world, monkeypatch):
    """Rehearses a request; decoding anything would fail."""
    monkeypatch.setattr(ImageCache, "prepare", lambda *_: pytest.fail("decoded"))

    def go(methods="cam", **changes):
        train = {"train": changes.pop("train")} if "train" in changes else {}
        planner = Planner(replace(world.request(methods, overrides=train), **changes))
        return rehearse(list(planner.build().stages.values()), planner)

    return go


def maskless(world, tmp_path):
    """The blobs' manifest without the mask of one training image of the class with a region."""
    lines = world.csv.read_text().splitlines()
    at = next(k for k, line in enumerate(lines) if not line.startswith("#"))
    rows = list(csv.DictReader(lines[at:]))
    bare = next(r for r in rows if r["split"] == "train" and r["mask"])
    bare["mask"] = ""
    path = world.csv.parent / f"maskless-{tmp_path.name}.csv"
    with path.open("w", newline="") as handle:
        handle.writelines(f"{line}\n" for line in lines[:at])
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_a_request_that_works_is_not_refused(tried):
    assert tried("cam,pixelcam,unet,constant") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "gradcam:scorecamm"}, "no explainer 'scorecamm'.*ScoreCAM"),
        ({"backbones": ("hiera_tiny_224",)}, "'hiera_tiny_224' gives no feature grid; choose another network of timm"),
        ({"backbones": ("vit_relpos_small_patch16_224",), "train": {"stride": "0"}},
         "no feature grid for images of 32x32 px"),
        ({"backbones": ("resnet5O",)}, "Did you mean resnet50"),
        ({"backbones": ("resnet5O",), "weights": "imagenet"}, "Did you mean resnet50"),
        ({"backbones": ("resnet18.nosuchtag",), "weights": "imagenet", "preset": "quick"}, "no weights 'nosuchtag'"),
        ({"methods": "negev", "backbones": ("cait_xxs24_224",), "train": {"image_size": "224", "load_size": "256",
          "stride": "0"}}, "needs a backbone with pyramid; cait_xxs24_224 offers grid"),
        ({"train": {"stride": "5"}}, "cannot have a grid stride of 5"),
    ],
)  # fmt: skip
def test_what_no_machine_could_do_is_refused(tried, changes, message):
    with pytest.raises(BenchError, match=message):
        tried(**changes)


def test_missing_masks_of_an_upper_bound_are_refused(tried, world, tmp_path):
    datasets = (maskless(world, tmp_path),)
    with pytest.raises(BenchError, match="'unet' learns from masks, but 1 training images"):
        tried("unet", datasets=datasets)
    assert tried("cam", datasets=datasets) == []


def test_what_this_machine_lacks_is_told_and_what_is_wrong_is_refused_all_the_same(tried, world, monkeypatch):
    monkeypatch.setattr(checks, "why_no_gpu", lambda: "There is no NVIDIA driver.")
    monkeypatch.setattr(weights_hub, "_ask", lambda url: "Name or service not known")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    lacking = {"weights": "imagenet", "preset": "quick", "run": replace(world.request("cam").run, device="auto")}
    gpu, hub = tried(**lacking)
    assert "There is no NVIDIA driver." in gpu
    assert "The ImageNet weights test_resnet.r160_in1k are not on this machine" in hub
    with pytest.raises(BenchError, match="no explainer 'scorecamm'"):
        tried("gradcam:scorecamm", **lacking)


def test_weights_that_could_be_fetched_are_not_fetched(tried, monkeypatch):
    monkeypatch.setattr(weights_hub, "_ask", lambda url: "")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("fetched"))
    assert tried(weights="imagenet") == []
