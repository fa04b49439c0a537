import pytest
import torch

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.methods.backbones import quirks as quirks
from wsolbench.methods.backbones.adapter import create_backbone, frozen, param_groups
from wsolbench.methods.base import Evidence


def hooks(module):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, kind)) for m in module.modules() for kind in kinds)


def shapes(name, stride, size=(224, 224)):
    """Grid of a network without allocating it."""
    body = create_backbone(name, stride, device="meta")
    return body, tuple(quirks.run_without_memory(body, size).shape[1:])


# -- published variants and strides ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "grid", "levels"),
    [
        ("resnet50", (2048, 28, 28), (2, 4, 8, 8, 8)),
        ("vgg16", (1024, 28, 28), (1, 2, 4, 8, 8, 8)),
        ("inception_v3", (1024, 28, 28), (2, 4, 8, 8, 8)),
    ],
)
def test_published_backbones_at_stride_8(name, grid, levels):
    body, found = shapes(name, 8)
    assert (found, body.strides, body.dims[-1]) == (grid, levels, grid[0])


def test_published_vgg_has_three_pools_and_conv6_and_no_fully_connected_layers():
    body, _ = shapes("vgg16", 8)
    pools = [m for m in body.modules() if isinstance(m, torch.nn.MaxPool2d)]
    conv6 = [tuple(p.shape) for p in body.neck.parameters()]
    assert (len(pools), conv6) == (3, [(1024, 512, 3, 3), (1024,)])
    assert sum(p.numel() for p in body.net.parameters()) == 14_714_688  # the convolutions of VGG16, nothing else


def test_published_inception_ends_in_two_convolutions_with_dropout():
    body, _ = shapes("inception_v3", 8)
    assert [type(m).__name__ for m in body.neck] == ["Dropout", "Conv2d", "ReLU"] * 2
    assert not any(n.startswith("Mixed_7") for n, _ in body.net.named_parameters())


def test_strides_are_removed_not_dilated_and_parameters_stay():
    own, changed = create_backbone("resnet18", None, "meta"), create_backbone("resnet18", 8, "meta")
    convs = [m for m in changed.net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert {m.dilation for m in convs} == {(1, 1)}
    layers = [(n, m) for n, m in changed.net.named_modules() if not list(m.children())]
    assert [n for n, m in layers if getattr(m, "stride", 1) in (2, (2, 2))] == [
        "conv1", "maxpool", "layer2.0.conv1", "layer2.0.downsample.0",
    ]  # fmt: skip
    assert {n: p.shape for n, p in own.named_parameters()} == {n: p.shape for n, p in changed.named_parameters()}


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("resnet18", 16),
        ("resnet50d", 8),
        ("densenet121", 8),
        ("efficientnet_b0", 8),
        ("regnety_002", 4),
        ("vgg11_bn", 16),
    ],
)
def test_general_rule_reaches_the_stride(name, stride):
    body, grid = shapes(name, stride, (128, 192))
    assert (body.strides[-1], grid[1:]) == (stride, (128 // stride, 192 // stride))


@pytest.mark.parametrize(
    ("name", "stride", "possible"),
    [
        ("convnext_tiny", 8, "Possible here: 32"),
        ("swin_tiny_patch4_window7_224", 16, "Possible here: 32"),
        ("deit_tiny_patch16_224", 8, "Possible here: 16"),
        ("inception_v3", 16, "Possible here: 8, 32"),
        ("resnet18", 12, "Possible here: 1, 2, 4, 8, 16, 32"),
    ],
)
def test_impossible_strides_are_refused_with_the_possible_ones(name, stride, possible):
    with pytest.raises(BenchError, match=possible):
        create_backbone(name, stride, "meta")


def test_unknown_network_gets_a_hint():
    with pytest.raises(BenchError, match="Did you mean resnet50"):
        create_backbone("resnet5O")


# -- grids and pyramids ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "swin_tiny_patch4_window7_224"]
)
def test_pyramid_is_as_declared_ends_with_the_grid_and_costs_one_forward(name, monkeypatch):
    body = create_backbone(name).eval()
    images = torch.randn(2, 3, 64, 96)
    calls = []
    plain = body.net.forward_features
    monkeypatch.setattr(body.net, "forward_features", lambda x: (calls.append(1), plain(x))[1])
    with torch.no_grad():
        levels, grid = body.pyramid(images), body.grid(images)
    assert len(calls) == 2
    assert torch.equal(levels[-1], grid)
    assert [m.shape[1] for m in levels] == list(body.dims)
    assert [tuple(m.shape[2:]) for m in levels] == [(64 // s, 96 // s) for s in body.strides]
    assert hooks(body) == 0


@pytest.mark.parametrize(
    ("name", "prefix", "size"), [("test_vit", 1, (64, 96)), ("vit_small_patch14_reg4_dinov2", 5, (42, 70))]
)
def test_transformer_grid_is_its_patch_tokens_without_prefix(name, prefix, size):
    body = create_backbone(name).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        tokens, grid = body.net.forward_features(images), body.grid(images)
    assert body.prefix_tokens == prefix
    rows, columns = (s // body.strides[-1] for s in size)
    assert grid.shape == (2, tokens.shape[2], rows, columns)
    assert tokens.shape[1] == prefix + rows * columns
    row, column = rows - 1, 1
    assert torch.equal(grid[:, :, row, column], tokens[:, prefix + row * columns + column])


def test_transformer_grid_follows_the_image_not_its_transpose():
    body = create_backbone("test_vit").eval()
    images = torch.zeros(1, 3, 64, 96)
    changed = images.clone()
    changed[:, :, 48:, 16:32] = 3.0  # patch row 3, column 1
    with torch.no_grad():
        gap = (body.pyramid(changed)[2] - body.pyramid(images)[2]).abs().sum(1)[0]
    assert gap.flatten().argmax().item() == 3 * 6 + 1


def test_cut_patches_are_refused():
    with pytest.raises(BenchError, match="multiples of 16"):
        create_backbone("test_vit").grid(torch.randn(1, 3, 60, 96))


def test_deit_tiny_takes_images_that_are_not_square():
    assert shapes("deit_tiny_patch16_224", None, (128, 320))[1] == (192, 8, 20)


def test_attention_is_a_distribution_and_the_fast_kernel_is_switched_on_again():
    body = create_backbone("test_vit").eval()
    images = torch.randn(2, 3, 64, 96)
    before = [b.attn.fused_attn for b in body.net.blocks]
    with torch.no_grad():
        tokens = body.tokens(images)
        grid = body.grid(images)
    assert len(tokens.attention) == len(body.net.blocks)
    assert tokens.attention[0].shape[-2:] == (25, 25)
    for attention in tokens.attention:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    assert [b.attn.fused_attn for b in body.net.blocks] == before
    assert hooks(body) == 0
    torch.testing.assert_close(tokens.grid, grid, atol=1e-4, rtol=1e-4)
    assert tokens.prefix.shape == (2, 1, 64)


def test_a_missing_ability_is_named():
    with pytest.raises(BenchError, match=r"has no attention; it has batchnorm, grid, pyramid"):
        create_backbone("test_resnet").tokens(torch.randn(1, 3, 64, 64))


# -- taps -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("test_resnet", 0),
        ("test_resnet", -2),
        ("test_resnet", -1),
        ("swin_tiny_patch4_window7_224", 1),
        ("test_vit", 1),
    ],
)
def test_tapped_gradients_are_those_of_the_full_graph(make, name, level):
    model = make.build("classifier", name)
    seen = make.evidence(model)
    activations, gradients = seen.taps(level)

    kept = []
    body = model.backbone
    last = level == -1
    site = body.out if last else body.net.get_submodule(body._levels[level % len(body.strides)])

    def keep(_module, _inputs, output):
        output.retain_grad()
        kept.append(output)

    handle = site.register_forward_hook(keep)
    logits = model.classify(model.features(seen.images))
    handle.remove()
    logits.gather(1, seen.classes[:, None]).sum().backward()
    raw, full = kept[0].detach(), kept[0].grad
    model.zero_grad()
    if raw.ndim == 3:  # tokens: the prefix is not part of the grid
        raw, full = (t[:, 1:].transpose(1, 2).unflatten(2, (4, 6)) for t in (raw, full))
    elif name.startswith("swin"):
        raw, full = raw.permute(0, 3, 1, 2), full.permute(0, 3, 1, 2)
    torch.testing.assert_close(activations, raw)
    torch.testing.assert_close(gradients, full, atol=1e-6, rtol=1e-4)
    assert full.abs().sum() > 0


def test_taps_leave_no_hooks_gradients_or_flags(make):
    model = make.build("classifier")
    model.backbone.net.conv1[0].weight.requires_grad_(False)
    asked = [p.requires_grad for p in model.parameters()]
    make.evidence(model).taps(-2)
    assert hooks(model) == 0
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == asked

    def fail():
        with model.backbone.tapped(-3):
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fail()
    assert hooks(model) == 0
    assert [p.requires_grad for p in model.parameters()] == asked


def test_layers_before_a_tap_build_no_graph(make):
    model = make.build("classifier")
    with model.backbone.tapped(2) as tap:
        seen = []
        handle = model.backbone.net.layer1.register_forward_hook(lambda _m, _i, out: seen.append(out.requires_grad))
        model.features(torch.randn(1, 3, 64, 64))
        handle.remove()
    assert seen == [False]
    assert tap.value.is_leaf


def test_tap_without_forward_and_unknown_level_are_errors(make):
    body = make.build("classifier").backbone
    with body.tapped(-1) as tap, pytest.raises(RuntimeError, match="run a forward pass"):
        _ = tap.value
    with pytest.raises(BenchError, match="levels 0 to 4, not 5"), body.tapped(5):
        pass


def test_evidence_shares_one_tap(make):
    model = make.build("classifier")
    seen = make.evidence(model)
    assert seen.taps(-2)[0] is seen.taps(-2)[0]
    assert isinstance(seen, Evidence)


# -- optimizer groups -----------------------------------------------------------------------------------------------
def test_learning_rates_are_split_as_published(make):
    resnet = make.build("classifier", "resnet18")
    slow, fast = param_groups(resnet, resnet.backbone, 0.1, 10.0)
    names = {id(p): n for n, p in resnet.named_parameters()}
    assert {names[id(p)].split(".")[2] for p in fast["params"][:-2]} == {"layer4"}
    assert [names[id(p)] for p in fast["params"][-2:]] == ["head.weight", "head.bias"]
    assert (slow["lr"], fast["lr"]) == (0.1, 1.0)
    assert len(slow["params"]) + len(fast["params"]) == len(names)

    vit = make.build("classifier", "test_vit")
    assert {g["lr"] for g in param_groups(vit, vit.backbone, 0.1, 10.0)} == {0.1}


def test_frozen_undoes_itself():
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    with frozen(layer):
        assert not any(p.requires_grad for p in layer.parameters())
    assert [p.requires_grad for p in layer.parameters()] == [True, False]
