"""The store: what is on disk is whole, what is not whole does not count, and nothing needs pickle."""

import json
import os
import platform
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import Timeout

from wsolbench.benchmark.core.errors import BenchError, DamagedError
from wsolbench.benchmark.core.files import (
    atomic_path,
    canonical_json,
    file_sha256,
    jsonable,
    key_of,
    read_json,
    read_npz,
    write_json,
    write_npz,
    write_text,
)
from wsolbench.benchmark.core.results_store import Store


class OutOfLuckError(Exception):
    pass


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_writer_that_raises_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise OutOfLuckError

    with pytest.raises(OutOfLuckError):
        write_half()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_the_name_appears_only_when_everything_is_written(tmp_path):
    path = tmp_path / "deep" / "a.bin"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"x" * 100)
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename across file systems would not be atomic
    assert path.read_bytes() == b"x" * 100
    assert names_in(path.parent) == ["a.bin"]


def test_files_get_the_permissions_of_ordinary_files(tmp_path):
    write_text(tmp_path / "ours", "x")
    (tmp_path / "theirs").write_text("x")
    modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("ours", "theirs")]
    assert modes[0] == modes[1]


def test_readers_never_see_half_a_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"n": -1, "text": ""})
    seen, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(read_json(path)["n"])

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(60):
        write_json(path, {"n": n, "text": "x" * 20000})
    done.set()
    reader.join()
    assert seen
    assert seen == sorted(seen)


def test_what_json_has_no_word_for_becomes_null(tmp_path):
    value = {
        "a": float("nan"),
        "b": [float("inf"), np.float32("nan"), np.int64(3)],
        4: (np.float64(0.5), np.bool_(True)),
    }
    assert jsonable(value) == {"a": None, "b": [None, None, 3], "4": [0.5, True]}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [None, None, 3], "4": [0.5, True]}


@pytest.mark.parametrize("content", [b'{"a": 1', b"\xff\xfe\x00", b""])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BenchError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_arrays_come_back_and_objects_are_refused(tmp_path):
    arrays = {
        "counts": np.arange(12, dtype=np.int32).reshape(3, 4),
        "ids": np.array(["a", "ü"]),
        "none": np.empty((0, 2)),
    }
    write_npz(tmp_path / "a.npz", arrays)
    back = read_npz(tmp_path / "a.npz")
    assert sorted(back) == sorted(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
    with pytest.raises(TypeError, match="'bad' holds Python objects"):
        write_npz(tmp_path / "b.npz", {"bad": np.array([{}, []], dtype=object)})
    assert names_in(tmp_path) == ["a.npz"]


def test_pickles_and_damage_in_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "pickle.npz", a=np.array([print], dtype=object))
    (tmp_path / "text.npz").write_text("not a zip")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    write_npz(tmp_path / "short.npz", {"a": np.random.default_rng(0).random(1000)})
    (tmp_path / "short.npz").write_bytes((tmp_path / "short.npz").read_bytes()[:3000])
    write_npz(tmp_path / "flipped.npz", {"a": np.random.default_rng(0).random(1000)})
    content = bytearray((tmp_path / "flipped.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(content)
    for path in sorted(tmp_path.glob("*.npz")):
        with pytest.raises(BenchError, match=f"{path.stem}.npz is damaged"):
            read_npz(path)


def test_keys_follow_the_value_and_not_its_spelling():
    value = {"b": [1, 2.0, "x"], "a": {"d": None, "c": True}}
    same = {"a": {"c": True, "d": None}, "b": [1, 2.0, "x"]}
    assert key_of(value) == key_of(same)
    assert key_of(json.loads(json.dumps(value))) == key_of(value)
    others = [
        {**value, "e": None}, {**value, "b": [2.0, 1, "x"]}, {**value, "b": [1, 2.0000001, "x"]},
        {**value, "b": [1, 2.0, "X"]}, {**value, "a": {"d": None, "c": False}}, {**value, "b": ["1", 2.0, "x"]},
    ]  # fmt: skip
    assert len({key_of(v) for v in [value, *others]}) == len(others) + 1
    assert len(key_of(value)) == 20
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"\\u00e9","b":1}'
    with pytest.raises(ValueError, match="JSON"):
        key_of({"a": float("nan")})


def test_file_hash_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_only_the_record_completes_a_stage(tmp_path):
    store = Store(tmp_path / "results")
    write_npz(store.run_dir("k1") / "maps.npz", {"a": np.zeros(3)})
    assert not store.is_done("k1")
    assert store.records() == {}
    with pytest.raises(BenchError, match="not finished"):
        store.record("k1")
    store.fail("k1", {"error": "loss is NaN"})
    assert not store.is_done("k1")
    assert store.failures()["k1"]["error"] == "loss is NaN"
    store.finish("k1", {"kind": "train", "pxap": float("nan")})
    assert store.is_done("k1")
    record = store.record("k1")
    assert record.pop("worker") == {"host": platform.node(), "pid": os.getpid()}
    assert record == {"schema": 1, "key": "k1", "kind": "train", "pxap": None}
    assert list(store.records()) == ["k1"]
    assert store.failures() == {}


def test_records_of_another_schema_are_not_mixed_in(tmp_path):
    store = Store(tmp_path)
    store.finish("new", {})
    write_json(store.run_dir("old") / "record.json", {"schema": 0, "key": "old"})
    assert list(store.records()) == ["new"]


def test_a_removed_stage_is_gone(tmp_path):
    store = Store(tmp_path)
    store.finish("k", {})
    store.remove("k")
    store.remove("k")
    assert not store.run_dir("k").exists()


HOLDER = """
import sys, time
from pathlib import Path
from wsolbench.benchmark.core.results_store import Store
with Store(Path(sys.argv[1])).lock("stage"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_keeps_a_second_process_out_and_dies_with_its_owner(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Timeout):
            Store(tmp_path).lock("stage", timeout=0.1).acquire()
        Store(tmp_path).lock("another", timeout=0.1).acquire().lock.release()
    finally:
        holder.kill()  # SIGKILL: the owner cannot clean up
        holder.wait()
    with Store(tmp_path).lock("stage", timeout=5):
        pass


def test_a_results_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="cannot be written"):
        Store(tmp_path / "file").check_writable()
    with pytest.raises(BenchError, match="cannot be written"):
        Store(tmp_path / "file" / "results").check_writable()
    Store(tmp_path / "new" / "results").check_writable()
    assert not (tmp_path / "new").exists()


def test_done_are_those_with_a_record(tmp_path):
    store = Store(tmp_path)
    assert store.done(["a"]) == set()
    store.finish("a", {"kind": "train"})
    store.fail("b", {"kind": "train"})
    (tmp_path / "runs" / "c").mkdir()
    assert store.done(["c", "b", "a", "d"]) == {"a"}
    assert list(store.records()) == ["a"]
    assert list(store.failures()) == ["b"]


def test_some_arrays_are_read_alone(tmp_path):
    write_npz(tmp_path / "a.npz", {"x": np.arange(3), "y": np.ones(2)})
    assert list(read_npz(tmp_path / "a.npz", ["y"])) == ["y"]
    with pytest.raises(KeyError):
        read_npz(tmp_path / "a.npz", ["z"])


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    write_npz(tmp_path / "a.npz", {"zeros": np.zeros(100_000)})
    monkeypatch.setattr("wsolbench.benchmark.core.files.MAX_BYTES", 700_000)
    with pytest.raises(DamagedError, match=r"a\.npz unpacks to 0\.0 GB"):
        read_npz(tmp_path / "a.npz")


def test_json_that_nests_beyond_reason_is_damaged(tmp_path):
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(DamagedError, match="damaged"):
        read_json(tmp_path / "a.json")
