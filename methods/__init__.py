"""The methods: one file each, registered by name. Importing this package does not import torch."""

import importlib.util
import re
from pathlib import Path

from ..benchmark.core.registry import Registry
from .needs import Need


def _package_explainers() -> list[str]:
    """`gradcam:CLASS` for the explainers of the package grad-cam, read from its source: to import it is slow.

    What it exports beside them (layers, hooks, guided backpropagation) takes no target layers, or is no BaseCAM.
    """
    spec = importlib.util.find_spec("pytorch_grad_cam")
    if spec is None or spec.origin is None:
        return []
    package = Path(spec.origin)
    lines = re.findall(r"^from pytorch_grad_cam\.(\w+) import (.+)$", _text(package), re.MULTILINE)
    explaining = [names for module, names in lines if _has_explainer(_text(package.parent / f"{module}.py"))]
    return [f"gradcam:{name}" for names in explaining for name in re.findall(r"\b[A-Z]\w+", names)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _has_explainer(source: str) -> bool:
    return "target_layers" in source and ("BaseCAM" in source or "def forward(" in source)


METHODS = Registry(
    "method", __name__, Path(__file__).parent, "wsolbench.methods", _package_explainers, calls={"Need": Need}
)  # fmt: skip
register = METHODS.register
