"""Starting the command line: seconds of short commands over their limit, alternating with `python -c pass`.

Each command runs in a process of its own: the help, the list of everything, the help of a verb, and a mistake in a
name, which must be told before anything slow is imported.

usage: python tests/speed/startup_ratio.py [--rounds 9] [--json]
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from alternate import measure
from rows import Row, show

LIMIT = 0.3  # seconds
COMMANDS = {
    "bench --help": 0,
    "bench run --help": 0,
    "bench list": 0,
    "bench run --methods nosuch --datasets glas": 2,
    "bench run --methods cam --datasets nosuch": 2,
}  # with the exit code each must have


def side(command: str, code: int) -> Callable[[], None]:
    """Runs a command and raises where it does not end as it should."""
    words = [str(Path(sys.executable).with_name("bench")), *command.split()[1:]]

    def start() -> None:
        done = subprocess.run(words, check=False, capture_output=True)
        if done.returncode != code:
            raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr.decode()}")

    return start


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bare = {"python -c pass": lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)}
    seconds = measure(
        {**bare, **{c: side(c, code) for c, code in COMMANDS.items()}}, options.rounds, torch.device("cpu")
    )
    for command in COMMANDS:
        times = {"seconds": seconds[command], "limit": LIMIT, "python -c pass": seconds["python -c pass"]}
        more = seconds[command] / seconds["python -c pass"]
        about = {"cores": os.cpu_count(), "rounds": options.rounds, "times python -c pass": round(more, 1)}
        show(Row(command, "its limit", seconds[command] / LIMIT, "<= 1", times, about), options.json)


if __name__ == "__main__":
    main()
