"""A stop is taken after any step, any batch and any epoch, and the run goes on from there bit for bit."""

import json

import pytest

from tests.faults.training import HOOKS, Bare, as_bytes, scores, trained
from wsolbench.benchmark.core import shutdown
from wsolbench.benchmark.core.shutdown import Stopped
from wsolbench.benchmark.distributed.process_group import ProcessGroup


class Asked:
    """Answers "stop" to the question number `at`, counted from 0, and counts the questions."""

    def __init__(self, monkeypatch) -> None:
        self.count, self.at = 0, -1
        monkeypatch.setattr(ProcessGroup, "requested", self.answer)

    def answer(self, group=None) -> int:
        self.count += 1
        return 130 if self.count - 1 == self.at else 0


def reached(bare: Bare) -> str:
    """What the newest snapshot says of itself, apart from times."""
    path = bare.ctx.store.run_dir(bare.last_training.key) / "resume" / "state.json"
    if not path.is_file():
        return ""
    state = json.loads(path.read_text())
    return json.dumps([state["file"], state["sha256"], state["midway"] and state["midway"]["ended"]])


def chain(bare: Bare, asked: Asked) -> list[str]:
    """Stops wherever it can, one question after the other, until the training is done; returns the files left."""
    seen, left, skip = [], reached(bare), 0
    for _ in range(200):
        asked.count, asked.at = 0, skip
        try:
            bare.do(["train"])
        except Stopped:
            now = reached(bare)
            if now != left:
                seen.append(json.loads(now)[0])
            left, skip = now, skip + 1 if now == left else 0
        else:
            return seen
    raise AssertionError(f"no end in 200 starts: {seen}")


SETTINGS = {"epochs": "2", "batch_size": "16"}
FAST = "hooks"  # it draws from both generators and changes at all hooks
SLOW = ["classifier", "pixelcam:darkness", "fcam:cam --joint", "negev:cam", "unet", "deepmil"]


@pytest.mark.parametrize("method", [FAST, *(pytest.param(m, marks=pytest.mark.slow) for m in SLOW)])
def test_stopped_at_every_step_in_a_row(world, tmp_path, monkeypatch, method):
    if method == "hooks":
        (tmp_path / "hooks.py").write_text(HOOKS)
        method = str(tmp_path / "hooks.py")
    method, _, extra = method.partition(" --")
    overrides = {"train": SETTINGS, **({"fcam": {"lambda_joint": "1e-9"}} if extra else {})}
    whole = Bare(world, method, overrides=dict(overrides))
    whole.do(["train", "maps"])
    expected = trained(world)
    world.results = tmp_path / "stopped"
    bare = Bare(world, method, overrides=dict(overrides))
    asked = Asked(monkeypatch)
    for stage in bare.plan.stages.values():
        if stage.kind != "score" and stage.key != bare.last_training.key:
            bare.stage(stage)
    seen = chain(bare, asked)
    assert trained(world) == expected
    count = len(bare.ctx.manifest(bare.last_training.inputs.experiment).split("train"))
    steps = -(-count // 16)
    wanted = [f"{e:04d}-{s:06d}.safetensors" for e in (1, 2) for s in range(1, steps + 1)]
    assert [s for s in seen if "-0" in s and "ended" not in s] == wanted, "a stop is possible after every step"
    assert [s for s in seen if "ended" in s] == [f"{e:04d}-{steps:06d}-ended.safetensors" for e in (1, 2)]
    assert "0001.safetensors" in seen
    assert not (bare.ctx.store.run_dir(bare.last_training.key) / "resume").exists()


def test_stopped_while_scoring_nothing_is_written(world, tmp_path, monkeypatch):
    def made() -> Bare:
        return Bare(world, "pixelcam:darkness", overrides={"train": {"epochs": "1"}}, run={"score_batch": 8})

    made().do_some()
    expected = as_bytes(scores(world.results))
    world.results = tmp_path / "stopped"
    bare = made()
    asked = Asked(monkeypatch)
    for stage in bare.some():
        folder = bare.ctx.store.run_dir(stage.key)
        if stage.kind != "train":
            asked.count, asked.at = 0, 1
            with pytest.raises(Stopped):
                bare.stage(stage)
            assert not list(folder.glob("*")), "a pass that was stopped leaves nothing"
        asked.count, asked.at = 0, -1
        bare.stage(stage)
    assert as_bytes(scores(world.results)) == expected


def test_a_damaged_snapshot_of_a_step_falls_back_to_the_one_before(world, tmp_path, monkeypatch, caplog):
    Bare(world, "classifier", overrides={"train": SETTINGS}).do(["train"])
    expected = trained(world)
    world.results = tmp_path / "damaged"
    bare = Bare(world, "classifier", overrides={"train": SETTINGS})
    asked = Asked(monkeypatch)
    folder = bare.ctx.store.run_dir(bare.last_training.key) / "resume"
    stop_at(bare, asked, 5)  # evaluation, two steps, evaluation, end of epoch 1, and the first step of epoch 2
    newest, before = (json.loads((folder / n).read_text()) for n in ("state.json", "state.previous.json"))
    assert (newest["midway"]["epoch"], newest["midway"]["step"]) == (2, 1)
    path = folder / newest["file"]
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    asked.at = -1
    bare.do(["train"])
    assert f"{newest['file']} is damaged" in caplog.text
    assert before["file"] == "0001.safetensors"
    assert trained(world) == expected


@pytest.mark.parametrize("text", ["{}", "[1]", '{"file": 3', '{"file": "x", "candidates": {}, "midway": {"epoch": 1}}'])
def test_a_damaged_state_is_passed_over(world, tmp_path, monkeypatch, caplog, text):
    bare = Bare(world, "classifier", overrides={"train": {"epochs": "1"}})
    stop_at(bare, Asked(monkeypatch), 1)
    state = bare.ctx.store.run_dir(bare.last_training.key) / "resume" / "state.json"
    state.write_text(text)
    monkeypatch.setattr(ProcessGroup, "requested", lambda group: 0)
    bare.do(["train"])
    assert bare.ctx.store.is_done(bare.last_training.key)
    assert "is not used" in caplog.text


def stop_at(bare: Bare, asked: Asked, number: int) -> None:
    """Answers yes to one question of the training, counted from 0."""
    asked.count, asked.at = 0, number
    with pytest.raises(Stopped):
        bare.do(["train"])


def test_a_request_is_seen_by_a_team_of_one():
    shutdown.request(130)
    try:
        with pytest.raises(Stopped):
            ProcessGroup().check()
    finally:
        shutdown._Request.code = 0
