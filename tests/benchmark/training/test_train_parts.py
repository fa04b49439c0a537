"""Parts of the training loop: what the optimizer gets, what it takes up again, what a loss may look like."""

import copy
from types import SimpleNamespace

import pytest
import torch

from wsolbench.benchmark.core.seeds import seed_for
from wsolbench.benchmark.data.epoch_order import epoch_order
from wsolbench.benchmark.distributed.process_group import SINGLE_PROCESS
from wsolbench.benchmark.planning.config import TrainConfig
from wsolbench.benchmark.training.checkpoints import EpochCursor, _load_optimizer
from wsolbench.benchmark.training.train_step import DivergedError, check_finite, make_optimizer
from wsolbench.methods.base import BatchShard, TrainContext


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


class Job(SimpleNamespace):
    """As much of a training as looking at its loss takes."""

    def __init__(self, images=7, batch_size=2):
        config = TrainConfig(batch_size=batch_size)
        data = SimpleNamespace(
            batches_per_epoch=lambda: -(-images // batch_size),
            epoch_order=lambda seed, epoch: epoch_order(images, batch_size, seed, epoch),
        )
        super().__init__(
            process_group=SINGLE_PROCESS, config=config, data=data, seed=3, ids=[f"image-{k}" for k in range(images)]
        )


def test_losses_of_one_number_are_read_whatever_their_shape():
    at = EpochCursor(1, sums={"total": torch.tensor([2.0]), "other": torch.tensor(1, dtype=torch.float64)})
    assert check_finite(Job(), at) == {"total": 2.0, "other": 1.0}
    assert check_finite(Job(), EpochCursor(1)) == {}


def test_the_first_bad_step_is_named_with_its_images():
    job, at = Job(), EpochCursor(5)
    for value in (1.0, 2.0):
        at.add({"total": torch.tensor(value)}, 0.25)
    assert check_finite(job, at)["total"] == 0.75
    for value in (1.0, float("inf"), float("nan")):
        at.add({"total": torch.tensor(1.0), "part": torch.tensor(value)}, 0.25)
    with pytest.raises(DivergedError, match="step 4 of 4 of epoch 5") as caught:
        check_finite(job, at)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed_for("order", 3, 5))).tensor_split(4)
    assert caught.value.facts == {
        "status": "diverged", "epoch": 5, "step": 4, "seed": 3, "losses": {"total": "1.0", "part": "inf"},
        "ids": [f"image-{k}" for k in order[3].tolist()],
    }  # fmt: skip
    again = copy.copy(caught.value)  # by __reduce__, as on its way from a worker
    assert (str(again), again.facts) == (str(caught.value), caught.value.facts)


def test_a_share_takes_its_own_rows_of_what_was_drawn_for_all():
    share = BatchShard(10, (slice(0, 2), slice(5, 6)), lambda t: t + 9)
    context = TrainContext(1, 1, 2, (True, True), torch.device("cpu"), torch.Generator(), shard=share)
    drawn = []
    taken = context.drawn(lambda n: drawn.append(n) or torch.arange(n), 3)
    assert (drawn, taken.tolist()) == ([10], [0, 1, 5])
    assert share.take(torch.arange(20)).tolist() == [0, 1, 2, 3, 10, 11]  # two rows an image
    # 12 things in all, and 3 of 10 images are here: the share of the mean is sum / (12 * 0.3) * 0.3
    assert float(context.denominator(torch.tensor(3))) == pytest.approx(12 * 0.3)
    assert float(context.weight_of(3)) == pytest.approx(3 / (12 * 0.3))
    context.shard = None
    assert int(context.denominator(torch.tensor(0))) == 1
    assert context.weight_of(3) is None
