"""Method files that `bench new-method` writes, by kind: NAME and CLASS stand for what the user typed."""

_DOC = '''"""NAME: say in one line what the idea is. Paper: authors, title, venue, year."""
'''

EXPLAINER = f'''{_DOC}
from torch import Tensor
from wsolbench.methods.base import Evidence, Options, register


@register(
    "NAME",
    version=1,  # raise it whenever the numbers change: stored results of the old version are then not mixed in
    family="gradient",  # heading in `bench list`
    kind="score",  # "score": any values, the protocol scales them; "prob": already in [0, 1]
    needs=("checkpoint:classifier",),  # the trained model it reads; NAME@deepmil reads another
    class_specific=True,  # whether the map depends on the class asked for (evidence.classes)
    options={{"power": 1.0}},  # its own settings; change them with --set NAME.power=2
    citation="",
)
def NAME(evidence: Evidence, options: Options) -> Tensor:
    """Channels of the last grid, weighted by the mean gradient of the class logit: the map (B, h, w), not negative.

    `evidence` has activations and gradients (B, D, h, w), logits (B, K), images, and shallower layers by `taps`. Each
    is computed when first asked for and shared with other explainers; the model must stay as it is.
    """
    weights = evidence.gradients.float().mean((2, 3))  # (B, D)
    return evidence.weigh(weights).relu() ** options.power
'''

TRAINED = f'''{_DOC}
import torch.nn.functional as F
from torch import Tensor, nn
from wsolbench.methods.base import Batch, Method, Options, Prediction, TrainContext, register


@register(
    "NAME",
    version=1,  # raise it whenever the numbers change: stored results of the old version are then not mixed in
    family="pooling",  # heading in `bench list`
    kind="score",  # "score": any values, the protocol scales them; "prob": already in [0, 1]
    supervision="image",  # "pixel" or "partial" for methods that see masks, which tables mark
    backbone=("grid",),  # what it needs of a backbone: grid, pyramid, tokens, attention, batchnorm
    options={{"temperature": 1.0}},  # its own settings; change them with --set NAME.temperature=2
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
        return {{"total": F.cross_entropy(self.classify(self.features(batch.images)), batch.labels)}}

    def predict(self, images: Tensor, classes: Tensor | None = None) -> Prediction:
        """Logits, and the map (B, h, w) of the class asked for (None: the predicted one), higher = foreground."""
        grid = self.features(images)
        logits = self.classify(grid)
        classes = logits.argmax(1) if classes is None else classes
        maps = self.maps(grid)
        return Prediction(logits, maps[range(len(maps)), classes])
'''

STUDENT = f'''{_DOC}
import torch.nn.functional as F
from torch import Tensor, nn
from wsolbench.methods.base import Batch, Method, Options, Prediction, TrainContext, register


@register(
    "NAME",
    version=1,  # raise it whenever the numbers change: stored results of the old version are then not mixed in
    family="two-step",  # heading in `bench list`
    kind="prob",  # maps are in [0, 1]
    supervision="image",  # teacher maps come from image labels
    backbone=("grid",),  # what it needs of a backbone: grid, pyramid, tokens, attention, batchnorm
    needs=("maps:{{teacher}}",),  # maps of the training images by another method, made once and shared
    class_specific=False,  # one foreground map, whatever class is asked for
    options={{"teacher": "layercam", "weight": 1.0}},  # change them with --set NAME.weight=2
    variant="teacher",  # NAME:cam is NAME with another teacher
    citation="",
)
class CLASS(Method):
    """A classifier with a foreground map that learns from the maps of a teacher."""

    def __init__(self, backbone: nn.Module, num_classes: int, options: Options) -> None:
        """Build every parameter here; `backbone.dims[-1]` is the depth D of the grid."""
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dims[-1], num_classes)
        self.foreground = nn.Conv2d(backbone.dims[-1], 1, kernel_size=1)
        self.weight = options.weight

    def loss(self, batch: Batch, context: TrainContext) -> dict[str, Tensor]:
        """Cross-entropy of the labels, and of the map against the teacher's (B, H, W) in [0, 1]; all scalars."""
        grid = self.backbone.grid(batch.images)  # (B, D, h, w)
        wanted = F.adaptive_avg_pool2d(batch.maps[:, None], grid.shape[2:])
        image = F.cross_entropy(self.head(grid.mean((2, 3))), batch.labels)
        pixel = F.binary_cross_entropy_with_logits(self.foreground(grid), wanted)
        return {{"total": image + self.weight * pixel, "image": image, "pixel": pixel}}

    def predict(self, images: Tensor, classes: Tensor | None = None) -> Prediction:
        """Logits (B, K), and the probability of foreground (B, h, w)."""
        grid = self.backbone.grid(images)
        return Prediction(self.head(grid.mean((2, 3))), self.foreground(grid)[:, 0].sigmoid())
'''

ADAPTER = f'''{_DOC}
from torch import Tensor, nn
from wsolbench.methods.adapter import Adapter
from wsolbench.methods.base import Batch, TrainContext, register


@register(
    "NAME",
    version=1,  # raise it whenever the numbers change: stored results of the old version are then not mixed in
    family="adaptation",  # heading in `bench list`
    adapts=True,  # one training a target; the targets are the other datasets of --ood
    needs=("source:classifier",),  # the trained model it starts as; NAME@deepmil adapts another
    options={{"weight": 1.0}},  # its own settings; change them with --set NAME.weight=2
    citation="",
)
class CLASS(Adapter):
    """Entropy minimisation on the target: only scales and shifts of normalisation layers learn."""

    def setup(self, context: TrainContext) -> None:
        """Choose what learns; `self.source` is the source model with its trained weights."""
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
                module.requires_grad_(True)

    def loss(self, batch: Batch, context: TrainContext) -> dict[str, Tensor]:
        """Confident on each target image, balanced over the batch; touching a target's labels or masks raises."""
        log = self.logits(batch.target.images).log_softmax(1)  # (B, K)
        entropy = -(log.exp() * log).sum(1).mean()
        mean = log.exp().mean(0)
        balance = (mean * mean.clamp_min(1e-8).log()).sum()
        return {{"total": entropy + self.options.weight * balance, "entropy": entropy, "balance": balance}}
'''

TEMPLATES = {"explainer": EXPLAINER, "trained": TRAINED, "student": STUDENT, "adapter": ADAPTER}


def method_file(kind: str, name: str) -> str:
    """The text of a method file of one kind; its class is the name in capitals, `my_cam` -> `MyCam`."""
    words = "".join(part.capitalize() for part in name.split("_")) or "Mine"
    return TEMPLATES[kind].replace("CLASS", words).replace("NAME", name)
