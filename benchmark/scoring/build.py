"""Builder of planned methods: a reference with its backbone, settings and seed becomes a module or a function."""

from collections.abc import Mapping
from typing import Any

import torch

from ...methods import METHODS
from ...methods.backbones.adapter import Backbone, create_backbone
from ...methods.backbones.normalisation import Statistics
from ...methods.base import Explainer, Method, Options
from ...methods.factory import channels_last, make_method
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
    return channels_last(method)


def build_adapter(ref: MethodRef, source: Method, num_classes: int, seed: int) -> Method:
    """An adapter around a source model as it is, weights included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("init", seed))
        method = make_method(ref.spec.name, source, num_classes, ref.options)
    return channels_last(method)


def construct(ref: MethodRef, body: Backbone | None, num_classes: int) -> Method:
    """The module of a method on a backbone; that of an adapter around its source, which has the backbone."""
    first = construct(ref.base, body, num_classes) if ref.spec.adapts and ref.base else body
    return make_method(ref.spec.name, first, num_classes, ref.options)


def load_function(ref: MethodRef) -> Explainer:
    """The function of an explainer or baseline, called as fn(evidence, options)."""
    return METHODS.load(ref.spec.name)


def options(ref: MethodRef) -> Options:
    """The settled options as attributes."""
    values: Mapping[str, Any] = ref.options
    return Options(**values)
