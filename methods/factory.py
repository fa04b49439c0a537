"""Factory of methods: a registered class becomes a module on a backbone, its network compiled if so asked."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from . import METHODS
from .backbones.adapter import Backbone
from .backbones.normalisation import IMAGENET, Statistics
from .base import Method, Options


def make_method(name: str, first: "Backbone | Method | None", num_classes: int, options: Mapping[str, Any]) -> Method:
    """The module of a registered method with its options settled.

    first: the backbone it stands on, None without one; of an adapter its source model. Raises BenchError where the
    method cannot be imported or refuses an option.
    """
    return METHODS.load(name)(first, num_classes, Options(**options))


def channels_last(method: Method) -> Method:
    """The same method, its convolutions with weights channels last: the layout of the images, the faster one."""
    for module in method.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return method


def statistics_of(model: object) -> Statistics:
    """What the images of a model are normalised by; ImageNet's for one without a backbone, and without a model."""
    backbone = getattr(model, "backbone", None)
    return backbone.statistics if isinstance(backbone, Backbone) else IMAGENET


class Compiled:
    """Runs compiled code in place of a network's own, unless the network is under hooks; a copy of it has none."""

    def __init__(self, net: Any, compiled: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.net, self._compiled = net, compiled

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """What net.forward_features gives."""
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in self.net.modules())
        return self.net.forward_features(images) if hooked else self._compiled(images)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None  # the code is bound to the weights of the original


def compile_backbone(method: Method, backend: str = "inductor") -> bool:
    """Lets torch.compile make the pass to the last grid faster; returns whether there is a backbone to do it for.

    Passes under hooks (pyramids, taps, attention) run as they are: compiled code would pass the hooks by.
    """
    backbone = getattr(method, "backbone", None)
    if not isinstance(backbone, Backbone):
        return False
    net: Any = backbone.net
    compiled = torch.compile(net.forward_features, backend=backend)
    backbone.fast = Compiled(net, compiled)
    return True
