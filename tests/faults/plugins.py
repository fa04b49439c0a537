"""Method files that misbehave, for the tests of faults: an explainer or a trained method with one line changed."""

from pathlib import Path

EXPLAINER = '''"""An explainer that misbehaves."""
import os, random, signal, sys, threading
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from wsolbench.methods.base import register

MASK, STORE = Path("@MASK@"), Path("@STORE@")

@register("@NAME@", family="test", needs=("checkpoint:classifier",)@FACTS@)
def explain(evidence, options):
    """A plain map, and one deed too many."""
    m = evidence.weigh(evidence.explained.head.weight[evidence.classes])
    @BODY@
'''

TRAINED = '''"""A trained method that misbehaves."""
import os, random, signal, sys, threading
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from wsolbench.methods.base import Method, Prediction, register

MASK, STORE = Path("@MASK@"), Path("@STORE@")

@register("@NAME@", family="test"@FACTS@)
class Misbehaving(Method):
    """A linear head, and one deed too many."""

    def __init__(self, backbone, num_classes, options):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.dims[-1], num_classes)
        @INIT@

    def setup(self, context):
        @SETUP@

    def loss(self, batch, context):
        logits = self._logits(self.backbone.grid(batch.images))
        total = F.cross_entropy(logits, batch.labels)
        @LOSS@
        return {"total": total}

    def _logits(self, grid):
        return self.head(grid.mean((2, 3)))

    def predict(self, images, classes=None):
        grid = self.backbone.grid(images)
        logits = self._logits(grid)
        classes = logits.argmax(1) if classes is None else classes
        maps = torch.einsum("bd,bdhw->bhw", self.head.weight[classes], grid)
        @PREDICT@
        return Prediction(logits, maps)
'''


def explainer(
    folder: Path, name: str, body: str, facts: str = "", mask: Path | str = "", store: Path | str = ""
) -> str:
    """Writes an explainer whose last line is `body` (`m` is its honest map); returns the path."""
    return _write(folder, name, EXPLAINER, {"BODY": body, "FACTS": facts, "MASK": mask, "STORE": store})


def trained(
    folder: Path, name: str, facts: str = "", mask: Path | str = "", store: Path | str = "", **bodies: str
) -> str:
    """Writes a trained method; bodies: `init`, `setup`, `loss`, `predict`, each a line added there."""
    lines = {place: bodies.get(place.lower(), "pass") for place in ("INIT", "SETUP", "LOSS", "PREDICT")}
    return _write(folder, name, TRAINED, {**lines, "FACTS": facts, "MASK": mask, "STORE": store})


def _write(folder: Path, name: str, text: str, filled: dict[str, object]) -> str:
    for word, value in {**filled, "NAME": name}.items():
        text = text.replace(f"@{word}@", str(value))
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return str(path)
