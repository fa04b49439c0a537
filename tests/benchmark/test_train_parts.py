"""Parts of the training loop: what the optimizer gets, what it takes up again, what a loss may look like."""

from types import SimpleNamespace

import pytest
import torch

from wsolbench.benchmark.checkpoints import _load_optimizer
from wsolbench.benchmark.config import TrainConfig
from wsolbench.benchmark.train import DivergedError, _refuse_divergence, make_optimizer


@pytest.mark.parametrize("params", [lambda m: m.parameters(), lambda m: list(m.parameters()), lambda m: m.weight])
def test_every_parameter_of_a_group_is_trained(params):
    net = torch.nn.Linear(3, 2)
    method = SimpleNamespace(param_groups=lambda lr, scale: [{"params": params(net), "lr": lr / 2}])
    optimizer = make_optimizer(method, TrainConfig(lr=0.1))
    expected = [net.weight] if params(net) is net.weight else list(net.parameters())
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in expected]
    assert optimizer.param_groups[0]["scale"] == 0.5


def test_an_optimizer_resumes_on_its_own_kernels_and_layout():
    def make(fused):
        torch.manual_seed(0)
        net = torch.nn.ModuleList(
            [torch.nn.Conv2d(2, 4, 3), torch.nn.ParameterList([torch.zeros((), dtype=torch.float64)])]
        )
        return net, torch.optim.AdamW(net.parameters(), lr=0.1, fused=fused)

    net, optimizer = make(fused=False)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = optimizer.state_dict()
    other, resumed = make(fused=True)
    other[0].to(memory_format=torch.channels_last)
    _load_optimizer(resumed, state)
    assert all(g["fused"] for g in resumed.param_groups)
    kept = resumed.state[other[0].weight]["exp_avg"]
    assert kept.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(kept, optimizer.state[net[0].weight]["exp_avg"])
    assert resumed.state[other[1][0]]["step"].dtype == torch.float32


def test_losses_of_one_number_are_read_whatever_their_shape():
    sums = {"total": torch.tensor([2.0]), "other": torch.tensor(1, dtype=torch.float64)}
    assert _refuse_divergence(sums, 1) == {"total": 2.0, "other": 1.0}
    assert _refuse_divergence({}, 1) == {}
    with pytest.raises(DivergedError, match="epoch 3"):
        _refuse_divergence({"total": torch.tensor(float("inf"))}, 3)
