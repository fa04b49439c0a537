"""Building methods: backbone, weights and options become a module, or a function with its options bound."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...methods import METHODS
from ...methods.backbones.adapter import Backbone, create_backbone
from ...methods.backbones.normalisation import IMAGENET, Statistics
from ...methods.base import Explainer, Method, Options
from ..core.seeds import seed_for
from ..planning.config import TrainConfig
from ..planning.method_refs import MethodRef


def build_method(
    ref: MethodRef,
    backbone: str,
    config: TrainConfig,
    num_classes: int,
    seed: int,
    statistics: Statistics | None = None,
) -> Method:
    """A trained method with randomly initialised parameters; the same seed gives the same parameters.

    statistics: what its images will be normalised by; None leaves those of the backbone's configuration in timm.
    An adapter is built around a source of random parameters too: `build_adapter` starts one from a trained source.
    Its convolutions keep their weights channels last, the layout of the images and the faster one on CPU and GPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("init", seed))
        body = create_backbone(backbone, config.stride or None) if ref.spec.backbone else None
        if body is not None and statistics is not None:
            body.statistics = statistics
        method = construct(ref, body, num_classes)
    return _channels_last(method)


def build_adapter(ref: MethodRef, source: Method, num_classes: int, seed: int) -> Method:
    """An adapter around a source model as it is, weights included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("init", seed))
        method: Method = METHODS.load(ref.spec.name)(source, num_classes, options(ref))
    return _channels_last(method)


def construct(ref: MethodRef, body: Backbone | None, num_classes: int) -> Method:
    """The module of a method on a backbone; that of an adapter around its source, which has the backbone."""
    first = construct(ref.base, body, num_classes) if ref.spec.adapts and ref.base else body
    return METHODS.load(ref.spec.name)(first, num_classes, options(ref))


def _channels_last(method: Method) -> Method:
    """Convolutions with their weights channels last, the layout of the images."""
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


def load_function(ref: MethodRef) -> Explainer:
    """The function of an explainer or baseline, called as fn(evidence, options)."""
    return METHODS.load(ref.spec.name)


def options(ref: MethodRef) -> Options:
    """The settled options as attributes."""
    values: Mapping[str, Any] = ref.options
    return Options(**values)
