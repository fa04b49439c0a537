"""Promise 5: no method gets at a mask, however it asks; its runs fail, and those of the others are as without it."""

import contextlib
import copy
import dataclasses
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.faults.plugins import explainer, trained
from wsolbench.benchmark.core import mask_guard
from wsolbench.benchmark.core.errors import MaskAccessError
from wsolbench.benchmark.core.files import file_sha256, read_npz
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.data.image_cache import ImageCache, MaskForm, mask_request
from wsolbench.benchmark.planning.config import TrainConfig
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring.build import build_method
from wsolbench.benchmark.scoring.map_extractor import MapExtractor, MapRequest
from wsolbench.datasets.csv_manifest import CsvDataset
from wsolbench.methods import METHODS
from wsolbench.methods.base import Batch


def numbers(store, keys):
    return {k: {n: a.tobytes() for n, a in read_npz(store.run_dir(k) / "scores.npz").items()} for k in keys}


# -- what stands in a batch ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "use",
    [
        lambda m: m.float(), lambda m: m[0], lambda m: m & True, lambda m: m == 1, lambda m: list(m), bool, len,
        np.asarray, torch.as_tensor, lambda m: torch.ones(2) * m, lambda m: torch.where(m, 1, 0), lambda m: m.shape,
        lambda m: torch.nn.functional.cross_entropy(torch.zeros(1, 2), m), lambda m: setattr(m, "x", m.sum()),
    ],
)  # fmt: skip
def test_any_use_of_withheld_masks_raises(use):
    with pytest.raises(MaskAccessError, match="line 10 of the contract"):
        use(mask_guard.WITHHELD)


def test_a_batch_with_withheld_masks_can_be_copied_and_printed():
    batch = Batch(*[torch.zeros(2)] * 3, masks=mask_guard.WITHHELD)  # pyright: ignore[reportArgumentType]
    assert dataclasses.replace(batch, images=torch.ones(2)).masks is mask_guard.WITHHELD
    assert copy.deepcopy(batch).masks is mask_guard.WITHHELD
    assert "withheld" in repr(batch)
    assert batch.masks is not None  # so `if batch.masks is not None: use them` raises instead of passing by


# -- files -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def place(tmp_path):
    """A mask, a link to it, a folder linked to, a store of masks, pictures of a finished score, and other files."""
    names = ("data/a_mask.png", "data/a.png", "r/cache/images/k-masks-8.bin", "r/cache/images/k-images-8.bin",
             "r/examples/0.npz", "r/runs/0/scores.npz", "elsewhere/b_mask.png")  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name, format="PNG")
    (tmp_path / "data" / "b_mask.png").symlink_to(tmp_path / "elsewhere" / "b_mask.png")
    (tmp_path / "other_name.png").symlink_to(tmp_path / "data" / "a_mask.png")
    (tmp_path / "same").symlink_to(tmp_path / "data")
    return tmp_path


def in_a_thread(target):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()


def watch(place):
    return mask_guard.watching("it", lambda: [place / "data" / f"{n}_mask.png" for n in "ab"], place / "r")


FORBIDDEN = ("data/a_mask.png", "data/../data/a_mask.png", "same/a_mask.png", "other_name.png", "elsewhere/b_mask.png",
             "data/b_mask.png", "r/cache/images/k-masks-8.bin", "r/examples/0.npz")  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_mask_is_refused_under_any_name(place, name):
    with (
        pytest.raises(MaskAccessError, match=r"Method 'it' asked for the mask file .*supervision=.pixel"),
        watch(place),
    ):
        (place / name).read_bytes()
    assert (place / name).read_bytes()  # no stage, no watch


WAYS = {
    "builtin": lambda p: open(p),  # noqa: PTH123, SIM115
    "bytes": lambda p: open(os.fsencode(p)),  # noqa: PTH123, SIM115
    "os": lambda p: os.open(p, os.O_RDONLY),
    "PIL": Image.open,
    "numpy": lambda p: np.fromfile(p, np.uint8),
    "memmap": lambda p: np.memmap(p, np.uint8, "r"),
    "copy": lambda p: shutil.copyfile(p, p.parent / "copy"),
    "hard link": lambda p: os.link(p, p.parent / "twin"),
    "rename": lambda p: p.rename(p.parent / "renamed"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_mask_is_refused_in_every_way_that_python_opens_files(place, way):
    with pytest.raises(MaskAccessError), watch(place):
        WAYS[way](place / "data" / "a_mask.png")
    assert sorted(p.name for p in (place / "data").iterdir()) == ["a.png", "a_mask.png", "b_mask.png"]


def test_relative_paths_and_open_files_are_seen_for_what_they_are(place, monkeypatch):
    monkeypatch.chdir(place / "data")
    number = os.open("a_mask.png", os.O_RDONLY)
    with pytest.raises(MaskAccessError), watch(place):
        Image.open("a_mask.png")
    with watch(place):
        os.close(os.dup(number))
        assert Path("a.png").read_bytes()
        assert (place / "r/runs/0/scores.npz").read_bytes()
        assert (place / "r/cache/images/k-images-8.bin").read_bytes()
    os.close(number)


def test_a_refusal_that_is_swallowed_is_raised_at_the_end(place):
    def ask():
        with contextlib.suppress(Exception):
            (place / "data/a_mask.png").read_bytes()

    with pytest.raises(MaskAccessError), watch(place):
        ask()
    with pytest.raises(MaskAccessError), watch(place):
        in_a_thread(ask)
    with watch(place):  # the next stage knows nothing of it
        pass


def test_only_the_thread_that_reads_for_the_harness_may(place):
    seen = []

    def ask():
        try:
            seen.append((place / "data/a_mask.png").read_bytes())
        except MaskAccessError as problem:
            seen.append(str(problem))

    def both():
        assert (place / "data/a_mask.png").read_bytes()
        in_a_thread(ask)

    with pytest.raises(MaskAccessError), watch(place), mask_guard.reading_masks():
        both()
    assert "asked for the mask file" in seen[0]


def test_the_harness_reads_masks_while_a_stage_runs(blobs, tmp_path):
    dataset = CsvDataset(blobs, tmp_path)
    items = dataset.manifest("0").split("test")
    files = [p for i in items for p in (i.image, i.mask) if p]
    cache = ImageCache(Store(tmp_path / "r"), dataset, {str(p): file_sha256(p) for p in files})
    with mask_guard.watching("it", lambda: [i.mask for i in items if i.mask], tmp_path / "r"):
        cache.prepare([mask_request(items, 8)])  # in threads of its own
        rows = cache.masks(items, MaskForm(8))
        assert np.asarray(rows).any()
        assert rows.mapped().any()
        with pytest.raises(MaskAccessError):
            rows.path.read_bytes()
        with pytest.raises(MaskAccessError):
            dataset.read_mask(next(i for i in items if i.mask))
        mask_guard._Guard.watch.refusals.clear()


# -- plug-ins in a real run ------------------------------------------------------------------------------------------
SWALLOW = "\n    ".join(("def ask():", "    try: Image.open(MASK).load()", "    except Exception: pass"))
ASKING = {
    "opens": "return m * 0 + float(np.asarray(Image.open(MASK)).mean())",
    "stored": "return m * 0 + float(np.fromfile(STORE, bool, 100).mean())",
    "swallows": SWALLOW + "\n    ask(); return m",
    "in_thread": SWALLOW + "\n    t = threading.Thread(target=ask); t.start(); t.join(); return m",
}


def short():
    """One epoch, one map a selection."""
    return {"train": {"epochs": "1"}}


@pytest.mark.slow  # a few of them in test_plugins.py
def test_methods_that_ask_for_masks_fail_alone(world, blobs, tmp_path):
    plan, outcome = world.run("cam", overrides=short())
    assert outcome.exit_code == 0
    alone, store = numbers(world.store, plan.rows), next((world.results / "cache/images").glob("*-masks-*.bin"))
    at = {"mask": blobs.parent / "test_01_mask.png", "store": store}
    asking = [explainer(tmp_path, name, body, **at) for name, body in ASKING.items()]
    asking.append(trained(tmp_path, "batch_masks", loss="total = total + batch.masks.float().mean()", **at))
    asking.append(trained(tmp_path, "predicts", predict="maps = maps + np.asarray(Image.open(MASK)).mean()", **at))
    world.results = tmp_path / "together"
    plan, outcome = world.run(",".join(["cam", *asking]), overrides=short())
    assert outcome.exit_code == 1
    assert not [e for k, e in outcome.failed.items() if k in alone], outcome
    assert numbers(world.store, alone) == alone
    said = {plan.stages[k].labels["method"]: error for k, error in outcome.failed.items()}
    assert set(said) == {*ASKING, "batch_masks", "predicts"}
    for name, error in said.items():
        assert f"Method '{name}' asked for " in error, error
        assert "line 10 of the contract" in error
    assert "batch.masks" in said["batch_masks"]
    unfinished = [k for k in plan.rows if not world.store.is_done(k)]
    assert {plan.stages[k].labels["method"] for k in unfinished} == set(said)


def test_methods_get_no_id_that_tells_a_class_or_a_patient(tmp_path):
    """Names of files say `normal_001`; what a method is told is the same for the same image, and says nothing."""
    METHODS.load_file(Path(explainer(tmp_path, "tells", "evidence.images.seen = evidence.ids; return m")))
    model = build_method(Resolver({}).ref("classifier"), "test_resnet", TrainConfig(stride=0), 2, 0).eval()
    reader, told = MapExtractor(model, (MapRequest(Resolver({}).ref("tells"), "region"),), (0, 1), 2), []
    for names in (["normal_001", "tumor_002"], ["tumor_002", "normal_001"]):
        images = torch.zeros(2, 3, 32, 32)
        reader.read(images, torch.tensor([0, 1]), names)
        told.append(images.seen)
    assert told[0] == told[1][::-1]
    assert len(set(told[0])) == 2
    assert not re.search(r"normal|tumor|00[12]$", " ".join(told[0]))
