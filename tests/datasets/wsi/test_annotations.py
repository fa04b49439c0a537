"""What people write into annotation files: groups, shapes that cannot be read as they stand, QuPath's GeoJSON."""

import gzip
import json

import numpy as np
import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.wsi.annotations import Reading, read_annotations
from wsolbench.datasets.wsi.polygons import Outline, covers_itself, draw_mask, is_flat, lies_within

SIZE = (400, 300)


def box(x=10, y=10, w=60, h=40):
    return [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]


def circle(x, y, r, n=24):
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return [(float(x + r * np.cos(a)), float(y + r * np.sin(a))) for a in angle]


def asap(path, *shapes, groups=()):
    """shapes: (points, group, kind). groups: (name, parent)."""
    rows = []
    for points, group, kind in shapes:
        dots = "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>' for k, (x, y) in enumerate(points))
        rows.append(f'<Annotation Name="a" Type="{kind}" PartOfGroup="{group}"><Coordinates>{dots}</Coordinates>'
                    "</Annotation>")  # fmt: skip
    named = "".join(f'<Group Name="{n}" PartOfGroup="{p}" Color="#00ff00"><Attributes/></Group>' for n, p in groups)
    path.write_text(
        f"<ASAP_Annotations><Annotations>{''.join(rows)}</Annotations>"
        f"<AnnotationGroups>{named}</AnnotationGroups></ASAP_Annotations>"
    )
    return path


def told(found):
    return " | ".join(n.text for n in found.notes)


@pytest.mark.parametrize(
    "groups, group",
    [
        ([("macro", "Tumor"), ("Tumor", "None")], "macro"),
        ([("deep", "macro"), ("macro", " tumor "), ("Tumor", "None")], "Deep"),
        ([("rim", "macro"), ("macro", "_0")], "rim"),
    ],
)
def test_a_group_counts_as_the_one_it_lies_in(tmp_path, groups, group):
    found = read_annotations(asap(tmp_path / "a.xml", (box(), group, "Polygon"), groups=groups), SIZE)
    assert len(found.tumor) == 1
    assert f"group '{group}' counted as" in told(found)


def test_the_innermost_known_group_counts(tmp_path):
    groups = [("_2", "Tumor"), ("hole", "_2"), ("Tumor", "None")]
    shapes = [(box(), "Tumor", "Polygon"), (box(20, 20, 5, 5), "_2", "Polygon"), (box(40, 20, 5, 5), "hole", "Polygon")]
    found = read_annotations(asap(tmp_path / "a.xml", *shapes, groups=groups), SIZE)
    assert (len(found.tumor), len(found.excluded)) == (1, 2)


@pytest.mark.parametrize(
    "groups, complaint",
    [
        ([("a", "b"), ("b", "a")], "circle"), ([("a", "a")], "circle"),
        ([("x", "y"), ("y", "z"), ("z", "Y")], "circle"),
        ([("a", "b"), ("b", "None")], "nobody knows"), ([], "nobody knows"), ([("a", "b"), ("A", "Tumor")], "both"),
    ],
)  # fmt: skip
def test_groups_that_lead_nowhere(tmp_path, groups, complaint):
    path = asap(tmp_path / "odd.xml", (box(), "Tumor", "Polygon"), (box(), "a", "Polygon"), groups=groups)
    with pytest.raises(BenchError, match=complaint) as problem:
        read_annotations(path, SIZE)
    assert "odd.xml" in str(problem.value)


def test_all_unknown_groups_are_named_with_the_remedy(tmp_path):
    shapes = [(box(), g, "Polygon") for g in ("Tumor", "Stroma", "Stroma", "macro")]
    path = asap(tmp_path / "a.xml", *shapes)
    with pytest.raises(
        BenchError, match=r"'Stroma' \(2 annotations\), group 'macro' \(1 annotation\).*--group 'Stroma="
    ):
        read_annotations(path, SIZE)
    found = read_annotations(path, SIZE, Reading({"stroma": "excluded", "MACRO": "tumor"}))
    assert (len(found.tumor), len(found.excluded)) == (2, 2)
    found = read_annotations(path, SIZE, Reading({"Stroma": "ignored", "macro": "ignored"}))
    assert "group 'Stroma' is declared ignored: 2" in told(found)
    assert not found.unknown


@pytest.mark.parametrize("group, role", [("tumor", "tumor"), (" TUMOR ", "tumor"), ("EXCLUSION", "excluded"),
                                         ("Metastases", "tumor"), ("Normal", "excluded")])  # fmt: skip
def test_case_and_blanks_of_a_group_do_not_matter_and_are_told(tmp_path, group, role):
    found = read_annotations(asap(tmp_path / "a.xml", (box(), "_0", "Polygon"), (box(90), group, "Polygon")), SIZE)
    assert len(found.tumor if role == "tumor" else found.excluded) == (2 if role == "tumor" else 1)
    assert f"group '{group}' read as" in told(found)


@pytest.mark.parametrize(
    "shape, note",
    [
        ((box(), "None", "Polygon"), "in no group"), ((box(), "", "Polygon"), "in no group"),
        ((box(), "none", "Polygon"), "in no group"),
        ((box()[:1], "Tumor", "Dot"), "type Dot has no area"), ((box(), "Tumor", "PointSet"), "type PointSet"),
        ((box(), "Tumor", "Ellipse"), "type Ellipse"), ((box()[:2], "Tumor", "Rectangle"), "fewer than three points"),
        ((box()[:2], "Tumor", "Polygon"), "fewer than three points"),
        (([(5, 5)] * 4, "Tumor", "Polygon"), "without an area"),
        (([(5, 5), (50, 50), (90, 90)], "Tumor", "Polygon"), "without an area"),
        (([(5, 5), (5.4, 5), (5.4, 5.4)], "Tumor", "Polygon"), "without an area"),
    ],
)  # fmt: skip
def test_what_is_left_out_is_told(tmp_path, shape, note):
    found = read_annotations(asap(tmp_path / "a.xml", (box(100), "Tumor", "Polygon"), shape), SIZE)
    assert len(found.tumor) == 1
    assert note in told(found)
    assert len(found.unknown) == ("no group" in note)


@pytest.mark.parametrize(
    "shape, note",
    [
        ((circle(200, 150, 40), "Tumor", "Spline"), "read as straight lines"),
        (([(50, 50), (90, 90), (90, 50), (50, 90)], "Tumor", "Polygon"), "cross or cover themselves"),
        ((circle(200, 150, 40) * 2, "Tumor", "Polygon"), "cross or cover themselves"),
        (([*box(50, 50, 80, 80), (50, 90), (150, 90), (150, 100), (50, 100)], "Tumor", "Polygon"), "cross or cover"),
        ((box(900), "Tumor", "Polygon"), "outside the slide"), ((box(-20), "Tumor", "Polygon"), "beyond the edge"),
        ((box(y=280), "_2", "Polygon"), "beyond the edge"),
    ],
)  # fmt: skip
def test_what_is_read_in_one_of_several_ways_is_told(tmp_path, shape, note):
    found = read_annotations(asap(tmp_path / "a.xml", (box(300, 200), "Tumor", "Polygon"), shape), SIZE)
    assert len(found.tumor) + len(found.excluded) == 2
    assert note in told(found)


def test_points_that_repeat_their_number_are_told(tmp_path):
    path = asap(tmp_path / "a.xml", (box(), "Tumor", "Polygon"))
    path.write_text(path.read_text().replace('Order="2"', 'Order="1"'))
    found = read_annotations(path, SIZE)
    np.testing.assert_array_equal(found.tumor[0].points, box())
    assert "repeat a number in Order" in told(found)


@pytest.mark.parametrize("far", [1e9, -1e12, 1e300])
def test_coordinates_of_no_slide_are_refused(tmp_path, far):
    for path in (asap(tmp_path / "a.xml", ([*box(), (far, 5)], "Tumor", "Polygon")),
                 collection(tmp_path / "a.geojson", feature([*box(), (far, 5)]))):  # fmt: skip
        with pytest.raises(BenchError, match="no pair of numbers"):
            read_annotations(path, SIZE)


def test_a_plain_file_has_no_notes(tmp_path):
    shapes = [(circle(200, 150, 90), "Tumor", "Polygon"), (circle(200, 150, 30), "_2", "Polygon"),
              ([*box(), box()[0]], "_0", "Polygon"), (box(0, 0, 399.5, 299), "_1", "Rectangle")]  # fmt: skip
    assert read_annotations(asap(tmp_path / "a.xml", *shapes), SIZE).notes == ()


def test_islands_inside_exclusions(tmp_path):
    """A ring of tumour, a hole, an island in it: the exclusion wins, or the smaller outline, and either is told."""
    shapes = [(circle(150, 150, 120), "Tumor", "Polygon"), (circle(150, 150, 60), "_2", "Polygon"),
              (circle(150, 150, 20), "_0", "Polygon")]  # fmt: skip
    path = asap(tmp_path / "a.xml", *shapes)
    found = read_annotations(path, SIZE)
    assert "inside an exclusion, cut out with it (--overlaps innermost keeps them): 1" in told(found)
    assert "kept as tumour: 1" in told(read_annotations(path, SIZE, Reading(innermost=True)))
    assert read_annotations(path, SIZE, Reading(subtract=False)).notes == ()
    for innermost in (False, True):
        mask = draw_mask(found.tumor, found.excluded, (0.0, 0.0), 1.0, (300, 400), innermost)
        at = {r: bool(mask[150, 150 + r]) for r in (0, 15, 40, 90, 130)}
        assert at == {0: innermost, 15: innermost, 40: False, 90: True, 130: False}


def test_without_islands_both_rules_give_one_mask():
    tumor = [Outline(np.array(circle(100, 100, 80))), Outline(np.array(circle(180, 110, 70)))]
    holes = [Outline(np.array(circle(90, 90, 20))), Outline(np.array(circle(200, 120, 25)))]
    masks = [draw_mask(tumor, holes, (0.0, 0.0), 1.0, (260, 300), rule) for rule in (False, True)]
    np.testing.assert_array_equal(*masks)


def test_helpers_of_outlines():
    ring = Outline(np.array(circle(50, 50, 40)), (np.array(circle(50, 50, 10)),))
    assert ring.area == pytest.approx(np.pi * (1600 - 100), rel=0.02)
    assert not covers_itself(ring)
    inner = Outline(np.array(circle(60, 50, 20)))
    assert lies_within(inner, ring)
    assert lies_within(ring, ring)
    assert not lies_within(ring, inner)
    assert not lies_within(Outline(np.array(circle(80, 50, 20))), ring)
    horseshoe = Outline(np.array([(0, 0), (90, 0), (90, 90), (60, 90), (60, 30), (30, 30), (30, 90), (0, 90)], float))
    assert not lies_within(Outline(np.array(box(35, 40, 20, 20), float)), horseshoe)  # in its box, not in it
    assert is_flat(np.array([(0, 0), (1000, 1000.0)] * 2))
    assert not is_flat(np.array([(0, 0), (4, 4), (4, 0), (0, 4.0)]))  # a bow tie: its signed area is zero


def feature(points, cls="Tumor", kind="Polygon", **properties):
    close = [*points, points[0]]
    coordinates = {"Polygon": [close], "MultiPolygon": [[close]], "Point": points[0], "LineString": points}[kind]
    classification = {} if cls is None else {"classification": {"name": cls, "color": [200, 0, 0]}}
    return {"type": "Feature", "id": "PathAnnotationObject", "geometry": {"type": kind, "coordinates": coordinates},
            "properties": {"objectType": "annotation", **classification, **properties}}  # fmt: skip


def collection(path, *features, array=False):
    text = json.dumps([*features] if array else {"type": "FeatureCollection", "features": [*features]})
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name, array", [("a.geojson", False), ("a.json", True), ("a.geojson.gz", False)])
def test_geojson_as_qupath_writes_it(tmp_path, name, array):
    path = collection(tmp_path / name, feature(box()), feature(box(90), "Exclusion"), array=array)
    found = read_annotations(path, SIZE)
    np.testing.assert_array_equal(found.tumor[0].points, box())
    assert (len(found.tumor), len(found.excluded), found.notes) == (1, 1, ())
    moved = read_annotations(path, SIZE, Reading(origin=(100.0, 7.0)))
    np.testing.assert_array_equal(moved.tumor[0].points, np.add(box(), (100, 7)))


def test_holes_and_several_parts(tmp_path):
    """A hole belongs to its own polygon: what another one marks inside it stays tumour."""
    ring = feature(box(0, 0, 100, 100), kind="MultiPolygon")
    ring["geometry"]["coordinates"][0].append([*box(20, 20, 60, 60), box(20, 20, 60, 60)[0]])
    ring["geometry"]["coordinates"].append([box(200, 50, 20, 20)])
    found = read_annotations(collection(tmp_path / "a.geojson", ring, feature(box(40, 40, 10, 10))), SIZE)
    mask = draw_mask(found.tumor, found.excluded, (0.0, 0.0), 1.0, (300, 400))
    expected = np.zeros((300, 400), bool)
    expected[:100, :100] = True
    expected[20:80, 20:80] = False
    expected[40:50, 40:50] = expected[50:70, 200:220] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    "odd, note",
    [
        (feature(box(90), None), "in no group"), (feature(box(90), kind="Point"), "type Point has no area"),
        (feature(box(90), kind="LineString"), "type LineString"), (feature(box(90), objectType="cell"), "a cell, not"),
        (feature(box(90), objectType="detection"), "a detection, not"), (feature(box(90)[:2]), "fewer than three"),
        ({**feature(box(90)), "geometry": None}, "type None has no area"),
        (feature(box(90), " tumor"), "read as 'Tumor'"), (feature(box(90), "Tumor: Positive"), "counted as 'Tumor'"),
        (feature(box(90), None, classification={"names": ["Tumor", "Grade 3"]}), "counted as 'Tumor'"),
    ],
)  # fmt: skip
def test_features_that_are_no_plain_area(tmp_path, odd, note):
    found = read_annotations(collection(tmp_path / "a.geojson", feature(box()), odd), SIZE)
    assert note in told(found)
    assert len(found.tumor) == (2 if "'Tumor'" in note else 1)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("{", "not GeoJSON"), ("[" * 100_000, "not GeoJSON"), ("{}", "no GeoJSON features"), ("[1]", "no GeoJSON feat"),
        ('{"type": "FeatureCollection", "features": {}}', "no GeoJSON features"),
        (json.dumps([feature(box(), "Stroma")]), "nobody knows"), (json.dumps([feature(box(), None)]), "no tumour"),
        (json.dumps([feature([("a", 1), (2, 3), (4, 5)])]), "no pair of numbers"),
        (json.dumps([feature(box())]).replace("70", "NaN"), "no pair of numbers"),
        (json.dumps([feature(box(900))]), "outside the slide"),
    ],
)  # fmt: skip
def test_geojson_that_cannot_be_right_names_its_file(tmp_path, text, complaint):
    (tmp_path / "odd.geojson").write_text(text)
    with pytest.raises(BenchError, match=complaint) as problem:
        read_annotations(tmp_path / "odd.geojson", SIZE)
    assert "odd.geojson" in str(problem.value)
    (tmp_path / "odd.geojson.gz").write_bytes(b"\x1f\x8b\x08 torn")
    with pytest.raises(BenchError, match="not GeoJSON"):
        read_annotations(tmp_path / "odd.geojson.gz", SIZE)
