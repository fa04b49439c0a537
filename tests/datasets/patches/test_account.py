"""Every slide that is given ends in exactly one of: used, left out with a reason, failed with a reason."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.open import open_dataset
from wsolbench.datasets.patches.extract import make_patches, preview
from wsolbench.datasets.patches.sample import SlideScan
from wsolbench.datasets.patches.settings import PatchSettings
from wsolbench.datasets.patches.slides import list_slides

pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")

SETTINGS = PatchSettings(size=48, name="mixed", dense_share=9)
BAND = (110, 140, 270, 156)  # a thin tumour: all of its patches are less than half tumour, so that each is kept
GLASS, MPP = np.array([242, 241, 243], np.uint8), 0.25


def write_slide(path, seed=0, tissue=True, mpp=MPP, side=(288, 384), tumor=None):
    """A small slide with a round piece of tissue, or bare glass. tumor: box x0, y0, x1, y1 for an annotation beside."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: side[0], : side[1]]
    inside = ((x - side[1] / 2) / (0.46 * side[1])) ** 2 + ((y - side[0] / 2) / (0.46 * side[0])) ** 2 < 1
    image = np.where((inside & tissue)[..., None], np.array([190, 110, 160], np.uint8), GLASS)
    image = (image + rng.integers(-8, 9, (*side, 1))).clip(0, 255).astype(np.uint8)
    stated = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", metadata=None, compression="zlib", **stated)
    if tumor:
        x0, y0, x1, y1 = tumor
        write_xml(path.parent.parent / "xml" / f"{path.stem}.xml", [(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def write_xml(path, points, group="Tumor"):
    path.parent.mkdir(exist_ok=True)
    dots = "".join(f'<Coordinate X="{x}" Y="{y}"/>' for x, y in points)
    path.write_text(f'<A><Annotation Type="Polygon" PartOfGroup="{group}">{dots}</Annotation></A>')


def damage(path):
    """Takes the pixels away and leaves the header: the slide opens and cannot be read."""
    content = bytearray(path.read_bytes())
    content[len(content) // 8 : -len(content) // 4] = bytes(len(content[len(content) // 8 : -len(content) // 4]))
    path.write_bytes(content)


def account(listing, outcome):
    """Where each slide ended, having checked that patches.json and the tables say the same."""
    summary = outcome.summary
    ends = {s: "used" for s, facts in summary["slides"].items() if facts["patches"]}
    for kind in ("skipped", "failed"):
        for row in summary[kind]:
            assert row["slide"] not in ends, f"{row['slide']} is listed twice"
            assert len(row["reason"]) > 10
            ends[row["slide"]] = kind
    assert {j.name for j in listing.jobs} <= set(ends)
    assert {f.slide for f in outcome.failed} == {s for s, end in ends.items() if end == "failed"}
    return ends


def reasons(outcome):
    return {r["slide"]: r["reason"] for kind in ("skipped", "failed") for r in outcome.summary[kind]}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Slides of every fate, by a table; no tumour patch can come out of the test split."""
    root = tmp_path_factory.mktemp("mixed")
    s = root / "slides"
    for name, seed in (("t_one", 1), ("t_two", 2)):
        write_slide(s / f"{name}.tif", seed, tumor=BAND)
    for name, seed in (("n_one", 3), ("n_two", 4), ("n_test", 5), ("unlisted", 6), ("x_mask", 7)):
        write_slide(s / f"{name}.tif", seed)
    write_slide(s / "t_glass.tif", 8, tissue=False, tumor=BAND)
    write_slide(s / "n_glass.tif", 9, tissue=False)
    write_slide(s / "t_missing.tif", 10)
    write_slide(s / "n_coarse.tif", 11, mpp=1.0)
    write_slide(s / "n_unstated.tif", 12, mpp=None)
    write_slide(s / "n_absurd.tif", 13, mpp=25400 / 72)
    write_slide(s / "n_small.tif", 14, side=(40, 400))
    write_slide(s / "t_group.tif", 15)
    write_xml(root / "xml" / "t_group.xml", [(150, 100), (250, 100), (200, 200)], "Stroma")
    write_slide(s / "t_xml.tif", 16)
    (root / "xml" / "t_xml.xml").write_text("<A><Annotation>")
    write_slide(s / "n_torn_test.tif", 17)
    damage(s / "n_torn_test.tif")
    (s / "n_none_test.tif").write_bytes(b"no slide at all")
    names = sorted(p.stem for p in s.iterdir())
    rows = [f"{n},{'test' if 'test' in n else 'train'},{'tumor' if n[0] == 't' else 'normal'}"
            for n in names if n not in ("unlisted", "x_mask")]  # fmt: skip
    (root / "splits.csv").write_text("\n".join(["slide,split,label", *rows, "gone,train,normal"]))
    return root


FATE = {
    "t_one": "used", "t_two": "used", "n_one": "used", "n_two": "used", "n_test": "skipped", "unlisted": "skipped",
    "x_mask": "skipped", "t_glass": "skipped", "n_glass": "skipped", "t_missing": "failed", "n_coarse": "failed",
    "n_unstated": "failed", "n_absurd": "failed", "n_small": "failed", "t_group": "failed", "t_xml": "failed",
    "n_torn_test": "failed", "n_none_test": "failed", "gone": "failed",
}  # fmt: skip
WHY = {
    "n_test": "no tumour patch came out of split test", "t_glass": "tissue on at least 0.1",
    "n_glass": "no place for a patch", "unlisted": "not listed", "t_missing": "without an annotation",
    "n_coarse": "at its finest", "n_unstated": "does not state its resolution", "n_absurd": "72 px an inch",
    "n_small": "smaller than one patch", "t_group": "group 'Stroma'", "t_xml": "not well-formed",
    "n_torn_test": "cannot be read by openslide", "n_none_test": "cannot be read by openslide",
    "gone": "there is no such slide",
}  # fmt: skip


def listing_of(root):
    return list_slides(root / "slides", root / "xml", root / "splits.csv")


def test_every_slide_ends_in_exactly_one_list(mixed, tmp_path):
    listing = listing_of(mixed)
    outcome = make_patches(listing, SETTINGS, tmp_path / "out")
    assert account(listing, outcome) == FATE
    found = reasons(outcome)
    assert {s: why for s, why in WHY.items() if why not in found[s]} == {}
    assert json.loads((tmp_path / "out" / "patches.json").read_text()) == json.loads(json.dumps(outcome.summary))
    again = make_patches(listing, SETTINGS, tmp_path / "out")
    assert again == outcome


def test_a_dry_run_finds_what_the_run_finds(mixed, tmp_path):
    found = preview(listing_of(mixed), SETTINGS, tmp_path / "out")
    assert {f.slide for f in found.failed} == {s for s, fate in FATE.items() if fate == "failed"}
    told = dict(found.failed)
    assert {s for s in told if WHY[s] not in told[s]} == set()
    assert found.refusals == ()
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_what_the_run_refuses(mixed, tmp_path):
    (tmp_path / "slides").mkdir()
    for name in ("n_one", "n_two"):
        (tmp_path / "slides" / f"{name}.tif").symlink_to(mixed / "slides" / f"{name}.tif")
    (tmp_path / "t.csv").write_text("slide,split,label,patient\nn_one,train,normal,1\nn_two,test,normal,01\n")
    listing = list_slides(tmp_path / "slides", None, tmp_path / "t.csv")
    refusals = preview(listing, SETTINGS, tmp_path).refusals
    for said in ("1 patient in two splits", "none of the 2 slides to cut has an annotation", "is not empty"):
        assert any(said in r for r in refusals), said
    with pytest.raises(BenchError, match="1 patient in two splits"):
        make_patches(listing, SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_normal_slides_than_patches(tmp_path):
    """Slides that none is asked of are opened all the same, and say why they gave nothing."""
    write_slide(tmp_path / "slides" / "tumor_001.tif", 1, tumor=(180, 120, 230, 160))
    for k in range(1, 7):
        write_slide(tmp_path / "slides" / f"normal_00{k}.tif", 10 + k)
    damage(tmp_path / "slides" / "normal_005.tif")
    listing = list_slides(tmp_path / "slides", tmp_path / "xml")
    outcome = make_patches(listing, SETTINGS, tmp_path / "out")
    ends = account(listing, outcome)
    used = [s for s, end in ends.items() if end == "used"]
    normal = outcome.summary["counts"]["train"]["normal"]["patches"]
    assert (ends["normal_005"], 1 < len(used) < 6) == ("failed", True)
    left = {s: r for s, r in reasons(outcome).items() if ends[s] == "skipped"}
    assert len(left) == 6 - normal - (ends["normal_005"] == "failed")
    assert all(f"the {normal} normal patches of split train came out of other slides" in r for r in left.values())


def test_dense_slides_of_which_nothing_is_drawn(tmp_path):
    for k in range(1, 4):
        write_slide(tmp_path / "slides" / f"tumor_00{k}.tif", k, tumor=(120, 80, 120 + 96, 80 + 96))
    listing = list_slides(tmp_path / "slides", tmp_path / "xml")
    outcome = make_patches(listing, PatchSettings(size=48, name="mixed"), tmp_path / "out")
    ends = account(listing, outcome)
    assert sorted(ends.values()) == ["skipped", "skipped", "used"]
    assert all("all are more than half tumour" in r for r in reasons(outcome).values())


def test_one_slide_under_two_names_is_refused_before_anything_is_cut(tmp_path):
    write_slide(tmp_path / "slides" / "a.tif", 1, tumor=BAND)
    write_slide(tmp_path / "slides" / "b.tif", 2)
    for kind, suffix in (("slides", "tif"), ("xml", "xml")):
        (tmp_path / kind / f"c.{suffix}").write_bytes((tmp_path / kind / f"a.{suffix}").read_bytes())
    for splits, patients, refused in (("train,val", "1,2", True), ("train,train", "1,2", True),
                                      ("train,test", "1,2", True), ("train,train", "1,1", False),
                                      ("test,test", "1,2", False)):  # fmt: skip
        (one, other), (p, q) = splits.split(","), patients.split(",")
        (tmp_path / "s.csv").write_text(f"slide,split,label,patient\na,{one},tumor,{p}\nc,{other},tumor,{q}\n"
                                        "b,train,normal,3\n")  # fmt: skip
        listing = list_slides(tmp_path / "slides", tmp_path / "xml", tmp_path / "s.csv")
        out = tmp_path / f"{splits}{patients}"
        assert bool(preview(listing, SETTINGS, out).refusals) == refused
        if refused:
            with pytest.raises(BenchError, match=rf"a \({one}\) = c \({other}\)"):
                make_patches(listing, SETTINGS, out)
            assert not (out / "dataset.csv").exists()
        else:
            account(listing, make_patches(listing, SETTINGS, out))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Camelyon17: three patients of two annotated nodes and a normal one each."""
    root = tmp_path_factory.mktemp("nodes")
    for patient in range(3):
        for node in range(3):
            path = root / "slides" / f"patient_00{patient}_node_{node}.tif"
            write_slide(path, 3 * patient + node, tumor=BAND if node < 2 else None)
    return root


def table(out, name="dataset.csv"):
    lines = [x for x in (out / name).read_text().splitlines() if not x.startswith("#")]
    return list(csv.DictReader(lines))


def test_the_patient_is_the_group_in_every_split(nodes, tmp_path):
    rows = [f"patient_00{p}_node_{n},{'test' if p == 2 else 'train'}" for p in range(3) for n in range(3)]
    (tmp_path / "s.csv").write_text("slide,split\n" + "\n".join(rows))
    listing = list_slides(nodes / "slides", nodes / "xml", tmp_path / "s.csv", "normal")
    outcome = make_patches(listing, SETTINGS, tmp_path / "out")
    splits = {}
    for row in table(tmp_path / "out"):
        assert row["group"] in row["image"]
        splits.setdefault(row["group"], set()).add(row["split"])
    assert sorted((g, *s) for g, s in splits.items() if g == "patient_002") == [("patient_002", "test")]
    assert sorted(s for g, found in splits.items() for s in found if g != "patient_002") == ["train", "val"]
    assert outcome.summary["counts"]["val"]["tumor"] == {"patches": 8, "slides": 2, "groups": 1}
    assert {r["group"] for r in table(tmp_path / "out", "patches.csv")} == set(splits)
    manifest = open_dataset(str(tmp_path / "out" / "dataset.csv"), tmp_path).manifest("0")
    assert {i.group for i in manifest.items} == set(splits)
    assert "Bandi" in manifest.card.citation


def test_normal_patches_from_tumour_slides(nodes, tmp_path):
    """They keep their distance from every outline, carry no mask, and come from slides that give tumour too."""
    (tmp_path / "s.csv").write_text("slide,split\n" + "\n".join(f"patient_00{p}_node_0,train" for p in range(2)))
    listing = list_slides(nodes / "slides", nodes / "xml", tmp_path / "s.csv")
    make = {d: PatchSettings(size=32, name="far", dense_share=1, normal_from_tumor=d) for d in (0.0, 15.0)}
    found = {}
    for distance, settings in make.items():
        out = tmp_path / f"out{distance:.0f}"
        outcome = make_patches(listing, settings, out)
        assert account(listing, outcome)["patient_000_node_0"] == "used"
        rows = table(out, "patches.csv")
        assert {r["label"] for r in rows if r["slide"] == "patient_000_node_0"} == {"normal", "tumor"}
        margin = max(32, distance / MPP)
        normal = [(int(r["x"]), int(r["y"])) for r in rows if r["label"] == "normal"]
        apart = [max(110 - (x + 32), x - 270, 140 - (y + 32), y - 156) for x, y in normal]
        assert min(apart) >= margin - 1
        assert all(not r["mask"] for r in rows if r["label"] == "normal")
        assert sorted(r["image"] for r in rows) == sorted(
            p.relative_to(out).as_posix() for p in out.rglob("Patch_file_*.png")
        )
        found[distance] = min(apart)
    assert found[0.0] < found[15.0]  # the distance is what keeps them away
    outcome = make_patches(listing, PatchSettings(size=32, name="off", dense_share=1), tmp_path / "off")
    assert outcome.summary["counts"]["train"]["normal"]["patches"] == 0


def test_marks_of_unknown_meaning_are_no_normal_tissue(nodes, tmp_path):
    (tmp_path / "xml").mkdir()
    name = "patient_000_node_0"
    text = (nodes / "xml" / f"{name}.xml").read_text()
    dots = "".join(f'<Coordinate X="{x}" Y="{y}"/>' for x, y in ((0, 0), (384, 0), (384, 70), (0, 70)))
    drawn = f'<Annotation Type="Polygon" PartOfGroup="None">{dots}</Annotation></A>'
    (tmp_path / "xml" / f"{name}.xml").write_text(text.replace("</A>", drawn))
    (tmp_path / "s.csv").write_text(f"slide,split\n{name},train\n")
    settings = PatchSettings(size=32, name="far", dense_share=1, normal_from_tumor=0.0)
    listing = list_slides(nodes / "slides", tmp_path / "xml", tmp_path / "s.csv")
    outcome = make_patches(listing, settings, tmp_path / "out")
    ys = [int(r["y"]) for r in table(tmp_path / "out", "patches.csv") if r["label"] == "normal"]
    assert ys
    assert min(ys) >= 70 + 32 - 1
    assert any("in no group: 1 (patient_000_node_0)" in n for n in outcome.summary["notes"])


def test_pale_tumour_patches_are_counted(tmp_path):
    """An outline drawn far over the glass: its patches pass the tissue share and show far more tumour than tissue."""
    write_slide(tmp_path / "slides" / "tumor_001.tif", 1)
    boxes = [(192, 0, 384, 288), (60, 120, 84, 144), (60, 180, 84, 204)]  # the small ones are sparse: dense are drawn
    corners = [((a, b), (c, b), (c, d), (a, d)) for a, b, c, d in boxes]
    dots = ["".join(f'<Coordinate X="{x}" Y="{y}"/>' for x, y in points) for points in corners]
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "tumor_001.xml").write_text(
        "<A>" + "".join(f'<Annotation PartOfGroup="_0">{d}</Annotation>' for d in dots) + "</A>"
    )
    listing = list_slides(tmp_path / "slides", tmp_path / "xml")
    outcome = make_patches(listing, PatchSettings(size=48, name="pale", dense_share=30), tmp_path / "out")
    rows = [r for r in table(tmp_path / "out", "patches.csv") if r["tumor"]]
    pale = [r for r in rows if float(r["tissue"]) < float(r["tumor"]) / 2]
    assert any(f"less than half as much tissue as tumour: {len(pale)} of {len(rows)}" in n
               for n in outcome.summary["notes"]) == bool(pale)  # fmt: skip
    assert pale


def test_geojson_end_to_end_and_names_of_other_slides(tmp_path):
    """The same outline as GeoJSON gives the same patches and masks as XML does."""
    for kind in ("xml", "json"):
        root = tmp_path / kind
        for k in (1, 2):
            write_slide(root / "slides" / f"tumor_00{k}.tif", k, tumor=BAND)
        if kind == "json":
            for path in (root / "xml").iterdir():
                ring = [[110, 140], [270, 140], [270, 156], [110, 156], [110, 140]]
                shape = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
                         "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}}}  # fmt: skip
                path.with_suffix(".geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [shape]}))
                path.unlink()
        make_patches(list_slides(root / "slides", root / "xml"), SETTINGS, root / "out")
    hashes = [[(r["image_sha256"], r["mask_sha256"]) for r in table(tmp_path / k / "out", "patches.csv")]
              for k in ("xml", "json")]  # fmt: skip
    assert hashes[0] == hashes[1] != []


def test_geojson_on_a_slide_that_begins_elsewhere(tmp_path, monkeypatch):
    from wsolbench.datasets.wsi import slide

    write_slide(tmp_path / "slides" / "tumor_001.tif", 1)
    (tmp_path / "xml").mkdir()
    ring = [[100, 60], [200, 60], [200, 150], [100, 150]]
    shape = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
             "properties": {"classification": {"name": "Tumor"}}}  # fmt: skip
    (tmp_path / "xml" / "tumor_001.geojson").write_text(json.dumps([shape]))
    monkeypatch.setattr(slide, "bounds_origin", lambda _: (50.0, 40.0))
    listing = list_slides(tmp_path / "slides", tmp_path / "xml")
    ((_, reason),) = preview(listing, SETTINGS, tmp_path / "out").failed
    assert "--geojson-origin scanned" in reason
    for origin, low in (("scanned", (150, 100)), ("slide", (100, 60))):
        with SlideScan(listing.jobs[0], replace(SETTINGS, geojson_origin=origin)) as scan:
            assert tuple(scan.marks.tumor[0].box[0]) == low
