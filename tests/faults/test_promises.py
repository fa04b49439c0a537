"""Promises 1, 3, 4, 6 and 7 through the real command line: repeatable, never done twice, traceable, offline, no pickle.

Promise 2 is in `test_kills`, promise 5 in `test_guard`.
"""

import csv
import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.faults.matrix import contents, inodes, leftovers, steady
from wsolbench.benchmark.core.metrics import Histograms, pxap
from wsolbench.benchmark.core.protocols import FAIR

# Refuses and tells: a library that swallows the refusal is found all the same.
OFFLINE = """
import os, sys
def refuse(event, arguments):
    if event.startswith("socket.") and event not in ("socket.gethostname", "socket.__new__"):
        os.write(2, f"NETWORK {event} {arguments!r}\\n".encode())
        raise ConnectionRefusedError("no network in this test")
    if event == "socket.__new__" and arguments[1] != 1:  # AF_UNIX stays on this machine
        os.write(2, f"NETWORK {event} {arguments!r}\\n".encode())
        raise ConnectionRefusedError("no network in this test")
sys.addaudithook(refuse)
"""
NO_PICKLE = """
import os, sys, pickle
def refuse(event, arguments):
    if event == "pickle.find_class":
        os.write(2, f"PICKLE {arguments!r}\\n".encode())
        raise RuntimeError("no pickle in this test")
sys.addaudithook(refuse)
def refuse_all(*args, **named):
    os.write(2, b"PICKLE read\\n")
    raise RuntimeError("no pickle in this test")
pickle.load = pickle.loads = pickle.Unpickler = pickle._Unpickler = refuse_all
"""


@pytest.fixture(scope="module")
def sandboxed(matrix, tmp_path_factory):
    """The same command in another folder, without a network and with every pickle refused."""
    folder = tmp_path_factory.mktemp("sandboxed") / "results"
    return folder, matrix.run(folder, inject=OFFLINE + NO_PICKLE)


READING = [
    ("run",), ("report", "--json"), ("report", "--format", "md,csv,html"), ("status",), ("status", "--json"),
    ("list", "methods"), ("list", "datasets"), ("data", "verify"), ("data", "info"),
]  # fmt: skip


def reading(matrix, results, words):
    """The words of a command that reads, completed."""
    if words[0] == "run":
        return matrix.words(results)
    if words[0] == "list":
        return words
    return [*words, *([matrix.csv] if words[0] == "data" else []), "--results", results]


# -- 1, 6, 7: a whole run --------------------------------------------------------------------------------------------
def test_the_same_command_gives_the_same_rows(matrix, reference, sandboxed):
    folder, done = sandboxed
    assert done.returncode == 0, done.stderr
    assert contents(folder) == reference.contents
    assert steady(matrix.rows(folder)) == reference.rows
    assert leftovers(folder) == []


def test_a_run_needs_no_network(sandboxed):
    assert "NETWORK" not in sandboxed[1].stderr


def test_a_run_reads_no_pickle(sandboxed):
    assert "PICKLE" not in sandboxed[1].stderr


def test_the_traps_spring(matrix, tmp_path):
    """A method that opens a connection, and one that unpickles, are caught by these traps."""
    for name, body in {
        "online": "import socket; socket.create_connection(('localhost', 9), 1)",
        "resolving": "import socket; socket.getaddrinfo('example.org', 80)",
        "pickled": "import collections, pickle; pickle.loads(pickle.dumps(collections.Counter()))",
        "pickled_array": "import io, numpy as np; b = io.BytesIO(); np.save(b, np.array([{}], object)); b.seek(0); "
        "np.load(b, allow_pickle=True)",
    }.items():
        (tmp_path / f"{name}.py").write_text(
            f'"""Test."""\nfrom wsolbench.methods.base import register\n{body}\n'
            f'@register("{name}")\ndef {name}(evidence, options):\n    """Test."""\n'
        )
        done = matrix.bench("check", tmp_path / f"{name}.py", inject=OFFLINE + NO_PICKLE)
        assert done.returncode != 0
        assert ("NETWORK" in done.stderr, "PICKLE" in done.stderr) == ("pickled" not in name, "pickled" in name), name


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_reading_needs_no_network_and_no_pickle(matrix, reference, tmp_path, words):
    results = shutil.copytree(reference.results, tmp_path / "results")
    done = matrix.bench(*reading(matrix, results, words), inject=OFFLINE + NO_PICKLE)
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stderr
    assert "PICKLE" not in done.stderr


# -- 7: results somebody tampered with -------------------------------------------------------------------------------
class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def poison(results: Path, mark: Path) -> int:
    """Puts a pickle in the place of every stored file; arrays keep their names, as pickles within an npz."""
    count = 0
    for path in sorted(results.rglob("*")):
        if path.suffix == ".npz":
            with np.load(path) as honest:
                names = honest.files
            np.savez(path, allow_pickle=True, **{n: np.array([Payload(mark)], object) for n in names})
        elif path.suffix in (".json", ".jsonl", ".safetensors", ".bin", ".idx"):
            path.write_bytes(pickle.dumps(Payload(mark)))
        else:
            continue
        count += 1
    return count


def test_pickles_in_place_of_all_files_never_run(matrix, reference, small, tmp_path):
    results, mark = shutil.copytree(reference.results, tmp_path / "results"), tmp_path / "mark"
    assert poison(results, mark) > 50
    for words in READING[1:5]:
        done = matrix.bench(*reading(matrix, results, words))
        assert done.returncode in (0, 2), done.stderr
        assert "Traceback" not in done.stderr
    for path in (results / "runs").iterdir():
        if path.name not in small.contents:
            shutil.rmtree(path)
    done = matrix.run(results, methods=small.methods)
    assert done.returncode == 0, done.stderr
    assert not mark.exists()
    assert contents(results) == small.contents


@pytest.mark.slow
def test_pickles_behind_honest_records_never_run(matrix, reference, tmp_path):
    """Arrays and weights are replaced, the records that name them are not."""
    results, mark = shutil.copytree(reference.results, tmp_path / "results"), tmp_path / "mark"
    records = {p: p.read_bytes() for p in results.glob("runs/*/record.json")}
    poison(results / "runs", mark)
    poison(results / "examples", mark)
    for path, text in records.items():
        path.write_bytes(text)
    for words in READING[1:5]:
        done = matrix.bench(*reading(matrix, results, words))
        assert "Traceback" not in done.stderr
    for path in records:
        if json.loads(records[path])["kind"] == "score":
            shutil.rmtree(path.parent)  # so that weights and maps are asked for
    done = matrix.run(results)
    assert done.returncode == 0, done.stderr
    assert not mark.exists()
    assert contents(results).keys() == reference.contents.keys()


# -- 4: every number can be traced -----------------------------------------------------------------------------------
def key_of(value: object) -> str:
    """As documented: the first 20 digits of the SHA-256 of canonical JSON. Not the product's own code."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_row_can_be_traced(matrix, reference):
    shown = matrix.bench("report", "--results", reference.results, "--json")
    rows = json.loads(shown.stdout)
    assert len(rows) == len(reference.rows) > 5
    runs = reference.results / "runs"
    with matrix.csv.open(encoding="utf-8") as handle:
        lines = list(csv.DictReader(line for line in handle if not line.startswith("#")))
    test = sorted((r for r in lines if r["split"] == "test"), key=lambda r: r["id"])
    division = [[r["id"], int(r["label"] == "blob"), r["group"], "test", False] for r in test]
    files = [[r["id"], *(digest(matrix.csv.parent / r[k]) if r[k] else None for k in ("image", "mask"))] for r in test]
    version, commit = matrix.bench("--version").stdout.split()[-1], set[str]()
    for row in rows:
        record = json.loads((runs / row["stage"] / "record.json").read_text())
        assert row["stage"] == record["key"] == key_of({k: record[k] for k in ("kind", "identity", "parents")})
        assert record["parents"] == {"checkpoint": row["stage_train"], "val": row["stage_val"]}
        assert record["environment"]["wsolbench"] == row["versions"]["wsolbench"] == version
        commit.add(row["versions"]["commit"])
        assert record["identity"]["eval"]["split"] == key_of(division)
        assert record["identity"]["eval"]["content"] == key_of(files)
        rules = record["identity"]["protocol"]
        assert (row["protocol"], rules["name"], rules["size"], rules["version"]) == (
            "fair(size=64)",
            "fair",
            64,
            FAIR.version,
        )
        trained = json.loads((runs / row["stage_train"] / "record.json").read_text())
        role = trained["roles"][record["identity"]["role"]]
        assert row["weights_sha256"] == role["sha256"] == digest(runs / row["stage_train"] / role["weights"])
        assert row["epoch"] == role["epoch"]
    assert len(commit) == 1
    assert len(commit.pop()) in (0, 40)  # of a checkout


def test_every_number_can_be_worked_out_again(reference):
    """PxAP and accuracy of each row from its arrays, the threshold from those of its validation stage."""
    for row in reference.rows:
        with np.load(reference.results / "runs" / row["stage"] / "scores.npz") as stored:
            counts = [stored[name].astype(np.int64) for name in ("foreground", "background")]
            right, off = stored["logits"].argmax(1) == stored["labels"], stored["logits"].argmax(1) == 0
        for some in (
            counts if row["gated"] else ()
        ):  # nothing is foreground where the first class, `plain`, is predicted
            some[off, 0], some[off, 1:] = some[off].sum(1), 0
        found = Histograms(*counts)
        assert row["pxap"] == pytest.approx(pxap(found), abs=1e-9)
        assert row["accuracy"] == pytest.approx(100 * right.mean(), abs=1e-9)
        assert len(right) == row["images"]


# -- 3: never done twice, failed ones never counted ------------------------------------------------------------------
def test_a_results_folder_moved_elsewhere(matrix, reference, tmp_path):
    moved = tmp_path / "another disk" / "r"
    shutil.copytree(reference.results, moved)
    before = inodes(moved)
    done = matrix.run(moved)
    assert "Nothing to do" in done.stdout
    assert inodes(moved) == before
    assert steady(matrix.rows(moved)) == reference.rows


def test_data_moved_elsewhere(matrix, reference, tmp_path, blobs):
    results = shutil.copytree(reference.results, tmp_path / "results")
    shutil.copytree(blobs.parent, tmp_path / "data")
    moved = type(matrix)(matrix.bench, tmp_path / "data" / blobs.name)
    assert "Nothing to do" in moved.run(results).stdout
    assert steady(moved.rows(results)) == reference.rows


def test_seeds_added_when_half_is_done(matrix, reference, tmp_path):
    results = shutil.copytree(reference.results, tmp_path / "results")
    for row in reference.rows[::2]:
        shutil.rmtree(results / "runs" / row["stage"])
    before = inodes(results)
    done = matrix.run(results, "--seeds", "0,1", "--json", methods="layercam")
    assert done.returncode == 0, done.stderr
    assert before.items() <= inodes(results).items()
    rows = steady(json.loads(done.stdout))
    first = {r["stage"]: r for r in reference.rows if r["method"] == "layercam"}
    assert {r["stage"]: r for r in rows if r["seed"] == 0} == first
    again = {r["stage"] for r in rows if r["seed"] == 1}
    assert len(again) == len(first)


def test_a_failed_stage_is_never_counted_and_tried_again(matrix, reference, tmp_path):
    results = shutil.copytree(reference.results, tmp_path / "results")
    before, plugin = inodes(results), tmp_path / "faulty.py"
    text = (
        '"""Faulty."""\nfrom pathlib import Path\nimport torch\nfrom wsolbench.methods.base import register\n\n'
        '@register("faulty", needs=("checkpoint:classifier",))\ndef faulty(evidence, options):\n    """Fails."""\n'
        f'    if not Path({str(tmp_path / "mended")!r}).exists():\n        raise ValueError("no idea")\n'
        "    return evidence.weigh(evidence.explained.head.weight[evidence.classes])\n"
    )
    plugin.write_text(text)
    for _ in range(2):
        done = matrix.run(results, "--json", methods=f"layercam,{plugin}")
        assert done.returncode == 1, done.stderr
        assert {r["method"] for r in json.loads(done.stdout)} == {"layercam"}
        shown = json.loads(matrix.bench("report", "--results", results, "--json").stdout)
        assert "faulty" not in {r["method"] for r in shown}
        failures = list(results.glob("runs/*/failure.json"))
        assert failures
        assert inodes(results) == before
    (tmp_path / "mended").touch()
    done = matrix.run(results, "--json", methods=f"layercam,{plugin}")
    assert done.returncode == 0, done.stderr
    assert {r["method"] for r in json.loads(done.stdout)} == {"layercam", "faulty"}
    assert before.items() <= inodes(results).items()
    assert not list(results.glob("runs/*/failure.json"))
