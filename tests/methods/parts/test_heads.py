"""Image heads and Deep MIL, against the mean pooling they contain and against attention MIL written out."""

import numpy as np
import pytest
import torch

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.methods.parts.heads import AttentionHead, GapHead, make_head


def grid(seed=0, depth=6):
    return torch.randn(3, depth, 4, 5, generator=torch.Generator().manual_seed(seed))


def attention_mil(instances, hidden, score, linear, gate=None):
    """Ilse et al., equations 1, 8 and 9, of one bag (n, D) with one branch; `score` and `linear` with their biases."""
    h = np.tanh(instances @ hidden[0].T + hidden[1])
    if gate is not None:
        h = h / (1 + np.exp(-(instances @ gate[0].T + gate[1])))
    raw = h @ score[0] + score[1]
    weights = np.exp(raw - raw.max()) / np.exp(raw - raw.max()).sum()
    return weights, (weights[:, None] * instances).sum(0) @ linear[0] + linear[1]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
def test_attention_head_is_attention_mil_weight_for_weight(gated, classes):
    torch.manual_seed(1)
    head = make_head("attention", 6, classes, width=7, gated=gated)
    with torch.no_grad():
        logits, attention = head(grid()).numpy(), head.attention(grid()).numpy()

    def of(layer):
        return layer.weight.detach().double().flatten(1).numpy(), layer.bias.detach().double().numpy()

    score, (weight, bias) = head.score.weight.detach().double().flatten(1).numpy(), of(head.linear)
    gate = of(head.gate) if gated else None
    for b, image in enumerate(grid().double().numpy()):
        for c in range(classes):
            # a bias of the score is a constant under the softmax: any value must do
            maps, logit = attention_mil(image.reshape(6, -1).T, of(head.hidden), (score[c], 3.0 + c),
                                        (weight[c], bias[c]), gate)  # fmt: skip
            np.testing.assert_allclose(attention[b, c].ravel(), maps, rtol=1e-5)
            np.testing.assert_allclose(logits[b, c], logit, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
def test_without_scores_attention_is_uniform_and_the_head_is_mean_pooling(gated):
    head, plain = make_head("attention", 6, 3, gated=gated), make_head("gap", 6, 3)
    torch.nn.init.zeros_(head.score.weight)
    plain.load_state_dict(head.linear.state_dict())
    torch.testing.assert_close(head.attention(grid()), torch.full((3, 3, 4, 5), 1 / 20))
    torch.testing.assert_close(head(grid()), plain(grid()))


def test_evidence_sums_to_the_logit_without_bias():
    head = AttentionHead(6, 3)
    torch.testing.assert_close(head.evidence(grid()).sum((2, 3)) + head.linear.bias, head(grid()))
    assert head.evidence(grid()).min() < 0
    torch.testing.assert_close(head.attention(grid()).sum((2, 3)), torch.ones(3, 3))


def test_mean_pooling_is_a_linear_layer_by_its_names_and_numbers():
    head = GapHead(6, 2)
    assert [n for n, _ in head.named_parameters()] == ["weight", "bias"]
    wanted = torch.einsum("bdhw,kd->bk", grid(), head.weight) / 20 + head.bias
    torch.testing.assert_close(head(grid()), wanted)


def test_softmax_and_sum_stay_in_float32_under_autocast():
    torch.manual_seed(0)
    head, many = AttentionHead(6, 2), torch.randn(2, 6, 60, 60)
    with torch.autocast("cpu", torch.bfloat16):
        attention, logits = head.attention(many), head(many)
    assert attention.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, 2), atol=1e-5, rtol=0)
    head.score.weight.data.mul_(1e5)
    assert torch.isfinite(head(many)).all()


def test_heads_that_make_no_sense_are_refused():
    with pytest.raises(BenchError, match="no image head 'max'"):
        make_head("max", 6, 2)
    with pytest.raises(BenchError, match="width of at least 1"):
        make_head("attention", 6, 2, width=0)


# -- the method -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_deepmil_map_is_the_attention_of_the_class_asked_for(make, backbone):
    method, images = make.build("deepmil", backbone), make.batch().images
    grid = method.features(images)
    attention, logits = method.head.attention(grid), method.head(grid)
    found = method.predict(images)
    torch.testing.assert_close(found.logits, logits)
    for b, c in enumerate(logits.argmax(1)):
        assert torch.equal(found.maps[b], attention[b, c])
    asked = method.predict(images, torch.tensor([0, 2, 1, 1])).maps
    for b, c in enumerate((0, 2, 1, 1)):
        assert torch.equal(asked[b], attention[b, c])
    torch.testing.assert_close(asked.sum((1, 2)), torch.ones(4))


def test_deepmil_evidence_map_makes_the_logit(make):
    method, classes = make.build("deepmil", map="evidence", gated=True), torch.tensor([2, 0, 1, 1])
    found = method.predict(make.batch().images, classes)
    wanted = found.logits.gather(1, classes[:, None])[:, 0] - method.head.linear.bias[classes]
    torch.testing.assert_close(found.maps.sum((1, 2)), wanted)


def test_deepmil_options_shape_its_head(make):
    assert make.build("deepmil", width=16, gated=True).head.gate.out_channels == 16
    assert make.build("deepmil").head.gate is None
    with pytest.raises(BenchError, match="map='logit' must be"):
        make.build("deepmil", map="logit")


def test_cam_of_deepmil_reads_its_gradient(make):
    # the classifier's explainers work on other heads as well: sum_p of (gradient x activation) is what cam averages
    seen = make.evidence(make.build("deepmil"))
    maps = make.explain("cam", seen)
    wanted = torch.einsum("bd,bdhw->bhw", seen.gradients.sum((2, 3)), seen.activations)
    torch.testing.assert_close(maps, wanted)
