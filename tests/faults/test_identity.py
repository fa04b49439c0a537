"""What must change a stage key and what must not, field by field: a new field without a case here fails.

Keys are planned, nothing is trained. For every field of the settings the tables below hold another value; a test
compares them with the dataclasses, so that nobody adds a field and forgets to decide.
"""

import csv
import dataclasses
import itertools
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.benchmark.conftest import TINY
from wsolbench.benchmark.core import protocols
from wsolbench.benchmark.core.protocols import FAIR, Protocol
from wsolbench.benchmark.planning import method_refs
from wsolbench.benchmark.planning import planner as planning
from wsolbench.benchmark.planning.config import Request, RunConfig, TrainConfig, identity_fields, train_config
from wsolbench.benchmark.planning.planner import Planner
from wsolbench.methods.backbones import normalisation
from wsolbench.methods.spec import MethodSpec

OTHER_TRAIN = {
    "image_size": "24", "load_size": "40", "stride": "16", "epochs": "4", "batch_size": "8", "micro_batch": "4",
    "optimizer": "adamw", "lr": "0.04", "head_lr_scale": "2", "momentum": "0.8", "weight_decay": "0.01",
    "step_epochs": "2", "gamma": "0.2", "lr_floor": "0.001", "warmup_epochs": "1", "precision": "bf16", "flip": "no",
    "jitter": "0,0,0,0", "normalisation": "imagenet",
}  # fmt: skip
OTHER_RUN = {
    "data_root": Path("/elsewhere"), "device": "cuda:7", "jobs": 5, "jobs_per_gpu": 3, "devices": 2, "backend": "dask",
    "scheduler": "tcp://node:8786", "score_batch": 7, "snapshot_seconds": 99.0, "deterministic": True, "compile": True,
}  # fmt: skip
OTHER_PROTOCOL = {
    "name": "other", "version": 99, "size": 112, "map_class": "true", "scale": "image",
    "scale_quantiles": (0.01, 0.99), "scale_images": 8, "selection": "loc", "ties": "last", "teacher_selection": "last",
    "first_epoch": 0, "mask_reduction": "area", "binning": "validation",
}  # fmt: skip
# Facts of a method that enter keys, and how; the others say how it is shown, listed or told about.
OTHER_SPEC = {"name": "cam2", "version": 99, "options": {"new": 1}}
SPEC_BY_OTHER_WAYS = {
    "needs": "by its parents", "supervision": "by the version: the code that reads masks is another",
    "backbone": "by the network, which is there or not", "kind": "by the version", "class_specific": "by the map class",
    "selects": "by the selection of the training", "uses_seed": "by the seed", "variant": "by its option",
    "recipes": "by the settings they give", "choices": "by the option chosen", "trains": "by the stages",
    "source_hash": "by itself, for files of users", "views": "by the version", "sampling": "by the version",
    "groups": "by the version", "adapts": "by its source and target", "source_images": "by the version",
    "rounds": "by the round, which stands in place of the option", "renamed": "by the option's earlier name",
}  # fmt: skip
SPEC_SHOWN = {"family", "citation", "published", "summary", "origin", "module"}


def keys(request: Request) -> set[str]:
    return set(Planner(request).build().stages)


def rows(request: Request) -> set[str]:
    return set(Planner(request).build().rows)


def trainings(request: Request) -> set[str]:
    return {s.key for s in Planner(request).build().kinds("train")}


@pytest.fixture
def ask(world):
    """A request for cam and pixelcam, with changed training settings if wanted."""

    def request(methods="cam,pixelcam", train=None, **changes) -> Request:
        overrides = {"train": {**TINY, **(train or {})}, **changes.pop("overrides", {})}
        return replace(world.request(methods), overrides=overrides, **changes)

    return request


# -- settings --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("config", "cases"),
    [(TrainConfig, OTHER_TRAIN), (RunConfig, {**OTHER_RUN, "results": 0}), (Protocol, OTHER_PROTOCOL)],
)
def test_every_field_has_a_case_here(config, cases):
    assert {f.name for f in dataclasses.fields(config)} == set(cases), (
        f"decide what a new field of {config} does to keys"
    )


def test_every_fact_of_a_method_has_a_case_here():
    assert {f.name for f in dataclasses.fields(MethodSpec)} == {*OTHER_SPEC, *SPEC_BY_OTHER_WAYS, *SPEC_SHOWN}


@pytest.mark.parametrize("name", OTHER_TRAIN)
def test_every_training_setting_changes_trainings_and_all_that_builds_on_them(ask, name):
    before, after = ask(), ask(train={name: OTHER_TRAIN[name]})
    plain, changed = (train_config("smoke", dict(r.overrides["train"])) for r in (before, after))
    assert getattr(plain, name) != getattr(changed, name), "the case changes nothing"
    assert not keys(before) & keys(after)


@pytest.mark.parametrize("name", OTHER_RUN)
def test_no_run_setting_changes_a_key(ask, name):
    value = {"scheduler": {"scheduler": OTHER_RUN["scheduler"], "backend": "dask"}}.get(name, {name: OTHER_RUN[name]})
    before = ask()
    assert replace(before.run, **value) != before.run
    assert keys(before) == keys(replace(before, run=replace(before.run, **value)))
    assert identity_fields(before.run) == {}


@pytest.mark.parametrize("name", OTHER_PROTOCOL)
def test_every_field_of_a_protocol_changes_scores(ask, name, monkeypatch):
    """Also those that a user cannot set: they change with the version of the suite."""
    other = replace(FAIR, **{name: OTHER_PROTOCOL[name]})
    assert other.identity() != FAIR.identity()
    before = rows(ask())
    monkeypatch.setitem(protocols.PROTOCOLS, "fair", other)
    assert not before & rows(ask())


def test_protocols_that_pick_checkpoints_are_part_of_trainings(ask, monkeypatch):
    before = trainings(ask())
    monkeypatch.setitem(protocols.PROTOCOLS, "paper", replace(protocols.PAPER, size=112))
    assert not before & trainings(ask())


@pytest.mark.parametrize("name", OTHER_SPEC)
def test_identity_facts_of_a_method_change_its_keys(ask, name, monkeypatch):
    before, honest = rows(ask("cam")), method_refs.method_spec
    other = {name: OTHER_SPEC[name]}
    monkeypatch.setattr(method_refs, "method_spec", lambda n: replace(honest(n), **other) if n == "cam" else honest(n))
    assert not before & rows(ask("cam"))


@pytest.mark.parametrize("name", sorted(SPEC_SHOWN - {"origin", "module"}))
def test_how_a_method_is_shown_changes_no_key(ask, name, monkeypatch):
    before, honest = keys(ask("cam")), method_refs.method_spec
    other = {"published": {"x": 1.0}} if name == "published" else {name: "another text"}
    monkeypatch.setattr(method_refs, "method_spec", lambda n: replace(honest(n), **other))
    assert before == keys(ask("cam"))


@pytest.mark.parametrize("constant", ["HARNESS_VERSION", "METRICS_VERSION"])
def test_versions_of_the_suite_change_trainings(ask, constant, monkeypatch):
    before = trainings(ask())
    monkeypatch.setattr(planning, constant, 99)
    assert not before & trainings(ask())


# -- what is asked for -----------------------------------------------------------------------------------------------
CHANGES = {
    "option": {"overrides": {"classifier": {"dropout": "0.2"}}},
    "setting of one method": {"overrides": {"classifier": {"train.lr": "0.03"}}},
    "seed": {"seeds": (1,)},
    "backbone": {"backbones": ("test_vit",)},
    "preset": {"preset": "quick"},
    "protocol": {"protocols": ("paper",)},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_asked_for_changes_rows(ask, name):
    before, after = ask("cam"), ask("cam", **CHANGES[name])
    assert not rows(before) & rows(after)


@pytest.mark.parametrize(
    "method",
    ["pixelcam:deepmil", "pixelcam:cam", "pixelcam:pixelcam"],
)
def test_another_teacher_is_another_student(ask, method):
    assert not rows(ask("pixelcam")) & rows(ask(method))


def test_a_file_of_weights_counts_by_content_not_by_place(ask, tmp_path):
    def with_weights(name: str, value: float) -> set[str]:
        save_file({"w": np.full(3, value)}, tmp_path / name)
        return rows(ask("cam", weights=str(tmp_path / name)))

    one = with_weights("one.safetensors", 1)
    assert one == with_weights("moved.safetensors", 1)
    assert not one & with_weights("one.safetensors", 2)
    assert not one & rows(ask("cam", weights="none"))


def test_what_images_are_normalised_by_is_part_of_every_training_and_of_no_baseline(ask, monkeypatch):
    one, bare = trainings(ask()), rows(ask("darkness"))
    (stage, *_) = Planner(ask("cam")).build().kinds("train")
    assert stage.identity["backbone"] == {
        "name": "test_resnet", "weights": {"source": "none"}, "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    monkeypatch.setitem(normalisation.STATISTICS, "test_resnet", normalisation.IMAGENET)
    assert not one & trainings(ask())
    assert bare == rows(ask("darkness"))


def test_a_users_method_counts_by_its_text(ask, tmp_path):
    from tests.faults.plugins import explainer

    one = rows(ask(explainer(tmp_path / "", "texts", "return m")))
    from wsolbench.methods import METHODS

    METHODS._entries.pop("texts")
    assert not one & rows(ask(explainer(tmp_path, "texts", "return m * 2")))


# -- data ------------------------------------------------------------------------------------------------------------
@dataclass
class Copy:
    """A copy of the blobs to be changed."""

    csv: Path

    def row(self, name: str, **changes: str) -> None:
        head = [line for line in self.csv.read_text().splitlines() if line.startswith("#")]
        with self.csv.open() as handle:
            table = list(csv.DictReader(line for line in handle if not line.startswith("#")))
        for row in table:
            row.update(changes if row["id"] == name else {k: row.get(k, "") for k in changes})
        with self.csv.open("w", newline="") as handle:
            handle.write("".join(line + "\n" for line in head))
            writer = csv.DictWriter(handle, table[0])
            writer.writeheader()
            writer.writerows(table)

    def text(self, old: str, new: str) -> None:
        text = self.csv.read_text()
        assert text.count(old) == 1, old
        self.csv.write_text(text.replace(old, new))

    def all_with_regions(self) -> None:
        """No background class any more; the images of the other class get an empty mask."""
        self.text("# background: plain\n", "")
        Image.new("L", (64, 64)).save(self.csv.parent / "none.png")
        for split, count in (("val", 12), ("test", 24)):
            for k in range(0, count, 2):
                self.row(f"{split}_{k:02d}", mask="none.png")

    def picture(self, name: str, mode: str = "RGB") -> None:
        Image.new(mode, (64, 64), 255 if mode == "L" else (1, 2, 3)).save(self.csv.parent / name)


@pytest.fixture
def copied(blobs, tmp_path, world):
    folder = tmp_path / "a copy"
    shutil.copytree(blobs.parent, folder)
    world.csv = folder / blobs.name
    return Copy(world.csv)


IN_TRAINING = {
    "training image": lambda c: c.picture("train_01.png"),
    "training mask": lambda c: c.picture("train_01_mask.png", "L"),
    "validation image": lambda c: c.picture("val_01.png"),
    "validation mask": lambda c: c.picture("val_01_mask.png", "L"),
    "label": lambda c: c.row("train_01", label="plain", mask=""),
    "group": lambda c: c.row("train_01", group="somebody"),
    "split": lambda c: c.row("train_03", split="val", group="val-9"),
    "name": lambda c: c.text("# name: blobs", "# name: drops"),
    "regions": lambda c: c.all_with_regions(),
    "mask rule": lambda c: c.text("# name: blobs", "# name: blobs\n# mask_ignore: 7"),
}  # fmt: skip
IN_SCORES = {
    "test image": lambda c: c.picture("test_01.png"),
    "test mask": lambda c: c.picture("test_01_mask.png", "L"),
    "test label": lambda c: c.row("test_01", label="plain", mask=""),
    "rule of one test mask": lambda c: c.row("test_01", mask_threshold="99"),
}


@pytest.mark.parametrize("name", IN_TRAINING)
def test_what_a_training_reads_changes_it_and_its_scores(ask, blobs, copied, name):
    before = ask("cam", datasets=(str(blobs),))
    IN_TRAINING[name](copied)
    assert not keys(before) & keys(ask("cam"))


def test_the_positive_class_changes_trainings(ask, copied):
    copied.all_with_regions()
    before = ask("cam")
    first = keys(before)
    copied.text("# positive: blob", "# positive: plain")
    assert not first & keys(before)


@pytest.mark.parametrize("name", IN_SCORES)
def test_what_a_score_reads_changes_it_and_no_training(ask, blobs, copied, name):
    before = ask("cam", datasets=(str(blobs),))
    IN_SCORES[name](copied)
    assert trainings(before) == trainings(ask("cam"))
    assert not rows(before) & rows(ask("cam"))


def test_where_files_lie_and_their_order_change_no_key(ask, blobs, copied, tmp_path):
    before = keys(ask(datasets=(str(blobs),)))
    assert before == keys(ask())
    lines = copied.csv.read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("id,"))
    body = lines[start + 1 :]
    random.Random(0).shuffle(body)
    copied.csv.write_text("\n".join([*lines[: start + 1], *body]) + "\n")
    assert before == keys(ask())
    moved = copied.csv.with_name("another name.csv")
    copied.csv.rename(moved)
    assert before == keys(ask(datasets=(str(moved),)))


def test_how_classes_are_matched_changes_scores(ask, blobs, copied):
    """Another set whose classes stand in another order: the same files, another map of labels."""
    copied.text("# name: blobs", "# name: drops")
    for path in copied.csv.parent.glob("*_??.png"):  # other pictures, or the sets would overlap
        with Image.open(path) as image:
            image.point(lambda v: v // 2).save(path)
    both = ask("cam", datasets=(str(blobs),), ood=(str(copied.csv),))
    before = rows(both)
    copied.text("# classes: plain, blob", "# classes: blob, plain")
    after = rows(both)
    assert len(before & after) == len(rows(ask("cam", datasets=(str(blobs),), ood=("none",))))
    assert before != after


# -- order -----------------------------------------------------------------------------------------------------------
def test_order_of_options_changes_no_key(ask):
    settings = {
        "classifier": {"dropout": "0.2", "train.lr": "0.04"},
        "pixelcam": {"foreground": "3", "background": "4"},
    }
    found = set()
    for sections in itertools.permutations(settings):
        overrides = {s: dict(reversed(list(settings[s].items()))) for s in sections}
        found.add(frozenset(keys(ask(overrides=overrides))))
    found.add(frozenset(keys(ask(overrides=settings))))
    assert len(found) == 1
