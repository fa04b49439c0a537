"""One training step of methods with hooks: EMA teachers, several updates a batch, parts of batches, bad updates."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.timing import Stopwatch
from wsolbench.benchmark.distributed.process_group import SINGLE_PROCESS
from wsolbench.benchmark.planning.config import TrainConfig
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring.build import build_method
from wsolbench.benchmark.training.train_step import _set_rates, make_optimizer, train_step
from wsolbench.methods import METHODS
from wsolbench.methods.base import Batch, BatchShard, TrainContext, Update

PLUGINS = Path(__file__).parents[2] / "plugins"
FIXTURES = {"mean-teacher": "mean_teacher.py", "discrepancy": "discrepancy.py"}
CPU = torch.device("cpu")
CONFIG = TrainConfig(image_size=32, load_size=36, lr=0.05, head_lr_scale=1.0, momentum=0.9, weight_decay=1e-3)


def build(name, config=CONFIG, double=True):
    """A fixture method in double precision, as training starts it."""
    METHODS.load_file(PLUGINS / FIXTURES[name])
    method = build_method(Resolver({}).ref(name), "test_resnet", config, 2, 0)
    method.setup(context_of())
    return method.double() if double else method


def context_of():
    return TrainContext(1, 4, 2, (False, True), CPU, torch.Generator().manual_seed(0), steps_per_epoch=10)


def batch_of(count=8, side=32):
    source = torch.Generator().manual_seed(1)
    views = tuple(torch.randn(count, 3, side, side, generator=source, dtype=torch.float64) for _ in range(2))
    return Batch(views[0], torch.arange(count) % 2, torch.arange(count), views=views)


def job_of(method, context, config=CONFIG):
    return SimpleNamespace(
        method=method, config=config, context=context, watch=Stopwatch(CPU), process_group=SINGLE_PROCESS,
        shared_loss=None,
    )  # fmt: skip


def off(device="cpu"):
    return torch.amp.GradScaler(device, enabled=False)


# -- the step hook ----------------------------------------------------------------------------------------------------
def test_an_ema_of_weights_under_a_constant_gradient_has_its_closed_form():
    """Weights w0 - lr g t, so the average with decay d is w0 - lr g (t - d (1 - d^t) / (1 - d))."""
    config = TrainConfig(lr=0.05, head_lr_scale=1.0, momentum=0.0, weight_decay=0.0)
    method, context = build("mean-teacher", config), context_of()
    start = copy.deepcopy(method.student.state_dict())
    source = torch.Generator().manual_seed(2)
    slopes = {
        n: torch.randn(p.shape, generator=source, dtype=torch.float64) for n, p in method.student.named_parameters()
    }
    method.loss = lambda batch, context: {
        "total": sum((slopes[n] * p).sum() for n, p in method.student.named_parameters())
    }
    job, optimizer = job_of(method, context, config), make_optimizer(method, config)
    steps, decay = 7, method.decay
    for step in range(steps):
        context.step = step
        train_step(job, batch_of(), optimizer, off())
    kept = method.teacher.state_dict()
    for name, slope in slopes.items():
        expected = start[name] - 0.05 * slope * (steps - decay * (1 - decay**steps) / (1 - decay))
        torch.testing.assert_close(kept[name], expected, rtol=1e-12, atol=1e-12)


def test_the_hook_runs_once_a_step_without_gradients_and_sees_the_step_of_the_loss():
    method, context, seen = build("discrepancy"), context_of(), []
    method.on_step_end = lambda c: seen.append((c.step, c.shard, torch.is_grad_enabled()))
    for step in (4, 5):
        context.step = step
        train_step(job_of(method, context), batch_of(), make_optimizer(method, CONFIG), off())
    assert seen == [(4, None, False), (5, None, False)]


# -- several updates --------------------------------------------------------------------------------------------------
def by_hand(method, batches, lr):
    """Maximum classifier discrepancy as a plain loop: a step on all, on the heads, on the backbone."""
    settings = {"lr": lr, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}
    body = torch.optim.SGD(method.backbone.parameters(), **settings)
    heads = torch.optim.SGD(method.heads.parameters(), **settings)

    def logits(images):
        grid = method.backbone.grid(images)
        return [head(grid).mean((2, 3)) for head in method.heads]

    def known(outputs, labels):
        return sum(F.cross_entropy(output, labels) for output in outputs)

    def gap(outputs):
        return (outputs[0].softmax(1) - outputs[1].softmax(1)).abs().mean()

    def step(total, *optimizers):
        method.zero_grad()
        total.backward()
        for optimizer in optimizers:
            optimizer.step()

    for batch in batches:
        step(known(logits(batch.images), batch.labels), body, heads)
        outputs = logits(batch.images)
        step(known(outputs, batch.labels) - gap(outputs), heads)
        step(gap(logits(batch.images)), body)


def same_weights(one, other, tolerance):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_three_updates_are_the_plain_loop_with_three_optimizer_steps():
    method = build("discrepancy").eval()  # batch statistics would move four times in the loop by hand
    plain = copy.deepcopy(method)
    batches = [batch_of(8), batch_of(6), batch_of(8)]
    context, optimizer = context_of(), make_optimizer(method, CONFIG)
    for batch in batches:
        losses = train_step(job_of(method, context), batch, optimizer, off())
    by_hand(plain, batches, CONFIG.lr)
    same_weights(method, plain, 1e-12)
    assert set(losses) == {"total", "image", "gap"}


def test_losses_of_one_name_add_up_over_the_updates():
    method, context = build("discrepancy").eval(), context_of()
    batch, still = batch_of(), TrainConfig(lr=1e-30, momentum=0.0, weight_decay=0.0)
    losses = train_step(job_of(method, context, still), batch, make_optimizer(method, still), off())
    each = [f(batch, context)["total"].item() for f in (method.loss, method.apart, method.together)]
    assert float(losses["total"]) == pytest.approx(sum(each), rel=1e-6)


def test_parameters_left_out_of_an_update_keep_value_and_momentum():
    method, context = build("discrepancy"), context_of()
    optimizer = make_optimizer(method, CONFIG)
    train_step(job_of(method, context), batch_of(), optimizer, off())
    body = [p for n, p in method.named_parameters() if n.startswith("backbone.")]
    before = [(p.clone(), optimizer.state[p]["momentum_buffer"].clone()) for p in body]
    method.updates = lambda batch, context: iter([Update(method.apart, method.heads.parameters())])
    train_step(job_of(method, context), batch_of(), optimizer, off())
    assert all(torch.equal(p, was) for p, (was, _) in zip(body, before, strict=True))
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], m) for p, (_, m) in zip(body, before, strict=True))


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("most", [1, 3, 4])
def test_a_batch_in_parts_gives_the_weights_of_a_batch_in_one_piece(name, most):
    """Means over images add up; batch statistics, which do not, are those of evaluation here."""
    whole, parts = build(name).eval(), build(name).eval()
    for method, config in ((whole, CONFIG), (parts, TrainConfig(**{**vars(CONFIG), "micro_batch": most}))):
        context, optimizer = context_of(), make_optimizer(method, config)
        for step in range(3):
            context.step = step
            losses = train_step(job_of(method, context, config), batch_of(8), optimizer, off())
        assert math.isfinite(float(losses["total"]))
    same_weights(whole, parts, 1e-12)


def test_a_loss_scale_changes_nothing_and_moves_after_every_update():
    """The scaler of fp16, here on the CPU: gradients are unscaled before each of the three steps."""
    plain, scaled = build("discrepancy").eval(), build("discrepancy").eval()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for method, which in ((plain, off()), (scaled, scaler)):
        context, optimizer = context_of(), make_optimizer(method, CONFIG)
        for _ in range(2):
            train_step(job_of(method, context), batch_of(), optimizer, which)
    same_weights(plain, scaled, 1e-12)
    assert scaler.get_scale() == 1024.0 * 2**3  # six good updates, twice as large after every second


def test_what_is_computed_between_updates_is_cut_with_the_batch():
    method, context, seen = build("discrepancy"), context_of(), []

    def updates(batch, context):
        batch.wanted = 10 * batch.indices
        yield Update(lambda part, context: seen.append(part.wanted.tolist()) or method.loss(part, context))

    method.updates = updates
    config = TrainConfig(**{**vars(CONFIG), "micro_batch": 3})
    train_step(job_of(method, context, config), batch_of(8), make_optimizer(method, config), off())
    assert seen == [[0, 10, 20], [30, 40, 50], [60, 70]]


# -- what is refused --------------------------------------------------------------------------------------------------
def reused(method):
    def updates(batch, context):
        shared = method.loss(batch, context)
        yield Update(lambda *_: shared)
        yield Update(lambda *_: shared)

    return updates


REFUSED = {
    "nothing": (lambda m: lambda batch, context: iter(()), r"updates\(\) made none"),
    "no update": (lambda m: lambda batch, context: iter([m.loss]), r"yielded a method; Update\(losses, params\)"),
    "numbers": (lambda m: lambda b, c: iter([Update(m.loss(b, c))]), "yielded losses as a dict; a function of a batch"),
    "no parameters": (lambda m: lambda b, c: iter([Update(m.loss, [])]), r"yielded no parameters with loss\(\)"),
    "strange": (lambda m: lambda b, c: iter([Update(m.loss, [nn.Parameter(torch.ones(1))])]), "does not give to the"),
    "no total": (lambda m: lambda b, c: iter([Update(lambda *_: {"image": 1})]), r'<lambda>\(\) returned no "total"'),
    "one graph": (reused, "losses of one update rest on tensors of another"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_update_is_refused_with_the_name_of_the_method(case):
    make, message = REFUSED[case]
    method, context = build("discrepancy"), context_of()
    optimizer = make_optimizer(method, CONFIG)
    method.updates = make(method)
    with pytest.raises(BenchError, match=f"Method 'discrepancy': .*{message}"):
        train_step(job_of(method, context), batch_of(), optimizer, off())


# -- rates and counters -----------------------------------------------------------------------------------------------
def test_a_factor_multiplies_the_rates_of_all_groups():
    method, context = build("mean-teacher"), context_of()
    config = TrainConfig(lr=0.1, head_lr_scale=10.0)
    optimizer, job = make_optimizer(method, config), job_of(method, context, config)
    for step, factor in ((0, 1.0), (20, 0.5), (40, 0.0)):
        context.step = step
        _set_rates(job, optimizer, 1)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1 * factor, 1.0 * factor])
    for bad in (float("nan"), -1.0, float("inf")):
        method.lr_scale = lambda c, bad=bad: bad
        with pytest.raises(BenchError, match=r"Method 'mean-teacher': lr_scale\(\) gave"):
            _set_rates(job, optimizer, 1)


def test_progress_runs_from_zero_to_one():
    context = context_of()
    assert context.progress == 0
    context.step = 10
    assert context.progress == 0.25
    context.step = 40
    assert context.progress == 1
    context.steps_per_epoch = 0  # in setup nobody knows yet
    assert context.progress == 0


def test_rows_are_gathered_in_the_order_of_the_whole_batch():
    """Two processes, each with two slices of a batch of ten; what the other has is added up."""
    places = ((slice(0, 2), slice(5, 8)), (slice(2, 5), slice(8, 10)))
    whole = torch.arange(20.0).reshape(10, 2)
    shards = [BatchShard(10, own, lambda rows: rows) for own in places]
    for each in (1, 3):
        rows = whole.repeat_interleave(each, 0)
        parts = [s.whole(s.take(rows)) for s in shards]
        assert torch.equal(parts[0] + parts[1], rows)
    context = context_of()
    kept = torch.ones(2, requires_grad=True)
    assert not context.gathered(kept).requires_grad
    context.shard = shards[0]
    assert context.gathered(torch.ones(5, dtype=torch.int64)).tolist() == [1, 1, 0, 0, 0, 1, 1, 1, 0, 0]
