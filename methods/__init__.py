"""The methods: one file each, registered by name. Importing this package does not import torch."""

import importlib.util
import re
from pathlib import Path

from ..benchmark.core.registry import Registry


def _package_explainers() -> list[str]:
    """`gradcam:CLASS` for the classes that the package grad-cam offers, read from its source: to import it is slow."""
    found = importlib.util.find_spec("pytorch_grad_cam")
    if found is None or found.origin is None:
        return []
    text = Path(found.origin).read_text(encoding="utf-8", errors="replace")
    names = re.findall(r"^from pytorch_grad_cam\.\w+ import (.+)$", text, re.MULTILINE)
    return [f"gradcam:{n}" for line in names for n in re.findall(r"\b[A-Z]\w+", line)]


METHODS = Registry("method", __name__, Path(__file__).parent, "wsolbench.methods", _package_explainers)
register = METHODS.register
