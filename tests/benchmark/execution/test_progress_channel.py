"""Progress through the results folder: every line once, whole, in the words of the command's own stages."""

import json
import logging
import shutil
from typing import Any

from wsolbench.benchmark.execution.progress_channel import ProgressReader, ProgressWriter, WarningForwarder, new_folder
from wsolbench.benchmark.planning.stage import Stage

NONE: Any = None  # the channel reads no inputs
STAGE = Stage("train", {}, {}, {}, NONE, key="k1")
TRAIN = {"stage": STAGE, "kind": "train", "epoch": 1, "losses": {"total": float("nan")}}


def follower(folder):
    seen = []
    return ProgressReader(folder, {"k1": STAGE}, seen.append), seen


def test_events_arrive_once_with_the_stage_itself(tmp_path):
    folder = new_folder(tmp_path)
    follow, seen = follower(folder)
    with follow:
        tell = ProgressWriter(folder)
        tell(TRAIN)
        follow.read()
        follow.read()
        tell({"kind": "done", "stage": STAGE})
        tell({"kind": "done", "stage": Stage("train", {}, {}, {}, NONE, key="of another plan")})
    assert [e["kind"] for e in seen] == ["train", "done"]
    assert all(e["stage"] is STAGE for e in seen)
    assert seen[0]["losses"] == {"total": None}
    assert not (tmp_path / "progress").exists()


def test_half_a_line_waits_for_its_other_half(tmp_path):
    folder = new_folder(tmp_path)
    follow, seen = follower(folder)
    line = json.dumps({"kind": "done", "stage": "k1"}).encode() + b"\n"
    path = folder / "node7-12.jsonl"
    path.write_bytes(line + line[:9])
    follow.read()
    assert len(seen) == 1
    path.write_bytes(line + line)
    follow.read()
    assert len(seen) == 2


def test_warnings_of_a_worker_are_heard(tmp_path):
    folder = new_folder(tmp_path)
    follow, seen = follower(folder)
    logger = logging.getLogger("wsolbench.test_relay")
    handler = WarningForwarder(ProgressWriter(folder))
    logger.addHandler(handler)
    try:
        logger.warning("snapshot %s is damaged", "x")
        logger.info("nothing of interest")
    finally:
        logger.removeHandler(handler)
    follow.read()
    assert seen == [{"kind": "warning", "text": "snapshot x is damaged"}]


def test_a_command_that_has_gone_is_no_reason_to_fail(tmp_path):
    folder = new_folder(tmp_path)
    tell = ProgressWriter(folder)
    shutil.rmtree(folder)
    tell(TRAIN)
    assert not folder.exists()
