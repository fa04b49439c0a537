"""Every family of timm either gives a grid that lies as the image does, or is refused in one sentence."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.methods.backbones.adapter import create_backbone
from wsolbench.methods.backbones.shapes import layout_of

REFUSED = r"gives no feature grid; choose another network of timm\.$"
PLACE = (0.775, 0.225)  # centre of what is painted, as shares of height and width: no symmetry maps it on itself


def painted(body, size):
    """|difference| (h, w) of what each level makes of an image and of the same with a spot, coarse levels last."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, height, width, generator=generator).repeat(2, 1, 1, 1) * 0.1
    images[1, :, int(height * 0.70) : int(height * 0.85), int(width * 0.15) : int(width * 0.30)] += 3.0
    body.eval()
    for module in body.modules():
        if isinstance(module, _BatchNorm):
            module.train()  # untrained statistics would let the activations of deep networks vanish
    with torch.no_grad():
        levels = body.pyramid(images) if "pyramid" in body.abilities else [body.grid(images)]
    return [(level[0] - level[1]).abs().mean(0) for level in levels]


def place_of(change):
    """Where most has changed, as shares of height and width."""
    rows, columns = change.shape
    k = int(change.argmax())
    return (k // columns + 0.5) / rows, (k % columns + 0.5) / columns


def lies_as_the_image(change, spot=0.075):
    return all(abs(a - b) <= spot + 1.6 / n for a, b, n in zip(place_of(change), PLACE, change.shape, strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "hiera_tiny_224", "mixer_s16_224", "levit_128s", "twins_svt_small", "pit_ti_224", "volo_d1_224",
        "crossvit_tiny_240", "coat_tiny", "efficientformer_l1", "efficientvim_m1", "pit_ti_distilled_224",
    ],
)  # fmt: skip
def test_networks_without_a_grid_are_refused_in_one_sentence(name):
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    with pytest.raises(BenchError, match=f"^Backbone '{name}' {REFUSED}"):
        create_backbone(name, device="meta")


@pytest.mark.parametrize(
    ("name", "stride", "abilities"),
    [
        ("tnt_s_patch16_224", 16, {"grid"}),  # the tokens between are tuples
        ("cait_xxs24_224", 16, {"grid"}),  # the class token comes late
        ("efficientvit_b0", 32, {"grid", "pyramid", "batchnorm"}),  # refuses to be built without pooling
        ("inception_next_atto", 32, {"grid", "pyramid", "batchnorm"}),
        ("tresnet_m", 32, {"grid", "batchnorm"}),  # describes its levels in another way
        ("selecsls42", 64, {"grid", "batchnorm"}),  # its levels are lists
        ("vit_relpos_small_patch16_224", 16, {"grid", "pyramid", "tokens", "attention"}),  # of one size alone
    ],
)
def test_networks_that_are_odd_and_usable(name, stride, abilities):
    body = create_backbone(name, device="meta")
    assert (body.strides[-1], body.abilities) == (stride, abilities)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_resnet", (96, 160)), ("test_vit", (96, 160)), ("test_convnext", (96, 160)),
        ("mambaout_femto", (96, 160)),
        ("swin_tiny_patch4_window7_224", (224, 224)), ("hieradet_small", (256, 256)),
        ("vit_relpos_small_patch16_224", (224, 224)), ("efficientvit_b0", (96, 160)), ("mvitv2_tiny", (224, 224)),
    ],
)  # fmt: skip
def test_the_grid_lies_as_the_image_does(name, size):
    torch.manual_seed(0)
    for change in painted(create_backbone(name), size):
        assert lies_as_the_image(change), (change.shape, place_of(change))


def test_the_check_sees_a_grid_that_does_not():
    change = torch.zeros(8, 8)
    change[6, 1] = 1
    assert lies_as_the_image(change)
    assert not lies_as_the_image(change.T)
    assert not lies_as_the_image(change.flip(1))


class Net(nn.Module):
    """What `layout_of` asks a network."""

    def __init__(self, prefix=None, patch=16, output="NCHW"):
        super().__init__()
        self.feature_info, self.output_fmt = [{"reduction": patch, "module": "x"}], output
        if prefix is not None:
            self.num_prefix_tokens = prefix


@pytest.mark.parametrize(
    ("shape", "net", "size", "wanted"),
    [
        ((1, 512, 7, 7), Net(), (224, 224), "maps"),
        ((1, 64, 64, 768), Net(), (1024, 1024), "channels last"),  # whatever the network says of its last output
        ((1, 14, 20, 320), Net(output="NHWC"), (224, 320), "channels last"),
        ((1, 25, 25, 768), Net(), (299, 299), "channels last"),
        ((1, 288, 35, 35), Net(), (299, 299), "maps"),
        ((1, 56, 56, 56), Net(), (224, 224), "maps"),  # all the same: the network says it
        ((1, 56, 56, 56), Net(output="NHWC"), (224, 224), "channels last"),
        ((1, 197, 192), Net(1), (224, 224), "tokens"),
        ((1, 201, 192), Net(5), (224, 224), "tokens"),
        ((1, 196, 192), Net(1), (224, 224), ""),  # one too few
        ((1, 49, 768), Net(), (224, 224), ""),  # says of no prefix: their order is not known
        ((1, 2048, 1, 1), Net(), (224, 224), ""),  # pooled
        ((1, 2048), Net(), (224, 224), ""),
        ((1, 3, 7, 9), Net(), (224, 224), ""),
    ],
)
def test_layouts_are_told_by_shapes(shape, net, size, wanted):
    assert layout_of(torch.empty(shape, device="meta"), net, size) == wanted


def test_what_is_no_tensor_is_no_grid():
    assert layout_of([torch.empty(1, 8, 7, 7)], Net(), (224, 224)) == ""
    assert layout_of(None, Net(), (224, 224)) == ""


@pytest.mark.parametrize(
    ("name", "side", "advice"),
    [("vit_relpos_small_patch16_224", 96, "train.image_size=224 --set train.load_size=256"),
     ("tnt_s_patch16_224", 112, "made for 224x224"), ("test_vit", 100, "multiples of 16")],
)  # fmt: skip
def test_sizes_that_a_network_cannot_read_are_told(name, side, advice):
    body = create_backbone(name, device="meta")
    body.check_size(body.input_size[0])
    with pytest.raises(BenchError, match=advice):
        body.check_size(side)


def test_unknown_tags_and_networks_are_told_apart():
    with pytest.raises(BenchError, match=r"no weights 'nosuchtag' of resnet18\. It has a1_in1k, .*tv_in1k"):
        create_backbone("resnet18.nosuchtag", device="meta")
    with pytest.raises(BenchError, match=r"has no network 'resnet5O'\. Did you mean resnet50"):
        create_backbone("resnet5O.tv_in1k", device="meta")


def small_first(name):
    """Small members of a family by their names, as timm gives no numbers before a network is built."""
    large = sum(
        word in name for word in ("large", "huge", "giant", "xl", "base", "_l", "_g", "152", "512", "448", "384")
    )
    small = sum(
        word in name for word in ("tiny", "nano", "test_", "pico", "femto", "atto", "small", "_s", "_xxs", "mini", "18")
    )
    return large - small, len(name), name


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.models.list_modules())
def test_every_family_works_or_is_refused(module):
    names = sorted(timm.list_models(module=module), key=small_first)
    try:
        body = create_backbone(names[0], device="meta")
    except BenchError as refusal:
        if not str(refusal).endswith("choose another network of timm."):
            raise
        return
    assert all(s > 0 for s in body.strides)
    if sum(p.numel() for p in body.parameters()) > 60e6 or max(body.input_size) > 288:
        pytest.skip("too large to be run on a processor")
    torch.manual_seed(0)
    changes = painted(create_backbone(names[0]), body.input_size)
    assert lies_as_the_image(changes[0]), (names[0], place_of(changes[0]))
    if module != "convmixer":  # 32 layers of 9x9 carry the spot everywhere
        assert lies_as_the_image(changes[-1]), (names[0], place_of(changes[-1]))
