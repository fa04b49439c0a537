"""Adapters in the plan: a training a target, shared sources, keys that know no label, names with an @, refusals."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.registry import scan_source
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.methods import METHODS
from wsolbench.methods.spec import spec_from_entry

from ..conftest import write_stained

PLUGIN = Path(__file__).parents[2] / "plugins" / "entropy_adapter.py"


@pytest.fixture(autouse=True, scope="module")
def fixture_adapters():
    METHODS.load_file(PLUGIN)


def plan(world, methods, *ood, **changes):
    return world.plan(methods, ood=tuple(map(str, ood)), **changes)[1]


def trainings(plan):
    return {(s.labels["method"], s.labels.get("target")): s for s in plan.kinds("train")}


def scored(plan, method):
    rows = [plan.stages[key] for key in plan.rows]
    return {
        (s.labels["eval"], s.labels.get("target"), s.labels["selection"])
        for s in rows
        if s.inputs.method.label == method
    }


@pytest.fixture(scope="module")
def third(tmp_path_factory):
    csv = write_stained(tmp_path_factory.mktemp("third"))
    csv.write_text(csv.read_text().replace("# name: stained", "# name: third"))
    return csv


def test_each_target_has_a_training_of_its_own_and_all_share_the_source(world, stained, third):
    found = plan(world, "layercam@entropy-adapter,layercam", stained, third)
    made = trainings(found)
    assert set(made) == {("classifier", None), ("entropy-adapter", "stained"), ("entropy-adapter", "third")}
    source = made["classifier", None]
    assert {made["entropy-adapter", t].parents["source"] for t in ("stained", "third")} == {source.key}
    assert source.inputs.experiment.target is None


def test_an_adapted_model_is_scored_on_its_source_and_its_target_alone(world, stained, third):
    found = plan(world, "entropy-adapter,layercam", stained, third, f"{stained}:stain-1", "stain-2")
    adapted = scored(found, "entropy-adapter")
    assert {(on, target) for on, target, _ in adapted if target == "third"} == {
        ("blobs", "third"), ("blobs:stain-2", "third"), ("third", "third")
    }  # fmt: skip
    assert {on for on, target, _ in adapted if target == "stained"} == {
        "blobs", "blobs:stain-2", "stained", "stained:stain-1"
    }  # fmt: skip
    assert {target for _, target, _ in scored(found, "layercam")} == {None}


def test_a_source_free_adapter_ends_with_its_last_epoch(world, stained):
    found = plan(world, "entropy-adapter,aligned-adapter", stained)
    assert {selection for *_, selection in scored(found, "entropy-adapter")} == {"last"}
    assert {selection for *_, selection in scored(found, "aligned-adapter")} == {"cl", "last"}


def test_rows_name_the_target_where_the_evaluation_set_does_not(world, stained):
    found = plan(world, "layercam@entropy-adapter", stained)
    options = {s.labels["eval"]: s.labels["options"] for s in map(found.stages.get, found.rows)}
    assert options == {"blobs": "target=stained", "stained": ""}
    assert {s.labels["options"] for s in found.kinds("train")} == {"", "target=stained"}


def test_ordinary_methods_keep_their_keys_beside_an_adapter(world, stained):
    alone = plan(world, "layercam,deepmil", stained)
    beside = plan(world, "layercam,deepmil,layercam@entropy-adapter", stained)
    assert set(alone.stages) <= set(beside.stages)


def test_the_key_knows_the_images_of_a_target_and_neither_labels_nor_masks(world, tmp_path):
    def key(csv):
        return trainings(plan(world, "entropy-adapter", csv))["entropy-adapter", "stained"].key

    csv = write_stained(tmp_path / "target")
    before = key(csv)
    lines = csv.read_text().splitlines()
    wrong = [_swapped(line) if line.endswith(",train") else line for line in lines]
    other = csv.with_name("wrong.csv")
    other.write_text("\n".join(wrong) + "\n")
    assert wrong != lines
    assert key(other) == before
    shutil.copy(csv.parent / "val_00.png", csv.parent / "train_00.png")
    with pytest.raises(BenchError, match="byte for byte"):  # the splits of a target are apart, too
        key(csv)
    from PIL import Image

    Image.effect_noise((64, 64), 90).convert("RGB").save(csv.parent / "train_00.png")
    assert key(csv) != before


def _swapped(line):
    """A row of the manifest with the other class and a mask that is another image's, or none."""
    name, image, mask, label, *rest = line.split(",")
    return ",".join([name, image, "" if mask else "test_01_mask.png", "plain" if label == "blob" else "blob", *rest])


# -- names ------------------------------------------------------------------------------------------------------------
def test_a_name_with_an_at_is_an_explainer_of_another_model():
    ref = Resolver({}).ref("layercam:shallow@entropy-adapter@deepmil")
    assert ref.label == "layercam:shallow@entropy-adapter@deepmil"
    assert [one.own_label for one in ref.chain] == ["layercam:shallow", "entropy-adapter", "deepmil"]
    assert [need.method for need in ref.needs()] == ["entropy-adapter@deepmil"]
    assert Resolver({}).ref("layercam@classifier") == Resolver({}).ref("layercam")
    assert Resolver({}).ref("entropy-adapter@classifier").label == "entropy-adapter"


def test_an_adapter_makes_the_maps_of_its_source():
    plain, mil = (Resolver({}).ref(name).spec for name in ("entropy-adapter", "entropy-adapter@deepmil"))
    assert (plain.kind, plain.selects[:1]) == ("none", ("cam",))
    assert (mil.kind, mil.selects) == (Resolver({}).ref("deepmil").spec.kind, ())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layercam@", "names no model behind the @"),
        ("layercm@deepmil", "Did you mean layercam"),
        ("layercam@deepmill", "Did you mean deepmil"),
        ("layercam@gradcam", "'gradcam' trains no model"),
        ("tissue@deepmil", "looks at the image alone"),
        ("pixelcam@deepmil", "Its teacher stands behind a colon: pixelcam:deepmil"),
        ("entropy-adapter@aligned-adapter", "adapted already"),
    ],
)
def test_names_that_mean_nothing(name, message):
    with pytest.raises(BenchError, match=message):
        Resolver({}).ref(name)


# -- refusals ---------------------------------------------------------------------------------------------------------
def test_an_adapter_needs_a_target(world):
    with pytest.raises(BenchError, match="has no target here"):
        plan(world, "layercam,layercam@entropy-adapter", "stain")


def test_a_target_without_training_images_is_refused(world, tmp_path):
    csv = write_stained(tmp_path / "target")
    lines = [line for line in csv.read_text().splitlines() if not line.endswith((",train", ",val"))]
    csv.write_text("\n".join(lines) + "\n")
    with pytest.raises(BenchError, match="stained has none"):
        plan(world, "entropy-adapter", csv)


def test_an_adapter_has_its_network_from_its_source(world, stained):
    config = trainings(plan(world, "entropy-adapter@deepmil", stained, overrides={"deepmil": {"train.stride": "16"}}))
    assert config["entropy-adapter@deepmil", "stained"].inputs.config.stride == 16
    with pytest.raises(BenchError, match=r"set classifier.train.stride"):
        plan(world, "entropy-adapter", stained, overrides={"entropy-adapter": {"train.stride": "16"}})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("adapts=True", "name the usual one"),
        ('adapts=True, needs=("source:{teacher}",), options={"teacher": "cam"}', "without an option"),
        ('needs=("source:classifier",)', "goes with adapts=True"),
        ("source_images=True", "goes with adapts=True"),
        ('adapts=True, needs=("source:classifier",), supervision="pixel"', "sees no masks"),
        ('adapts=True, needs=("source:classifier",), sampling="class"', "source-free"),
        ('adapts=True, needs=("source:classifier", "maps:cam")', r"write maps\(pred,target\)"),
        ('adapts=True, needs=("source:classifier", "maps(target):cam")', "labels of a target are withheld"),
        ('needs=("maps(pred,target):cam",)', "only a method declared adapts=True"),
        ('needs=("maps(prod):cam",)', "'prod' is none of"),
        ('needs=("init(pred):cam",)', "are for the role maps"),
        ('adapts="yes", needs=("source:classifier",)', "must be True or False"),
    ],
)
def test_facts_of_adapters_that_make_no_sense(facts, message):
    entry = scan_source(f'@register("mine", {facts})\nclass Mine: ...', "mine", "built-in")[0]
    with pytest.raises(BenchError, match=message):
        spec_from_entry(entry)
    function = dataclasses.replace(entry, shape="function", facts={"adapts": True})
    with pytest.raises(BenchError, match="is a function"):
        spec_from_entry(function)
