"""`bench data patches` end to end, on pyramidal TIFF files and XML written here and opened by openslide."""

import csv
import hashlib
import json
import shutil
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.open import open_dataset
from wsolbench.datasets.parts.camelyon_lists import PatchName
from wsolbench.datasets.patches.extract import make_patches
from wsolbench.datasets.patches.settings import PatchSettings, as_published
from wsolbench.datasets.patches.slides import list_slides
from wsolbench.datasets.verify import verify
from wsolbench.datasets.wsi import slide as wsi_slide
from wsolbench.datasets.wsi.slide import Slide
from wsolbench.datasets.wsi.tissue import TissueRule

pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")

WIDTH, HEIGHT, SIDE, MPP = 1056, 752, 64, 0.25
SETTINGS = PatchSettings(size=SIDE, dense_share=0.2)
TUMOR = ("tumor_001", "tumor_002", "test_001")
NORMAL = ("normal_001", "normal_002", "test_003")


def paint(seed):
    """A slide: an ellipse of coloured, noisy tissue with white holes on bright glass."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    inside = ((x - WIDTH / 2) / (0.46 * WIDTH)) ** 2 + ((y - HEIGHT / 2) / (0.46 * HEIGHT)) ** 2 < 1
    holes = (np.sin(x / 19 + seed) * np.sin(y / 15)) > 0.6
    colour = np.where((inside & ~holes)[..., None], (195, 110, 165), (243, 241, 244))
    return (colour + rng.integers(-9, 10, (HEIGHT, WIDTH, 1))).clip(0, 255).astype(np.uint8)


def write_slide(path, image, mpp=MPP, levels=3, mpp_y=None):
    """Levels halve by taking every second pixel, so that what a level holds is known exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for k in range(levels):
            step = 2**k
            stated = {} if mpp is None else {"resolution": (1e4 / (mpp * step), 1e4 / ((mpp_y or mpp) * step)),
                                             "resolutionunit": "CENTIMETER"}  # fmt: skip
            writer.write(np.ascontiguousarray(image[::step, ::step]), tile=(256, 256), photometric="rgb", metadata=None,
                         compression="zlib", subfiletype=int(k > 0), **stated)  # fmt: skip


def blob(x, y, radius, seed):
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    reach = radius * (1 + 0.25 * np.sin(3 * angle + seed) + rng.normal(0, 0.04, 40))
    return np.stack([x + reach * np.cos(angle), y + reach * np.sin(angle)], axis=1).round(3)


def polygons(seed):
    """Tumour (two that overlap, a small one, one over the edge of the slide) and an exclusion within it."""
    tumor = [blob(400, 350, 150, seed), blob(525, 360, 100, seed + 1), blob(800, 380, 30, seed), blob(525, 10, 45, 5)]
    return tumor, [blob(415, 340, 55, seed + 2)]


def write_xml(path, tumor, excluded):
    rows = []
    for group, shapes in (("Tumor", tumor[:1]), ("_0", tumor[1:2]), ("_1", tumor[2:]), ("_2", excluded)):
        for points in shapes:
            dots = "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}" />' for k, (x, y) in enumerate(points))
            rows.append(f'<Annotation Name="a" Type="Polygon" PartOfGroup="{group}"><Coordinates>{dots}</Coordinates>'
                        "</Annotation>")  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<ASAP_Annotations><Annotations>{''.join(rows)}</Annotations></ASAP_Annotations>")


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk():
    """Flushing each file to disk is for power cuts, which these tests do not try."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@dataclass(frozen=True)
class World:
    """Slides and annotations on disk, and the pixels they were made from."""

    root: Path
    pixels: dict

    def listing(self, only="", **options):
        found = list_slides(self.root / "slides", self.root / "xml", **options)
        return replace(found, jobs=tuple(j for j in found.jobs if only in j.name))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root, pixels = tmp_path_factory.mktemp("wsi"), {}
    for seed, name in enumerate(TUMOR + NORMAL):
        pixels[name] = paint(seed)
        write_slide(root / "slides" / f"{name}.tif", pixels[name])
        if name in TUMOR:
            write_xml(root / "xml" / f"{name}.xml", *polygons(seed))
    return World(root, pixels)


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    outcome = make_patches(world.listing(), SETTINGS, out)
    assert outcome.failed == ()
    return out


@pytest.fixture
def world_copy(world, tmp_path):
    shutil.copytree(world.root, tmp_path / "copy")
    return World(tmp_path / "copy", world.pixels)


def table(out):
    with (out / "patches.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def contents(out):
    """Every file but the lock; what only says when a slide was last changed is not there."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}


def inside(shapes, x, y, width, height, scale=1.0):
    """Union of polygons by angles seen from each pixel centre: slow, and nothing like what is tested."""
    mask = np.zeros((height, width), bool)
    ys, xs = np.mgrid[:height, :width]
    centres = np.stack([x + (xs + 0.5) * scale, y + (ys + 0.5) * scale], axis=-1)
    for points in shapes:
        ahead = points - centres[..., None, :]
        angle = np.arctan2(ahead[..., 1], ahead[..., 0])
        turn = np.diff(angle, axis=-1, append=angle[..., :1])
        mask |= np.abs(((turn + np.pi) % (2 * np.pi) - np.pi).sum(axis=-1)) > 3
    return mask


def expected_mask(name, x, y, scale=1.0, subtract=True):
    tumor, excluded = polygons(TUMOR.index(name))
    mask = inside(tumor, x, y, SIDE, SIDE, scale)
    return mask & ~inside(excluded, x, y, SIDE, SIDE, scale) if subtract else mask


def test_openslide_reads_what_the_test_wrote(world):
    with Slide(world.root / "slides" / "tumor_001.tif", MPP) as slide:
        assert (slide.width, slide.height, slide.level0_mpp) == (WIDTH, HEIGHT, MPP)
        assert slide.scale.native
        assert len(slide.quickhash) == 64
        np.testing.assert_array_equal(slide.read(300, 400, 200, 100), world.pixels["tumor_001"][400:500, 300:500])


def test_pixels_masks_and_shares(world, made):
    rules = {
        n: TissueRule(**f["thresholds"]) for n, f in json.loads((made / "patches.json").read_text())["slides"].items()
    }
    rows = table(made)
    seen_exclusion = 0
    for row in rows[::2]:
        x, y, name = int(row["x"]), int(row["y"]), row["slide"]
        image = np.asarray(Image.open(made / row["image"]))
        np.testing.assert_array_equal(image, world.pixels[name][y : y + SIDE, x : x + SIDE])
        tissue = rules[name].mask(image).mean()
        assert float(row["tissue"]) == tissue >= SETTINGS.tissue_share
        assert float(row["mpp"]) == MPP
        assert hashlib.sha256((made / row["image"]).read_bytes()).hexdigest() == row["image_sha256"]
        if row["label"] == "normal":
            assert (row["mask"], row["mask_sha256"], row["tumor"]) == ("", "", "")
            continue
        mask = np.asarray(Image.open(made / row["mask"]))
        assert set(np.unique(mask)) <= {0, 255}
        np.testing.assert_array_equal(mask > 0, expected_mask(name, x, y))
        assert float(row["tumor"]) == (mask > 0).mean() >= SETTINGS.tumor_share
        seen_exclusion += int((expected_mask(name, x, y, subtract=False) & ~(mask > 0)).sum() > 0)
        assert hashlib.sha256((made / row["mask"]).read_bytes()).hexdigest() == row["mask_sha256"]
    assert seen_exclusion >= 2
    assert {r["slide"] for r in rows} == {*TUMOR, *NORMAL}
    files = {r[c] for r in rows for c in ("image", "mask")} - {""}
    assert files == {p.relative_to(made).as_posix() for p in made.rglob("*.png")}


def test_patches_of_a_slide_do_not_overlap_and_lie_within_it(made):
    corners = defaultdict(list)
    for row in table(made):
        corners[row["slide"]].append((int(row["x"]), int(row["y"])))
    for places in corners.values():
        at = np.array(places)
        assert (at >= 0).all()
        assert (at + SIDE <= (WIDTH, HEIGHT)).all()
        apart = np.abs(at[:, None] - at[None]).max(axis=2)
        assert apart[~np.eye(len(at), dtype=bool)].min() >= SIDE - 2


def test_no_tumour_patch_that_fits_is_lost(made):
    """Every polygon is covered: away from patches nothing is left but cells with too little tumour or tissue."""
    facts = json.loads((made / "patches.json").read_text())["slides"]
    assert facts["tumor_001"]["places"] >= 20
    rows = [r for r in table(made) if r["slide"] == "tumor_001"]
    names = [PatchName.parse(r["image"]) for r in rows]
    assert {n.region for n in names} == {0, 2, 3}  # 0 and 1 overlap; the small one and that over the edge are there
    sparse = sum(n.metastatic <= 0.5 for n in names)
    assert len(rows) < facts["tumor_001"]["places"]  # dense ones were drawn
    assert sparse >= 5


def test_layout_names_and_balance(made):
    rows = table(made)
    for row in rows:
        name = PatchName.parse(row["image"])
        assert (name.x, name.y, name.tissue) == (int(row["x"]), int(row["y"]), float(row["tissue"]))
        assert (name.slide_id, name.width, name.height) == (row["slide"].rpartition("-")[2], SIDE, SIDE)
        folder = f"camelyon16/w-{SIDE}xh-{SIDE}/{name.folder(row['split'] == 'test')}"
        assert row["image"] == f"{folder}/{name.image_name}"
        if row["mask"]:
            assert row["mask"] == f"{folder}/{name.mask_name}"
            assert name.metastatic == float(row["tumor"])
    split_of = {r["slide"]: r["split"] for r in rows}
    assert split_of["test_001"] == split_of["test_003"] == "test"
    assert sorted(s for n, s in split_of.items() if n.startswith("tumor")) == ["train", "val"]
    for splits in (("train", "val"), ("test",)):
        labels = [r["label"] for r in rows if r["split"] in splits]
        assert labels.count("normal") == labels.count("tumor") > 5


def test_the_dataset_opens_as_it_is(made, tmp_path):
    dataset = open_dataset(str(made / "dataset.csv"), tmp_path)
    manifest = dataset.manifest("0")
    assert (manifest.card.name, manifest.card.classes) == ("camelyon16-patches", ("normal", "tumor"))
    assert (manifest.card.background_class, manifest.card.positive_class) == (0, 1)
    assert len(manifest.items) == len(table(made))
    assert len(manifest.split("valpx")) > 4
    assert verify(dataset, ["0"], tmp_path / "hashes.json").problems == ()
    groups = defaultdict(set)
    for item in manifest.items:
        groups[item.group].add(item.split)
    assert all(len(s) == 1 for s in groups.values())


def test_two_processes_write_the_same_bytes(world, made, tmp_path):
    make_patches(world.listing(), SETTINGS, tmp_path / "out", jobs=2)
    assert contents(tmp_path / "out") == contents(made)


def test_the_same_command_continues(world, made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    whole = contents(out)
    (out / "slides" / "tumor_001.json").unlink()
    (out / "slides" / "normal_001.scan.json").unlink()
    (out / "dataset.csv").unlink()
    gone = next(out.rglob("Patch_file_training-tumor-tumor_001*.png"))
    gone.unlink()
    cut = next(out.rglob("Patch_file_training-tumor-tumor_002*.png"))
    cut.write_bytes(cut.read_bytes()[:100])  # a torn file of a slide whose record is there
    stray = gone.with_name("Patch_file_training-tumor-tumor_001.tif_reg_9_row_9_patch_9_x_1_y_1.png")
    stray.write_bytes(b"left by an interrupted run")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*test_00*.png")}
    make_patches(world.listing(), SETTINGS, out)
    assert contents(out) == whole
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*test_00*.png")}


def test_a_changed_annotation_is_noticed(world_copy, made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)  # the slides are copies with their times, so that all of it still counts
    write_xml(world_copy.root / "xml" / "tumor_001.xml", [blob(450, 400, 130, 1)], [])
    make_patches(world_copy.listing(), SETTINGS, out)
    rows = [r for r in table(out) if r["slide"] == "tumor_001"]
    assert {PatchName.parse(r["image"]).region for r in rows} == {0}
    listed = {r["image"] for r in table(out)}
    assert listed == {p.relative_to(out).as_posix() for p in out.rglob("Patch_*.png")}


def test_folders_of_somebody_else_are_refused(world, made, tmp_path):
    with pytest.raises(BenchError, match=r"other settings: tissue_share 0\.1 \(now 0\.3\)"):
        make_patches(world.listing(), replace(SETTINGS, tissue_share=0.3), made)
    (tmp_path / "camelyon16").mkdir()
    with pytest.raises(BenchError, match="not empty"):
        make_patches(world.listing(), SETTINGS, tmp_path)
    with FileLock(made / ".lock"), pytest.raises(BenchError, match="Another process"):
        make_patches(world.listing(), SETTINGS, made)


def test_broken_slides_are_named_and_the_others_done(world_copy, tmp_path):
    slides, xml = world_copy.root / "slides", world_copy.root / "xml"
    whole = (slides / "normal_001.tif").read_bytes()
    (slides / "normal_001.tif").write_bytes(b"II*\0 not a slide")
    (slides / "tumor_003.tif").write_bytes((slides / "tumor_001.tif").read_bytes())
    (xml / "tumor_003.xml").write_text("<ASAP_Annotations><Annotations/></ASAP_Annotations>")
    torn = (slides / "normal_002.tif").read_bytes()
    (slides / "normal_002.tif").write_bytes(torn[: len(torn) // 3])  # its directories are gone, or tiles are
    write_slide(slides / "tumor_004.tif", world_copy.pixels["tumor_001"], levels=1)
    outcome = make_patches(world_copy.listing(), SETTINGS, tmp_path / "out")
    reasons = dict(outcome.failed)
    assert set(reasons) == {"normal_001", "normal_002", "tumor_003", "tumor_004"}
    assert "openslide" in reasons["normal_001"]
    assert "tumor_003.xml holds no tumour polygon" in reasons["tumor_003"]
    assert "without an annotation" in reasons["tumor_004"]
    assert {r["slide"] for r in table(tmp_path / "out")} == {"tumor_001", "tumor_002", "test_001", "test_003"}
    assert "no normal patch in split train" in " ".join(outcome.summary["notes"])
    for name in ("tumor_003", "tumor_004"):
        (slides / f"{name}.tif").unlink()
    (slides / "normal_001.tif").write_bytes(whole)
    (slides / "normal_002.tif").write_bytes(torn)
    assert make_patches(world_copy.listing(), SETTINGS, tmp_path / "out").failed == ()
    assert {r["slide"] for r in table(tmp_path / "out")} == {*TUMOR, *NORMAL}


def test_damage_inside_a_slide_is_named(world, tmp_path):
    """A slide that opens and fails when its pixels are read."""
    (tmp_path / "slides").mkdir()
    shutil.copytree(world.root / "xml", tmp_path / "xml")
    for name in ("tumor_001", "normal_001"):
        content = bytearray((world.root / "slides" / f"{name}.tif").read_bytes())
        if name == "tumor_001":
            content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
        (tmp_path / "slides" / f"{name}.tif").write_bytes(content)
    (failed,) = make_patches(list_slides(tmp_path / "slides", tmp_path / "xml"), SETTINGS, tmp_path / "out").failed
    assert failed.slide == "tumor_001"
    assert "tumor_001.tif cannot be read by openslide" in failed.reason


def test_the_published_sampler(world, tmp_path):
    settings = as_published(SETTINGS)
    make_patches(world.listing(only="002"), settings, tmp_path / "out")
    rows = [r for r in table(tmp_path / "out") if r["slide"] == "tumor_002"]
    differ = 0
    for row in rows[::2]:
        x, y = int(row["x"]), int(row["y"])
        mask = np.asarray(Image.open(tmp_path / "out" / row["mask"])) > 0
        np.testing.assert_array_equal(mask, expected_mask("tumor_002", x, y, subtract=False))
        differ += int((mask != expected_mask("tumor_002", x, y)).any())
    assert differ
    scan = json.loads((tmp_path / "out" / "slides" / "tumor_002.scan.json").read_text())
    rule = TissueRule(**scan["facts"]["thresholds"])
    assert rule.floor == 0.1
    tumor = polygons(TUMOR.index("tumor_002"))[0]
    rows_found = defaultdict(list)
    for place in scan["places"]:
        rows_found[place["region"], place["row"]].append(place)
    assert len(rows_found) > 5
    for (region, number), places in [*rows_found.items()][::2]:
        y = max(0, int(np.floor(tumor[region][:, 1].min()))) + number * SIDE
        left, right = int(np.floor(tumor[region][:, 0].min())), int(np.ceil(tumor[region][:, 0].max()))
        strip = inside(tumor, left, y, right - left + SIDE, SIDE).sum(axis=0)
        cells = rule.mask(world.pixels["tumor_002"][y : y + SIDE, left : right + SIDE]).sum(axis=0)
        tumour, tissue = (np.convolve(v, np.ones(SIDE), "valid")[: right - left] / SIDE**2 for v in (strip, cells))
        good = np.flatnonzero((tumour >= 0.2 - 1e-9) & (tissue >= 0.1 - 1e-9))
        assert places[0]["x"] == left + good[0]
        steps = [left + k for k in range(good[0], right - left, SIDE) if k in good]
        assert [(p["x"], p["y"]) for p in places] == [(x, y) for x in steps]
    firsts = [p[0]["tumor"] for p in rows_found.values() if p[0]["patch"] == 0]
    assert sum(t < 0.22 for t in firsts) >= 2  # these just reach the minimum


@pytest.mark.parametrize("mpp, level, scale", [(0.5, 1, 2.0), (0.4, 0, 1.6), (0.26, 0, 1.0), (1.3, 2, 5.2)])
def test_resolution_in_microns(world, mpp, level, scale):
    """The nearest finer level, reduced; a level within five hundredths of the resolution is read as it is."""
    pixels = world.pixels["tumor_001"]
    with Slide(world.root / "slides" / "tumor_001.tif", mpp) as slide:
        assert (slide.scale.level, slide.scale.scale) == (level, pytest.approx(scale))
        assert slide.scale.mpp == pytest.approx(MPP * scale)
        found = slide.read(320, 480, 60, 40)
    step = 2**level
    source = pixels[480::step, 320::step]
    if scale == step:
        expected = source[:40, :60]
    else:
        box = (0, 0, 60 * scale / step, 40 * scale / step)
        high, wide = int(np.ceil(box[3] - 1e-9)), int(np.ceil(box[2] - 1e-9))
        expected = np.asarray(
            Image.fromarray(np.ascontiguousarray(source[:high, :wide])).resize((60, 40), Image.Resampling.BILINEAR, box)
        )
    np.testing.assert_array_equal(found, expected)


def test_masks_follow_the_resolution(world, tmp_path):
    make_patches(world.listing(only="test"), replace(SETTINGS, mpp=0.4, size=40), tmp_path / "out")
    rows = [r for r in table(tmp_path / "out") if r["slide"] == "test_001"]
    assert len(rows) >= 5
    for row in rows:
        x, y = int(row["x"]), int(row["y"])
        mask = np.asarray(Image.open(tmp_path / "out" / row["mask"])) > 0
        tumor, excluded = polygons(TUMOR.index("test_001"))
        expected = inside(tumor, x, y, 40, 40, 1.6) & ~inside(excluded, x, y, 40, 40, 1.6)
        np.testing.assert_array_equal(mask, expected)
        assert float(row["mpp"]) == pytest.approx(0.4)


def test_another_level_and_a_tissue_share_that_binds(world, tmp_path, monkeypatch):
    """Read from level 1, every pixel is one of that level: corners lie on its pixels, so that nothing is mixed.

    The overview is too coarse to know the tissue share of a cell, so that what counts is the patch itself.
    """
    monkeypatch.setattr(wsi_slide, "_OVERVIEW_SIDE", 60)
    settings = replace(SETTINGS, mpp=0.5, size=33, tissue_share=0.8, dense_share=9)
    summary = make_patches(world.listing(only="00"), settings, tmp_path / "out").summary
    rows = table(tmp_path / "out")
    for row in rows:
        x, y, name = int(row["x"]), int(row["y"]), row["slide"]
        image = np.asarray(Image.open(tmp_path / "out" / row["image"]))
        np.testing.assert_array_equal(image, world.pixels[name][y::2, x::2][:33, :33])
        share = TissueRule(**summary["slides"][name]["thresholds"]).mask(image).mean()
        assert float(row["tissue"]) == share >= 0.8
    assert {r["label"] for r in rows} == {"normal", "tumor"}
    assert any(float(r["tissue"]) < 0.85 for r in rows)


def test_slides_without_or_with_odd_resolution(tmp_path):
    image = paint(0)[:600, :800]
    path = tmp_path / "a.tif"
    write_slide(path, image, mpp=None, levels=1)
    with pytest.raises(BenchError, match="assume-mpp"):
        Slide(path, 0.25)
    assert Slide(path, 0.5, assume_mpp=0.25).scale.scale == 2.0
    assert Slide(path, None).scale.mpp is None
    write_slide(path, image, mpp=0.5, levels=1)
    with pytest.raises(BenchError, match="at its finest"):
        Slide(path, 0.25)
    write_slide(path, image, mpp=0.5, mpp_y=0.25, levels=1)
    with pytest.raises(BenchError, match="square"):
        Slide(path, 0.5)


def test_overview_is_read_in_bands(world, monkeypatch):
    path = world.root / "slides" / "tumor_001.tif"
    with Slide(path) as slide:
        monkeypatch.setattr(wsi_slide, "_OVERVIEW_SIDE", WIDTH // 2)
        image, scanned, factor = slide.overview()
        assert (image.shape[:2], factor) == ((HEIGHT // 2, WIDTH // 2), 2.0)
        assert scanned.all()
        np.testing.assert_array_equal(image, world.pixels["tumor_001"][::2, ::2])
        monkeypatch.setattr(wsi_slide, "_BAND_PIXELS", 20_000)
        np.testing.assert_array_equal(slide.overview()[0], image)
        monkeypatch.setattr(wsi_slide, "_OVERVIEW_SIDE", 88)  # reduces the last level further
        small, _, factor = slide.overview()
        assert factor == 12.0
        np.testing.assert_allclose(small.mean(), image.mean(), rtol=0.02)


def test_without_openslide_the_error_says_what_to_install(world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(BenchError, match=r"pip install 'wsolbench\[wsi\]'"):
        make_patches(world.listing(), SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_found_is_an_error(world, tmp_path):
    (tmp_path / "slides").mkdir()
    shutil.copy(world.root / "slides" / "normal_001.tif", tmp_path / "slides")
    with pytest.raises(BenchError, match="No slide gave a patch"):
        make_patches(list_slides(tmp_path / "slides", None), SETTINGS, tmp_path / "out")


def test_slide_smaller_than_a_patch(tmp_path):
    write_slide(tmp_path / "slides" / "tumor_001.tif", paint(0)[:60, :90], levels=1)
    write_xml(tmp_path / "xml" / "tumor_001.xml", [blob(45, 30, 20, 0)], [])
    (failed,) = make_patches(list_slides(tmp_path / "slides", tmp_path / "xml"), SETTINGS, tmp_path / "out").failed
    assert "smaller than one patch" in failed.reason


def test_validation_slides_of_the_user_stand(world, tmp_path):
    (tmp_path / "splits.csv").write_text(
        "slide,split\n"
        + "\n".join(f"{n},{s}" for n, s in zip(TUMOR + NORMAL, ["train", "val", "test"] * 2, strict=True))
    )
    listing = world.listing(splits=tmp_path / "splits.csv", unannotated="normal")
    make_patches(listing, SETTINGS, tmp_path / "out")
    rows = table(tmp_path / "out")
    assert {r["slide"] for r in rows if r["split"] == "val"} == {"tumor_002", "normal_002"}
