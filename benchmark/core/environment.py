"""Versions and commit recorded with every stage, never part of its key."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

MATPLOTLIB_BACKEND = "MPLBACKEND"
PACKAGES = ("torch", "torchvision", "timm", "grad-cam", "segmentation-models-pytorch", "numpy", "scipy", "pillow")


def draw_to_files() -> None:
    """Makes matplotlib draw to files in this process and those it starts, whatever the surrounding program asks for.

    A notebook exports MPLBACKEND=module://matplotlib_inline.backend_inline to all it starts, and matplotlib refuses to
    be imported where it cannot find what that names. To be called before anything imports matplotlib.
    """
    os.environ[MATPLOTLIB_BACKEND] = "agg"


@functools.cache
def environment() -> dict[str, Any]:
    """Versions of what can change a number, the machine's kind, and the commit of the project if it is a checkout."""
    from ... import __version__

    facts: dict[str, Any] = {
        "wsolbench": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": _commit(),
    }
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "-C", os.fspath(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
