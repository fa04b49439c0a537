"""Networks of timm without their heads, and one sentence for those that cannot be used."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ...benchmark.core.errors import BenchError
from . import quirks as quirks
from .shapes import no_grid

log = logging.getLogger(__name__)

HEADS = ("fc", "head", "head_dist", "classifier", "pre_logits", "fc_norm", "last_linear", "conv_head", "norm_head")


@contextmanager
def grid_or_refusal(name: str) -> Iterator[None]:
    """Says in one sentence that a network of timm has no grid, whatever its code stumbles over."""
    try:
        yield
    except BenchError:
        raise
    except Exception as problem:  # 90 families, each with its own ways to fail
        log.debug("backbone %s", name, exc_info=True)
        raise no_grid(name) from problem


def create_net(name: str, quirk: quirks.Quirk) -> nn.Module:
    """The network without its head; where its code refuses one of our keywords, with its own pooling and size.

    Where an older torch lacks an operation on the meta device, it is built in memory and only then without.
    """
    try:
        return _create(name, quirk)
    except NotImplementedError:
        if torch.empty(0).device.type != "meta":
            raise
        with torch.device("cpu"):
            return _create(name, quirk).to("meta")


def _create(name: str, quirk: quirks.Quirk) -> nn.Module:
    plain: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    for keywords in ({**plain, "global_pool": "", **quirk.build}, {**plain, **quirk.build}):
        with suppress(AssertionError, NotImplementedError, TypeError, ValueError):
            return timm.create_model(name, **keywords)
    return timm.create_model(name, **plain)


def drop_heads(net: nn.Module) -> None:
    """Replaces layers after the grid (VGG's 120 million of them), so that they are neither stored nor counted."""
    ran: set[nn.Module] = set()
    heads = [(n, m) for n, m in net.named_children() if n in HEADS and list(m.parameters())]
    handles = [child.register_forward_hook(_note(ran)) for _, m in heads for child in m.modules()]
    height, width = net.default_cfg["input_size"][1:]  # pyright: ignore
    quirks.run_without_memory(Features(net), (height, width))  # pyright: ignore
    for handle in handles:
        handle.remove()
    for name, module in heads:
        if not ran & set(module.modules()):
            setattr(net, name, nn.Identity())


def _note(ran: set[nn.Module]) -> Callable[..., None]:
    def hook(module: nn.Module, _inputs: object, _output: object) -> None:
        ran.add(module)

    return hook


class Features(nn.Module):
    """Runs timm's forward_features where a forward is called for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> object:
        """What the network makes of images before its head."""
        return self.net.forward_features(images)  # pyright: ignore[reportCallIssue]
