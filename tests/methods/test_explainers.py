"""Explainers against closed forms, against the package grad-cam where it is right, and for side effects."""

import numpy as np
import pytest
import pytorch_grad_cam as package
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.methods.base import Evidence

OWN = ("cam", "gradcam", "gradcampp", "xgradcam", "layercam", "hirescam", "gradcam_elementwise", "eigencam")


@pytest.fixture(params=["test_resnet", "test_vit"])
def seen(request, make):
    return make.evidence(make.build("classifier", request.param))


def weighted(seen, weights):
    return torch.einsum("bd,bdhw->bhw", weights, seen.activations)


def class_weights(seen):
    return seen.explained.head.weight.detach()[seen.classes]


def positions(seen):
    return seen.activations[0, 0].numel()


# -- closed forms on the plain classifier at the last grid ----------------------------------------------------------
def test_cam_is_class_weights_times_activations(seen, make):
    torch.testing.assert_close(make.explain("cam", seen), weighted(seen, class_weights(seen)), atol=1e-5, rtol=1e-4)


def test_cam_averages_to_the_logit_without_bias(seen, make):
    bias = seen.explained.head.bias.detach()[seen.classes]
    logit = seen.logits.gather(1, seen.classes[:, None])[:, 0]
    torch.testing.assert_close(make.explain("cam", seen).mean((1, 2)), logit - bias, atol=1e-5, rtol=1e-4)


def test_gradcam_is_rectified_cam_over_positions(seen, make):
    wanted = make.explain("cam", seen).relu() / positions(seen)
    torch.testing.assert_close(make.explain("gradcam", seen), wanted, atol=1e-7, rtol=1e-4)


def test_xgradcam_is_gradcam(seen, make):
    torch.testing.assert_close(make.explain("xgradcam", seen), make.explain("gradcam", seen), atol=1e-5, rtol=1e-3)


def test_layercam_uses_positive_weights_only(seen, make):
    wanted = weighted(seen, class_weights(seen).relu()).relu() / positions(seen)
    torch.testing.assert_close(make.explain("layercam", seen), wanted, atol=1e-7, rtol=1e-4)


def test_hirescam_is_rectified_cam_over_positions(seen, make):
    wanted = make.explain("cam", seen).relu() / positions(seen)
    torch.testing.assert_close(make.explain("hirescam", seen), wanted, atol=1e-7, rtol=1e-4)


def test_elementwise_gradcam_leaves_out_what_speaks_against_the_class(seen, make):
    terms = class_weights(seen)[:, :, None, None].double() * seen.activations.double() / positions(seen)
    maps = make.explain("gradcam_elementwise", seen)
    torch.testing.assert_close(maps, terms.clamp(min=0).sum(1).float(), atol=1e-7, rtol=1e-4)
    if seen.activations.min() >= 0:
        torch.testing.assert_close(maps, make.explain("layercam", seen), atol=1e-7, rtol=1e-4)


def test_gradcampp_has_its_closed_form(seen, make):
    weights = class_weights(seen).double()
    mean = seen.activations.double().mean((2, 3))
    shares = weights.relu() / (2 + weights * mean)
    wanted = torch.einsum("bd,bdhw->bhw", shares, seen.activations.double()).relu().float()
    torch.testing.assert_close(make.explain("gradcampp", seen), wanted, atol=1e-5, rtol=1e-4)


def test_gradcampp_survives_gradients_whose_powers_vanish(make):
    class Head:
        def __init__(self, weights):
            self.weights = weights

        def classify(self, grid):
            return grid.mean((2, 3)) @ self.weights.T

    torch.manual_seed(2)
    activations, weights = torch.rand(1, 6, 5, 5), torch.randn(2, 6) * 1e-18  # squares are below float32
    maps = make.explain("gradcampp", Evidence(torch.zeros(1, 3, 8, 8), torch.tensor([1]), Head(weights), activations))
    wanted = torch.einsum("d,dhw->hw", weights[1].relu() / 2, activations[0])
    torch.testing.assert_close(maps[0], wanted, rtol=1e-4, atol=0)
    assert maps.max() > 0


def test_gradcampp_gives_no_weight_where_its_denominator_is_zero(make):
    class Head:
        def classify(self, grid):
            return (grid * torch.tensor([[[1.0]], [[0.25]]])).sum((1, 2, 3))[:, None]

    activations = torch.tensor([[[[-3.0, 1.0]], [[3.0, 1.0]]]])  # sums -2 and 4: 2 + S g is 0 and 3
    maps = make.explain("gradcampp", Evidence(torch.zeros(1, 3, 8, 8), torch.tensor([0]), Head(), activations))
    torch.testing.assert_close(maps, 2 * 0.25 / 3 * activations[:, 1])


def test_zero_gradients_and_dead_channels_give_zeros_not_nan(make):
    class Dead:
        def classify(self, grid):
            return grid.sum((1, 2, 3))[:, None] * torch.zeros(1, 2)

    activations = torch.rand(1, 4, 3, 3)
    activations[:, :2] = 0
    seen = Evidence(torch.zeros(1, 3, 8, 8), torch.tensor([0]), Dead(), activations)
    for name in ("cam", "gradcam", "gradcampp", "xgradcam", "hirescam", "gradcam_elementwise"):
        assert torch.equal(make.explain(name, seen), torch.zeros(1, 3, 3)), name


# -- the package, hooked on the real layers -------------------------------------------------------------------------
class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.predict(images).logits


def raw(kind, seen, layer):
    """The package's map before it is rectified, scaled and resized."""
    with kind(Logits(seen.explained), [layer]) as tool:
        targets = [ClassifierOutputTarget(int(c)) for c in seen.classes]
        tool(seen.images, targets)
        activations = tool.activations_and_grads.activations[0].numpy()
        gradients = tool.activations_and_grads.gradients[0].numpy()
        maps = tool.get_cam_image(seen.images, layer, targets, activations, gradients, False)
    return torch.from_numpy(np.maximum(maps, 0))


@pytest.fixture
def cnn(make):
    return make.evidence(make.build("classifier", "test_resnet", 8))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gradcam", package.GradCAM), ("layercam", package.LayerCAM), ("xgradcam", package.XGradCAM),
     ("hirescam", package.HiResCAM), ("gradcam_elementwise", package.GradCAMElementWise)],
)  # fmt: skip
def test_agrees_with_the_package_at_the_last_layer(cnn, make, name, kind):
    wanted = raw(kind, cnn, cnn.explained.backbone.net.layer4)
    torch.testing.assert_close(make.explain(name, cnn), wanted, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize(("level", "layer"), [("-2", "layer3"), ("2", "layer2"), ("1", "layer1")])
def test_shallow_layercam_agrees_with_the_package(cnn, make, level, layer):
    wanted = raw(package.LayerCAM, cnn, getattr(cnn.explained.backbone.net, layer))
    maps = make.explain("layercam", cnn, layers=level)
    assert maps.shape == wanted.shape
    assert maps.max() > 0
    torch.testing.assert_close(maps, wanted, atol=1e-7, rtol=1e-3)


class ExactPlusPlus(package.GradCAMPlusPlus):
    """In float64, rescaled so that the package's added constant is nothing beside the gradients: alpha(c g, A / c)."""

    def get_cam_weights(self, input_tensor, target_layers, target_category, activations, grads):
        scale = 1e8
        arrays = np.float64(activations) / scale, np.float64(grads) * scale
        return super().get_cam_weights(input_tensor, target_layers, target_category, *arrays) / scale


def test_gradcampp_is_the_package_without_its_added_constant(cnn, make):
    maps, layer = make.explain("gradcampp", cnn), cnn.explained.backbone.net.layer4
    torch.testing.assert_close(maps, raw(ExactPlusPlus, cnn, layer).float(), atol=1e-6, rtol=1e-4)
    with_constant = raw(package.GradCAMPlusPlus, cnn, layer).float()
    assert (with_constant - maps).abs().max() > 0.05 * maps.max()


def test_shallow_joins_three_layers_and_keeps_the_scale_of_the_deepest(make):
    seen = make.evidence(make.build("classifier", "test_resnet"))
    single = [make.explain("layercam", seen, layers=str(level)) for level in (-3, -2, -1)]
    size = single[0].shape[-2:]
    resized = [
        torch.nn.functional.interpolate((m / m.amax((1, 2), True))[:, None], size, mode="bilinear")[:, 0]
        for m in single
    ]
    joined = make.explain("layercam", seen, layers="shallow")
    torch.testing.assert_close(joined, torch.stack(resized).mean(0) * single[2].amax((1, 2), True))
    assert joined.shape[-2:] == (8, 12)


@pytest.mark.parametrize(("layers", "message"), [("deep", "not understood"), ("9", "levels 0 to 4, not 9")])
def test_unknown_layers_are_refused(cnn, make, layers, message):
    with pytest.raises(BenchError, match=message):
        make.explain("layercam", cnn, layers=layers)


# -- the adapter of the package -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "kind",
    ["GradCAM", "XGradCAM", "HiResCAM", "LayerCAM", "EigenCAM", "EigenGradCAM", "ScoreCAM", "AblationCAM", "KPCA_CAM",
     "RandomCAM", "FEM", "FinerCAM", "ShapleyCAM", "GradCAMElementWise", "SegEigenCAM", "GradCAMPlusPlus"],
)  # fmt: skip
def test_package_classes_give_finite_maps_on_the_grid(make, kind):
    seen = make.evidence(make.build("classifier", "test_vit"), images=2)
    maps = make.explain("gradcam:" + kind, seen, package_class=kind)
    assert maps.shape == (2, 4, 6)
    assert torch.isfinite(maps).all()
    assert maps.min() >= 0
    again = make.explain("gradcam:" + kind, make.evidence(seen.explained, images=2), package_class=kind)
    torch.testing.assert_close(again, maps)


@pytest.mark.parametrize(("kind", "own"), [("GradCAM", "gradcam"), ("LayerCAM", "layercam"), ("HiResCAM", "gradcam")])
def test_adapter_returns_the_raw_map(seen, make, kind, own):
    maps = make.explain("gradcam:" + kind, seen, package_class=kind)
    torch.testing.assert_close(maps, make.explain(own, seen), atol=1e-6, rtol=1e-3)


def test_eigencam_is_the_first_component_up_to_its_sign(make):
    seen = make.evidence(make.build("classifier"))
    maps = make.explain("gradcam:EigenCAM", seen, package_class="EigenCAM")
    points = seen.activations[0].flatten(1).T.double()
    _, _, components = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    projection = ((points - points.mean(0)) @ components[0]).view(maps[0].shape).float()
    assert any(torch.allclose(maps[0], (sign * projection).relu(), atol=1e-4) for sign in (1, -1))
    assert maps.max() > 0


def test_ablationcam_has_its_closed_form(make):
    seen = make.evidence(make.build("classifier"))
    reaching_zero = torch.rand(3, 96, 2, 3) * (torch.rand(3, 96, 2, 3) > 0.5)  # as after a ReLU
    seen = Evidence(seen.images, seen.classes, seen.explained, reaching_zero)
    maps = make.explain("gradcam:AblationCAM", seen, package_class="AblationCAM")
    weights, mean = class_weights(seen), seen.activations.mean((2, 3))
    score = seen.logits.gather(1, seen.classes[:, None])
    torch.testing.assert_close(maps, weighted(seen, weights * mean / score).relu(), atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize(
    ("name", "message"),
    [("ScorCAM", "Did you mean ScoreCAM"), ("", "Known: .*EigenCAM"), ("AblationLayer", "no explainer")],
)
def test_unknown_package_class_is_refused(cnn, make, name, message):
    with pytest.raises(BenchError, match=message):
        make.explain("gradcam:" + name, cnn, package_class=name)


# -- side effects ---------------------------------------------------------------------------------------------------
def state(model):
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    return {
        "tensors": {n: t.clone() for n, t in model.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "flags": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "modules": [n for n, _ in model.named_modules()],
        "hooks": hooks,
    }


@pytest.mark.parametrize(
    ("name", "changed"),
    [*((name, {}) for name in OWN), ("layercam", {"layers": "shallow"}),
     *(("gradcam:*", {"package_class": kind})
       for kind in ("GradCAM", "EigenCAM", "AblationCAM", "FullGrad", "RefineCAM", "ShapleyCAM"))],
)  # fmt: skip
def test_explaining_changes_nothing(make, name, changed):
    model = make.build("classifier")
    model.head.weight.grad = torch.ones_like(model.head.weight)  # a training step is under way
    model.backbone.net.layer1.requires_grad_(False)
    model.dropout.train()
    before, seen = state(model), make.evidence(model)
    with torch.no_grad():
        maps = make.explain(name, seen, **changed)
    after = state(model)
    assert not maps.requires_grad
    tensors, gradients = before.pop("tensors"), before.pop("gradients")
    assert all(torch.equal(t, tensors[n]) for n, t in after.pop("tensors").items())
    assert all(
        (a is None and b is None) or torch.equal(a, b) for a, b in zip(after.pop("gradients"), gradients, strict=True)
    )
    assert after == before


def test_batches_do_not_mix_images(make):
    model = make.build("classifier")
    together = make.evidence(model)
    for name in OWN:
        maps = make.explain(name, together)
        alone = Evidence(together.images[1:2], together.classes[1:2], model)
        torch.testing.assert_close(make.explain(name, alone)[0], maps[1], atol=1e-6, rtol=1e-4)


def test_all_explainers_at_the_last_grid_cost_one_forward(make, monkeypatch):
    model = make.build("classifier")
    calls, plain = [], model.backbone.net.forward_features
    monkeypatch.setattr(model.backbone.net, "forward_features", lambda x: (calls.append(1), plain(x))[1])
    seen = make.evidence(model)
    for name in OWN:
        make.explain(name, seen)
    assert len(calls) == 1


# -- classes of the package that need more than a gradient, or chance --------------------------------------------------
def test_shapleycam_of_a_linear_head_is_gradcam(seen, make):
    """Its second derivative is that of a linear function, 0; the package alone finds no graph to derive and fails."""
    wanted = make.explain("gradcam", seen)
    maps = make.explain("gradcam:ShapleyCAM", seen, package_class="ShapleyCAM")
    torch.testing.assert_close(maps, wanted, atol=1e-6, rtol=1e-4)
    assert maps.max() > 0


def test_shapleycam_of_a_curved_head_is_its_formula(make, monkeypatch):
    """Weights are means of g - H a / 2, with the gradient g and the Hessian H of the logit at the activations a."""
    seen = make.evidence(make.build("classifier", "test_resnet"))
    model, plain = seen.explained, type(seen.explained).classify
    monkeypatch.setattr(type(model), "classify", lambda self, grid: plain(self, torch.tanh(grid) * grid))
    seen._pass.logits = None
    grid = seen.activations.clone().requires_grad_()
    logit = model.classify(grid).gather(1, seen.classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(logit, grid, create_graph=True)
    (curved,) = torch.autograd.grad(gradient, grid, grid)
    assert curved.abs().max() > 1e-6
    weights = (gradient - curved / 2).mean((2, 3)).detach()
    maps = make.explain("gradcam:ShapleyCAM", seen, package_class="ShapleyCAM")
    torch.testing.assert_close(maps, weighted(seen, weights).relu(), atol=1e-6, rtol=1e-3)


def test_randomcam_draws_for_each_image_by_itself(make):
    model = make.build("classifier", "test_resnet")
    both, one = make.evidence(model, images=2), make.evidence(model, images=1)
    both.ids, one.ids = ["a", "b"], ["a"]
    maps = make.explain("gradcam:RandomCAM", both, package_class="RandomCAM")
    alone = make.explain("gradcam:RandomCAM", one, package_class="RandomCAM")
    torch.testing.assert_close(maps[:1], alone, atol=1e-5, rtol=1e-4)
    both.seed = 1
    assert not torch.equal(maps, make.explain("gradcam:RandomCAM", both, package_class="RandomCAM"))
