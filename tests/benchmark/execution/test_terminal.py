"""What a person sees while stages run: the whole and its time left, at any width, and plain lines elsewhere."""

import io
import os
import re
import struct
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from wsolbench.benchmark.execution.progress_board import ProgressBoard, short_title, varying
from wsolbench.benchmark.execution.terminal import Terminal
from wsolbench.benchmark.planning.config import TrainConfig
from wsolbench.benchmark.planning.estimate import Outlook, Rates, duration, place_of, units_of
from wsolbench.benchmark.planning.stage import Stage

LABELS = {"method": "pixelcam", "backbone": "resnet18", "train": "glas", "fold": "0", "seed": 0}


def inputs(config: TrainConfig = TrainConfig()) -> Any:  # noqa: B008 - frozen
    """The part of a stage's inputs that progress reads."""
    return SimpleNamespace(config=config)


def training(key: str, epochs: int = 10, **labels: object) -> Stage:
    identity = {"data": {"images": 100}, "train": {"image_size": 224}, "backbone": {"name": "resnet18"}}
    return Stage("train", identity, {}, {**LABELS, **labels}, inputs(TrainConfig(epochs=epochs)), key=key)


def score(key: str, images: int = 50, **labels: object) -> Stage:
    identity = {"eval": {"images": images}, "image_size": 224, "method": {"name": "cam"}}
    about = {**LABELS, "eval": "glas", "split": "test", "selection": "cl", "map_class": "region", **labels}
    return Stage("score", identity, {}, about, inputs(), key=key)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def outlook(*stages: Stage) -> tuple[Outlook, Clock]:
    clock = Clock()
    return Outlook({s.key: s for s in stages}, Rates(), clock), clock


def epoch(stage: Stage, number: int) -> dict:
    losses = {"losses": {"total": 0.4123}} if number else {}
    return {"kind": "train", "stage": stage, "epoch": number, "epochs": stage.inputs.config.epochs, **losses}


def test_nothing_is_foretold_before_something_was_measured():
    seen, _ = outlook(training("a"), score("b"))
    assert seen.seconds_left() is None
    assert seen.whole() == "0/2 stages, 0/1 trainings, time left: …"
    seen.see(epoch(training("a"), 0))
    assert seen.seconds_left() is None


def test_time_left_counts_evaluation_waiting_trainings_and_scores():
    first, second, last = training("a"), training("b", epochs=20), score("c")
    seen, clock = outlook(first, second, last)
    for number in range(4):
        clock.now = 30.0 + 7.0 * number  # between two reports lies all of an epoch: steps, evaluation, snapshot
        seen.see(epoch(first, number))
    # 7 epochs of 7 s, 20 such of the other, and 50 images to score, at most as dear as in a training
    assert seen.running["a"].seconds_left(seen.rates) == pytest.approx(49)
    assert seen.seconds_left() == pytest.approx(49 + 140 + 50 * 0.07)
    seen.see({"kind": "done", "stage": first, "seconds": 80.0})
    assert seen.count("train") == (1, 2)
    assert seen.seconds_left() == pytest.approx(140 + 3.5)
    seen.see({"kind": "score", "stage": last, "images": 50})
    seen.see({"kind": "done", "stage": last, "stages": ["c"], "seconds": 2.0})
    assert seen.whole() == "2/3 stages, 1/2 trainings, about 2 min left"
    seen.see({"kind": "settled", "stages": ["b"]})  # it failed: nobody waits for it
    assert seen.whole() == "3/3 stages, 2/2 trainings"


def test_stages_side_by_side_take_less_time_together():
    stages = [training(k) for k in "abcd"]
    seen, clock = outlook(*stages)
    for number in range(2):
        clock.now = 10.0 * number
        seen.see(epoch(stages[0], number))
        seen.see(epoch(stages[1], number))
    assert seen.seconds_left() == pytest.approx((2 * 90 + 2 * 100) / 2)


def test_a_pass_settles_all_its_stages_and_events_of_others_none():
    seen, _ = outlook(score("a"), score("b"), score("c"))
    seen.see({"kind": "done", "stage": score("a"), "stages": ["a", "b", "stranger"], "seconds": 4.0})
    assert seen.count() == (2, 3)
    assert seen.seconds_left() == pytest.approx(50 * 4 / 150)


def test_rates_prefer_the_same_place():
    rates, small, large = Rates(), training("a"), training("b")
    large = replace(large, identity={**large.identity, "train": {"image_size": 512}})
    rates.learn("train", place_of("train", small.identity), 10, 100)
    assert rates.seconds(large) == pytest.approx(0.1 * units_of(large))
    rates.learn("train", place_of("train", large.identity), 50, 100)
    assert rates.seconds(large) == pytest.approx(0.5 * units_of(large))
    assert rates.seconds(small) == pytest.approx(0.1 * units_of(small))
    assert (duration(48), duration(1200), duration(12000)) == ("48 s", "20 min", "3.3 h")


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_wider_than_the_terminal_and_the_whole_is_always_there(width, encoding):
    long = {"method": "a_method_with_a_very_long_name", "train": "Gewebe größer"}
    stages = [training(f"t{k}", seed=k, **long) for k in range(12)]
    seen, clock = outlook(*stages, score("s"))
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
    console = Console(file=file, force_terminal=True, width=width, height=30, legacy_windows=False)
    board = ProgressBoard(seen, console)
    for number in range(3):
        clock.now = 5.0 * number
        for stage in stages:
            seen.see(epoch(stage, number))
            board.show("a line that stands above" if number else "")
    board.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", raw.getvalue().decode(encoding) if not file.flush() else "")
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert max(len(line) for line in lines) <= width
    assert any("and 4 more" in line for line in lines)
    if width >= 72:
        assert any("0/13 stages, 0/12 trainings, about" in line for line in lines)
        assert any("2/10" in line and "loss 0.412" in line and "left" in line for line in lines)


def test_only_what_differs_is_said():
    one, other = training("a"), training("b", seed=1, method="negev")
    assert short_title(one, varying([one])) == "train pixelcam"
    assert short_title(other, varying([one, other])) == "train negev · seed 1"
    away = score("c", eval="camelyon16")
    assert short_title(away, varying([one, away])) == "score pixelcam · glas → camelyon16"


def test_plain_lines_carry_the_state_of_the_whole(capsys):
    terminal, stage = Terminal(), training("a", epochs=100)
    terminal.live = False
    terminal.begin([stage], Rates())
    for number in range(101):
        terminal(epoch(stage, number) | {"val": {"accuracy": 50.0}})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11  # ten of a training, and its beginning
    assert all(line.startswith("[0/1 stages, 0/1 trainings, ") for line in lines)


@pytest.mark.slow
def test_a_real_terminal_of_80_columns(blobs, tmp_path):
    import fcntl
    import pty
    import termios

    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    line = [
        sys.executable, "-c", "from wsolbench.benchmark.cli import main; main()",
        "run", "--methods", "cam", "--datasets", blobs, "--backbones", "test_resnet", "--weights", "none", "--preset",
        "smoke", "--device", "cpu", "--results", tmp_path, "--set", "train.epochs=3", "--set", "train.image_size=32",
        "--set", "train.load_size=36",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"TERM": "xterm"}
    with subprocess.Popen([str(w) for w in line], stdin=child, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        shown = b""
        while True:
            try:
                shown += os.read(main, 1 << 16)
            except OSError:  # the last writer has closed its side
                break
        assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"all +━+.* 1/\d+ stages, 1/1 trainings, about \d+ s left", text)
    assert re.search(r"train classifier +.*2/3 · loss \d", text)
    assert text.rstrip().endswith("makes the page.")
