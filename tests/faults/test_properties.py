"""Properties that hold for any maps, masks, plans and values, on examples that hypothesis makes up."""

import itertools
import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsolbench.benchmark.core import intervals, metrics
from wsolbench.benchmark.core.files import canonical_json, key_of
from wsolbench.benchmark.core.metrics import BINS, THRESHOLDS, Histograms
from wsolbench.benchmark.core.protocols import PROTOCOLS
from wsolbench.benchmark.data.image_cache import ImageSplit
from wsolbench.benchmark.data.pixel_store import PixelStore
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.planning.planner import Planner
from wsolbench.benchmark.scoring.inference import (
    EvalTarget,
    PassSettings,
    PixelMasks,
    Task,
    evaluation_pass,
    validation_pass,
)
from wsolbench.benchmark.scoring.map_extractor import MapExtractor, MapRequest
from wsolbench.benchmark.scoring.map_scaling import histogram, scale_maps
from wsolbench.datasets.base import Item

quick = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**32 - 1)


# -- maps and masks --------------------------------------------------------------------------------------------------
def scene(seed: int, images: int = 5, side: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (N, side, side) in [0, 1], values at edges of bins among them, and masks that go with them a little."""
    rng = np.random.default_rng(seed)
    maps = rng.random((images, side, side), dtype=np.float32)
    edges = rng.random(maps.shape) < 0.3
    maps[edges] = rng.choice(THRESHOLDS, int(edges.sum())).astype(np.float32)
    masks = rng.random(maps.shape) < rng.uniform(0.05, 0.4) + 0.5 * maps
    masks[rng.random(images) < 0.2] = False  # some images show nothing
    masks[0, 0, :2] = True, False
    return torch.from_numpy(maps), torch.from_numpy(masks)


def counted(maps: torch.Tensor, masks: torch.Tensor) -> Histograms:
    return Histograms(*(h.numpy() for h in histogram(maps, masks)))


def joined(parts) -> Histograms:
    return Histograms(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@given(seeds, st.randoms(use_true_random=False))
@quick
def test_pxap_ignores_the_order_of_images_and_pixels(seed, rng):
    maps, masks = scene(seed)
    value = metrics.pxap(counted(maps, masks))
    order = rng.sample(range(len(maps)), len(maps))
    assert metrics.pxap(counted(maps[order], masks[order])) == value
    pixels = rng.sample(range(144), 144)
    shuffled = [t.flatten(1)[:, pixels].reshape(t.shape) for t in (maps, masks)]
    assert metrics.pxap(counted(*shuffled)) == value


@given(seeds, st.integers(0, 6), st.integers(0, 6))
@quick
def test_shards_add_up_to_the_whole(seed, one, two):
    maps, masks = scene(seed, images=6)
    first, last = sorted((one, two))
    whole = counted(maps, masks)
    parts = [counted(maps[a:b], masks[a:b]) for a, b in ((0, first), (first, last), (last, 6))]
    assert all(np.array_equal(a, b) for a, b in zip(joined(parts), whole, strict=True))
    pooled = joined([p.pooled() for p in parts])
    for metric in (metrics.pxap, metrics.best_tau, metrics.chance_level):
        assert metric(pooled) == metric(whole)
    assert metrics.at_tau(pooled, 0.5) == metrics.at_tau(whole, 0.5)
    rows = np.concatenate([metrics.pxap_rows(p) for p in parts])
    assert np.array_equal(rows, metrics.pxap_rows(whole), equal_nan=True)


def respecting(rng: random.Random, maps: torch.Tensor) -> torch.Tensor:
    """Maps under a strictly increasing transform that never joins or parts what a bin holds.

    Straight lines from bin to bin: each bin in use goes to one further up or down, in the same order, and inside a bin
    values are squeezed towards its middle.
    """
    bins = np.searchsorted(THRESHOLDS, maps.numpy().astype(np.float64), side="right") - 1
    used = np.unique(bins)
    targets = np.array(sorted(rng.sample(range(BINS - 1), len(used))))
    left = THRESHOLDS[bins]
    right = np.append(THRESHOLDS[1:], 1.001)[bins]
    within = 0.25 + 0.5 * (maps.numpy() - left) / (right - left)
    place = targets[np.searchsorted(used, bins)]
    return torch.from_numpy((THRESHOLDS[place] + within * 0.001).astype(np.float32))


@given(seeds, st.randoms(use_true_random=False))
@quick
def test_pxap_ignores_every_increasing_transform_that_respects_the_bins(seed, rng):
    maps, masks = scene(seed)
    moved = respecting(rng, maps)
    order = maps.flatten().argsort(stable=True)
    assert (moved.flatten()[order].diff() >= 0).all()
    assert metrics.pxap(counted(moved, masks)) == pytest.approx(metrics.pxap(counted(maps, masks)), abs=1e-9)


@given(seeds, st.floats(0.01, 100), st.floats(-100, 100))
@quick
def test_scores_scaled_per_image_ignore_their_unit_and_zero(seed, unit, zero):
    """But for values that rounding puts into the bin next door."""
    maps, masks = scene(seed)
    (one, _), (other, _) = (scale_maps(m, "score", "image") for m in (maps.double(), maps.double() * unit + zero))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert metrics.pxap(counted(one, masks)) == pytest.approx(metrics.pxap(counted(other, masks)), abs=0.5)


@given(seeds)
@quick
def test_curves_are_monotone_and_values_in_range(seed):
    histograms = counted(*scene(seed))
    curve = metrics.curve(histograms)
    for falling in (curve.tp, curve.fp, curve.recall, curve.fp / curve.negatives):
        assert (np.diff(falling) <= 0).all()
    assert 0 <= metrics.pxap(histograms) <= 100
    assert 0 <= metrics.chance_level(histograms) <= 100
    sensitivity = [metrics.at_tau(histograms, t)["sensitivity"] for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    specificity = [metrics.at_tau(histograms, t)["specificity"] for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert sensitivity == sorted(sensitivity, reverse=True)
    assert specificity == sorted(specificity)
    assert sensitivity[0] == 100


@given(seeds, st.floats(0, 1))
@quick
def test_a_map_that_says_nothing_scores_chance(seed, value):
    maps, masks = scene(seed)
    same = counted(torch.full_like(maps, value), masks)
    assert metrics.pxap(same) == pytest.approx(metrics.chance_level(same), abs=1e-9)
    # and so does one whose values have nothing to do with the mask: each bin holds the same share of foreground
    twice = Histograms(same.foreground + 2, same.background + 2)
    even = Histograms(*(np.repeat(h.sum(1, keepdims=True), BINS, 1) for h in twice))
    assert metrics.pxap(even) == pytest.approx(metrics.chance_level(even), abs=1e-9)


@given(seeds)
@quick
def test_better_maps_never_score_less(seed):
    """Raising foreground pixels to the top, one image after the other."""
    maps, masks = scene(seed)
    values = [metrics.pxap(counted(maps, masks))]
    for k in range(len(maps)):
        maps[k][masks[k]] = 1.0
        values.append(metrics.pxap(counted(maps, masks)))
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(values))


@given(seeds, st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_intervals_depend_on_groups_not_on_the_order_of_rows(seed, rng):
    maps, masks = scene(seed, images=12)
    groups = np.array([f"patient {rng.randrange(7)}" for _ in range(12)])
    whole, order = counted(maps, masks), np.array(rng.sample(range(12), 12))
    found = intervals.pxap_interval(whole, groups)
    again = intervals.pxap_interval(whole.select(order), groups[order])
    assert np.allclose(found, again, rtol=1e-12, equal_nan=True)
    logits, labels = np.random.default_rng(seed).normal(size=(12, 2)), np.arange(12) % 2
    accuracy = intervals.accuracy_interval(logits, labels, groups)
    again = intervals.accuracy_interval(logits[order], labels[order], groups[order])
    assert np.array_equal(accuracy, again, equal_nan=True)
    assert not found[0] > found[1]


# -- the passes ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Stores of 24 decoded images and masks, and two baselines that read them."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("stores")
    names, kept = [f"{k:064x}" for k in range(24)], []
    for name, shape, dtype in (("images", (16, 16, 3), np.uint8), ("masks", (16, 16), np.bool_)):
        store = PixelStore(folder / name, shape, dtype)
        growth = store.begin(names)
        for digest in names:
            growth.put(digest, rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype))
        growth.commit()
        kept.append(store)
    items = [Item(f"image {k}", folder / "i", folder / "m", k % 2, f"p{k // 4}", "test") for k in range(24)]
    return items, names, kept


def frames_of(images, rows) -> ImageSplit:
    items, names, (pixels, masks) = images
    digests = [names[r] for r in rows]
    return ImageSplit(tuple(items[r] for r in rows), pixels.rows(digests), masks.rows(digests))


def reader_and_tasks():
    views = [MapRequest(Resolver({}).ref(name), "any") for name in ("darkness", "random")]
    tasks = [Task(view, protocol) for view in views for protocol in PROTOCOLS.values()]
    return MapExtractor(None, tuple(views), (0, 1), 2), tasks


def scored(images, rows, batch: int) -> dict[str, Histograms]:
    reader, tasks = reader_and_tasks()
    target = EvalTarget(frames_of(images, rows), (0, 1))
    scales = {t.name: (0.2, 0.8) for t in tasks}
    return {
        n: s.histograms
        for n, s in evaluation_pass(reader, tasks, target, scales, PassSettings(torch.device("cpu"), batch))[1].items()
    }


@given(st.integers(1, 23), st.integers(1, 24), st.randoms(use_true_random=False))
@settings(max_examples=12, deadline=None)
def test_sharded_scoring_is_the_whole_whatever_the_batches(images, cut, batch, rng):
    order = rng.sample(range(24), 24)
    whole = scored(images, range(24), 24)
    parts = [scored(images, rows, batch) for rows in (order[:cut], order[cut:])]
    for name, histograms in whole.items():
        sharded = joined([p[name] for p in parts])
        back = np.argsort(order)
        for a, b in zip(sharded.select(back), histograms, strict=True):
            assert np.array_equal(a, b), name


@given(st.integers(1, 24))
@settings(max_examples=8, deadline=None)
def test_validation_is_the_same_whatever_the_batches(images, batch):
    reader, tasks = reader_and_tasks()
    frames = frames_of(images, range(24))
    rows = (3, 5, 20)
    masks = PixelMasks(rows, {t.protocol.mask_reduction: np.asarray(frames.masks)[list(rows)] for t in tasks})
    found = [
        validation_pass(reader, tasks, frames, masks, PassSettings(torch.device("cpu"), size))[1]
        for size in (24, batch)
    ]
    for task in tasks:
        one, other = (f[task.name] for f in found)
        assert one.scale == other.scale
        assert all(np.array_equal(a, b) for a, b in zip(one.histograms, other.histograms, strict=True))


# -- plans and keys --------------------------------------------------------------------------------------------------
METHODS = ("cam", "layercam", "pixelcam", "pixelcam:cam", "random", "darkness", "unet")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    from tests.benchmark.conftest import World
    from wsolbench.benchmark.conformance.synthetic_task import write_blobs

    world = World(write_blobs(tmp_path_factory.mktemp("plans")), tmp_path_factory.mktemp("results"))
    return lambda methods, **changes: world.request(",".join(methods), **changes)


@given(st.randoms(use_true_random=False))
@settings(max_examples=12, deadline=None)
def test_a_plan_does_not_depend_on_the_order_of_options(asked, rng):
    def shuffled(values):
        return tuple(rng.sample(values, len(values)))

    def planned(order):
        lists = {
            "seeds": order((0, 1, 2)),
            "protocols": order(("fair", "paper")),
            "backbones": order(("test_resnet", "test_vit")),
        }
        overrides = dict(order((("pixelcam", {"foreground": "3"}), ("classifier", {"dropout": "0.1"}))))
        from dataclasses import replace

        request = asked(order(METHODS), overrides=overrides, seeds=lists["seeds"], protocols=lists["protocols"])
        return Planner(replace(request, backbones=lists["backbones"])).build()

    one, other = planned(tuple), planned(shuffled)
    assert set(one.stages) == set(other.stages)
    assert set(one.rows) == set(other.rows)
    assert {k: s.parents for k, s in one.stages.items()} == {k: s.parents for k, s in other.stages.items()}
    seen: set[str] = set()
    for key, stage in other.stages.items():  # and parents still come first
        assert set(stage.parents.values()) <= seen
        seen.add(key)


plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    plain, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4), max_leaves=12
)


def reordered(value, rng):
    if isinstance(value, dict):
        return {k: reordered(value[k], rng) for k in rng.sample(sorted(value), len(value))}
    return [reordered(v, rng) for v in value] if isinstance(value, list) else value


@given(values, st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_one_text_and_one_key_per_value(value, rng):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text
    assert canonical_json(reordered(value, rng)) == text
    assert key_of(reordered(value, rng)) == key_of(value)
    assert text.isascii()


@given(values, values)
@settings(max_examples=80, deadline=None)
def test_other_values_have_other_keys(one, other):
    assert (canonical_json(one) == canonical_json(other)) == (key_of(one) == key_of(other))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_json_cannot_hold_has_no_key(bad):
    with pytest.raises(ValueError, match="JSON"):
        key_of({"x": [bad]})


def test_keys_are_those_of_every_machine():
    """Written down: a key that changes with a release of Python or numpy would lose all results."""
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5,null]}'
    assert key_of({"b": [1, 2.5, None], "a": "é"}) == "84afbf1d4853005f9dd0"
