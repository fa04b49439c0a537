"""What models are scored on: the words of --ood, matched classes, and that no test set is a training set."""

import csv as csv_module
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from wsolbench.benchmark.conformance.synthetic_task import write_blobs
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.files import read_npz
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.execution.preflight import preflight
from wsolbench.benchmark.execution.scheduler import execute
from wsolbench.benchmark.planning.eval_sets import OodTarget, fold_of, map_labels, mapping_text, read_targets
from wsolbench.benchmark.planning.planner import Planner
from wsolbench.datasets.csv_manifest import CsvDataset
from wsolbench.datasets.glas import Glas
from wsolbench.datasets.masks.decode import decode_squashed
from wsolbench.datasets.shifts.shift import SHIFTS, make_shift


def test_the_words_of_ood():
    assert read_targets(("all",), ("glas", "camelyon16")) == [
        OodTarget("glas", named=False), OodTarget("camelyon16", named=False)
    ]  # fmt: skip
    assert read_targets(("none",), ("glas",)) == []
    assert read_targets(("camelyon17:centre-2",), ()) == [OodTarget("camelyon17:centre-2")]
    assert read_targets(("glas:jpeg-3", "glas:jpeg-0"), ()) == [OodTarget("glas", "jpeg", 3), OodTarget("glas")]
    assert read_targets(("glas:jpeg",), ()) == [OodTarget("glas", "jpeg", k) for k in range(1, 6)]
    assert read_targets(("blur-2", "blur"), ()) == [OodTarget("", "blur", k) for k in (2, 1, 3, 4, 5)]
    assert not any(t.named for t in read_targets(("ladder", "glas:ladder"), ()))
    assert len(read_targets(("ladder",), ())) == sum(len(c.levels) - 1 for c in SHIFTS.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [(("none", "all"), "stands alone"), (("glas:jpeg-9",), "no level '9'"), (("jpeg-x",), "no level 'x'")],
)
def test_words_that_make_no_sense(words, message):
    with pytest.raises(BenchError, match=message):
        read_targets(words, ())


def test_classes_are_matched_by_name_or_by_what_is_positive():
    glas = Glas.card
    camelyon = replace(glas, classes=("normal", "tumor"))
    turned = replace(glas, classes=("tumor", "normal"), positive_class=0)
    assert map_labels(glas, glas) == (0, 1)
    assert map_labels(glas, camelyon) == (0, 1)
    assert map_labels(glas, turned) == (1, 0)
    assert map_labels(camelyon, turned) == (1, 0)
    assert map_labels(glas, replace(glas, classes=("a", "b", "c"))) is None
    assert mapping_text(glas, turned, (1, 0)) == "tumor as malignant, normal as benign"


def test_a_fold_that_an_evaluation_set_does_not_have():
    assert fold_of("grouped-2", ("0", "grouped-2")) == "grouped-2"
    assert fold_of("grouped-2", ("0", "1")) == "0"


# -- with the harness -------------------------------------------------------------------------------------------------
@pytest.fixture
def other(tmp_path_factory):
    """Other blobs, with their classes the other way round and named differently."""
    path = write_blobs(tmp_path_factory.mktemp("other"))
    rows = path.read_text(encoding="utf-8").splitlines()
    for file in path.parent.glob("*.png"):
        if "mask" not in file.name:
            image = np.asarray(Image.open(file)).copy()
            image[0, 0] ^= 1
            Image.fromarray(image).save(file)
    settings = [r for r in rows if r.startswith("#")]
    table = list(csv_module.reader(r for r in rows if not r.startswith("#")))
    column = table[0].index("label")
    names = CsvDataset(path, path.parent).card.classes
    turned = {names[0]: "healthy", names[1]: "ill", "0": "healthy", "1": "ill"}
    for row in table[1:]:
        row[column] = turned[row[column]]
    keep = [s for s in settings if not any(k in s for k in ("classes", "positive", "background", "name"))]
    head = [*keep, "# name: others", "# classes: ill, healthy", "# positive: ill", "# background: healthy"]
    with path.open("w", newline="", encoding="utf-8") as handle:
        handle.write("\n".join(head) + "\n")
        csv_module.writer(handle, lineterminator="\n").writerows(table)
    return path


def both(world, other, methods="cam,constant", **changes):
    request = replace(world.request(methods), datasets=(str(world.csv), str(other)), **changes)
    planner = Planner(request)
    return planner, planner.build()


def scores(plan, **labels):
    found = [plan.stages[k] for k in plan.rows]
    return [s for s in found if all(s.labels[n] == v for n, v in labels.items())]


def test_every_model_is_scored_on_every_other_set_and_trained_once(world, other):
    _, plan = both(world, other)
    assert len(plan.kinds("train")) == 2
    pairs = {(s.labels["train"], s.labels["eval"]) for s in scores(plan, method="cam")}
    assert pairs == {(a, b) for a in ("blobs", "others") for b in ("blobs", "others")}
    _, alone = both(world, other, ood=("none",))
    assert {(s.labels["train"], s.labels["eval"]) for s in scores(alone)} == {("blobs", "blobs"), ("others", "others")}
    assert set(alone.rows) < set(plan.rows), "the other rows keep their keys"


def test_thresholds_and_scales_come_from_the_source(world, other):
    _, plan = both(world, other)
    for stage in scores(plan):
        val = plan.stages[stage.parents["val"]]
        assert val.labels["eval"] == val.labels["train"] == stage.labels["train"]


def test_an_evaluation_set_alone_is_named(world, other):
    request = replace(world.request("cam"), ood=(str(other),))
    plan = Planner(request).build()
    assert {s.labels["eval"] for s in scores(plan)} == {"blobs", "others"}
    assert {s.labels["train"] for s in scores(plan)} == {"blobs"}


def test_level_0_is_the_set_itself(world):
    plain = Planner(replace(world.request("cam"), ood=("none",))).build()
    assert Planner(replace(world.request("cam"), ood=("jpeg-0",))).build().rows == plain.rows


@pytest.mark.parametrize("changed", ["jpeg-1", "jpeg-2", "blur-1", "restain-1"])
def test_each_shift_and_level_has_keys_of_its_own(world, changed):
    others = {s for s in ("jpeg-1", "jpeg-2", "blur-1", "restain-1") if s != changed}
    mine, theirs = (
        {k for k in p.rows if p.stages[k].inputs.on.shift}
        for p in (Planner(replace(world.request("cam"), ood=tuple(o))).build() for o in ([changed], sorted(others)))
    )
    assert mine
    assert not mine & theirs


def test_the_classes_of_another_set_are_matched(world, other):
    """The same images under turned labels: logits are stored in the order of the set's own classes."""
    planner, plan = both(world, other, methods="cam")
    preflight(list(plan.stages.values()), planner)
    outcome = execute(plan, planner.request.run, planner.open_datasets, lambda event: None)
    assert outcome.exit_code == 0, outcome.failed
    store = Store(world.results)
    home, away = (
        next(s for s in scores(plan, train="blobs", eval=e, selection="last", map_class="region"))
        for e in ("blobs", "others")
    )
    a, b = (read_npz(store.run_dir(s.key) / "scores.npz") for s in (home, away))
    assert np.array_equal(a["labels"], 1 - b["labels"])
    assert np.allclose(a["logits"], b["logits"][:, ::-1], atol=0.05), "one changed pixel an image"
    facts = store.record(away.key)["facts"]["evaluation"]
    assert facts["dataset"] == "others"
    assert "ill as" in facts["label_map"]


def test_shifted_scores_and_their_facts(world):
    request = replace(world.request("constant,cam"), ood=("blur-4", "restain-1"))
    planner = Planner(request)
    plan = planner.build()
    preflight(list(plan.stages.values()), planner)
    assert execute(plan, request.run, planner.open_datasets, lambda event: None).exit_code == 0
    store = Store(world.results)
    found = {s.labels["eval"]: s for s in scores(plan, method="cam", selection="last", map_class="region")}
    assert set(found) == {"blobs", "blobs:blur-4", "blobs:restain-1"}
    same = [read_npz(store.run_dir(s.key) / "scores.npz") for s in found.values()]
    assert not np.array_equal(same[0]["logits"], same[1]["logits"])
    facts = store.record(found["blobs:blur-4"].key)["facts"]
    assert facts["evaluation"]["shift"] == "blur"
    assert facts["evaluation"]["level"] == 4
    assert facts["evaluation"]["severity"] == SHIFTS["blur"].axis[4]
    items = planner.open_datasets[str(world.csv)].manifest("0").split("test")
    images = np.stack([decode_squashed(i.image, (32,))[0] for i in items])
    blurred = make_shift("blur", 4)(images, [i.id for i in items])
    change = np.sqrt(np.square(blurred.astype(float) - images).mean())
    assert facts["evaluation"]["pixel_change"] == pytest.approx(change)
    told = store.record(found["blobs:restain-1"].key)["facts"]["evaluation"]
    assert (told["severity"], told["axis"]) == (None, "target stain")
    assert told["stain_distance"] > 0
    assert told["pixel_change"] > 0
    assert store.record(found["blobs"].key)["facts"]["evaluation"]["pixel_change"] is None
    pictures = [
        read_npz(world.results / "examples" / f"{store.record(found[e].key)['facts']['examples']}.npz")["images"]
        for e in ("blobs", "blobs:blur-4")
    ]
    assert not np.array_equal(*pictures), "the page shows what the model saw"


def test_test_images_a_model_trained_on_are_refused(world, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(world.csv.parent, copy)
    lines = (copy / world.csv.name).read_text(encoding="utf-8").replace("# name: blobs", "# name: leaky").splitlines()
    swap = {",test": ",train", ",train": ",test"}
    ends = {k: next((e for e in swap if line.endswith(e)), "") for k, line in enumerate(lines)}
    swapped = [line.removesuffix(ends[k]) + swap.get(ends[k], "") for k, line in enumerate(lines)]
    (copy / world.csv.name).write_text("\n".join(swapped) + "\n", encoding="utf-8")
    with pytest.raises(BenchError, match="are among the training or validation images"):
        Planner(replace(world.request("cam"), ood=(str(copy / world.csv.name),))).build()


def test_a_set_of_other_classes_is_refused_when_named_and_left_out_else(world, tmp_path, caplog):
    folder = tmp_path / "three"
    folder.mkdir()
    lines = ["# name: three", "# positive: c", "image,mask,label,group,split"]
    for k in range(18):
        split = ("train", "val", "test")[k % 3]
        rng = np.random.default_rng(k)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / f"{k}.png")
        Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(folder / f"{k}_mask.png")
        lines.append(f"{k}.png,{k}_mask.png,{'abc'[k // 3 % 3]},g{k},{split}")
    (folder / "three.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = str(folder / "three.csv")
    with pytest.raises(BenchError, match="cannot be told by a model of"):
        Planner(replace(world.request("cam"), ood=(path,))).build()
    plan = Planner(replace(world.request("cam"), datasets=(str(world.csv), path))).build()
    assert all(s.labels["train"] == s.labels["eval"] for s in scores(plan))
    assert "not scored there" in caplog.text


def test_ladder_leaves_out_what_cannot_be(world, tmp_path, caplog):
    """Too few test images to lend stains: an error for `restain`, a remark for `ladder`."""
    copy = tmp_path / "few"
    shutil.copytree(world.csv.parent, copy)
    lines = (copy / world.csv.name).read_text(encoding="utf-8").splitlines()
    some = [line for line in lines if line.endswith(",test")][4:]
    (copy / world.csv.name).write_text("\n".join(x for x in lines if x not in some) + "\n", encoding="utf-8")
    world.csv = copy / world.csv.name
    with pytest.raises(BenchError, match="fewer than 10 test images"):
        Planner(replace(world.request("cam"), ood=("restain-1",))).build()
    plan = Planner(replace(world.request("cam"), ood=("ladder",))).build()
    shifts = {s.inputs.on.shift for s in scores(plan)}
    assert shifts == {"", *SHIFTS} - {"restain"}
    assert caplog.text.count("is left out") == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("glass", r"^--ood glass: There is no dataset.*Did you mean glas\?"),
        ("glas:stian-3", r"^--ood glas:stian-3: .*Did you mean stain-3"),
        ("blurr", r"^--ood blurr: There is no dataset 'blurr'\. Known: .*Did you mean blur or blur-5\?$"),
        ("glsa:stain-3", r"^--ood glsa:stain-3: There is no dataset 'glsa'\. Did you mean glas\?"),
        ("camelyon17:centre-9", r"\(it has: centre-0, .*each with its levels\.$"),
        ("nowhere.csv", r"^--ood nowhere.csv: There is no file [^ ]*\. Give the path of a CSV manifest \([^)]*\)\.$"),
    ],
)
def test_an_unknown_set(world, word, message):
    with pytest.raises(BenchError, match=message):
        Planner(replace(world.request("cam"), ood=(word,))).build()


def test_stains_are_borrowed_from_a_named_set(world, other):
    request = replace(world.request("cam"), ood=("restain-2",), overrides={**world.request("cam").overrides})
    own = Planner(request).build()
    borrowed = Planner(replace(request, overrides={**request.overrides, "shift": {"stains": str(other)}})).build()
    names = {s.labels["eval"] for s in scores(borrowed)}
    assert any(n.startswith("blobs:restain-2@") for n in names)
    shifted = [{k for k in p.rows if p.stages[k].inputs.on.shift} for p in (own, borrowed)]
    assert not shifted[0] & shifted[1]
    with pytest.raises(BenchError, match=r"no setting shift.stain\b.*Did you mean stains"):
        Planner(replace(request, overrides={"shift": {"stain": "x"}}))
