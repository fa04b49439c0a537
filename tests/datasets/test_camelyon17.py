import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from wsolbench.benchmark.cli.data.verbs import data
from wsolbench.benchmark.cli.listing import list_
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.registry import scan_source
from wsolbench.datasets import camelyon17
from wsolbench.datasets.camelyon17 import Camelyon17, centre, patient
from wsolbench.datasets.open import content_hashes, manifest_identity, open_dataset
from wsolbench.datasets.parts.camelyon_lists import PatchName, write_part

PATIENTS = {0: (3, 19), 1: (20, 33), 2: (45, 59), 3: (60, 75), 4: (80, 99)}


def plant(tree, part="testing", centres=range(5)):
    """Two patients of each centre, one with tumour, one without; half the tumour patients have a normal node too."""
    word, last = ("test", "test") if part == "testing" else ("train", "train")
    for k in centres:
        ill, well = PATIENTS[k]
        tumour, normal = f"patient_{ill:03}_node_1", f"patient_{well:03}_node_4"
        tree.add(word, f"{part}-tumor-{tumour}", 1, k + 1, f"metastatic-patches/{part}/tumor/{tumour}")
        tree.add(word, f"{part}-normal-{normal}", 0, 3, f"normal-patches/split_0/fold_{k}/{last}")
        other = f"patient_{ill:03}_node_0"
        tree.add(word, f"{part}-normal-{other}", 0, 1, f"normal-patches/split_0/fold_{k}/{last}")


@pytest.fixture
def tree(patch_tree):
    patch_tree.home, patch_tree.rows = "camelyon17", {"train": [], "test": []}
    plant(patch_tree)
    return patch_tree


@pytest.fixture
def root(tree):
    plant(tree, "training")
    tree.images()
    return tree.root


def write_lists(tree, place="CAMELYON17_512"):
    for k, (ill, well) in PATIENTS.items():
        mine = [r for r in tree.rows["test"] if patient(r.name) in (f"patient_{ill:03}", f"patient_{well:03}")]
        write_part(tree.root / place / f"fold-{k}" / "test", mine)
    return tree.root / place


def labels(manifest):
    found = Counter(i.label for i in manifest.split("test"))
    return found[0], found[1]


def test_facts_can_be_read_without_import_and_agree_with_the_class():
    (entry,) = scan_source(Path(camelyon17.__file__).read_text(encoding="utf-8"), "camelyon17", "built-in")
    assert entry.error == ""
    assert (entry.name, entry.facts["version"]) == (Camelyon17.card.name, Camelyon17.card.version)
    assert (entry.facts["variants"], entry.facts["folds"]) == (Camelyon17.variants, Camelyon17.folds)
    assert entry.facts["evaluation_only"] is Camelyon17.card.evaluation_only is True
    assert entry.facts["images"] == f"{sum(camelyon17.TEST_IMAGES):,} test"


@pytest.mark.parametrize("lists", [True, False])
def test_centres_by_list_and_by_patient_number(root, tree, lists):
    if lists:
        write_lists(tree)
    everything = open_dataset("camelyon17", root).manifest("0")
    assert labels(everything) == (20, 15)
    assert not everything.split("train")
    assert not everything.split("val")
    found = []
    for k, patients in PATIENTS.items():
        dataset = open_dataset(f"camelyon17:centre-{k}", root)
        m = dataset.manifest("0")
        assert m.card.name == dataset.card.name == f"camelyon17:centre-{k}"
        assert (m.card.namespace, m.card.evaluation_only) == ("camelyon17", True)
        assert labels(m) == (4, k + 1)
        assert {i.group for i in m.items} == {f"patient_{n:03}" for n in patients}
        assert all("testing-" in i.image.name for i in m.items)
        found += m.items
    assert set(found) == set(everything.items)
    assert Camelyon17.card.name == "camelyon17"  # the variant's card is its own


def test_published_counts_are_compared_and_a_difference_is_a_note(root, tree):
    write_lists(tree)
    (note,) = open_dataset("camelyon17:centre-2", root).manifest("0").notes
    assert note == "centre 2: 7 test patches; 448 are known from publications"
    assert len(open_dataset("camelyon17", root).manifest("0").notes) == 5


def test_lists_of_some_centres(root, tree):
    folder = write_lists(tree, "folds/wsol-done-right-splits/CAMELYON17-512")
    shutil.rmtree(folder / "fold-3")
    m = open_dataset("camelyon17", root).manifest("0")
    assert labels(m) == (16, 11)
    assert any("no test list of centre 3" in n for n in m.notes)
    with pytest.raises(
        BenchError, match=r"No test patches of camelyon17:centre-3 in .*CAMELYON17-512.*: centre-0, .*-4\."
    ):
        open_dataset("camelyon17:centre-3", root).manifest("0")


def test_a_patient_of_another_centre_is_reported(root, tree):
    folder = write_lists(tree)
    write_part(folder / "fold-1" / "test", tree.rows["test"][:5])  # those of centre 0
    notes = open_dataset("camelyon17:centre-1", root).manifest("0").notes
    assert any(
        "slides have patient numbers of another centre (patient_003_node_0, patient_003_node_1" in n for n in notes
    )
    with pytest.raises(BenchError, match="occurs 2 times"):  # pooled, they would count twice
        open_dataset("camelyon17", root).manifest("0")


def test_a_copy_without_a_testing_part_is_used_whole(tree):
    tree.rows["test"] = []
    plant(tree, "training", centres=[2])
    tree.images()
    m = open_dataset("camelyon17:centre-2", tree.root).manifest("0")
    assert labels(m) == (4, 3)
    assert any("all of them" in n for n in m.notes)
    with pytest.raises(BenchError, match=r"camelyon17:centre-0 in .*w-512xh-512\. There are those of: centre-2\."):
        open_dataset("camelyon17:centre-0", tree.root).manifest("0")


def test_unknown_variants_folds_and_places(root, tmp_path):
    with pytest.raises(BenchError, match=r"no variant 'center-2'.*Did you mean centre-2"):
        open_dataset("camelyon17:center-2", root)
    with pytest.raises(BenchError, match="no fold '1'"):
        open_dataset("camelyon17", root).manifest("1")
    with pytest.raises(BenchError, match="No camelyon17 patches"):
        open_dataset("camelyon17", tmp_path).manifest("0")


def test_slides_and_patients():
    name = PatchName("testing-tumor-patient_079_node_3", 0, 1, 2, 0.5, 0.3, 0, 0)
    assert (patient(name), centre(name)) == ("patient_079", 3)
    with pytest.raises(BenchError, match="'tumor_001' is not patient_XXX_node_Y"):
        patient(PatchName("training-tumor-tumor_001", 0, 1, 2, 0.5))
    with pytest.raises(BenchError, match="patient 100 is not one of the 100 training patients"):
        centre(PatchName("testing-normal-patient_100_node_0", 0, 1, 2, 0.5))


def test_missing_masks_and_files(root, tree):
    write_lists(tree)
    row = next(r for r in tree.rows["test"] if r.label)
    (root / row.mask).unlink()
    with pytest.raises(BenchError, match="masks of 1 tumour patches are missing"):
        open_dataset("camelyon17", root).manifest("0")
    (root / row.path).unlink()
    with pytest.raises(BenchError, match="2 of 50 files are missing"):
        open_dataset("camelyon17", root).manifest("0")


def test_masks_are_read_strictly(root, tree):
    dataset = open_dataset("camelyon17", root)
    item = next(i for i in dataset.manifest("0").items if i.mask)
    path = item.mask
    assert dataset.read_mask(item).foreground.mean() == 0.5
    Image.new("L", (16, 16), 7).save(path)
    with pytest.raises(BenchError, match="holds 7 besides"):
        dataset.read_mask(item)


def test_each_centre_is_an_identity_of_its_own(root, tmp_path):
    found = []
    for k in range(5):
        m = open_dataset(f"camelyon17:centre-{k}", root).manifest("0")
        found.append(manifest_identity(m, content_hashes(m, tmp_path / "h.json"), ("test",)))
    assert len({i["name"] for i in found}) == len({i["split"] for i in found}) == 5


def test_the_commands(root, tmp_path):
    where = ["--data-root", str(root), "--results", str(tmp_path / "results")]
    done = CliRunner().invoke(data, ["verify", "camelyon17:centre-2", *where])
    assert done.exception is None, done.exception
    assert "camelyon17:centre-2: 10 files read, 0 problems" in done.output
    assert "fold 0          test 4 + 3\n" in done.output
    done = CliRunner().invoke(data, ["info", "camelyon17:centre-2", *where])
    assert done.exception is None, done.exception
    for word in ("camelyon17:centre-2, fold 0", "patients", "tumour only", "Bandi"):
        assert word in done.output
    assert not any(line.split()[:1] in (["train"], ["val"], ["valpx"]) for line in done.output.splitlines())
    assert (tmp_path / "results" / "data" / "camelyon17_centre-2-fold-0.png").is_file()
    (found,) = json.loads(CliRunner().invoke(data, ["info", "camelyon17", *where, "--json", "--no-sheet"]).stdout)
    assert found["foreground"] == {"test": pytest.approx(0.5 * 15 / 35)}


def test_both_are_listed():
    names = [row["name"] for row in json.loads(CliRunner().invoke(list_, ["datasets", "--json"]).stdout)]
    assert {"camelyon16", "camelyon17", "glas"} <= set(names)
