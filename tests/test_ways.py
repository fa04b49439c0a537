"""The way through the house: frames between the command line and a method, counted in a real call.

Counted are the functions of the package that a reader follows, from the first of the command to the method's own; those
of the libraries between them (click, joblib) are not.
"""

import sys
from pathlib import Path

import pytest

from tests.benchmark.conftest import TINY
from wsolbench.benchmark.cli import _run
from wsolbench.benchmark.conformance.synthetic_task import write_blobs

MOST = 20
METHOD = '''
from pathlib import Path
import traceback
import torch
import torch.nn.functional as F
from wsolbench.methods.base import Method, Prediction, register

WAYS = Path(__file__).with_name("ways")


def note(name):
    """Keeps the frames of the deepest call: a validation inside a training and a test score both ask for maps."""
    way = [f"{f.filename}:{f.name}" for f in traceback.extract_stack()[:-1]]
    WAYS.mkdir(exist_ok=True)
    stage = "train" if any("train_stage" in f for f in way) else "score"
    path = WAYS / f"{name}-{stage}.txt"
    if not path.exists():
        path.write_text("\\n".join(way))


@register("traced", version=1, family="pooling", kind="score", supervision="image", backbone=("grid",))
class Traced(Method):
    """A linear map whose mean is the logit."""

    def __init__(self, backbone, num_classes, options):
        super().__init__()
        self.backbone, self.head = backbone, torch.nn.Conv2d(backbone.dims[-1], num_classes, 1)

    def loss(self, batch, context):
        note("loss")
        return {"total": F.cross_entropy(self.head(self.backbone.grid(batch.images)).mean((2, 3)), batch.labels)}

    def predict(self, images, classes=None):
        note("map")
        maps = self.head(self.backbone.grid(images))
        logits = maps.mean((2, 3))
        asked = logits.argmax(1) if classes is None else classes
        return Prediction(logits, maps[torch.arange(len(maps)), asked])
'''


@pytest.fixture(scope="module")
def ways(tmp_path_factory) -> dict[str, list[str]]:
    """Frames from the command to each call of the method, by call and kind of stage."""
    folder = tmp_path_factory.mktemp("ways")
    blobs = write_blobs(folder / "data")
    method = folder / "traced.py"
    method.write_text(METHOD, encoding="utf-8")
    settings = [word for k, v in {**TINY, "epochs": "1"}.items() for word in ("--set", f"train.{k}={v}")]
    words = f"run --methods {method} --datasets {blobs} --backbones test_resnet --weights none --preset smoke".split()
    words += ["--results", str(folder / "r"), "--device", "cpu", "--ood", "none", *settings]
    with pytest.raises(SystemExit) as ended:
        _run(words)
    assert ended.value.code == 0
    found = {}
    for path in (folder / "ways").iterdir():
        frames = path.read_text().splitlines()
        start = next(i for i, frame in enumerate(frames) if "benchmark/cli/" in frame)
        found[path.stem] = [f for f in frames[start:] if "site-packages/click" not in f and "/joblib/" not in f]
    return found


@pytest.mark.parametrize("call", ["loss-train", "map-score"])
def test_the_way_from_the_command_to_a_method_is_short(ways, call):
    frames = ways[call]
    listed = "\n".join(f.replace(str(Path(sys.prefix)), "") for f in frames)
    assert len(frames) <= MOST, f"{len(frames)} frames:\n{listed}"
