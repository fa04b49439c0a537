"""Random maps: the floor under every table."""

import torch
from torch import Tensor

from ..benchmark.core.seeds import seed_for
from .base import Evidence, Options, register


@register(
    "random",
    version=2,
    family="baseline",
    kind="prob",
    supervision="none",
    backbone=(),
    class_specific=False,
    uses_seed=True,
)
def random_map(evidence: Evidence, options: Options) -> Tensor:
    """Random: uniform noise in [0, 1), pixel by pixel; the same for the same seed and image on every machine."""
    height, width = evidence.images.shape[-2:]
    names = evidence.ids or [str(i) for i in range(len(evidence.images))]
    generators = (torch.Generator().manual_seed(seed_for("random", evidence.seed, name)) for name in names)
    return torch.stack([torch.rand(height, width, generator=g) for g in generators]).to(evidence.images.device)
