"""A user's own pooling in one file is a teacher: students build its head, start from its weights, run and resume."""

from pathlib import Path

import pytest
import torch

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.execution.preflight import preflight
from wsolbench.benchmark.execution.scheduler import execute
from wsolbench.benchmark.planning.planner import Planner
from wsolbench.benchmark.stages.context import StageContext
from wsolbench.benchmark.stages.train_stage import ParentModels, parent_states, starting_model
from wsolbench.methods import METHODS
from wsolbench.methods.base import Options, TrainContext

PLUGIN = Path(__file__).parents[2] / "plugins" / "lse_pooling.py"


def test_log_sum_exp_lies_between_mean_and_maximum():
    METHODS.load_file(PLUGIN)
    build = METHODS.load("lse_pooling").build_head
    grid = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    soft, hard = build(5, 2, Options(r=1e-2)), build(5, 2, Options(r=200.0))
    votes = soft.votes(grid).flatten(2)
    torch.testing.assert_close(soft(grid), votes.mean(2), atol=1e-2, rtol=1e-2)
    hard.load_state_dict(soft.state_dict())
    torch.testing.assert_close(hard(grid), votes.amax(2), atol=2e-2, rtol=1e-2)


def test_a_pooling_in_one_file_teaches_pixelcam_and_negev(world):
    """Each student starts with the logits of its teacher; the parent model is the trained one, frozen."""
    names = f"{PLUGIN},pixelcam:lse_pooling,negev:lse_pooling"
    planner = Planner(world.request(names, overrides={"train": {"epochs": "1"}}))
    plan = planner.build()
    preflight(list(plan.stages.values()), planner)
    outcome = execute(plan, planner.request.run, planner.open_datasets, lambda event: None)
    assert outcome.exit_code == 0, outcome.failed
    ctx = StageContext(planner.request.run, planner.open_datasets)
    students = [s for s in plan.kinds("train") if s.labels["method"] != "lse_pooling"]
    assert {s.labels["method"] for s in students} == {"pixelcam:lse_pooling", "negev:lse_pooling"}
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for stage in students:
        context = TrainContext(0, 1, 2, (True, True), torch.device("cpu"), torch.Generator())
        context.models = ParentModels(stage, ctx, parent_states(stage, ctx))
        parent, (student, _) = context.parent("init"), starting_model(stage, ctx)
        assert context.parent("init") is parent
        assert not parent.training
        assert not any(p.requires_grad for p in parent.parameters())
        student.setup(context)
        with torch.no_grad():
            ours, theirs = (m.eval().classify(m.features(images)) for m in (student, parent))
        torch.testing.assert_close(ours, theirs)
        with pytest.raises(BenchError, match=r"no parent 'other' here \(there is: 'init'\)"):
            context.parent("other")
    again = execute(plan, planner.request.run, planner.open_datasets, lambda event: None)
    assert not again.done


def test_an_option_of_the_head_that_the_student_lacks_is_refused(world):
    overrides = {"train": {"epochs": "1"}, "lse_pooling": {"r": "9.0"}}
    planner = Planner(world.request(f"{PLUGIN},pixelcam:lse_pooling", overrides=overrides))
    plan = planner.build()
    preflight(list(plan.stages.values()), planner)
    outcome = execute(plan, planner.request.run, planner.open_datasets, lambda event: None)
    assert any("gives other logits than 'lse_pooling' does" in error for error in outcome.failed.values())
