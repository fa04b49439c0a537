"""Sampled pixels and ranks in whole passes: what batches, memory and a monotone change of scores may not alter."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.benchmark.training.test_no_wait import Watcher
from wsolbench.benchmark.core.files import file_sha256, read_npz
from wsolbench.benchmark.core.metrics import best_tau, pxap
from wsolbench.benchmark.core.protocols import get_protocol
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.data.image_cache import DecodeRequest, ImageCache, MaskForm
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring import inference
from wsolbench.benchmark.scoring import map_scaling as mapping
from wsolbench.benchmark.scoring.inference import (
    EvalTarget,
    PassSettings,
    PixelMasks,
    Task,
    evaluation_pass,
    validation_pass,
)
from wsolbench.benchmark.scoring.map_extractor import MapRequest
from wsolbench.benchmark.scoring.map_scaling import MapScale, Refusals, rank_levels, scale_later
from wsolbench.benchmark.scoring.pixel_sample import interpolated, on_device, sample_facts
from wsolbench.datasets.csv_manifest import CsvDataset
from wsolbench.methods.backbones.normalisation import IMAGENET

CPU = torch.device("cpu")
BY_RANK = get_protocol("fair", binning="validation")


class Maps:
    """A reader whose map is how little green an image has, changed by a function."""

    model, statistics, watch, num_classes = None, IMAGENET, None, 2

    def __init__(self, view, change, runs_out_above=99):
        self.view, self.change, self.most = view, change, runs_out_above

    def part(self, name):
        return inference.MapExtractor.part(SimpleNamespace(watch=None), name)

    def read(self, images, labels, ids):
        if len(ids) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        native = -torch.nn.functional.avg_pool2d(images[:, 1], 4).double()
        return torch.zeros(len(ids), 2), {self.view.name: self.change(native)}


@pytest.fixture(scope="module")
def frames(blobs, tmp_path_factory):
    folder, dataset = tmp_path_factory.mktemp("frames"), CsvDataset(blobs, blobs.parent)
    items = tuple(i for i in dataset.manifest("0").items if i.mask is not None)
    cache = ImageCache(Store(folder), dataset, {str(p): file_sha256(p) for i in items for p in (i.image, i.mask)})
    cache.prepare([DecodeRequest(items, 32), DecodeRequest(items, 32, "nearest")])
    return cache.frames(items, 32, MaskForm(32, "nearest"))


def task_of(kind, protocol=BY_RANK):
    return Task(MapRequest(Resolver({}).ref({"score": "darkness", "prob": "random"}[kind]), "any"), protocol)


def both_passes(frames, kind, change, protocol=BY_RANK, batch=16, most=99):
    """What the validation pass and the test pass leave of a map, its scale found in the first."""
    task = task_of(kind, protocol)
    reader, rows = Maps(task.view, change, most), (0, 1, 2)
    masks = PixelMasks(rows, {"nearest": np.asarray(frames.masks)[list(rows)]})
    settings = PassSettings(CPU, batch)
    _, found = validation_pass(reader, [task], frames, masks, settings)
    scale = found[task.name].scale
    _, scored = evaluation_pass(
        reader, [task], EvalTarget(frames, (0, 1)), {task.name: scale}, PassSettings(CPU, batch)
    )
    return found[task.name], scored[task.name]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("score", torch.exp),
        ("score", lambda m: m**3),
        ("score", lambda m: torch.logit(torch.sigmoid(m) ** 2)),
        ("prob", lambda m: torch.sigmoid(m) ** 3),
        ("prob", lambda m: torch.sigmoid(9 * m)),
    ],
)
def test_no_monotone_change_moves_pxap_or_tau_of_a_run(frames, kind, change):
    plain = torch.sigmoid if kind == "prob" else lambda m: m
    (val, test), (turned_val, turned) = (both_passes(frames, kind, f) for f in (plain, change))
    assert 0 < pxap(test.histograms) < 100
    assert pxap(turned.histograms) == pxap(test.histograms)
    assert best_tau(turned_val.histograms) == best_tau(val.histograms)
    linear = get_protocol("fair")
    moved = [pxap(both_passes(frames, kind, f, linear)[1].histograms) for f in (plain, lambda m: change(3 * m))]
    assert moved[0] != moved[1]  # which linear bins do not promise


@pytest.mark.parametrize(("batch", "most"), [(1, 99), (5, 99), (16, 3)])
def test_the_sample_is_the_same_whatever_the_batches_and_the_memory(frames, batch, most):
    _, whole = both_passes(frames, "score", lambda m: m, batch=len(frames.items))
    _, pieces = both_passes(frames, "score", lambda m: m, batch=batch, most=most)
    assert whole.sample is not None
    assert whole.sample.values.shape[0] == len(frames.items)
    for name in ("values", "clipped", "codes"):
        assert np.array_equal(getattr(whole.sample, name), getattr(pieces.sample, name)), name
    masks = torch.from_numpy(np.array(frames.masks)).byte().flatten(1)
    places = on_device(frames.ids, whole.sample.codes.shape[1], 32, CPU)
    assert np.array_equal(whole.sample.codes, masks.gather(1, places).numpy())


def test_a_saturated_decoder_shows_the_gap_under_linear_bins(frames):
    fair = get_protocol("fair")  # nearly all of the hard map lies below 0.001, where float32 has an order
    found = [both_passes(frames, "prob", lambda m, k=k: torch.sigmoid(k * (m - 1)), fair)[1] for k in (1, 40)]
    mild, hard = (sample_facts(s.sample, None) for s in found)
    assert abs(mild["ap"] - mild["pxap"]) < 0.5
    assert hard["ap"] - hard["pxap"] > 1


def test_constant_validation_maps_leave_a_test_score_at_chance(frames):
    val, test = both_passes(frames, "prob", lambda m: torch.full_like(m, 0.3))
    assert (val.degenerate, test.degenerate) == (3, len(frames.items))
    facts = sample_facts(test.sample, None)
    assert facts["ap"] == pytest.approx(facts["pxap"])


def test_values_far_beyond_the_constants_stay_numbers():
    maps = torch.tensor([[[0.0, 1.0], [10.0, -10.0]]])
    unclipped = scale_later(maps, "score", "validation", MapScale(0.0, 1e-42)).unclipped
    assert torch.isfinite(interpolated(unclipped, torch.arange(64)[None], 8)).all()


def test_levels_of_many_values_favour_no_column(monkeypatch):
    monkeypatch.setattr(mapping, "_VALUES", 20_000)  # a seventh of 3 * 224 * 224 values: 7 divides 224
    columns = torch.arange(224.0).repeat(224, 1)
    levels = np.array(rank_levels([columns] * 3))
    assert len(set(levels.tolist())) > 200
    assert np.abs(levels - np.linspace(0, 223, len(levels))).max() < 4


def test_sampling_and_ranks_do_not_wait_for_the_device():
    task, truth = task_of("score"), torch.zeros(3, 32, 32, dtype=torch.uint8)
    scale = MapScale(0.0, 1.0, tuple(np.linspace(0, 1, mapping.LEVELS).tolist()))
    native, places = torch.rand(3, 8, 8), on_device("abc", 50, 32, CPU)
    mapping._levels(scale.levels, CPU)  # uploaded once
    with Watcher() as watcher:
        scaled = scale_later(native, "score", "validation", scale)
        Refusals().add(scaled)
        interpolated(scaled.unclipped, places, 32)
        inference.codes_at(truth, places)
    assert task.by_rank
    assert watcher.seen == []


def test_a_run_stores_levels_and_the_sample(world):
    plan, outcome = world.run(
        "classifier,cam,unet", protocols=("fair",), overrides={"protocol": {"binning": "validation"}}
    )
    assert not outcome.failed
    scores = [(s, world.store.record(s.key)["facts"]) for s in plan.kinds("score")]
    tests = [(s, f) for s, f in scores if s.labels["split"] == "test" and s.labels["map_class"] != "-"]
    assert tests
    for stage, facts in tests:
        own, val = (read_npz(world.store.run_dir(k) / "scores.npz")["scale"] for k in (stage.key, stage.parents["val"]))
        assert own.shape == (2 + mapping.LEVELS,)
        assert np.array_equal(own, val)
        sample = facts["sample"]
        assert sample["pixels"] > 0
        assert 0 < sample["ap"] <= 100
        assert (sample["gated"] is None) == all(facts["region_classes"])
    assert all(f["sample"] is None for s, f in scores if s.labels["split"] == "val" or s.labels["map_class"] == "-")
