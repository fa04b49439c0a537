"""What students take over from their teachers: form of the image head, encoder, head, and nothing else."""

import logging

import pytest
import torch

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.methods.base import Options
from wsolbench.methods.parts.teachers import student_head, teacher_model
from wsolbench.methods.spec import method_spec

MODELS = {"cam": "classifier", "gradcampp": "classifier", "layercam": "classifier", "deepmil": "deepmil",
          "negev": "negev", "negev:deepmil": "negev"}  # fmt: skip
STUDENTS = [*((t, "test_resnet") for t in MODELS), *((t, "test_vit") for t in ("layercam", "deepmil", "negev"))]


def options(name="pixelcam", **changed):
    return Options(**{**method_spec(name).options, **changed})


def parent_of(make, name, backbone, **changed):
    parent = make.build(name, backbone, classes=2, **changed)
    for p in parent.parameters():
        p.data.add_(0.01)
    return parent


def context_of(make, parent):
    context = make.context()
    context.models = {"init": parent}
    return context


@pytest.mark.parametrize(
    ("name", "behind"),
    [("classifier", "classifier"), ("layercam", "classifier"), ("gradcam:EigenCAM", "classifier"),
     ("deepmil", "deepmil"), ("negev:deepmil", "negev"), ("darkness", None)],
)  # fmt: skip
def test_the_model_behind_a_name(name, behind):
    found = teacher_model(name)
    assert (found and found.spec.name) == behind


@pytest.mark.parametrize(
    ("teacher", "form"),
    [("layercam", "gap"), ("deepmil", "attention"), ("negev", "gap"), ("negev:deepmil", "attention"),
     ("pixelcam:negev:deepmil", "attention"), ("unet", "gap"), ("random", "gap")],
)  # fmt: skip
def test_the_head_has_the_form_of_the_teachers(teacher, form):
    assert student_head(options(teacher=teacher), 8, 2).form == form
    assert student_head(options(teacher=teacher, head="gap"), 8, 2).form == "gap"
    assert student_head(options("negev", teacher=teacher, head="attention"), 8, 2).form == "attention"


@pytest.mark.parametrize(("teacher", "backbone"), STUDENTS)
def test_pixelcam_starts_as_its_teachers_model(make, teacher, backbone):
    own = {"teacher": teacher.partition(":")[2]} if ":" in teacher else {}
    parent = parent_of(make, MODELS[teacher], backbone, **own)
    child, context = make.build("pixelcam", backbone, classes=2, teacher=teacher), context_of(make, parent)
    before = child.pixel_head.weight.clone()
    child.setup(context)
    images = make.batch().images
    with torch.no_grad():
        torch.testing.assert_close(child.predict(images).logits, parent.predict(images).logits)
    assert torch.equal(child.pixel_head.weight, before)
    losses = child.train().loss(make.batch(), context)
    losses["total"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in child.parameters())


def test_pixelcam_on_deit_takes_attention_and_a_pixel_head_over(make):
    backbone = "deit_tiny_patch16_224"
    parent = parent_of(make, "deepmil", backbone)
    child = make.build("pixelcam", backbone, classes=2, teacher="deepmil")
    context = context_of(make, parent)
    child.setup(context)
    images = make.batch(images=2).images
    with torch.no_grad():
        found, wanted = child.predict(images), parent.predict(images)
    assert torch.equal(found.logits, wanted.logits)
    assert found.maps.shape == (2, 4, 6)
    groups = child.param_groups(0.1, 10.0)
    assert {g["lr"] for g in groups} == {0.1}  # one rate for everything, as DeiT is trained
    child.train().loss(make.batch(images=2), context)["total"].backward()
    assert child.pixel_head.weight.grad.abs().sum() > 0
    assert child.head.score.weight.grad.abs().sum() > 0


def test_a_decoder_with_a_pixel_head_of_the_same_shape_is_dropped(make):
    parent = parent_of(make, "twostep", "test_resnet", decoder="linear")
    child = make.build("pixelcam", classes=2, teacher="twostep")
    assert child.pixel_head.weight.shape == parent.pixel_head.weight.shape
    before = child.pixel_head.weight.clone()
    child.setup(context_of(make, parent))
    assert torch.equal(child.pixel_head.weight, before)


@pytest.mark.parametrize("student", ["pixelcam", "negev"])
def test_a_head_that_was_changed_by_other_options_is_refused_with_advice(make, student):
    # as with --set negev.teacher=deepmil, which the name of the teacher does not tell
    parent = parent_of(make, "negev", "test_resnet", teacher="deepmil")
    child = make.build(student, classes=2, teacher="negev")
    with pytest.raises(BenchError, match=rf"form 'attention' that does not fit ours. Set {student}.head=attention"):
        child.setup(context_of(make, parent))
    told = make.build(student, classes=2, teacher="negev", head="attention")
    told.setup(context_of(make, parent))
    assert torch.equal(told.head.score.weight, parent.head.score.weight)
    gated = make.build(student, classes=2, teacher="deepmil", gated=True)
    with pytest.raises(BenchError, match=rf"{student}.gated and {student}.width as for the teacher"):
        gated.setup(context_of(make, parent))


def test_a_head_of_ones_own_choice_starts_at_random(make, caplog):
    parent = parent_of(make, "deepmil", "test_resnet")
    child = make.build("pixelcam", classes=2, teacher="deepmil", head="gap")
    head, before = child.head.weight.clone(), child.backbone.net.conv1[0].weight.clone()
    with caplog.at_level(logging.WARNING):
        child.setup(context_of(make, parent))
    assert torch.equal(child.head.weight, head)
    assert not torch.equal(child.backbone.net.conv1[0].weight, before)
    assert "another image head" in caplog.text


def test_a_frozen_classifier_cannot_do_without_its_head(make):
    parent = make.build("classifier", classes=2)
    del parent.head
    child, context = make.build("negev", classes=2), context_of(make, parent)
    with pytest.raises(BenchError, match="has no image head that could be taken over"):
        child.setup(context)
    context = context_of(make, make.build("classifier", "test_vit", classes=2))
    with pytest.raises(BenchError, match="does not have the backbone 'test_resnet'"):
        child.setup(context)
