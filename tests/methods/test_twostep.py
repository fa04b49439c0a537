"""Two-step localisation, F-CAM and NEGEV: what is frozen, what each term is, and that the recipes are one method."""

import pytest
import torch
import torch.nn.functional as F

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.methods import twostep
from wsolbench.methods.base import METHODS, Options, is_explainable
from wsolbench.methods.parts.barrier import size_barrier
from wsolbench.methods.parts.crf import PUBLISHED_PAIRS, dense_crf, joint_crf
from wsolbench.methods.spec import method_spec

NAMES = ("twostep", "fcam", "negev")
ALL = {
    "sampler": "otsu",
    "foreground": 0,
    "background": 10**6,
    "area": 1.0,
    "dilation": 1,
}  # every pixel, as background
SIZE = (32, 48)
HALF = (False, True)  # class 0 is without region, as Camelyon's normal


def small(make):
    return make.batch(size=SIZE)


def copied(method):
    return {n: t.clone() for n, t in method.state_dict().items()}


def started(make, name, parent="classifier", backbone="test_resnet", classes=2, **changed):
    """A method after setup on a parent of weights other than its own, and that parent."""
    source = make.build(parent, backbone, classes=classes)
    for p in source.parameters():
        p.data.add_(0.01)
    method, context = make.build(name, backbone, classes=classes, **changed), make.context()
    context.models = {"init": source}
    method.setup(context)
    return method.eval(), source


def updated(method, batch, context, steps=2):
    optimizer = torch.optim.SGD(method.param_groups(0.1, 10.0), momentum=0.9)
    for _ in range(steps):
        method.train()
        optimizer.zero_grad()
        method.loss(batch, context)["total"].backward()
        optimizer.step()
    return method.eval()


def gradients(method, batch, context):
    method.zero_grad()
    losses = method.loss(batch, context)
    losses["total"].backward()
    return losses, {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


# -- the contract ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_contract(make, name, backbone):
    method, _ = started(make, name, backbone=backbone)
    before, images = copied(method), small(make).images
    assert is_explainable(method)
    with torch.no_grad():
        first, second = method.predict(images), method.predict(images, torch.zeros(4, dtype=torch.int64))
    assert first.logits.shape == (4, 2)
    assert first.maps.shape == (4, *SIZE)
    assert torch.equal(first.maps, second.maps)
    assert 0 <= first.maps.min() < first.maps.max() <= 1
    method.loss(small(make), make.context())
    assert all(torch.equal(t, before[n]) for n, t in method.state_dict().items())


@pytest.mark.parametrize("decoder", ["unet", "linear"])
@pytest.mark.parametrize(("parent", "teacher"), [("classifier", "layercam"), ("deepmil", "deepmil")])
def test_the_classifier_stays_bit_for_bit(make, decoder, parent, teacher):
    method, source = started(make, "twostep", parent, decoder=decoder, teacher=teacher)
    before, images = copied(method), small(make).images
    with torch.no_grad():
        wanted = source.predict(images).logits
        assert torch.equal(method.predict(images).logits, wanted)
    updated(method.train(), small(make), make.context())
    with torch.no_grad():
        assert torch.equal(method.predict(images).logits, wanted)
    changed = {n for n, t in method.state_dict().items() if not torch.equal(t, before[n])}
    assert {n.partition(".")[0] for n in changed} == {"pixel_head", *(["decoder"] if decoder == "unet" else [])}
    assert all(n in changed for n in before if n.endswith("running_mean") and n.startswith("decoder"))


def test_gradients_go_through_the_decoder_only(make):
    method, _ = started(make, "fcam", crf_size=12)
    method.train()
    assert not any(m.training for part in (method.backbone, method.head, method.dropout) for m in part.modules())
    grid, _ = method._logits(small(make).images)
    assert not grid.requires_grad
    _, found = gradients(method, small(make), make.context())
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    assert set(found) == trained == {n for n, _ in method.named_parameters() if n.startswith(("decoder", "pixel_head"))}
    assert all(torch.isfinite(g).all() for g in found.values())


@pytest.mark.parametrize("freeze", [True, False])
def test_the_decoder_has_one_learning_rate_on_every_backbone(make, freeze):
    method, _ = started(make, "negev", freeze=freeze)
    groups = method.param_groups(0.1, 10.0)
    own = {id(p) for n, p in method.named_parameters() if n.startswith(("decoder", "pixel_head"))}
    assert {id(p) for g in groups if any(id(p) in own for p in g["params"]) for p in g["params"]} == own
    assert [g["lr"] for g in groups if id(g["params"][0]) in own] == [0.1]
    grouped = [id(p) for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    assert len(groups) == (1 if freeze else 3)


def test_unfrozen_it_trains_the_classifier_along(make):
    method, _ = started(make, "twostep", freeze=False, dropout=0.0)
    losses, found = gradients(method, small(make), make.context())
    torch.testing.assert_close(losses["total"], losses["pseudo"] + losses["image"])
    wanted = F.cross_entropy(method.classify(method.features(small(make).images)), small(make).labels)
    torch.testing.assert_close(losses["image"], wanted)
    assert set(found) == {n for n, _ in method.named_parameters()}
    assert method.train().backbone.training


@pytest.mark.parametrize("name", NAMES)
def test_constant_maps_and_one_class_give_zero_not_nan(make, name):
    method, batch = started(make, name, lambda_crf=0.0, lambda_size=0.0)[0], small(make)
    batch.maps[:] = 0.3
    losses, found = gradients(method, batch, make.context())
    assert losses["total"].item() == 0
    assert all((g == 0).all() for g in found.values())
    batch.labels[:] = 0
    assert torch.isfinite(method.loss(batch, make.context(regions=HALF))["total"])


def test_maps_of_another_size_are_resized_and_none_is_an_error(make):
    method, batch = started(make, "twostep", **ALL)[0], small(make)
    whole = method.loss(batch, make.context())["pseudo"]
    batch.maps = batch.maps[:, ::4, ::4]
    torch.testing.assert_close(method.loss(batch, make.context())["pseudo"], whole)
    batch.maps = None
    with pytest.raises(RuntimeError, match="twostep learns from teacher maps, and the batch has none"):
        method.loss(batch, make.context())


# -- the terms ------------------------------------------------------------------------------------------------------
def pixel_costs(method, batch):
    """(B, H, W): what calling a pixel background costs."""
    return -method._logits(batch.images)[1].log_softmax(1)[:, 0]


@pytest.mark.parametrize("negatives", ["skip", "background", "dense"])
def test_images_without_region(make, negatives):
    method = started(make, "twostep", negatives=negatives, lambda_negative=0.5, lambda_pseudo=2.0, **ALL)[0]
    batch = small(make)
    losses, costs = method.loss(batch, make.context(regions=HALF)), pixel_costs(method, batch)
    assert set(losses) == {"total", "pseudo", *(["negative"] if negatives == "dense" else [])}
    # positives and negatives have as many pixels each, and `background` draws every pixel of both
    wanted = costs.mean() if negatives == "background" else costs[1::2].mean()
    torch.testing.assert_close(losses["pseudo"], wanted)
    total = 2 * wanted
    if negatives == "dense":
        torch.testing.assert_close(losses["negative"], costs[::2].mean())
        total = total + 0.5 * costs[::2].mean()
    torch.testing.assert_close(losses["total"], total)


@pytest.mark.parametrize("regularised", [False, True])
def test_a_batch_of_negatives_alone_is_cross_entropy_to_background(make, regularised):
    more = {"lambda_crf": 2e-9, "lambda_size": 0.1, "lambda_joint": 2e-9} if regularised else {}
    method, batch = started(make, "negev", **more)[0], small(make)
    batch.labels[:] = 0
    losses, found = gradients(method, batch, make.context(regions=HALF))
    torch.testing.assert_close(losses["total"], pixel_costs(method, batch).mean())
    method.zero_grad()
    pixel_costs(method, batch).mean().backward()
    for name, p in method.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(found[name], p.grad)


def test_the_negative_term_is_off_where_every_class_has_a_region(make):
    method = started(make, "negev")[0]
    assert set(method.loss(small(make), make.context())) == {"total", "pseudo"}
    off = started(make, "negev", lambda_negative=0.0)[0]
    assert set(off.loss(small(make), make.context(regions=HALF))) == {"total", "pseudo"}


def test_regularisers_are_weighted_as_published(make):
    weights = {"lambda_crf": 3e-9, "lambda_joint": 1e-9, "lambda_size": 0.2, "elb_start": 2.0, "elb_mu": 1.5}
    method, batch, context = started(make, "fcam", crf_size=12, **weights)[0], small(make), make.context()
    context.epoch = 3
    losses = method.loss(batch, context)
    soft = method._logits(batch.images)[1].softmax(1)
    torch.testing.assert_close(losses["crf"], dense_crf(soft, batch.images, 12, statistics=method.backbone.statistics))
    # two images of each class: each is the other's partner
    torch.testing.assert_close(
        losses["joint"],
        joint_crf(soft, batch.images, torch.tensor([2, 3, 0, 1]), 12, statistics=method.backbone.statistics),
    )
    torch.testing.assert_close(losses["size"], size_barrier(soft, 2.0 * 1.5**2))
    total = losses["pseudo"] + PUBLISHED_PAIRS * (3e-9 * losses["crf"] + 4e-9 * losses["joint"]) + 0.2 * losses["size"]
    torch.testing.assert_close(losses["total"], total)


def test_regularisers_see_the_images_with_a_region(make):
    method, batch = started(make, "fcam", crf_size=12)[0], small(make)
    losses = method.loss(batch, make.context(regions=HALF))
    soft = method._logits(batch.images)[1].softmax(1)[1::2]
    torch.testing.assert_close(
        losses["crf"], dense_crf(soft, batch.images[1::2], 12, statistics=method.backbone.statistics)
    )
    torch.testing.assert_close(losses["size"], size_barrier(soft, 1.0))


def test_what_is_off_is_not_computed(make, monkeypatch):
    def fail(*_args, **_words):
        raise AssertionError("computed though it is off")

    for name in ("dense_crf", "joint_crf", "size_barrier"):
        monkeypatch.setattr(twostep, name, fail)
    started(make, "negev")[0].loss(small(make), make.context())
    with pytest.raises(AssertionError, match="computed though"):
        started(make, "fcam")[0].loss(small(make), make.context())


# -- one family -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["fcam", "negev"])
def test_fcam_and_negev_are_recipes_of_twostep(make, name):
    named, _ = started(make, name, crf_size=16)
    mixed, _ = started(make, "twostep", **{**method_spec(name).options, "crf_size": 16})
    assert set(method_spec(name).options) == set(method_spec("twostep").options)
    wanted, slopes = gradients(named, small(make), make.context(regions=HALF))
    losses, found = gradients(mixed, small(make), make.context(regions=HALF))
    assert {n: v.item() for n, v in losses.items()} == {n: v.item() for n, v in wanted.items()}
    assert set(losses) == {"total", "pseudo", *(["crf", "size"] if name == "fcam" else ["negative"])}
    assert all(torch.equal(found[n], g) for n, g in slopes.items())


def test_negev_without_negatives_on_otsu_seeds_is_fcam_without_regularisers(make):
    same = {"sampler": "otsu", "foreground": 1, "background": 1, "dilation": 3, "teacher": "layercam"}
    negev, _ = started(make, "negev", **same)
    fcam, _ = started(make, "fcam", lambda_crf=0.0, lambda_size=0.0)
    batch, losses = small(make), []
    for method in (negev, fcam):
        loss, slopes = gradients(method, batch, make.context())
        losses.append((loss["total"].item(), slopes))
    assert losses[0][0] == losses[1][0] > 0
    assert all(torch.equal(g, losses[1][1][n]) for n, g in losses[0][1].items())


def test_one_linear_layer_on_the_grid_is_a_frozen_pixelcam_at_image_size(make):
    seeds = {"sampler": "prob_area", "foreground": 5, "background": 5, "area": 0.2, "dilation": 1, "negatives": "dense"}
    two, _ = started(make, "twostep", decoder="linear", **seeds)
    one = make.build("pixelcam", classes=2, freeze=True, low_res=False, **seeds)
    one.load_state_dict(two.state_dict())
    context = make.context(regions=HALF)
    wanted = one.loss(small(make), make.context(regions=HALF))
    found = two.loss(small(make), context)
    assert found["pseudo"].item() == wanted["pixel"].item() > 0
    assert found["negative"].item() == wanted["negative"].item() > 0


def test_masks_as_maps_with_dense_seeds_reach_the_fully_supervised_bound(make):
    torch.manual_seed(0)
    method, batch = started(make, "negev", foreground=10**6, background=10**6)[0], make.batch(size=(32, 32))
    batch.masks[:] = False
    for i in (1, 3):  # the others are without region
        batch.masks[i, 4 + 3 * i : 20 + 3 * i, 6:22] = True
    batch.images = batch.images * 0.3 + batch.masks[:, None]
    batch.maps, context = batch.masks.float(), make.context(regions=HALF)
    optimizer = torch.optim.Adam((p for p in method.parameters() if p.requires_grad), lr=5e-3)
    method.train()
    for _ in range(30):
        optimizer.zero_grad()
        method.loss(batch, context)["total"].backward()
        optimizer.step()
    with torch.no_grad():  # in train mode: the frozen part is in eval mode, the decoder on statistics of the batch
        found = method.predict(batch.images).maps > 0.5
    dice = 2 * (found & batch.masks).sum() / (found.sum() + batch.masks.sum())
    assert dice > 0.97
    assert not found[::2].any()  # the negative images stay empty


def test_training_works_under_bfloat16(make):
    method = started(make, "fcam", lambda_joint=1e-9, crf_size=12)[0]
    with torch.autocast("cpu", torch.bfloat16):
        losses = method.loss(small(make), make.context())
    losses["total"].backward()
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(losses[n].dtype == torch.float32 for n in ("pseudo", "crf", "joint", "size"))


# -- what is refused ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"teacher": "darkness"}, "its teacher 'darkness' has none"), ({"decoder": "fpn"}, "decoder='fpn' must be"),
     ({"lambda_crf": -1.0}, "lambda_crf=-1.0 must be"), ({"lambda_pseudo": 0.0}, "nothing tells where"),
     ({"crf_size": 0}, "crf_size=0"), ({"elb_mu": 0.5}, "log-barrier needs"), ({"erosion": 2}, "odd numbers"),
     ({"teacher": "layercamm"}, "Did you mean")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(make, wrong, message):
    with pytest.raises(BenchError, match=message):
        make.build("twostep", **wrong)


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_is_needed(name):
    with pytest.raises(BenchError, match="needs a backbone"):
        METHODS.load(name)(None, 2, Options(**method_spec(name).options))
