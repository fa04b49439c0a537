"""Polygons, annotations, tissue, draws and listings of `bench data patches`, each against an independent oracle."""

import colorsys
from collections import Counter

import numpy as np
import pytest
from skimage.filters import threshold_otsu

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.patches.choose import calibrate, dense_bin, normal_quotas, share_out
from wsolbench.datasets.patches.sample import PatchPlace
from wsolbench.datasets.patches.settings import PatchSettings, as_published
from wsolbench.datasets.patches.slides import BAD_SLIDES, TEST_TUMOR, list_slides
from wsolbench.datasets.wsi.annotations import Reading, read_annotations
from wsolbench.datasets.wsi.polygons import Outline, draw_mask, fill_polygon
from wsolbench.datasets.wsi.tissue import TissueRule, otsu, saturation, tissue_rule


def winds_around(polygon, x, y):
    """Winding number by the angles under which the edges are seen: the definition, unlike the scan that is tested."""
    ahead = polygon - (x, y)
    angles = np.arctan2(ahead[:, 1], ahead[:, 0])
    turn = np.diff(np.append(angles, angles[0]))
    return round(float(((turn + np.pi) % (2 * np.pi) - np.pi).sum()) / (2 * np.pi))


def brute_force(polygon, height, width):
    return np.array([[winds_around(polygon, c + 0.5, r + 0.5) != 0 for c in range(width)] for r in range(height)])


@pytest.mark.parametrize("seed", range(25))
def test_a_pixel_is_inside_where_the_outline_winds_around_its_centre(seed):
    rng = np.random.default_rng(seed)
    polygon = rng.uniform(-12, 32, (int(rng.integers(3, 14)), 2))
    found = fill_polygon(polygon, 18, 23)
    np.testing.assert_array_equal(found, brute_force(polygon, 18, 23))
    np.testing.assert_array_equal(found, fill_polygon(polygon[::-1], 18, 23))


def test_neighbours_share_no_pixel_and_leave_none_out():
    rng = np.random.default_rng(0)
    centre = np.array([10.5, 9.5])  # centres of pixels on the very edges
    ring = np.array([(0, 0), (10.5, 0), (20, 0), (20, 9.5), (20, 20), (10.5, 20), (0, 20), (0, 9.5)], float)
    parts = [np.array([centre, ring[k], ring[(k + 1) % 8]]) for k in range(8)]
    assert (sum(fill_polygon(p, 20, 20).astype(int) for p in parts) == 1).all()
    assert fill_polygon(rng.uniform(50, 60, (5, 2)), 20, 20).sum() == 0
    square = fill_polygon(np.array([(2, 3), (7, 3), (7, 5), (2, 5)], float), 10, 10)
    assert sorted(map(tuple, np.argwhere(square))) == [(r, c) for r in (3, 4) for c in range(2, 7)]


def test_what_is_drawn_over_twice_is_inside():
    turns = np.linspace(0, 4 * np.pi, 80)
    twice = 15 + 10 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    assert fill_polygon(twice, 30, 30)[15, 15]
    eight = np.array([(1.25, 1), (9.25, 9), (9.25, 1), (1.25, 9)])
    assert fill_polygon(eight, 10, 10)[4].tolist() == [False, True, True, True, True, False, True, True, True, False]


def test_masks_are_a_union_without_the_excluded():
    one, two = (np.array([(a, a), (a + 20, a), (a + 20, a + 20), (a, a + 20)], float) for a in (100, 110))
    hole = np.array([(115, 115), (118, 115), (118, 118), (115, 118)], float)
    mask = draw_mask([Outline(one), Outline(two)], [Outline(hole), Outline(hole + 200)], (90, 95), 1.0, (50, 60))
    expected = np.zeros((50, 60), bool)
    expected[5:25, 10:30] = expected[15:35, 20:40] = True
    expected[20:23, 25:28] = False
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(
        draw_mask([Outline(one)], [], (90, 90), 2.5, (20, 20)), brute_force((one - 90) / 2.5, 20, 20)
    )


def annotation(points, group="Tumor", kind="Polygon"):
    rows = "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}" />' for k, (x, y) in enumerate(points))
    return f'<Annotation Name="A" Type="{kind}" PartOfGroup="{group}"><Coordinates>{rows}</Coordinates></Annotation>'


def write_xml(path, *annotations, head='<?xml version="1.0"?>'):
    path.write_text(f"{head}<ASAP_Annotations><Annotations>{''.join(annotations)}</Annotations></ASAP_Annotations>")
    return path


SQUARE = [(1.5, 2), (30, 2), (30, 40), (1.5, 40)]


def test_annotations_by_group(tmp_path):
    kinds = [annotation(SQUARE, g) for g in ("Tumor", "_0", "_1", "metastases", "_2", "Exclusion", "normal", "None")]
    path = write_xml(tmp_path / "a.xml", *kinds, annotation(SQUARE[:2]), annotation(SQUARE, kind="PointSet"))
    found = read_annotations(path, (100, 100))
    assert (len(found.tumor), len(found.excluded)) == (4, 3)
    np.testing.assert_array_equal(found.tumor[0].points, SQUARE)
    assert [n.text for n in found.notes] == [
        "annotations left out, fewer than three points: 1", "annotations left out, in no group: 1",
        "annotations left out, type PointSet has no area: 1", "tumour outlines inside an exclusion, cut out with it "
        "(--overlaps innermost keeps them): 4",
    ]  # fmt: skip
    swapped = annotation(SQUARE).replace('Order="0"', 'Order="x"').replace('Order="1"', 'Order="0"')
    second = write_xml(tmp_path / "b.xml", swapped.replace('Order="x"', 'Order="1"'))
    np.testing.assert_array_equal(read_annotations(second).tumor[0].points, [SQUARE[k] for k in (1, 0, 2, 3)])


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "no tumour polygon"), (annotation(SQUARE, "_2"), "no tumour polygon"),
        (annotation(SQUARE[:2]), "fewer than three points"), (annotation(SQUARE, "Tumour"), "group 'Tumour'"),
        (annotation([("1", "a")]), "no pair of numbers"), (annotation([("nan", "1")]), "no pair of numbers"),
        ("<Annotation>", "not well-formed"), (annotation([(x + 200, y) for x, y in SQUARE]), "outside the slide"),
    ],
)  # fmt: skip
def test_annotations_that_cannot_be_right_name_their_file(tmp_path, text, complaint):
    path = write_xml(tmp_path / "wrong.xml", text)
    with pytest.raises(BenchError, match=complaint) as problem:
        read_annotations(path, (100, 100))
    assert "wrong.xml" in str(problem.value)


def test_no_entity_is_expanded(tmp_path):
    head = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:passwd">]>'
    with pytest.raises(BenchError, match="document type"):
        read_annotations(write_xml(tmp_path / "x.xml", annotation(SQUARE), head=head))
    wide = tmp_path / "y.xml"
    wide.write_bytes(write_xml(wide, annotation(SQUARE), head='<!DOCTYPE x>').read_text().encode("utf-16"))  # fmt: skip
    with pytest.raises(BenchError, match="document type"):
        read_annotations(wide)


def test_published_reading_leaves_unknown_groups_out(tmp_path):
    path = write_xml(tmp_path / "a.xml", annotation(SQUARE), annotation(SQUARE, "Lymph"))
    found = read_annotations(path, reading=Reading(strict=False))
    assert [n.text for n in found.notes] == ["annotations left out, group 'Lymph': 1"]
    assert (len(found.tumor), len(found.unknown)) == (1, 1)


@pytest.mark.parametrize("seed", range(12))
def test_otsu(seed):
    rng = np.random.default_rng(seed)
    low, high = rng.normal(70 + 5 * seed, 15, 400), rng.normal(180, 5 + 2 * seed, int(rng.integers(20, 900)))
    pixels = np.concatenate([low, high]).clip(0, 255).astype(np.uint8)
    assert otsu(np.bincount(pixels, minlength=256)) == threshold_otsu(pixels)


def test_otsu_without_two_classes():
    assert otsu(np.bincount([7, 7], minlength=256)) == 7
    assert otsu(np.bincount([7, 9], minlength=256)) == 7
    white = np.full((4, 4, 3), 240, np.uint8)
    for scanned in (np.ones((4, 4), bool), np.zeros((4, 4), bool)):
        assert not tissue_rule(white, scanned, 10).mask(white).any()


def test_tissue_is_what_the_sentence_says():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    rule = TissueRule(red=150, green=120, blue=140, saturation=90, floor=30)
    for (r, g, b), found, level in zip(
        image.reshape(-1, 3).tolist(), rule.mask(image).ravel(), saturation(image).ravel(), strict=True
    ):
        exact = 255 * colorsys.rgb_to_hsv(r / 255, g / 255, b / 255)[1]
        assert abs(level - exact) <= 0.5 + 1e-9
        glass = r > 150 and g > 120 and b > 140
        assert found == (not glass and level > 90 and min(r, g, b) > 30)


def test_padding_and_unscanned_parts_do_not_move_the_thresholds():
    rng = np.random.default_rng(2)
    image = np.concatenate([rng.integers(120, 180, (50, 60, 3)), rng.integers(230, 250, (50, 60, 3))]).astype(np.uint8)
    scanned = np.ones(image.shape[:2], bool)
    padded = np.concatenate([image, np.zeros_like(image), np.full_like(image, 255)])
    inside = np.concatenate([scanned, scanned, ~scanned])
    assert tissue_rule(padded, inside, 10) == tissue_rule(image, scanned, 10)
    assert tissue_rule(padded, inside, -1).red < tissue_rule(image, scanned, -1).red


def offers(shares, slides=4):
    found = {f"s{k}": [] for k in range(slides)}
    for number, share in enumerate(shares):
        found[f"s{number % slides}"].append(PatchPlace(number, 0, 0.5, float(share), number, 0, 0))
    return found


def chosen_shares(chosen):
    return np.array(sorted(p.tumor for places in chosen.values() for p in places))


def test_all_sparse_patches_and_exactly_the_intended_number_of_dense_ones():
    rng = np.random.default_rng(3)
    shares = np.concatenate([rng.uniform(0.2, 0.5, 3000), rng.uniform(0.5001, 1, 1000), np.ones(9000)])
    given = offers(shares)
    chosen = chosen_shares(calibrate(given, PatchSettings(dense_share=0.05), "train"))
    np.testing.assert_array_equal(chosen[:3000], np.sort(shares[:3000]))
    dense = Counter(dense_bin(s) for s in chosen[3000:])
    assert sum(dense.values()) == 150
    assert max(dense.values()) < 40  # uniform over bins (15 each), though nine tenths of the shares are 1
    assert len(chosen_shares(calibrate(given, PatchSettings(dense_share=1e-6), "train"))) == 3001
    assert len(chosen_shares(calibrate(given, PatchSettings(dense_share=9), "train"))) == 13_000
    again = calibrate(given, PatchSettings(dense_share=0.05), "train")
    assert again == calibrate(dict(reversed(given.items())), PatchSettings(dense_share=0.05), "train")
    assert again != calibrate(given, PatchSettings(dense_share=0.05, seed=1), "train")
    assert again != calibrate(given, PatchSettings(dense_share=0.05), "test")


def test_the_published_draw_has_no_break():
    """10,089 sparse patches kept 6,514 dense ones, at most 1,010 in each of ten bins, where 101 were meant."""
    pools = [550, 700, 660, 760, 780, 900, 750, 850, 1600, 60_000]
    shares = [0.3] * 10_089 + [0.525 + 0.05 * k for k, n in enumerate(pools) for _ in range(n)]
    chosen = chosen_shares(calibrate(offers(shares), as_published(PatchSettings()), "train"))
    counts = Counter(dense_bin(s) for s in chosen if s > 0.5)
    for k, n in enumerate(pools):  # n (1 - exp(-1010 / n)) distinct ones of 1,010 drawn with replacement
        assert counts[k] == pytest.approx(n * (1 - np.exp(-1010 / n)), rel=0.12)
    assert len(chosen_shares(calibrate(offers(shares), PatchSettings(), "train"))) == 10_089 + 101


def test_bins_of_dense_shares():
    assert [dense_bin(s) for s in (0.5001, 0.55, 0.5501, 0.95, 0.9501, 1.0)] == [0, 0, 1, 8, 9, 9]


def test_at_most_so_many_of_a_slide():
    chosen = calibrate(offers([0.3] * 400), PatchSettings(max_per_slide=7), "train")
    assert {len(p) for p in chosen.values()} == {7}
    assert [p.patch for p in chosen["s0"]] == sorted(p.patch for p in chosen["s0"])
    assert [p.patch for p in chosen["s0"]] != [0, 4, 8, 12, 16, 20, 24]


def test_normal_patches_are_shared_out_equally():
    assert share_out(10, ["a", "b", "c"], {}) == {"a": 4, "b": 3, "c": 3}
    assert share_out(10, ["a", "b", "c"], {"a": 1}) == {"a": 1, "b": 5, "c": 4}
    assert share_out(10, ["a", "b"], {"a": 2, "b": 3}) == {"a": 2, "b": 3}
    has = {"a": 2, "b": 100, "c": 30, "d": 100}
    quota = normal_quotas(
        200, [*has], PatchSettings(), "x", lambda asked: {s: min(n, has[s]) for s, n in asked.items()}
    )
    assert quota == {"a": 2, "b": 84, "c": 30, "d": 84}
    few = normal_quotas(900, [*has], PatchSettings(), "x", lambda asked: {s: min(n, has[s]) for s, n in asked.items()})
    assert few == has
    capped = normal_quotas(200, [*has], PatchSettings(max_per_slide=20), "x",
                           lambda asked: {s: min(n, has[s]) for s, n in asked.items()})  # fmt: skip
    assert capped == {"a": 2, "b": 20, "c": 20, "d": 20}


@pytest.fixture
def tree(tmp_path):
    """Empty files by the names of Camelyon16; listing does not open them."""
    names = ["training/Tumor_001.tif", "training/normal_001.tif", "training/normal_086.tif", "testing/test_001.tif",
             "testing/test_003.tif", "testing/test_114.tif", "masks/tumor_001_mask.tif"]  # fmt: skip
    for name in names:
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / name).touch()
    (tmp_path / "x").mkdir()
    for name in ("tumor_001.xml", "test_001.xml"):
        (tmp_path / "x" / name).touch()
    return tmp_path


def brief(listing):
    return {j.name: (j.label, j.split, bool(j.annotation)) for j in listing.jobs}


def test_slides_by_the_names_of_camelyon(tree):
    listing = list_slides(tree / "s", tree / "x")
    assert brief(listing) == {
        "Tumor_001": ("tumor", "train", True), "normal_001": ("normal", "train", False),
        "test_001": ("tumor", "test", True), "test_003": ("normal", "test", False),
    }  # fmt: skip
    assert {s.slide for s in listing.skipped} == {"tumor_001_mask", "normal_086", "test_114"}
    assert "tumor_111" in next(s.reason for s in listing.skipped if s.slide == "normal_086")
    assert listing.problems == ()
    assert [j.tag for j in listing.jobs] == [
        "training-tumor-Tumor_001", "training-normal-normal_001", "testing-images-test_001", "testing-images-test_003"
    ]  # fmt: skip


def test_a_tumour_slide_is_never_taken_for_normal(tree):
    for name in ("tumor_001.xml", "test_001.xml"):
        (tree / "x" / name).unlink()
    listing = list_slides(tree / "s", tree / "x", include_bad=True)
    assert {p.slide for p in listing.problems} == {"Tumor_001", "test_001", "test_114"}
    assert all("without an annotation" in p.reason for p in listing.problems)
    assert brief(listing)["test_003"] == ("normal", "test", False)
    assert {p.slide for p in list_slides(tree / "s", None, unannotated="error").problems} > {"test_003"}
    assert "test_003" in {s.slide for s in list_slides(tree / "s", None, unannotated="skip").skipped}
    assert brief(list_slides(tree / "s", None, unannotated="normal"))["test_001"][0] == "normal"


def test_slides_by_a_table(tree):
    (tree / "s" / "mine 1.svs").touch()
    (tree / "s" / "other.svs").touch()
    table = tree / "splits.csv"
    table.write_text("slide,split,label\nmine 1.svs,val,normal\ntest_001,train,tumor\nTEST_003.tif,test,\n")
    listing = list_slides(tree / "s", tree / "x", table, unannotated="normal")
    assert brief(listing) == {
        "mine 1": ("normal", "val", False), "test_001": ("tumor", "train", True), "test_003": ("normal", "test", False)
    }  # fmt: skip
    assert listing.jobs[0].tag == "training-normal-mine_1"
    assert "other" in {s.slide for s in listing.skipped}
    assert {p.slide for p in list_slides(tree / "s", tree / "x").problems} == {"mine 1", "other"}
    table.write_text("slide,split\nother,test\ngone,train\n")
    listing = list_slides(tree / "s", tree / "x", table)
    assert {p.slide: p.reason[:12] for p in listing.problems} == {
        "other": "no annotatio",
        "gone": "listed in " + str(table)[:2],
    }


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("slide;split\n", "the header must be"), ("", "the header must be"),
        ("slide,split\na,trian\n", "Did you mean train"),
        ("slide,split,label\na,train,tumour\n", "Did you mean tumor"), ("slide,split\na,train,x\n", "3 fields"),
        ("slide,split\nno,train\n", "lists none"), ("slide,split\na,train\nA.tif,test\n", "listed twice"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_right(tree, text, complaint):
    (tree / "splits.csv").write_text(text)
    with pytest.raises(BenchError, match=complaint):
        list_slides(tree / "s", tree / "x", tree / "splits.csv")


def test_folders_that_cannot_be_right(tree):
    with pytest.raises(BenchError, match="no folder"):
        list_slides(tree / "nowhere", None)
    with pytest.raises(BenchError, match="no folder"):
        list_slides(tree / "s", tree / "nowhere")
    with pytest.raises(BenchError, match="holds no slides"):
        list_slides(tree / "x", None)
    (tree / "s" / "tumor_001.svs").touch()
    with pytest.raises(BenchError, match="same name"):
        list_slides(tree / "s", tree / "x")


def test_normal_slide_with_annotation_is_a_contradiction(tree):
    (tree / "x" / "normal_001.xml").touch()
    (problem,) = list_slides(tree / "s", tree / "x").problems
    assert problem.slide == "normal_001"
    assert "annotates it" in problem.reason


def test_known_slides_are_those_of_the_published_lists(shared_data):
    """The published test set names its normal slides: the reference must agree with it, and no bad slide is in it."""
    import gzip

    from wsolbench.datasets.parts.camelyon_lists import PatchName

    lists = shared_data / "splits" / "CAMELYON512"
    slides = {"tumor": set(), "normal": set()}
    for path in [lists / "fold-0/test/class_labels.txt.gz", *lists.glob("fold-*/valcl/class_labels.txt.gz")]:
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            name = PatchName.parse(line.partition(",")[0])
            slides["normal" if name.metastatic is None else "tumor"].add(name.slide_id)
    test = {kind: {int(s[-3:]) for s in found if s.startswith("test")} for kind, found in slides.items()}
    assert test["tumor"] == TEST_TUMOR - {114}
    assert not test["normal"] & TEST_TUMOR
    assert not set(BAD_SLIDES) & (slides["tumor"] | slides["normal"])


@pytest.mark.parametrize(
    "wrong",
    [{"size": 8}, {"mpp": 0.0}, {"mpp": float("nan")}, {"assume_mpp": -1}, {"tumor_share": 0}, {"tumor_share": 0.6},
     {"tissue_share": 1.1}, {"rgb_floor": 255}, {"dense_share": float("nan")}, {"max_per_slide": -1},
     {"val_share": 0.9}, {"name": "../x"}, {"name": ""}, {"creep": True}],
)  # fmt: skip
def test_settings_out_of_range(wrong):
    with pytest.raises(BenchError):
        PatchSettings(**wrong)
