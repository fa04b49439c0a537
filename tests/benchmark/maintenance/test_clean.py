"""`bench clean`: leftovers and what nobody's plan refers to; nothing claimed, young, linked or not shown is touched."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from filelock import FileLock, SoftFileLease

from wsolbench.benchmark.cli.clean import clean
from wsolbench.benchmark.core.files import write_json
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.maintenance import clean as module

HOURS = 7200


def key(number: int) -> str:
    return f"{number:020x}"


@pytest.fixture
def folder(tmp_path):
    """Two trainings with a score each (plans name 1 and 2), their leftovers, all of it two hours old."""
    store = Store(tmp_path / "r")
    root = store.root
    labels = {"method": "cam", "train": "blobs", "fold": "0", "seed": 0, "split": "test"}
    for train, score in ((1, 2), (3, 4)):
        roles = {"last": {"weights": "epoch-0003.safetensors"}}
        store.finish(key(train), {"kind": "train", "labels": labels, "parents": {}, "roles": roles})
        for name in ("epoch-0003.safetensors", "epoch-0001.safetensors", "resume/0002.safetensors"):
            (store.run_dir(key(train)) / name).parent.mkdir(exist_ok=True)
            (store.run_dir(key(train)) / name).write_bytes(b"w" * 1000)
        facts = {"examples": f"pictures{train}"}
        store.finish(
            key(score), {"kind": "score", "labels": labels, "parents": {"checkpoint": key(train)}, "facts": facts}
        )
    store.finish(key(5), {"kind": "train", "labels": labels, "parents": {}})  # nobody reads it
    store.fail(key(6), {"kind": "train", "labels": labels, "error": "x"})
    store.run_dir(key(7)).mkdir()
    (store.run_dir(key(7)) / "history.jsonl").write_text("{}\n")
    write_json(store.run_dir(key(8)) / "record.json", {"schema": 0, "key": key(8)})
    leftovers = ("runs/x/.a.npz.1.tmp", "cache/.file-hashes.json.2.tmp", "cache/spill/tmpabc",
                 "progress/host-1-2/a.jsonl",
                 "locks/free.lock", "locks/train-x.lease", "examples/pictures1.npz", "examples/orphan.npz")  # fmt: skip
    mine = (
        "report/index.html",
        "report/.a.tmp",
        "data/glas-verify.json",
        "cache/images/a.bin",
        "runs/notes.txt",
        "a.csv",
    )
    for name in (*leftovers, *mine):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"1234")
    store.note_plan("bench run …", [key(2)], [key(1), key(2)])
    age(root)
    return root


def age(root: Path, seconds: float = HOURS) -> None:
    then = time.time() - seconds
    for path in [root, *root.rglob("*")]:
        os.utime(path, (then, then), follow_symlinks=False)


def found(root: Path, **about) -> dict[str, str]:
    return {str(f.path.relative_to(root)): f.why for f in module.find_removable(root, **about)[0]}


def everything(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*")}


LEFT = {
    "runs/x/.a.npz.1.tmp", "cache/.file-hashes.json.2.tmp", "cache/spill/tmpabc", "progress/host-1-2",
    "locks/free.lock",
    "locks/train-x.lease", "examples/orphan.npz", f"runs/{key(1)}/resume", f"runs/{key(1)}/epoch-0001.safetensors",
}  # fmt: skip


def test_what_no_plan_names_is_found_with_all_leftovers(folder):
    stages = {f"runs/{key(k)}" for k in (3, 4, 5, 6, 7, 8)}
    assert set(found(folder)) == LEFT | stages
    assert found(folder)[f"runs/{key(7)}"] == "unfinished, and no plan refers to it"
    assert "schema" in next(f.what for f in module.find_removable(folder)[0] if f.path.name == key(8))
    assert set(found(folder, keep_failed=True)) == LEFT | stages - {f"runs/{key(6)}", f"runs/{key(7)}"}


def test_without_plans_scores_and_what_they_build_on_stay(folder):
    shutil.rmtree(folder / "plans")
    stages = {p for p in found(folder) if p.startswith("runs/0") and p.count("/") == 1}
    assert stages == {f"runs/{key(k)}" for k in (5, 6, 7, 8)}
    assert "No plan is noted" in module.find_removable(folder)[1][0]


def test_given_stages_are_kept_and_nobody_elses(folder):
    gone = found(folder, keys={key(3), key(4)})
    assert {f"runs/{key(1)}", f"runs/{key(2)}"} <= set(gone)
    assert not {f"runs/{key(3)}", f"runs/{key(4)}"} & set(gone)
    assert "notes of other plans" in gone.values()


def test_an_interrupted_stage_of_a_plan_is_kept_to_be_continued(folder):
    Store(folder).note_plan("bench run …", [key(2)], [key(1), key(2), key(6), key(7)])
    assert not {f"runs/{key(6)}", f"runs/{key(7)}"} & set(found(folder))


def test_a_damaged_plan_makes_nobodys_stage_nobodys(folder):
    next((folder / "plans").iterdir()).write_text("{")
    gone = [p for p in found(folder) if p.startswith("runs/0") and p.count("/") == 1]
    assert gone == [f"runs/{key(8)}"]


def test_what_is_young_is_left(folder):
    age(folder, 60)
    assert found(folder) == {}


def test_what_is_claimed_is_left(folder):
    with FileLock(folder / "locks" / f"{key(3)}.lock"):
        assert f"runs/{key(3)}" not in found(folder)
        shown, _ = module.find_removable(folder)
    with FileLock(folder / "locks" / f"{key(4)}.lock"):  # taken after it was shown
        module.remove(folder, shown)
    assert (folder / "runs" / key(4)).is_dir()
    assert not (folder / "runs" / key(5)).exists()
    lease = SoftFileLease(folder / "locks" / "score-far.lease", lease_duration=60)
    with lease:
        assert not [p for p in found(folder) if p.startswith("runs/0")]
        assert "claims are alive" in module.find_removable(folder)[1][0]


def test_links_are_never_followed(folder, tmp_path):
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / ".a.tmp").write_bytes(b"1")
    (outside / "inner" / "file").write_bytes(b"1")
    (folder / "runs" / key(9)).symlink_to(outside)
    (folder / "runs" / key(5) / "resume").symlink_to(outside)
    shutil.rmtree(folder / "progress")
    (folder / "progress").symlink_to(outside)
    (folder / "examples" / "link.npz").symlink_to(outside / ".a.tmp")
    age(outside)
    age(folder)
    names = set(found(folder))
    assert not [n for n in names if "outside" in n or n.startswith("progress") or n.endswith((key(9), "link.npz"))]
    module.remove(folder, module.find_removable(folder)[0])
    assert sorted(p.name for p in outside.rglob("*")) == [".a.tmp", "file", "inner"]
    assert not (folder / "runs" / key(5)).exists()


def test_nothing_is_removed_that_was_not_shown(folder):
    before, shown = everything(folder), module.find_removable(folder)[0]
    (folder / "examples" / "late.npz").write_bytes(b"1")
    gone = module.remove(folder, shown)
    assert gone == shown
    roots = {str(f.path.relative_to(folder)) for f in shown}
    under = {p for p in before if any(p == r or p.startswith(r + "/") for r in roots)}
    assert everything(folder) == (before - under) | {"examples/late.npz"}
    assert found(folder) == {}
    assert (folder / "report" / ".a.tmp").is_file()


def test_the_command_shows_and_asks(folder, monkeypatch):
    before = everything(folder)
    shown = CliRunner().invoke(clean, ["--results", str(folder)])
    assert shown.exit_code == 0
    assert "Nothing was removed: add --yes." in shown.output
    assert key(5) in shown.output
    assert everything(folder) == before
    listed = json.loads(CliRunner().invoke(clean, ["--results", str(folder), "--json"]).stdout)
    assert listed["removed"] == 0
    assert everything(folder) == before
    assert listed["bytes"] == sum(f["size"] for f in listed["found"]) > 5000
    monkeypatch.setattr(
        "wsolbench.benchmark.cli.clean.sys", type("Fake", (), {"stdin": type("I", (), {"isatty": lambda: True})})
    )
    CliRunner().invoke(clean, ["--results", str(folder)], input="n\n")
    assert everything(folder) == before
    done = CliRunner().invoke(clean, ["--results", str(folder)], input="y\n")
    assert "Removed" in done.output
    assert found(folder) == {}
    assert "Nothing to remove." in CliRunner().invoke(clean, ["--results", str(folder), "--yes"]).output


def test_a_configuration_says_what_stays(world, tmp_path):
    """`--plan`: the stages of another seed go, those of the configuration stay."""
    kept, other = (world.plan("darkness,random", seeds=(seed,))[1] for seed in (0, 1))
    labels = {"method": "random", "train": "blobs", "fold": "0", "seed": 0, "split": "test"}
    for name in {*kept.stages, *other.stages}:
        world.store.finish(name, {"kind": "score", "labels": labels, "parents": {}, "facts": {}})
    age(world.results)
    settings = "\n".join(f"{k} = {v!r}" for k, v in world.settings.items())
    head = f'methods = "darkness,random"\ndatasets = "{world.csv}"\nbackbones = "test_resnet"\nweights = "none"\n'
    config = tmp_path / "run.toml"
    config.write_text(f'{head}preset = "smoke"\n[train]\n{settings}\n')
    done = CliRunner().invoke(clean, ["--results", str(world.results), "--plan", str(config), "--yes"])
    assert done.exit_code == 0, done.output
    left = {p.name for p in (world.results / "runs").iterdir()}
    assert left == set(kept.stages)
    assert set(other.stages) - left


def test_a_real_run_leaves_nothing_to_clean_and_is_whole_afterwards(world):
    plan, _ = world.run("cam")
    age(world.results)
    kept = everything(world.results)
    module.remove(world.results, module.find_removable(world.results)[0])
    assert {p for p in kept - everything(world.results) if not p.startswith("locks/")} == set()
    assert all(world.store.is_done(k) for k in plan.stages)
