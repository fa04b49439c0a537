"""The full pass of a training: what the present model says of all images of its training set or its target."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...methods.base import FullPass, Method, is_explainable
from ...methods.factory import statistics_of
from ..core.errors import BenchError
from ..core.timing import Stopwatch
from ..data.eval_loader import EvalBatch, EvalLoader
from ..data.image_cache import ImageSplit
from ..distributed.process_group import ProcessGroup
from ..scoring.adaptive_batch import AdaptiveBatch
from ..scoring.map_extractor import unreadable


class _Unhurried(ProcessGroup):
    """A group whose passes end before it stops: within a hook a training has no state that it could go on from."""

    def __init__(self, group: ProcessGroup) -> None:
        self.rank, self.size, self.add = group.rank, group.size, group.add

    def check(self) -> None:
        """A requested stop is heard after the step."""


@dataclass(frozen=True)
class WholeSets:
    """Answers `context.full_pass`: the sets by name, the side in px images are scored at, images a batch."""

    method: Method
    sets: Mapping[str, ImageSplit]
    classes: int
    side: int
    batch_size: int
    device: torch.device
    watch: Stopwatch
    process_group: ProcessGroup

    def __call__(self, which: str) -> FullPass:
        """One pass; of several processes each reads its share, and all get the whole. Raises BenchError without set."""
        if which not in self.sets:
            reason = "nothing is adapted to a target" if which == "target" else "a source-free adapter has none"
            known = " or ".join(f"'{name}'" for name in self.sets)
            raise BenchError(
                f"Method '{self.method.registered_name}' asked context.full_pass for '{which}': "
                f"{reason if which in ('train', 'target') else 'there is no such set'}. Here it may be {known}."
            )
        split = self.sets[which]
        with _evaluating(self.method), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            logits, features = self._read(split)
        return FullPass(logits, features, [unreadable(name) for name in split.ids])

    def _read(self, split: ImageSplit) -> tuple[Tensor, Tensor]:
        group, memory = _Unhurried(self.process_group), AdaptiveBatch("a full pass", self.device)
        logits = torch.zeros(len(split.items), self.classes, device=self.device)
        features: list[Tensor] = []

        def read(seen: EvalBatch) -> None:
            batch_logits, pooled = self._of(seen.images)
            if not features:
                features.append(torch.zeros(len(split.items), pooled.shape[1], device=self.device))
            logits[seen.rows], features[0][seen.rows] = batch_logits, pooled

        loader = EvalLoader(
            split, self.batch_size, self.device, statistics_of(self.method), side=self.side,
            watch=self.watch, process_group=group,
        )  # fmt: skip
        for batch in loader:
            for _ in memory.each(batch, read):
                pass
        if not features:  # more processes than batches
            features.append(torch.zeros(len(split.items), self._width(), device=self.device))
        return group.add(logits), group.add(features[0])

    def _of(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and pooled features (B, D) of images."""
        method = self.method
        if is_explainable(method):
            grid = method.features(images)
            return method.classify(grid), grid.mean((2, 3))
        logits, backbone = method.predict(images).logits, getattr(method, "backbone", None)
        if logits is None or backbone is None:
            raise BenchError(f"Method '{method.registered_name}' has no logits or no backbone for context.full_pass.")
        return logits, backbone.grid(images).mean((2, 3))

    def _width(self) -> int:
        return self._of(torch.zeros(1, 3, self.side, self.side, device=self.device))[1].shape[1]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """A block in eval mode; afterwards every part is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
