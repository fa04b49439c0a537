"""The log-barrier: its two branches, its schedule, and the size term."""

import math

import pytest
import torch

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.methods.parts.barrier import check_barrier, log_barrier, size_barrier, temperature_at


@pytest.mark.parametrize("t", [1.0, 2.5, 10.0])
def test_value_and_slope_agree_at_the_switch(t):
    switch = -1 / t**2
    f = torch.tensor([switch - 1e-9, switch, switch + 1e-9], dtype=torch.float64, requires_grad=True)
    values = log_barrier(f, t)
    (slopes,) = torch.autograd.grad(values.sum(), f)
    torch.testing.assert_close(values, torch.full_like(f, 2 * math.log(t) / t), atol=1e-7, rtol=0)
    torch.testing.assert_close(slopes, torch.full_like(f, t), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("t", [1.0, 3.0])
def test_branches_are_the_formulas(t):
    f = torch.tensor([-50.0, -2.0, -1e-3, 0.0, 4.0], dtype=torch.float64)
    wanted = [-math.log(-x) / t if x <= -1 / t**2 else t * x - math.log(1 / t**2) / t + 1 / t for x in f.tolist()]
    torch.testing.assert_close(log_barrier(f, t), torch.tensor(wanted, dtype=torch.float64))


def test_gradient_is_right_and_finite_on_both_sides():
    f = torch.tensor([-1e8, -3.0, -0.2, 0.0, 1e6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: log_barrier(x, 1.5), (f[1:4].detach().requires_grad_(),))
    (slopes,) = torch.autograd.grad(log_barrier(f, 1.5).sum(), f)
    assert torch.isfinite(slopes).all()
    assert (slopes > 0).all()


def test_it_nears_the_hard_constraint():
    met, broken = torch.tensor(-0.5), torch.tensor(0.5)
    assert [abs(log_barrier(met, t).item()) for t in (1.0, 10.0, 100.0)] == sorted(
        (abs(log_barrier(met, t).item()) for t in (1.0, 10.0, 100.0)), reverse=True
    )
    assert log_barrier(broken, 100.0) > log_barrier(broken, 10.0) > log_barrier(broken, 1.0)


def test_schedule_multiplies_after_every_epoch_up_to_a_bound():
    t, wanted = 1.0, []
    for _ in range(300):
        wanted.append(t)
        t = min(t * 1.01, 10.0)
    assert [temperature_at(epoch, 1.0, 10.0, 1.01) for epoch in range(1, 301)] == pytest.approx(wanted)
    assert temperature_at(0, 1.0, 10.0, 1.01) == 1.0
    assert temperature_at(300, 1.0, 10.0, 1.01) == 10.0


def test_size_term_is_half_the_barriers_of_both_planes():
    planes = torch.rand(3, 2, 4, 5)
    areas = planes.sum((2, 3))
    wanted = 0.5 * sum(sum(-math.log(areas[b, c]) / 2.0 for b in range(3)) / 3 for c in range(2))
    assert size_barrier(planes, 2.0).item() == pytest.approx(wanted, rel=1e-5)


def test_an_empty_plane_costs_more_than_any_other_and_pulls_back():
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    empty = logits + torch.tensor([20.0, -20.0]).view(1, 2, 1, 1)
    loss = size_barrier(empty.softmax(1), 5.0)
    assert loss > size_barrier(logits.softmax(1), 5.0)
    (slope,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(slope).all()
    assert (slope[0, 1] < 0).all()  # more foreground


@pytest.mark.parametrize("wrong", [(0.0, 10.0, 1.01), (5.0, 1.0, 1.01), (1.0, 10.0, 0.9), (1.0, math.inf, 1.01)])
def test_schedules_that_make_no_sense_are_refused(wrong):
    with pytest.raises(BenchError, match="log-barrier needs"):
        check_barrier(*wrong)
