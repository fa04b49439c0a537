"""The speed table: every script of this folder in a process of its own, and one table of what they found.

usage: python tests/speed/table.py [--only share,cache] [--device auto] [--json]

Exit code: 0, also where a mark was missed; 1 if a script failed, whose row says so.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KEYS = {"what", "peer", "ratio", "reach", "ok", "seconds", "conditions"}


SCRIPTS = {
    "train": "train_ratio.py",
    "score": "score_ratio.py",
    "histogram": "histogram_ratio.py",
    "bandwidth": "bandwidth.py",
    "matrix": "matrix_ratio.py",
    "startup": "startup_ratio.py",
    "pseudo": "pseudo_labels_ratio.py",
    "cache": "cache_ratio.py",
    "memory": "memory_ratio.py",
    "share": "share_ratio.py",
    "gpu": "gpu_runs.py",
}


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "gpu": ", ".join(gpus) or "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "timm", "grad-cam")},
    }


def _cpu() -> str:
    """The processor as its maker calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def run(name: str, device: str) -> list[dict[str, Any]]:
    """The rows of one script; a single row that says why where there are none."""
    path = HERE / SCRIPTS[name]
    if not path.is_file():
        return [{"script": name, **failure(path.name, "there is no such script")}]
    # what runs on the CPU alone has no such option, and what takes hours there only ever runs on a GPU
    takes = 'add_argument("--device"' in path.read_text(encoding="utf-8") and (
        name != "gpu" or device.startswith("cuda")
    )
    place = ["--device", device] if takes else []
    words = [sys.executable, str(path), "--json", *place]
    began = time.monotonic()
    print(f"{name}: {path.name} …", file=sys.stderr, flush=True)
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)  # its messages go to our stderr
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    rows, odd = read_rows(done.stdout)
    if done.returncode or odd or not rows:
        why = f"exit code {done.returncode}" if done.returncode else odd or "it printed no row"
        rows.append(failure(path.name, why))
    return [{"script": name, **row} for row in rows]


def read_rows(text: str) -> tuple[list[dict[str, Any]], str]:
    """The rows that a script printed, and what is wrong with its first line that is none."""
    rows = []
    for line in filter(None, text.splitlines()):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            return rows, f"it printed a line that is no JSON: {line[:60]}"
        missing = KEYS - row.keys() if isinstance(row, dict) else KEYS
        if missing:
            return rows, f"a row lacks {', '.join(sorted(missing))}"
        rows.append(row)
    return rows, ""


def failure(what: str, why: str) -> dict[str, Any]:
    """The row of a script that failed."""
    empty = {"peer": "", "ratio": None, "reach": "", "ok": None, "seconds": {}, "conditions": {}}
    return {"what": what, **empty, "failed": True, "note": why}


def markdown(head: dict[str, Any], rows: Iterable[dict[str, Any]]) -> str:
    """The machine in one line and the table."""
    lines = [", ".join(f"{k} {v}" for k, v in head.items()), ""]
    lines += ["| what | against | ratio | mark | reached | conditions |", "| --- | --- | ---: | --- | --- | --- |"]
    for row in rows:
        ratio = "n/a" if row["ratio"] is None else f"{row['ratio']:.3g}"
        about = ", ".join(f"{k} {v}" for k, v in row["conditions"].items())
        cells = (row["what"], row["peer"], ratio, row["reach"], reached(row), about + _note(row, bool(about)))
        lines.append("| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |")
    return "\n".join(lines)


def _note(row: dict[str, Any], after: bool) -> str:
    note = row.get("note", "")
    return (". " if after else "") + note if note else ""


def reached(row: dict[str, Any]) -> str:
    """What became of the mark, in a word."""
    if row.get("failed"):
        return "FAILED"
    if row["ok"] is None:
        return "not taken" if row["ratio"] is None else "no mark"
    return "yes" if row["ok"] else "**no**"


def chosen(only: str) -> Sequence[str]:
    """Names of scripts, in the order of the table."""
    asked = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := asked - SCRIPTS.keys():
        raise SystemExit(f"There is no {', '.join(sorted(unknown))}. Known: {', '.join(SCRIPTS)}.")
    return [name for name in SCRIPTS if not asked or name in asked]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"some of {','.join(SCRIPTS)}")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    head, rows = machine(), []
    for name in chosen(options.only):
        rows += run(name, options.device)
    print(json.dumps({"machine": head, "rows": rows}, indent=1) if options.json else markdown(head, rows))
    sys.exit(int(any(row.get("failed") for row in rows)))


if __name__ == "__main__":
    main()
