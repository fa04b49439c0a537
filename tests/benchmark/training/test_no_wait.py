"""Nothing in a training step makes the host wait for its GPU, seen on the CPU by the operations that would.

Reading a number off a tensor, indexing with a mask and making a tensor of Python values are what makes a host wait.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wsolbench.benchmark.core.timing import Stopwatch
from wsolbench.benchmark.data.train_loader import DevicePixels, DeviceSet
from wsolbench.benchmark.distributed.process_group import SINGLE_PROCESS
from wsolbench.benchmark.planning.config import TrainConfig
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring.build import build_method
from wsolbench.benchmark.training.trainer import make_optimizer, train_step
from wsolbench.methods.backbones.normalisation import IMAGENET
from wsolbench.methods.base import TrainContext

CPU = torch.device("cpu")
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique", "is_nonzero", "equal", "lift_fresh")


class Watcher(TorchDispatchMode):
    """Notes every operation that would make the host wait, or move data with a wait."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        masks = name in ("index", "index_put_", "index_put", "_index_put_impl_") and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        if masks or name.startswith(WAITING):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def data(config, device, masks=False):
    source = torch.Generator().manual_seed(0)
    side = config.load_size
    pixels = torch.randint(256, (8, side, side, 3), generator=source, dtype=torch.uint8)
    known = torch.rand(8, side, side, generator=source) > 0.5
    maps, labels = torch.rand(8, 7, 7, generator=source), torch.arange(8) % 2
    rows = torch.arange(8) if device == CPU else None
    kept = (DevicePixels(t.to(device), rows) for t in (pixels, known))
    pixels, known = kept
    taught = {"layercam": maps.to(device)}
    return DeviceSet(pixels, labels.to(device), taught, known if masks else None, config, device, IMAGENET)


def steps(name, device=CPU, regions=(False, True)):
    """One step after another on the same method."""
    config = TrainConfig(image_size=64, load_size=72, batch_size=4, warmup_epochs=0)
    ref = Resolver({}).ref(name)
    method = build_method(ref, "test_resnet", config, 2, 0).to(device)
    context = TrainContext(1, 9, 2, regions, device, torch.Generator(device).manual_seed(0))
    method.setup(context)
    method.train()
    optimizer, scaler = make_optimizer(method, config), torch.amp.GradScaler("cpu", enabled=False)
    job = SimpleNamespace(
        method=method, config=config, context=context, watch=Stopwatch(device), process_group=SINGLE_PROCESS
    )
    job.shared_loss = None
    for epoch in (1, 2, 3):
        for batch in data(config, device, masks=ref.spec.supervision == "pixel").epoch_batches(0, epoch):
            yield train_step(job, method.augment(batch, context), optimizer, scaler)


@pytest.mark.parametrize("name", ["classifier", "deepmil", "pixelcam", "negev", "fcam", "unet"])
def test_a_step_does_not_wait(name):
    # its regularisers pick the images with a region, whose number the host must know; cheaper than computing them all
    todo = steps(name, regions=(True, True) if name == "fcam" else (False, True))
    next(todo)  # constants are made once
    with Watcher() as watcher:
        losses = [next(todo) for _ in range(3)]
    assert watcher.seen == []
    assert all(np.isfinite(float(loss["total"])) for loss in losses)


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: float(t.sum()),
        lambda t: t[t > 0],
        lambda t: bool((t > 0).any()),
        lambda t: torch.tensor([1.0, 2.0]),
        lambda t: t.unique(),
    ],
)
def test_the_watcher_sees_what_waits(wait):
    with Watcher() as watcher:
        wait(torch.ones(3))
    assert watcher.seen


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["classifier", "pixelcam", "negev"])
def test_a_step_does_not_wait_on_a_gpu(name):
    todo = steps(name, torch.device("cuda"))
    next(todo)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            next(todo)
    finally:
        torch.cuda.set_sync_debug_mode("default")
