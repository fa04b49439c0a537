"""What starting weights have seen is declared, kept, and stands in every table; it changes no number."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.execution.preflight import preflight
from wsolbench.benchmark.execution.scheduler import execute
from wsolbench.benchmark.planning.contamination import keep, split_of
from wsolbench.benchmark.planning.planner import Planner
from wsolbench.methods.backbones.adapter import create_backbone
from wsolbench.reports.rows.weights import seen_by


@pytest.fixture
def weights(tmp_path):
    """Writes a weights file, with metadata if wanted."""

    def write(metadata=None):
        torch.manual_seed(1)
        save_file(create_backbone("test_resnet").net.state_dict(), tmp_path / "w.safetensors", metadata)
        return str(tmp_path / "w.safetensors")

    return write


@pytest.fixture
def asked(world, weights):
    """The planner of a request for cam from a weights file."""

    def plan(*seen, metadata=None, csv=None, weights_file=None):
        request = world.request("cam", weights_seen=seen)
        request = replace(request, weights=weights_file or weights(metadata))
        planner = Planner(replace(request, datasets=(str(csv),)) if csv else request)
        planner.build()
        return planner

    return plan


def with_header(world, tmp_path, line):
    """The blobs' manifest with one more setting."""
    text = world.csv.read_text()
    copy = world.csv.parent / f"copy-{tmp_path.name}.csv"
    copy.write_text(f"{line}\n{text}")
    return copy


def names(planner):
    (found,) = planner.weights_seen.values() or ([],)
    return found


def test_names_are_those_of_the_tables(asked, world):
    assert names(asked(f"{world.csv}:test", "glas", "EBHI-SEG:train")) == ["EBHI-SEG:train", "blobs:test", "glas"]


def test_a_file_tells_it_itself(asked):
    assert names(asked(metadata={"weights_seen": "glas:test, blobs"})) == ["blobs", "glas:test"]
    assert names(asked("ebhi", metadata={"weights_seen": '["glas"]'})) == ["ebhi", "glas"]
    with pytest.raises(BenchError, match="'weights_seen' in its metadata is neither a JSON list"):
        asked(metadata={"weights_seen": '["glas", 3]'})


@pytest.mark.parametrize(
    ("line", "wanted"),
    [("# weights_seen: test", ["blobs:test"]), ("# weights_seen: train, val", ["blobs:train", "blobs:val"]),
     ("# weights_seen: all", ["blobs"]), ("# weights_seen: glas:test", ["glas:test"])],
)  # fmt: skip
def test_a_manifest_tells_it_of_itself_or_of_others(asked, world, tmp_path, line, wanted):
    assert names(asked(csv=with_header(world, tmp_path, line))) == wanted


@pytest.mark.parametrize("name", [":test", "glas:", " "])
def test_what_is_no_name_is_refused(asked, name):
    with pytest.raises(BenchError, match="is no name of a set"):
        asked(name)


def test_random_weights_have_seen_nothing(asked, world, tmp_path):
    with pytest.raises(BenchError, match=r"random weights .* have seen nothing"):
        asked("glas", weights_file="none")
    csv = with_header(world, tmp_path, "# weights_seen: test")
    assert asked(csv=csv, weights_file="none").weights_seen == {}


def test_it_changes_no_key(asked, world, tmp_path):
    plain = set(asked().plan.stages)
    assert plain == set(asked("blobs:test", "x").plan.stages)
    assert plain == set(asked(csv=with_header(world, tmp_path, "# weights_seen: test")).plan.stages)


def test_every_name_is_answered_on_screen(asked):
    said = "\n".join(asked("blobs:test", "ebhi", "blobs:train").notices)
    assert "seen blobs:test: every row on blobs is marked" in said
    assert "seen ebhi: no set of this command is called so" in said
    assert "seen blobs:train: no row is scored on the train images of blobs" in said


def test_declarations_add_up(world):
    keep({"a": ["glas"]}, world.store)
    keep({"a": ["ebhi"], "b": ["x"]}, world.store)
    keep({}, world.store)
    assert world.store.weights_seen() == {"a": ["ebhi", "glas"], "b": ["x"]}


@pytest.mark.parametrize(
    ("declared", "dataset", "concerned"),
    [
        ("glas", "glas", True), ("GlaS", "glas", True), ("glas:test", "glas", True), ("glas:train", "glas", False),
        ("glas:val", "glas", False), ("camelyon17", "camelyon17:centre-2", True),
        ("camelyon17:centre-2", "camelyon17", False), ("camelyon17:centre-2", "camelyon17:centre-2", True),
        ("camelyon1", "camelyon16", False), ("ebhi", "glas", False),
    ],
)  # fmt: skip
def test_which_sets_a_declaration_concerns(declared, dataset, concerned):
    record = {"identity": {"backbone": {"weights": {"source": "file", "sha256": "f" * 64}}}}
    assert bool(seen_by(record, dataset, {"f" * 64: [declared]})) is concerned
    recorded = {**record, "facts": {"weights": {"seen": [declared]}}}
    assert bool(seen_by(recorded, dataset, {})) is concerned
    assert seen_by(record, dataset, {"0" * 64: [declared]}) == ()
    assert seen_by({}, dataset, {"": [declared]}) == ()


def test_splits_are_told_from_variants():
    assert split_of("camelyon17:centre-2") == ("camelyon17:centre-2", "")
    assert split_of("GlaS:test") == ("glas", "test")


def test_a_seen_set_is_marked_everywhere_also_in_rows_that_were_stored_before(warm_bench, world, weights, tmp_path):
    sets = [f"--set=train.{k}={v}" for k, v in world.settings.items()]
    line = ("run", "--methods", "cam,constant", "--datasets", world.csv, "--backbones", "test_resnet",
            "--preset", "smoke", "--weights", weights(), "--results", world.results, "--device", "cpu",
            "--ood", "jpeg-2", *sets)  # fmt: skip
    before = warm_bench(*line)
    assert before.returncode == 0, before.stderr
    assert "§" not in before.stdout
    done = warm_bench(*line, "--weights-seen", "blobs:test")
    assert done.returncode == 0, done.stderr
    assert "Nothing to do" in done.stdout
    assert "note: starting weights declared to have seen blobs:test: every row on blobs is marked" in done.stderr
    note = "§ blobs: the starting weights of test_resnet are declared to have seen blobs:test"
    assert note in done.stdout
    assert "cam §" in done.stdout
    assert "constant §" not in done.stdout
    assert "Shifted blobs §" in done.stdout
    assert warm_bench("report", "--results", world.results, "--format", "md,tex,csv,html").returncode == 0
    texts = {p.suffix: p.read_text(encoding="utf-8") for p in (world.results / "report").iterdir() if p.is_file()}
    for suffix, word in (
        (".md", "§ blobs: the starting weights"),
        (".html", note),
        (".tex", r"\S{} blobs: the starting"),
        (".csv", '""blobs:test""'),
    ):
        assert word in texts[suffix], suffix
    assert "normalised by mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in texts[".md"]
    rows = json.loads(warm_bench(*line, "--json").stdout)  # what was declared once stays
    assert {tuple(r["weights_seen"]) for r in rows if r["method"] == "cam"} == {("blobs:test",)}
    assert {tuple(r["weights_seen"]) for r in rows if r["method"] == "constant"} == {()}
    assert {r["normalisation"] for r in rows} == {"mean 0.5 0.5 0.5, std 0.5 0.5 0.5", ""}


def test_a_training_records_what_its_weights_had_seen(asked, world):
    planner = asked("glas")
    preflight(list(planner.plan.stages.values()), planner)
    assert execute(planner.plan, planner.request.run, planner.open_datasets, lambda event: None).exit_code == 0
    (trained,) = (r for r in world.store.records().values() if r["kind"] == "train")
    assert trained["facts"]["weights"]["seen"] == ["glas"]
    assert trained["facts"]["normalisation"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
