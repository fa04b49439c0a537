"""What the gallery packs into the page: exact bins, each image once, a size that is kept, and names that stay text."""

import base64
import io
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib import colormaps
from PIL import Image

from wsolbench.benchmark.core.files import read_npz, write_npz
from wsolbench.benchmark.core.metrics import BINS, THRESHOLDS
from wsolbench.reports.build import build_report
from wsolbench.reports.drawing import jobs
from wsolbench.reports.page.gallery import build_gallery, pack_image, pack_map, pack_mask
from wsolbench.reports.rows.load import collect
from wsolbench.reports.tables.aggregate import tables_of

EDGES = np.append(THRESHOLDS, 2.0)
HOSTILE = "</script><script>alert(1)</script><!-- & ' \u2028"


def unpack_map(text: str, size: int) -> np.ndarray:
    """The bins of a packed map, pixel by pixel as the format says."""
    raw = zlib.decompress(base64.b64decode(text))
    bins = np.zeros((size + 1, size + 1), int)  # row and column 0 are the outside
    for y in range(size):
        for x in range(size):
            folded = raw[y * size + x] + 256 * raw[size * size + y * size + x]
            step = folded // 2 if folded % 2 == 0 else -(folded + 1) // 2
            bins[y + 1, x + 1] = bins[y + 1, x] + bins[y, x + 1] - bins[y, x] + step
    return bins[1:, 1:]


@pytest.fixture(scope="module")
def tables(found):
    return tables_of(found.rows, found.settings)


@pytest.fixture(scope="module")
def whole(results, found, tables):
    return build_gallery(results, found, tables)


@pytest.fixture(scope="module")
def small_found(_small):
    return collect(_small)


@given(arrays(np.float16, (7, 7), elements=st.floats(0, 1, width=16)))
def test_maps_keep_their_bins(scores):
    bins = unpack_map(pack_map(scores), 7)
    assert 0 <= bins.min() <= bins.max() < BINS
    assert (np.bincount(bins.ravel(), minlength=BINS) == np.histogram(scores.astype(float), EDGES)[0]).all()
    for tau in (0, 1, 57, 500, 999, 1000):
        assert ((bins >= tau) == (scores.astype(float) >= THRESHOLDS[tau])).all()


def test_maps_keep_the_bins_of_every_half_precision_number():
    every = np.arange(0x3C00 + 1, dtype=np.uint16).view(np.float16)  # 0 to 1
    square = np.append(every, np.zeros(124 * 124 - len(every), np.float16)).reshape(124, 124)
    wanted = np.searchsorted(THRESHOLDS, square.astype(float), side="right") - 1
    assert (unpack_map(pack_map(square), 124) == wanted).all()


@given(arrays(bool, (5, 9)))
def test_masks_come_back(mask):
    bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(pack_mask(mask))), np.uint8))
    assert (bits[: mask.size].reshape(mask.shape) == mask).all()
    assert not bits[mask.size :].any()


def test_images_come_back_nearly(results):
    path = next((results.root / "examples").iterdir())
    image = np.kron(read_npz(path)["images"][0], np.ones((4, 4, 1), np.uint8))
    head, _, data = pack_image(image).partition(",")
    assert head in ("data:image/webp;base64", "data:image/jpeg;base64")
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    assert np.abs(back.astype(int) - image).mean() < 5


def test_every_map_is_a_card_with_its_own_numbers(whole, results, tables):
    gallery = whole
    lines = [line for table in tables for line in table.lines if line.first.kind != "none"]
    p = gallery.payload
    assert gallery.cards == gallery.total == len(p["cards"]) == 6 * len(lines)
    assert gallery.left_out == ()
    assert len(p["images"]) == len(p["sources"]) == len(p["masks"]) == 6  # once, whatever the number of maps
    assert gallery.size == sum(len(t) for name in ("maps", "sources", "masks") for t in p[name])
    cards = {}
    for line, image, one, predicted in p["cards"]:
        facts = p["lines"][line]
        place = tuple(facts[k] for k in ("method", "protocol", "selection", "backbone"))
        cards[(*place, p["images"][image]["id"])] = facts, p["images"][image], p["maps"][one], predicted
    assert len(cards) == gallery.cards
    for line in lines:
        r, folder = line.first, results.run_dir(line.first.stage)
        scores, examples = read_npz(folder / "scores.npz"), read_npz(folder / "examples.npz")
        name = str(examples["ids"][3])
        facts, image, packed, predicted = cards[line.marked, r.protocol, r.selection, r.backbone, name]
        assert (unpack_map(packed, 32) == np.floor(examples["maps"][3].astype(float) * 1000)).all()
        row = scores["ids"].tolist().index(name)
        logits = scores["logits"][row]
        assert predicted == (None if np.isnan(logits).any() else int(logits.argmax()))
        assert image["label"] == scores["labels"][row]
        assert THRESHOLDS[facts["tau"]["val"]] == r.tau_val
        assert THRESHOLDS[facts["tau"]["oracle"]] == r.tau_oracle
        assert facts["own"] == (r.baseline or r.selection == {"fair": "cl", "paper": "loc"}[r.protocol])
        assert facts["synthetic"]
    assert gallery.synthetic


def test_colours_are_those_of_the_figures(whole):
    colours = np.frombuffer(bytes.fromhex(whole.payload["colours"]), np.uint8).reshape(256, 3)
    assert np.abs(colours - 255 * colormaps["viridis"](np.arange(256))[:, :3]).max() < 1


def test_equal_maps_stand_once(whole):
    constant = [c for c in whole.payload["cards"] if whole.payload["lines"][c[0]]["method"] == "constant"]
    assert len(constant) == 2 * 6  # two protocols
    assert len({c[2] for c in constant}) == 1


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_the_limit_is_kept_and_said(whole, results, found, tables, share):
    full = whole
    limit = int(share * full.size)
    gallery = build_gallery(results, found, tables, limit)
    assert 0 < gallery.size <= limit
    assert gallery.total == full.total
    assert gallery.cards < full.cards
    assert gallery.left_out[0].startswith(f"{full.total - gallery.cards} of {full.total} maps")
    # The protocols' own checkpoints come first, and among them image by image.
    p = gallery.payload
    own = [p["lines"][c[0]]["own"] for c in p["cards"]]
    assert own == sorted(own, reverse=True)
    images = [c[1] for c in p["cards"]][: sum(own)]
    assert images == sorted(images)


def test_nothing_fits(results, found, tables):
    gallery = build_gallery(results, found, tables, 10)
    assert (gallery.cards, gallery.size) == (0, 0)
    assert gallery.any
    assert len(gallery.left_out) == 1


def test_home_comes_before_other_sets(tmp_path, write_results, recipe, other_set):
    store = write_results(tmp_path / "r", recipe(seeds=(0,), protocols=("fair",), targets=(other_set,)))
    found = collect(store)
    tables = tables_of(found.rows, found.settings)
    full = build_gallery(store, found, tables)
    p = full.payload
    assert len(p["images"]) == 12
    assert {(line["train"], line["eval"]) for line in p["lines"]} == {("glas", "glas"), ("glas", "camelyon16")}
    own = [p["lines"][c[0]]["eval"] for c in p["cards"] if p["lines"][c[0]]["own"]]
    assert own == sorted(own, key=lambda name: name != "glas")
    assert set(own) == {"glas", "camelyon16"}
    empty = {p["masks"][i["mask"]] for i in p["images"] if i["set"] == "camelyon16" and i["label"] == 0}
    assert empty == {pack_mask(np.zeros((32, 32), bool))}
    little = build_gallery(store, found, tables, full.size // 5)
    assert {little.payload["lines"][c[0]]["eval"] for c in little.payload["cards"]} == {"glas"}


def break_maps(folder, **change):
    found = read_npz(folder / "examples.npz")
    write_npz(folder / "examples.npz", {**found, **{k: make(found) for k, make in change.items()}})


BROKEN = {
    "shape": lambda folder: break_maps(folder, maps=lambda f: f["maps"][:, :16]),
    "range": lambda folder: break_maps(folder, maps=lambda f: f["maps"] + np.float16(0.5)),
    "nan": lambda folder: break_maps(folder, maps=lambda f: f["maps"] * np.float16("nan")),
    "names": lambda folder: break_maps(folder, ids=lambda f: np.array([f"other-{i}" for i in f["ids"]])),
    "lengths": lambda folder: break_maps(folder, ids=lambda f: f["ids"][:-1]),
    "no zip": lambda folder: (folder / "examples.npz").write_bytes(b"PK\x03\x04 cut off"),
    "gone": lambda folder: (folder / "examples.npz").unlink(),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_damage_is_left_out_and_named(small, small_found, how):
    tables = tables_of(small_found.rows)
    row = next(r for r in small_found.rows if r.method == "layercam" and r.selection == "cl")
    BROKEN[how](small.run_dir(row.stage))
    gallery = build_gallery(small, small_found, tables)
    lines = [line for line in tables[0].lines if line.first.kind != "none"]
    assert gallery.cards == gallery.total == 6 * (len(lines) - 1)
    assert len(gallery.left_out) == 1
    assert gallery.left_out[0].startswith("layercam: ")
    if how != "gone":
        assert row.stage in gallery.left_out[0]


def test_results_without_pictures(small, small_found):
    for path in (small.root / "examples").iterdir():
        path.unlink()
    gallery = build_gallery(small, small_found, tables_of(small_found.rows))
    assert (gallery.cards, gallery.total) == (0, 0)
    assert "no example maps are stored" in gallery.left_out[0]


def test_without_validation_masks_there_is_no_threshold(small, small_found):
    rows = [replace(r, tau_val=float("nan")) for r in small_found.rows]
    gallery = build_gallery(small, small_found, tables_of(rows))
    assert {line["tau"]["val"] for line in gallery.payload["lines"]} == {None}
    json.dumps(gallery.payload, allow_nan=False)


def test_names_stay_text_in_the_page(tmp_path, write_results, recipe, monkeypatch):
    monkeypatch.setattr(jobs, "FIGURES", {})
    make = recipe(seeds=(0,), protocols=("fair",), dataset=HOSTILE, extra_methods={HOSTILE: 2.0})
    build_report(write_results(tmp_path / "r", make), tmp_path / "out", ["html"])
    text = (tmp_path / "out" / "index.html").read_text()
    blocks = re.findall(r'<script type="application/json" id="gallery-data">(.*?)</script>', text, re.DOTALL)
    assert len(blocks) == 1
    assert not set("<>&'") & set(blocks[0])
    payload = json.loads(blocks[0])
    assert HOSTILE in {line["method"] for line in payload["lines"]}
    assert {line["eval"] for line in payload["lines"]} == {HOSTILE}
    assert text.count("<script") == 2
