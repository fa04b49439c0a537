"""Functions that replace torch's take its arguments, and are torch's own where there is nothing to share."""

import inspect
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from wsolbench.benchmark.distributed.shared_batch_ops import BatchNormCall, WholeBatch

ALONE: Any = SimpleNamespace(shard=None)


def test_batch_norm_takes_what_torch_takes():
    theirs = [(p.name, p.default) for p in inspect.signature(F.batch_norm).parameters.values()]
    assert theirs == [(p.name, p.default) for p in inspect.signature(BatchNormCall).parameters.values()]


def test_in_eval_mode_batch_norm_is_torchs_own():
    images, mean, var = torch.randn(4, 3, 5, 5), torch.randn(3), torch.rand(3) + 0.5
    plain = F.batch_norm(images, mean, var, eps=0.1)
    with WholeBatch(ALONE):
        shared = F.batch_norm(images, running_var=var, running_mean=mean, eps=0.1)
    assert torch.equal(shared, plain)
    assert torch.allclose(plain, (images - mean.view(1, 3, 1, 1)) / (var.view(1, 3, 1, 1) + 0.1).sqrt(), atol=1e-5)
