"""Starting weights that are not there, not the same any more, or no weights at all: refused before any training."""

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.faults.matrix import Matrix
from tests.faults.offline import OFFLINE
from wsolbench.methods.backbones.adapter import create_backbone

TAG = "test_resnet.r160_in1k"


class Hub:
    """A cache of the hub as its client leaves it: blobs by hash, snapshots of links, the commit that `main` is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / f"models--timm--{TAG}"

    def publish(self, commit: str, seed: int) -> Path:
        """Random weights as the state of the repository; returns the blob."""
        torch.manual_seed(seed)
        state = {n: t.clone() for n, t in create_backbone("test_resnet").net.state_dict().items()}
        for folder in ("blobs", "refs", f"snapshots/{commit}"):
            (self.repository / folder).mkdir(parents=True, exist_ok=True)
        draft = self.repository / "draft"
        save_file(state, draft)
        blob = self.repository / "blobs" / hashlib.sha256(draft.read_bytes()).hexdigest()
        draft.rename(blob)
        (self.repository / "snapshots" / commit / "model.safetensors").symlink_to(f"../../blobs/{blob.name}")
        (self.repository / "refs" / "main").write_text(commit)
        return blob

    @property
    def inject(self) -> str:
        return OFFLINE.format(cache=str(self.folder))


@pytest.fixture
def hub(tmp_path):
    return Hub(tmp_path / "hub")


@pytest.fixture
def train(matrix: Matrix, tmp_path):
    """`bench run` of one method from given weights; returns the finished process."""

    def go(weights: object, *words: object, inject: str = ""):
        return matrix.run(tmp_path / "r", "--weights", weights, *words, methods="cam", inject=inject)

    return go


def refused(done, tmp_path, *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r" / "runs").exists()
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_without_a_network_the_file_to_provide_is_named(train, hub, tmp_path, preset):
    done = train("imagenet", "--preset", preset, inject=hub.inject)
    refused(done, tmp_path, TAG, "Name or service not known", f"model.safetensors from timm/{TAG}", "--weights PATH")


def test_without_a_network_a_dry_run_shows_the_plan_and_what_is_missing_here(train, hub, tmp_path):
    done = train("imagenet", "--preset", "quick", "--dry-run", inject=hub.inject)
    assert done.returncode == 0, done.stderr
    assert f"WARNING: not on this machine: The ImageNet weights {TAG}" in done.stderr
    assert "1 training, 1 to do" in done.stdout


def test_without_a_network_smoke_says_so_in_one_line_and_goes_on_from_random_weights(train, hub, tmp_path):
    done = train("imagenet", "--json", inject=hub.inject)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "ImageNet weights" in line]
    assert len(said) == 1
    for word in ("test_resnet", "Name or service not known", "smoke goes on from random weights", "--weights FILE"):
        assert word in said[0]
    assert json.loads(done.stdout)
    records = [json.loads(p.read_text()) for p in (tmp_path / "r").glob("runs/*/record.json")]
    (trained,) = (r for r in records if r["kind"] == "train")
    assert trained["identity"]["backbone"]["weights"] == trained["facts"]["weights"] == {"source": "none"}
    again = train("none", "--json", inject=hub.inject)  # the very same rows
    assert json.loads(again.stdout) == json.loads(done.stdout)


def test_where_the_weights_are_smoke_takes_them(train, hub, tmp_path):
    blob = hub.publish("1" * 40, seed=1)
    done = train("imagenet", inject=hub.inject)
    assert done.returncode == 0, done.stderr
    assert "random weights" not in done.stderr
    records = [json.loads(p.read_text()) for p in (tmp_path / "r").glob("runs/*/record.json")]
    assert [r["facts"]["weights"]["sha256"] for r in records if r["kind"] == "train"] == [blob.name]


def test_a_cached_copy_needs_no_network_and_a_changed_one_is_an_error(train, hub, tmp_path):
    old = hub.publish("1" * 40, seed=1)
    done = train("imagenet", "--json", inject=hub.inject)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert json.loads((tmp_path / "r" / "weights.json").read_text()) == {TAG: old.name}
    records = [json.loads(p.read_text()) for p in (tmp_path / "r").glob("runs/*/record.json")]
    assert [r["facts"]["weights"]["sha256"] for r in records if r["kind"] == "train"] == [old.name]
    new = hub.publish("2" * 40, seed=2)
    stages = sorted(p.name for p in (tmp_path / "r" / "runs").iterdir())
    done = train("imagenet", "--seeds", "0,1", inject=hub.inject)
    assert done.returncode == 2, done.stderr
    for word in (TAG, old.name, new.name, "changed upstream", "--results"):
        assert word in done.stderr
    assert sorted(p.name for p in (tmp_path / "r" / "runs").iterdir()) == stages
    assert train("imagenet", inject=hub.inject).returncode == 0  # what is finished needs no weights


def test_a_cached_copy_that_was_altered_is_never_loaded(train, hub, tmp_path):
    blob = hub.publish("1" * 40, seed=1)
    data = bytearray(blob.read_bytes())
    data[-3] ^= 1
    blob.write_bytes(data)
    refused(train("imagenet", inject=hub.inject), tmp_path, "are not what was downloaded", blob.name, "download again")


class Payload:
    """Writes a file as soon as anybody unpickles it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def disguised(kind: str, path: Path, payload: object) -> None:
    """A pickle that looks like weights of some kind."""
    if kind == "torch archive":
        torch.save({"state_dict": payload}, path)
    elif kind == "old torch file":
        torch.save({"model": payload}, path, _use_new_zipfile_serialization=False)
    elif kind == "numpy objects":
        np.savez(path.with_suffix(".npz"), weights=np.array([payload], dtype=object))
        path.with_suffix(".npz").rename(path)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(payload))
            archive.writestr("archive/version", "3\n")
    else:
        path.write_bytes(pickle.dumps(payload))


SAFE, CODE, OTHER = "not a readable safetensors file", "holds pickled code, which is never run here", "is not read"
DISGUISES = [
    ("plain pickle", "w.safetensors", SAFE),
    ("torch archive", "w.pth", CODE),
    ("numpy objects", "w.npz", OTHER),
]
MORE = [
    ("torch archive", "w.safetensors", SAFE),
    ("numpy objects", "w.safetensors", SAFE),
    ("old torch file", "w.pt", CODE),
    ("plain pickle", "w.bin", CODE),
    ("zip", "w.pth", "w.pth"),
    ("plain pickle", "w.pkl", OTHER),
]


@pytest.mark.parametrize(
    ("kind", "name", "message"), [*DISGUISES, *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE)]
)
def test_a_pickle_in_disguise_is_refused_and_never_runs(train, tmp_path, kind, name, message):
    disguised(kind, tmp_path / name, Payload(tmp_path / "ran"))
    refused(train(tmp_path / name), tmp_path, name, message)
    assert not (tmp_path / "ran").exists()


def test_the_payload_would_run_where_pickles_are_read(tmp_path):
    """Else the tests above would prove nothing."""
    disguised("plain pickle", tmp_path / "w.pkl", Payload(tmp_path / "ran"))
    pickle.loads((tmp_path / "w.pkl").read_bytes())  # noqa: S301 - our own
    assert (tmp_path / "ran").is_dir()


def test_weights_with_nan_are_refused(train, tmp_path):
    state = {n: t.clone() for n, t in create_backbone("test_resnet").net.state_dict().items()}
    state["layer1.0.conv1.weight"][0, 0] = torch.nan
    save_file(state, tmp_path / "w.safetensors")
    message = "NaN or infinite values in 1 tensors, first layer1.0.conv1.weight"
    refused(train(tmp_path / "w.safetensors"), tmp_path, "w.safetensors", message)
