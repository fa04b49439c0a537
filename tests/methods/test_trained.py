"""The trained methods: classifier, Deep MIL, PixelCAM and U-Net. Those on a frozen classifier: test_twostep.py."""

import dataclasses

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.planning.config import PRESETS, TrainConfig
from wsolbench.methods.backbones.adapter import create_backbone
from wsolbench.methods.base import METHODS, Options, is_explainable
from wsolbench.methods.parts.losses import partial_cross_entropy
from wsolbench.methods.parts.pseudo_labels import PseudoLabelRule, sample_pseudo_labels
from wsolbench.methods.spec import method_spec

TRAINED = ("classifier", "deepmil", "pixelcam", "unet")


def copied(method):
    return {n: t.clone() for n, t in method.state_dict().items()}


def gradients(method, batch, context):
    method.zero_grad()
    losses = method.loss(batch, context)
    losses["total"].backward()
    return losses, {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


# -- all of them ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_contract(make, name, backbone):
    method, spec = make.build(name, backbone, classes=2), method_spec(name)
    before = copied(method)
    assert is_explainable(method)
    images = make.batch().images
    with torch.no_grad():
        first, second = method.predict(images), method.predict(images, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(first.logits, method.classify(method.features(images)))
    assert first.logits.shape == (4, 2)
    if spec.kind == "none":
        assert first.maps is None
    else:
        assert torch.equal(first.maps, second.maps) != spec.class_specific
        assert 0 <= first.maps.min() < first.maps.max() <= 1
        assert first.maps.shape == ((4, *make.size) if name == "unet" else (4, *method.features(images).shape[2:]))
    method.loss(make.batch(), make.context())
    assert all(torch.equal(t, before[n]) for n, t in method.state_dict().items())


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_learns_and_is_in_one_group(make, name):
    method = make.build(name, classes=2).train()
    losses, found = gradients(method, make.batch(), make.context())
    assert set(found) == {n for n, _ in method.named_parameters()}
    assert all(torch.isfinite(g).all() for g in found.values())
    assert losses["total"].ndim == 0
    grouped = [id(p) for g in method.param_groups(0.1, 10.0) for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters())


@pytest.mark.parametrize("name", TRAINED)
def test_loss_is_finite_for_one_class_constant_maps_and_no_region(make, name):
    method = make.build(name, classes=2)
    batch = make.batch()
    batch.labels[:] = 0
    batch.maps[:] = 0
    batch.masks[:] = False
    for regions in ((True, True), (False, True)):
        losses = method.loss(batch, make.context(regions=regions))
        assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize("name", TRAINED)
def test_a_backbone_is_needed(name):
    with pytest.raises(BenchError, match="needs a backbone"):
        METHODS.load(name)(None, 2, Options(**method_spec(name).options))


def test_specs_read_without_import_and_recipes_hold_the_published_schedule():
    spec = method_spec("classifier")
    assert (spec.kind, spec.selects) == ("none", ("cam", "gradcam", "gradcampp", "xgradcam", "layercam"))
    glas, camelyon = spec.recipes["paper"]["glas"], spec.recipes["paper"]["camelyon16"]
    assert (glas["lr"], glas["epochs"], glas["step_epochs"], glas["gamma"]) == (3e-3, 1000, 250, 0.1)
    assert (camelyon["lr"], camelyon["epochs"], camelyon["step_epochs"]) == (1e-3, 20, 5)
    assert method_spec("pixelcam").needs == ("init:{teacher}", "maps:{teacher}")
    assert (method_spec("unet").supervision, method_spec("unet").backbone) == ("pixel", ("pyramid",))
    assert method_spec("gradcam:EigenCAM").variant == "package_class"


@pytest.mark.parametrize("name", ["classifier", "deepmil", "pixelcam", "unet", "twostep", "fcam", "negev"])
def test_every_recipe_is_whole_and_says_where_it_is_from(name):
    spec, known = method_spec(name), {f.name for f in dataclasses.fields(TrainConfig)}
    for preset, places in spec.recipes.items():
        assert preset in PRESETS
        for place, settings in places.items():
            assert set(settings) <= known | {"options", "source"}, place
            assert set(settings.get("options", {})) <= set(spec.options)
    for dataset in ("glas", "camelyon16"):
        plain, deit = (spec.recipe("paper", dataset, b) for b in ("resnet50", "deit_tiny_patch16_224"))
        schedule = {k: plain.train[k] for k in ("epochs", "step_epochs", "gamma", "batch_size", "optimizer")}
        wanted = (1000, 250) if dataset == "glas" else (20, 5)
        assert schedule == {"epochs": wanted[0], "step_epochs": wanted[1], "gamma": 0.1, "batch_size": 32,
                            "optimizer": "sgd"}  # fmt: skip
        assert "published" in plain.source or "our choice" in plain.source
        assert deit.train.get("head_lr_scale", 1.0) == 1.0  # decoders ignore it


def test_negevs_recipe_is_that_of_its_command():
    spec = method_spec("negev")
    assert spec.recipe("paper", "glas", "resnet50").train["lr"] == 0.1
    own = {k: spec.options[k] for k in ("sampler", "foreground", "background", "dilation", "negatives")}
    assert list(own.values()) == ["prob", 10, 10, 1, "dense"]
    assert not any(spec.options[f"lambda_{term}"] for term in ("crf", "joint", "size"))


def test_dropout_acts_on_whole_channels_in_training_only(make):
    method = make.build("classifier", dropout=0.5)
    grid = torch.ones(1, 96, 2, 3)
    method.eval()
    assert torch.equal(method.dropout(grid), grid)
    method.train()
    dropped = method.dropout(grid)
    assert ((dropped == 0).flatten(2).all(2) | (dropped == 2).flatten(2).all(2)).all()
    with pytest.raises(BenchError, match=r"dropout=1.0 must be in"):
        make.build("classifier", dropout=1.0)


# -- PixelCAM -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("backbone", "stride", "count"), [("resnet50", 8, 4098), ("deit_tiny_patch16_224", None, 386)])
def test_pixel_head_has_the_published_number_of_parameters(backbone, stride, count):
    with torch.device("meta"):
        method = METHODS.load("pixelcam")(
            create_backbone(backbone, stride, "meta"), 2, Options(**method_spec("pixelcam").options)
        )
    assert sum(p.numel() for p in method.pixel_head.parameters()) == count


def test_without_pixel_loss_it_is_the_classifier(make):
    classifier, pixelcam = make.build("classifier", classes=2), make.build("pixelcam", classes=2, lambda_pixel=0.0)
    pixelcam.load_state_dict(classifier.state_dict(), strict=False)
    torch.manual_seed(0)
    wanted, plain = gradients(classifier.train(), make.batch(), make.context())
    torch.manual_seed(0)
    losses, found = gradients(pixelcam.train(), make.batch(), make.context())
    assert losses["total"].item() == wanted["total"].item()
    assert all(torch.equal(found[n], g) for n, g in plain.items())
    assert losses["pixel"] > 0


def test_pixels_are_drawn_anew_at_every_step(make):
    method, context = make.build("pixelcam", classes=2), make.context()
    first, second = (method.loss(make.batch(), context)["pixel"].item() for _ in range(2))
    assert first != second
    assert method.loss(make.batch(), make.context())["pixel"].item() == first  # and by the context's generator alone


def test_total_is_the_weighted_sum(make):
    losses = make.build("pixelcam", classes=2, lambda_pixel=0.25).loss(make.batch(), make.context())
    torch.testing.assert_close(losses["total"], losses["image"] + 0.25 * losses["pixel"])


@pytest.mark.parametrize("low_res", [True, False])
def test_pixel_loss_reads_the_maps_at_the_asked_resolution(make, low_res):
    method = make.build(
        "pixelcam", classes=2, low_res=low_res, foreground=0, background=10**6, area=1.0, sampler="otsu"
    )
    batch = make.batch()
    batch.maps = batch.maps * 0.5
    batch.maps[:, :32] += 0.5
    grid = method.features(batch.images)
    pixel = method.loss(batch, make.context())["pixel"]
    size = grid.shape[2:] if low_res else batch.maps.shape[1:]
    logits = torch.nn.functional.interpolate(method.pixel_head(grid), size, mode="bilinear")
    torch.testing.assert_close(pixel, -logits.log_softmax(1)[:, 0].mean())  # every pixel is background here


@pytest.mark.parametrize("negatives", ["skip", "background", "dense"])
def test_images_without_region(make, negatives):
    # so many pixels are asked for that all are drawn, foreground and background where Otsu and `area` put them
    method = make.build("pixelcam", stride=8, classes=2, negatives=negatives, sampler="otsu", foreground=0,
                        background=10**6, area=0.5, lambda_pixel=2.0)  # fmt: skip
    batch, context = make.batch(), make.context(regions=(False, True))
    losses = method.loss(batch, context)
    maps = torch.nn.functional.interpolate(batch.maps[:, None], (8, 12), mode="bilinear")[:, 0]
    cost = -method.pixel_head(method.features(batch.images)).log_softmax(1)[:, 0]
    low = maps <= maps.flatten(1).kthvalue(48, 1).values[:, None, None]
    drawn, negative = cost[1::2][low[1::2]], cost[::2]
    wanted = torch.cat([drawn, negative.flatten()]).mean() if negatives == "background" else drawn.mean()
    torch.testing.assert_close(losses["pixel"], wanted)
    assert ("negative" in losses) == (negatives == "dense")
    if negatives == "dense":
        torch.testing.assert_close(losses["negative"], negative.mean())
        wanted = wanted + negative.mean()
    torch.testing.assert_close(losses["total"], losses["image"] + 2 * wanted)


def test_a_batch_of_negatives_alone_draws_nothing_when_they_are_skipped(make):
    method, batch = make.build("pixelcam", classes=2, negatives="skip"), make.batch()
    batch.labels[:] = 0
    assert method.loss(batch, make.context(regions=(False, True)))["pixel"].item() == 0
    assert method.loss(batch, make.context(regions=(True, True)))["pixel"].item() > 0


def test_warm_start_takes_encoder_and_head(make):
    parent, child = make.build("classifier", classes=2), make.build("pixelcam", classes=2)
    for p in parent.parameters():
        p.data.add_(0.01)
    context = make.context()
    context.models = {"init": parent}
    before = child.pixel_head.weight.clone()
    child.setup(context)
    images = make.batch().images
    torch.testing.assert_close(child.predict(images).logits, parent.predict(images).logits)
    assert torch.equal(child.pixel_head.weight, before)


def test_warm_start_without_a_head_and_from_another_backbone(make):
    child, context = make.build("pixelcam", classes=2), make.context()
    parent = make.build("classifier", classes=2)
    del parent.head
    for p in parent.state_dict().values():
        p.add_(1)
    context.models = {"init": parent}
    head = child.head.weight.clone()
    child.setup(context)
    assert torch.equal(child.head.weight, head)
    assert torch.equal(child.backbone.net.conv1[0].weight, parent.backbone.net.conv1[0].weight)
    context.models = {"init": make.build("classifier", "test_vit", classes=2)}
    with pytest.raises(BenchError, match="does not have the backbone 'test_resnet'"):
        child.setup(context)


def test_frozen_parts_stay_bit_identical(make):
    method = make.build("pixelcam", classes=2, freeze=True)
    method.setup(make.context())
    before = copied(method)
    optimizer = torch.optim.SGD(method.param_groups(0.5, 1.0)[0]["params"], lr=0.5, momentum=0.9)
    for _ in range(2):
        method.train()
        optimizer.zero_grad()
        method.loss(make.batch(), make.context())["total"].backward()
        optimizer.step()
    changed = {n for n, t in method.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"pixel_head.weight", "pixel_head.bias"}
    assert not method.backbone.training


def test_frozen_encoder_is_logistic_regression(make):
    method = make.build("pixelcam", stride=8, classes=2, freeze=True).double()
    batch = make.batch(images=6)
    images, maps = batch.images.double(), batch.maps[:, ::8, ::8]
    with torch.no_grad():
        grid = method.features(images)
    seeds = sample_pseudo_labels(maps, PseudoLabelRule("prob", 60, 60), torch.Generator().manual_seed(0))

    # a little weight decay in both, as random labels of few pixels may be separable: sum of losses + |w1 - w0|^2 / 20
    optimizer = torch.optim.LBFGS(method.pixel_head.parameters(), lr=1, max_iter=800, tolerance_grad=1e-9,
                                  tolerance_change=1e-14, line_search_fn="strong_wolfe")  # fmt: skip
    count = (seeds != -100).sum()

    def step():
        optimizer.zero_grad()
        weight = method.pixel_head.weight
        logits = method.pixel_head(grid)
        gap = (weight[1] - weight[0]).square().sum() / 20
        # in float64, which the training loss is not
        loss = torch.nn.functional.cross_entropy(logits, seeds, ignore_index=-100) + gap / count
        loss.backward()
        return loss

    optimizer.step(step)
    labelled = seeds != -100
    points = grid.permute(0, 2, 3, 1)
    oracle = LogisticRegression(C=10.0, tol=1e-10, max_iter=5000).fit(points[labelled].numpy(), seeds[labelled].numpy())
    with torch.no_grad():
        maps = method.predict(images).maps
        loss = partial_cross_entropy(method.pixel_head(grid), seeds)
    wanted = torch.from_numpy(oracle.predict_proba(points.flatten(0, 2).numpy())[:, 1]).view(maps.shape)
    torch.testing.assert_close(maps, wanted.float(), atol=1e-3, rtol=0)
    likelihood = torch.where(seeds[labelled] == 1, wanted[labelled], 1 - wanted[labelled])
    torch.testing.assert_close(loss.double(), -likelihood.log().mean(), atol=1e-3, rtol=0)
    assert maps.std() > 0.1


def test_pixelcam_learns_a_teachers_map(make):
    method, context = make.build("pixelcam", stride=8, classes=2, freeze=True), make.context()
    method.setup(context)
    batch = make.batch()
    batch.images[:, :, :, 48:] *= 4  # right half is loud
    batch.maps = torch.zeros_like(batch.maps)
    batch.maps[:, :, 48:] = 1
    optimizer = torch.optim.Adam(method.pixel_head.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        method.loss(batch, context)["total"].backward()
        optimizer.step()
    maps = method.eval().predict(batch.images).maps
    assert maps[:, :, 7:].mean() > maps[:, :, :5].mean() + 0.5


def test_missing_maps_and_masks_are_errors_of_the_caller(make):
    batch = make.batch()
    batch.maps = batch.masks = None
    for name in ("pixelcam", "unet"):
        with pytest.raises(RuntimeError, match="the batch has none"):
            make.build(name, classes=2).loss(batch, make.context())


# -- U-Net ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("backbone", "stride", "size"),
    [("test_resnet", 8, (64, 96)), ("test_resnet", None, (72, 100)), ("test_vit", None, (64, 96)),
     ("test_convnext", None, (64, 64))],
)  # fmt: skip
def test_unet_maps_are_at_image_size(make, backbone, stride, size):
    with torch.no_grad():
        maps = make.build("unet", backbone, stride).predict(torch.randn(2, 3, *size)).maps
    assert maps.shape == (2, *size)


def test_unet_on_a_level_at_image_size():
    options = Options(**method_spec("unet").options)
    with torch.device("meta"):
        method = METHODS.load("unet")(create_backbone("vgg16", 8, "meta"), 2, options)
        assert method.eval().predict(torch.empty(1, 3, 64, 64)).maps.shape == (1, 64, 64)


def test_unet_overfits_four_images(make):
    torch.manual_seed(0)
    method, context = make.build("unet", classes=2), make.context()
    batch = make.batch(size=(32, 32))
    batch.masks[:] = False
    for i, mask in enumerate(batch.masks):
        mask[4 + 3 * i : 20 + 3 * i, 6:22] = True
    batch.images = batch.images * 0.3 + batch.masks[:, None]
    optimizer = torch.optim.Adam(method.parameters(), lr=5e-3)
    method.train()
    for _ in range(40):
        optimizer.zero_grad()
        method.loss(batch, context)["total"].backward()
        optimizer.step()
    method.train(False)
    for module in method.modules():  # statistics of the batch itself: this asks what was learnt, not how fast they move
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        prediction = method.predict(batch.images)
    found = prediction.maps > 0.5
    dice = 2 * (found & batch.masks).sum() / (found.sum() + batch.masks.sum())
    assert dice > 0.99
    assert (prediction.logits.argmax(1) == batch.labels).all()


def test_unet_learns_nothing_from_ignored_pixels(make):
    method, batch = make.build("unet", classes=2), make.batch()
    ignored = torch.zeros_like(batch.masks)
    ignored[:, :, : make.size[1] // 2] = True
    hidden = [dataclasses.replace(batch, masks=m & ~ignored, ignored=ignored) for m in (batch.masks, ~batch.masks)]
    other = dataclasses.replace(hidden[0], masks=torch.where(ignored, True, hidden[0].masks))
    losses = [method.loss(b, make.context())["pixel"] for b in (hidden[0], other)]
    assert torch.equal(*losses)
    half = method._logits(batch.images)[1][..., make.size[1] // 2 :]
    expected = torch.nn.functional.cross_entropy(half, batch.masks[..., make.size[1] // 2 :].long())
    torch.testing.assert_close(losses[0], expected)
    whole = dataclasses.replace(batch, ignored=torch.zeros_like(batch.masks))
    torch.testing.assert_close(method.loss(whole, make.context())["pixel"], method.loss(batch, make.context())["pixel"])
