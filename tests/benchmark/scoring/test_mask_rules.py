"""From what a mask's numbers mean to what is stored: ignored pixels, regions that vanish, reduction, decoded copies."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.benchmark.conftest import World
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.files import file_sha256, read_npz
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.data.image_cache import ImageCache, MaskForm, facts_file, mask_request
from wsolbench.benchmark.data.train_loader import parted
from wsolbench.benchmark.execution.preflight import preflight
from wsolbench.benchmark.scoring.map_scaling import annotated_histogram, histogram, resize_maps
from wsolbench.datasets.csv_manifest import CsvDataset


class Copy:
    """A copy of the blobs whose masks and declarations a test changes."""

    def __init__(self, blobs: Path, folder: Path) -> None:
        shutil.copytree(blobs.parent, folder)
        self.csv, self.folder = folder / blobs.name, folder

    def declare(self, *lines: str) -> None:
        self.csv.write_text("".join(f"# {line}\n" for line in lines) + self.csv.read_text())

    def change(self, pattern: str, act) -> None:
        for path in self.folder.glob(f"{pattern}_mask.png"):
            Image.fromarray(act(np.asarray(Image.open(path)))).save(path)


@pytest.fixture
def copied(blobs, tmp_path):
    return Copy(blobs, tmp_path / "data")


@pytest.fixture
def world(copied, tmp_path):
    return World(copied.csv, tmp_path / "results")


def ring(mask):
    """0 and 1 with two columns at each side to be ignored; they may cover a part of the blob."""
    out = (mask > 0).astype(np.uint8)
    out[:, :2] = out[:, -2:] = 255
    return out


def scored(world, plan):
    """Record and arrays of the test score."""
    return world.store.record(plan.rows[0]), read_npz(world.store.run_dir(plan.rows[0]) / "scores.npz")


SMALL = {"overrides": {"protocol": {"size": 64}}}


def test_ignored_pixels_count_nowhere(world, copied):
    plan, outcome = world.run("darkness", **SMALL)
    assert outcome.exit_code == 0
    _, clean = scored(world, plan)
    copied.change("*", ring)
    copied.declare("mask_ignore: 255")
    plan, outcome = world.run("darkness", **SMALL)
    assert outcome.exit_code == 0
    record, found = scored(world, plan)
    masked = found["labels"] == 1
    left = found["foreground"].sum(1, dtype=int) + found["background"].sum(1, dtype=int)
    assert (left[masked] == 64 * 60).all()
    assert (left[~masked] == 64 * 64).all()
    both = [a["foreground"][masked].astype(int) + a["background"][masked] for a in (clean, found)]
    assert (both[1] <= both[0]).all()
    np.testing.assert_array_equal(found["background"][~masked], clean["background"][~masked])
    assert any("are ignored: they count nowhere" in n for n in record["facts"]["notes"])
    pictures = read_npz(world.results / "examples" / f"{record['facts']['examples']}.npz")
    assert set(np.unique(pictures["masks"])) == {0, 1, 2}


def test_validation_and_selection_leave_ignored_pixels_out(world, copied):
    """What stands under ignored pixels plays no part: not for tau_val, not for the selected epoch."""
    copied.change("*", ring)
    copied.declare("mask_ignore: 255, 77")
    plan, outcome = world.run("cam", overrides={"protocol": {"size": 32}})
    assert outcome.exit_code == 0
    stages = [s for s in plan.kinds("score") if s.labels["split"] == "val"]
    arrays = read_npz(world.store.run_dir(stages[0].key) / "scores.npz")
    left = arrays["foreground"].sum(1, dtype=int) + arrays["background"].sum(1, dtype=int)
    assert set(left[arrays["labels"] == 1]) == {32 * 30}
    roles = [world.store.record(s.key)["roles"] for s in plan.kinds("train")]
    copied.change("val*", lambda m: np.where(m == 255, 77, m).astype(np.uint8))
    again, outcome = world.run("cam", overrides={"protocol": {"size": 32}})
    assert outcome.exit_code == 0
    assert not {s.key for s in plan.kinds("train")} & {s.key for s in again.kinds("train")}
    assert roles == [world.store.record(s.key)["roles"] for s in again.kinds("train")]
    assert any(name.startswith("loc/") for name in roles[0])


def test_counting_under_codes_is_counting_without_those_pixels():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(5, 7, 7, generator=generator)
    codes = torch.randint(0, 3, (5, 32, 32), generator=generator).to(torch.uint8)
    foreground, background = annotated_histogram(maps, codes)
    large = resize_maps(maps, 32)
    for k in range(5):
        keep = codes[k] != 2
        expected = histogram(large[k][keep][None, None], (codes[k] == 1)[keep][None, None])
        assert torch.equal(foreground[k], expected[0][0])
        assert torch.equal(background[k], expected[1][0])
    plain = parted(codes == 1)
    assert plain[1] is None
    assert torch.equal(plain[0], codes == 1)


def test_the_upper_bound_trains_around_ignored_pixels(world, copied):
    copied.change("*", ring)
    copied.declare("mask_ignore: 255")
    plan, outcome = world.run("unet", overrides={"train": {"epochs": "1"}})
    assert outcome.exit_code == 0
    kept = plan.kinds("train")[0]
    assert world.store.is_done(kept.key)
    found = list((world.results / "cache" / "images").glob("*-masks-36.bin"))
    assert len(found) == 1
    assert set(np.unique(np.fromfile(found[0], np.uint8))) == {0, 1, 2}


# -- before anything trains ------------------------------------------------------------------------------------------
def check(world, methods="cam", **changes):
    planner, plan = world.plan(methods, **changes)
    return preflight(list(plan.stages.values()), planner)


def test_sound_masks_are_no_matter_for_the_screen(world):
    assert check(world) == []


def test_masks_that_mean_two_things_end_a_run_before_it_trains(world, copied):
    copied.change("test_0*", lambda m: np.where(m > 0, 2, 1).astype(np.uint8))
    with pytest.raises(BenchError, match=r"5 of 15 files cannot be read") as caught:
        check(world)
    assert str(caught.value).count("mask_foreground: 2 if 1 is the background") == 5
    assert not list(world.results.glob("runs/*"))


def test_a_test_set_that_is_foreground_everywhere_ends_a_run(world, copied):
    copied.change("test*", lambda m: np.ones_like(m))
    for _ in range(2):  # the second time the masks are decoded already
        with pytest.raises(BenchError, match="12 of 12 masks are foreground everywhere, with the values 1 "):
            check(world)
    copied.declare("mask_foreground: any")
    assert any("12 of 15 masks are foreground everywhere" in n for n in check(world))


def test_regions_that_vanish_are_told_and_stay_positives(world, copied):
    def dot(mask):
        out = np.zeros((64, 64), np.uint8)
        out[33, 33] = 255
        return out

    copied.change("test_0[1-5]", dot)
    changes = {"overrides": {"protocol": {"size": 8}}}
    notes = check(world, "darkness", **changes)
    expected = "test masks lost all foreground at 8 px (mask_reduction=nearest): test_01, test_03, test_05."
    assert any(f"blobs: 3 of 12 {expected}" in n for n in notes)
    plan, outcome = world.run("darkness", **changes)
    assert outcome.exit_code == 0
    record, arrays = scored(world, plan)
    assert any(f"3 of 12 {expected}" in n for n in record["facts"]["notes"])
    lost = np.isin(arrays["ids"], ["test_01", "test_03", "test_05"])
    assert (arrays["labels"][lost] == 1).all()
    assert not arrays["foreground"][lost].any()
    kept = {"overrides": {"protocol": {"size": 8, "mask_reduction": "any"}}}
    assert check(world, "darkness", **kept) == []
    copied.change("test*", dot)
    with pytest.raises(BenchError, match="all 12 test masks lose all their foreground at 8 px"):
        check(world, "darkness", **changes)


def test_the_way_of_reduction_changes_scores_and_no_training(world):
    _, plan = world.plan("cam")
    _, other = world.plan("cam", overrides={"protocol": {"mask_reduction": "area"}})
    assert not set(plan.rows) & set(other.rows)
    assert {s.key for s in plan.kinds("train")} == {s.key for s in other.kinds("train")}
    assert other.stages[other.rows[0]].labels["protocol"] == "fair(mask_reduction=area)"


# -- decoded copies --------------------------------------------------------------------------------------------------
@pytest.fixture
def cached(copied, tmp_path):
    def make():
        dataset = CsvDataset(copied.csv, copied.folder)
        items = tuple(i for i in dataset.manifest("0").split("test") if i.mask)
        hashes = {str(i.mask): file_sha256(i.mask) for i in items}
        return items, ImageCache(Store(tmp_path / "r"), dataset, hashes)

    return make


def test_facts_are_kept_beside_the_arrays_and_made_again_where_they_are_gone(cached):
    items, cache = cached()
    form = MaskForm(16, "area")
    cache.prepare([mask_request(items, *form)])
    facts = cache.mask_facts(items, form)
    arrays = np.asarray(cache.masks(items, form))
    assert [f.foreground for f in facts] == [int(a.sum()) for a in arrays]
    assert [f.facts.foreground for f in facts] == [int((np.asarray(Image.open(i.mask)) > 0).sum()) for i in items]
    path = facts_file(cache._store(*form))
    whole = path.read_bytes()
    for left in (b"", whole[:100], whole[: len(whole) // 2], b"\xff\n" + whole):
        path.write_bytes(left)
        cache.prepare([mask_request(items, *form)])
        assert cache.mask_facts(items, form) == facts
        np.testing.assert_array_equal(np.asarray(cache.masks(items, form)), arrays)
        assert len(cache._store(*form).known()) == len(items)


def test_other_rules_and_reductions_never_meet_the_arrays_of_the_first(cached, copied):
    items, cache = cached()
    cache.prepare([mask_request(items, 16)])
    first = np.asarray(cache.masks(items, MaskForm(16)))
    with pytest.raises(KeyError):
        cache.masks(items, MaskForm(16, "any"))
    copied.declare("mask_foreground: 0")
    items, cache = cached()
    with pytest.raises(KeyError):
        cache.masks(items, MaskForm(16))
    cache.prepare([mask_request(items, 16)])
    np.testing.assert_array_equal(np.asarray(cache.masks(items, MaskForm(16))), ~first)
