"""`bench doctor`: every finding has a level and a remedy, nothing is changed, a machine in any state is described."""

import json
import os
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from filelock import FileLock, SoftFileLease

from wsolbench.benchmark.cli.doctor import doctor as command
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.maintenance import doctor, doctor_gpu, doctor_places
from wsolbench.benchmark.maintenance.findings import LEVELS, Finding, gib
from wsolbench.datasets.synthesis.synthetic import WRITERS


# -- versions --------------------------------------------------------------------------------------------------------
def test_a_package_too_old_or_missing_is_a_problem(monkeypatch):
    honest = doctor.version
    monkeypatch.setattr(doctor, "version", lambda n: {"timm": "0.9.1", "seaborn": ""}.get(n, honest(n)))
    problems = {f.text: f.advice for f in doctor.look_at_versions() if f.level == "problem"}
    assert [t.split(",")[0] for t in problems] == ["timm 0.9.1", "seaborn is not installed"]
    assert all("pip install" in advice for advice in problems.values())
    monkeypatch.setattr(doctor, "version", lambda n: {"torch": "2.0.0"}.get(n, honest(n)))
    assert any("belongs to another torch" in f.text for f in doctor.look_at_versions())


def test_extras_say_what_they_are_for(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda n: "")
    found = list(doctor.look_at_extras())
    assert {f.level for f in found} == {"note"}
    assert any("wsolbench[dask]" in f.advice for f in found)


# -- places ----------------------------------------------------------------------------------------------------------
def test_locks_and_claims_are_told_with_their_owners(tmp_path):
    locks = tmp_path / "locks"
    locks.mkdir()
    (locks / "free.lock").touch()
    assert [f.text for f in doctor_places.look_at_locks(tmp_path)] == ["no stage is claimed by anybody"]
    with FileLock(locks / "abc.lock"), SoftFileLease(locks / "score-k.lease", lease_duration=60):
        held, claimed = doctor_places.look_at_locks(tmp_path)
        assert held.text.startswith(f"abc is held by process {os.getpid()}")
        assert f"claimed by process {os.getpid()} on" in claimed.text
        old = time.time() - 600
        os.utime(locks / "score-k.lease", (old, old))
        stale = list(doctor_places.look_at_locks(tmp_path))[1]
        assert (stale.level, "10 min old" in stale.text) == ("note", True)


def test_another_process_holds_a_lock(tmp_path):
    (tmp_path / "locks").mkdir()
    path = tmp_path / "locks" / "abc.lock"
    code = (
        f"import fcntl, sys; f = open({str(path)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        assert doctor_places.held(path)
        assert doctor_places.holders(path) == [other.pid]
        other.stdin.close()
    assert not doctor_places.held(path)


def test_stages_are_counted(tmp_path):
    store = Store(tmp_path)
    labels = {"method": "cam"}
    store.finish("a", {"kind": "train", "labels": labels})
    store.fail("b", {"kind": "score", "labels": labels, "error": "x"})
    store.run_dir("c").mkdir()
    store.run_dir("d").mkdir()
    (store.run_dir("d") / "record.json").write_text("{")
    found = {f.level: f.text for f in doctor_places.look_at_stages(tmp_path)}
    assert found["ok"] == "1 of 4 stages are finished"
    assert found["note"] == "1 stage was interrupted: c"
    texts = [f.text for f in doctor_places.look_at_stages(tmp_path) if f.level == "warning"]
    assert "1 record cannot be used" in texts[0]
    assert "1 stage failed: b (score cam)" in texts[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    WRITERS["glas"](root, train=20, test=4, size=64, seed=0)
    return root


def glas(data, results):
    return next(f for f in doctor_places.look_at_data(data, results) if f.text.startswith("glas"))


def test_the_state_of_a_copy_is_told(data, tmp_path):
    from wsolbench.benchmark.cli.data.verbs import data as data_verb

    assert "never verified" in glas(data, tmp_path).text
    assert "SYNTHETIC" in glas(data, tmp_path).text
    arguments = ["verify", "glas", "--data-root", str(data), "--results", str(tmp_path)]
    assert CliRunner().invoke(data_verb, arguments).exit_code == 0
    sound = glas(data, tmp_path)
    assert (sound.level, sound.facts["changed"]) == ("ok", 0)
    image = sorted(data.rglob("train_*[0-9].bmp"))[0]
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    later = time.time() + 5
    os.utime(image, (later, later))
    changed = glas(data, tmp_path)
    assert (changed.level, changed.facts["changed"]) == ("warning", 1)
    assert image.name in changed.text
    assert all(f.level == "note" for f in doctor_places.look_at_data(tmp_path / "nowhere", tmp_path))


def test_disks_are_told(tmp_path, monkeypatch):
    found = list(doctor_places.look_at_disks(tmp_path / "r", tmp_path))
    assert [f.level for f in found] == ["ok"] * 3
    assert "locks work there" in found[-1].text
    assert not (tmp_path / "r").exists()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(doctor_places, "LOW_DISK", 2**80)
    monkeypatch.setattr(doctor_places, "locks_work", lambda folder: False)
    monkeypatch.setattr(doctor_places, "file_system", lambda folder: "nfs4")
    low, data, locks = doctor_places.look_at_disks(tmp_path, tmp_path)
    assert (low.level, data.level, locks.level) == ("warning", "ok", "warning")
    assert "over the network" in data.text


def test_a_file_system_is_known_by_its_mount(tmp_path):
    assert doctor_places.file_system(tmp_path)
    if os.path.ismount("/proc"):
        from pathlib import Path

        assert doctor_places.file_system(Path("/proc/self")) == "proc"


# -- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture
def quick(monkeypatch):
    """Without the timed batch, which is tested by itself."""
    monkeypatch.setattr(doctor_gpu, "time_a_batch", lambda device: iter([Finding("batch", "ok", "fast")]))


def test_text_and_json_say_the_same(quick, tmp_path):
    arguments = ["--results", str(tmp_path / "r"), "--data-root", str(tmp_path), "--device", "cpu"]
    shown = CliRunner().invoke(command, arguments)
    listed = CliRunner().invoke(command, [*arguments, "--json"])
    value = json.loads(listed.stdout)
    assert shown.exit_code == listed.exit_code == (0 if value["ok"] else 1)
    sections = ("versions", "extras", "gpu", "machine", "weights", "data", "disk", "locks", "stages", "batch")
    assert tuple(dict.fromkeys(f["section"] for f in value["findings"])) == sections
    for finding in value["findings"]:
        assert finding["level"] in LEVELS
        assert finding["advice"] or finding["level"] in ("ok", "note"), finding
        if finding["section"] in ("versions", "extras", "locks", "stages"):
            assert finding["text"] in shown.output
    assert not (tmp_path / "r").exists()


def test_a_question_without_an_answer_is_a_problem_and_hides_no_other(quick, tmp_path, monkeypatch):
    def broken(results):
        raise OSError("stale handle")

    monkeypatch.setattr(doctor_places, "look_at_stages", broken)
    done = CliRunner().invoke(command, ["--results", str(tmp_path), "--data-root", str(tmp_path)])
    assert done.exit_code == 1
    assert "could not be looked at: OSError: stale handle" in done.output
    assert "fast" in done.output


def test_a_batch_is_timed(monkeypatch):
    monkeypatch.setattr(doctor_gpu, "SIDE", 32)
    (finding,) = doctor_gpu.time_a_batch("cpu")
    assert finding.facts["images_per_second"] > 0
    (finding,) = doctor_gpu.time_a_batch("cuda:77")
    assert finding.level == "problem"


def test_sizes_are_readable():
    assert [gib(n) for n in (5, 2048, 3 * 2**20, 2**31, 2**41)] == ["5 B", "2 KiB", "3 MiB", "2.0 GiB", "2.0 TiB"]
