"""Damaged files of a results folder: never loaded, made again by the same command, with one line that says so."""

import os
import subprocess
import sys

from wsolbench.benchmark.store import write_json

WRITER = """
import os, sys
from pathlib import Path
from wsolbench.benchmark.store import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half of")
    print(temporary, flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), 9)
    sys.stdin.read()
"""


def test_what_a_dead_writer_left_goes_and_a_living_one_is_left_alone(tmp_path):
    target = tmp_path / "x" / "y.json"
    call = [sys.executable, "-c", WRITER, str(target)]
    dead = subprocess.run([*call, "die"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    with subprocess.Popen([*call, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as living:
        assert living.stdout
        alive = living.stdout.readline().strip()
        assert not os.path.exists(dead), "the next writer clears it away"
        write_json(target, [])
        assert os.path.isfile(alive)
        living.kill()
    command = "import sys; from pathlib import Path; from wsolbench.benchmark.store import write_json; "
    subprocess.run([sys.executable, "-c", f"{command}write_json(Path(sys.argv[1]), [1])", str(target)], check=True)
    assert [p.name for p in target.parent.iterdir()] == ["y.json"]
    assert target.read_text() == "[\n 1\n]\n"
