"""`bench new-method`: a file to start from."""

import keyword
from pathlib import Path

import click

from ..core.errors import BenchError

TEMPLATE = '''"""NAME: say in one line what the idea is. Paper: authors, title, venue, year."""

import torch.nn.functional as F
from torch import Tensor, nn
from wsolbench.methods.base import Batch, Method, Options, Prediction, TrainContext, register


@register(
    "NAME",
    version=1,  # raise it whenever the numbers change: stored results of the old version are then not mixed in
    family="pooling",  # heading in `bench list`
    kind="score",  # "score": any values, the protocol scales them; "prob": already in [0, 1]
    supervision="image",  # "pixel" only for upper bounds that see masks
    backbone=("grid",),  # what it needs of a backbone: grid, pyramid, tokens, attention, batchnorm
    options={"temperature": 1.0},  # its own settings; change them with --set NAME.temperature=2
    citation="",
)
class CLASS(Method):
    """One map per class from a 1x1 convolution; the logits are its (softened) mean over positions."""

    def __init__(self, backbone: nn.Module, num_classes: int, options: Options) -> None:
        """Build every parameter here; `backbone.dims[-1]` is the depth D of the grid."""
        super().__init__()
        self.backbone = backbone
        self.maps = nn.Conv2d(backbone.dims[-1], num_classes, kernel_size=1)
        self.temperature = options.temperature

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the grid (B, D, h, w)."""
        return self.backbone.grid(images)

    def classify(self, grid: Tensor) -> Tensor:
        """Grid -> logits (B, K). With `features`, this lets every explainer read the method too."""
        return self.maps(grid).mean((2, 3)) / self.temperature

    def loss(self, batch: Batch, context: TrainContext) -> dict[str, Tensor]:
        """Return "total" and whatever else should be logged; all scalars."""
        return {"total": F.cross_entropy(self.classify(self.features(batch.images)), batch.labels)}

    def predict(self, images: Tensor, classes: Tensor | None = None) -> Prediction:
        """Logits, and the map (B, h, w) of the class asked for (None: the predicted one), higher = foreground."""
        grid = self.features(images)
        logits = self.classify(grid)
        classes = logits.argmax(1) if classes is None else classes
        maps = self.maps(grid)
        return Prediction(logits, maps[range(len(maps)), classes])
'''


@click.command("new-method")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="File to write.  [default: ./NAME.py]")
def new_method(name: str, out: Path | None) -> None:
    """Write a commented method file that passes `bench check`; edit it until it is yours."""
    from ...methods import METHODS
    from ..core.files import write_text

    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise BenchError(f"'{name}' is not a usable name: small letters, digits and underscores, for example my_cam.")
    if name in {e.name for e in METHODS.entries()}:
        raise BenchError(f"Method '{name}' exists already. Choose another name.")
    path = out or Path(f"{name}.py")
    if path.exists():
        raise BenchError(f"{path} exists already; it is left as it is. Choose another name or --out.")
    words = "".join(part.capitalize() for part in name.split("_")) or "Mine"
    write_text(path, TEMPLATE.replace("CLASS", words).replace("NAME", name))
    click.echo(f"Wrote {path}. Next:\n  bench check {path}\n  bench run --methods {path} --datasets glas")
