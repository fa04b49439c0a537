"""The reader of views: one pass for all of them, equal maps, nothing left behind, its parts timed and named."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.timing import Stopwatch
from wsolbench.benchmark.planning.config import TrainConfig
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring.build import build_method, load_function, options
from wsolbench.benchmark.scoring.map_extractor import MapExtractor, MapRequest
from wsolbench.methods.base import Evidence, EvidenceSettings

LAST = ("cam", "gradcam", "gradcampp", "xgradcam", "layercam", "hirescam", "gradcam_elementwise")
SHALLOW = ("layercam:0", "layercam:shallow", "layercam:-2")
LABELS = torch.tensor([0, 1, 1])
IDS = ["a", "b", "c"]


def model_of(name="classifier", backbone="test_resnet"):
    """Random weights, normalisation statistics not all alike."""
    method = build_method(Resolver({}).ref(name), backbone, TrainConfig(stride=0), 2, 0).eval()
    generator = torch.Generator().manual_seed(2)
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return method


def views_of(*asked):
    """`method|class` -> views."""
    return tuple(MapRequest(Resolver({}).ref(name), map_class) for name, map_class in (a.split("|") for a in asked))


def images():
    return torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))


ALL = (*(f"{n}|region" for n in (*LAST, *SHALLOW)), "layercam:1|true", "gradcam|true", "eigencam|any")


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext"])
def test_one_pass_gives_the_maps_of_passes_of_their_own(backbone):
    model, views, pixels = model_of(backbone=backbone), views_of(*ALL), images()
    logits, maps = MapExtractor(model, views, (0, 1), 2).read(pixels, LABELS, IDS)
    with torch.no_grad():
        torch.testing.assert_close(logits, model.classify(model.features(pixels)), atol=1e-6, rtol=1e-5)
    asked = {"region": logits.argmax(1), "true": LABELS, "any": None}
    for view in views:
        alone = Evidence(pixels, asked[view.map_class], model)  # nothing announced: every level has its own pass
        wanted = load_function(view.method)(alone, options(view.method))
        torch.testing.assert_close(maps[view.name], wanted, atol=1e-6 * wanted.max().item(), rtol=1e-4)
        assert wanted.max() > 0


def test_gradients_of_several_levels_are_those_of_the_whole_graph():
    model, pixels = model_of(backbone="test_vit"), images()
    seen = Evidence(pixels, LABELS, model, settings=EvidenceSettings(levels=(0, 2, -1)))
    blocks = [model.backbone.net.get_submodule(model.backbone._levels[i]) for i in (0, 2)]
    kept = []
    handles = [b.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), kept.append(out))[0]) for b in blocks]
    grid = model.features(pixels)
    for handle in handles:
        handle.remove()
    grid.retain_grad()
    model.classify(grid).gather(1, LABELS[:, None]).sum().backward()
    for level, whole in zip((0, 2), kept, strict=True):
        tokens = whole.grad[:, 1:].transpose(1, 2).unflatten(2, (4, 6))  # those of the class token are not part of it
        torch.testing.assert_close(seen.taps(level)[1], tokens, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(seen.gradients, grid.grad, atol=1e-7, rtol=1e-4)


@pytest.fixture
def counted(monkeypatch):
    """Inputs of every backward pass, and the number of forward passes of a model."""
    backward, plain = [], torch.autograd.grad

    def grad(outputs, inputs, *rest, **more):
        backward.append(len(inputs) if isinstance(inputs, list) else 1)
        return plain(outputs, inputs, *rest, **more)

    monkeypatch.setattr(torch.autograd, "grad", grad)

    def forwards(model):
        calls, inner = [], model.backbone.net.forward_features
        monkeypatch.setattr(model.backbone.net, "forward_features", lambda x: (calls.append(1), inner(x))[1])
        return calls

    return backward, forwards


def test_one_forward_and_one_backward_a_class(counted):
    backward, forwards = counted
    model = model_of()
    calls = forwards(model)
    MapExtractor(model, views_of(*ALL), (0, 1), 2).read(images(), LABELS, IDS)
    # region: the grid through the head alone, and levels 0, 2 and 3 together; true: level 1, the grid
    assert (len(calls), backward) == (1, [1, 3, 1, 1])


def test_without_shallow_levels_no_layer_builds_a_graph(counted):
    model, graphs = model_of(), []
    for site in (model.backbone.out, model.backbone.net.layer1):
        site.register_forward_hook(lambda _m, _i, out: graphs.append(out.requires_grad))
    MapExtractor(model, views_of(*(f"{n}|region" for n in LAST), "eigencam|any"), (0, 1), 2).read(images(), LABELS, IDS)
    assert graphs == [False, False]
    assert counted[0] == [1]


def test_the_graph_begins_at_the_shallowest_level_asked_for():
    model, graphs = model_of(), {}

    def note(name):
        def hook(_module, _inputs, output):
            graphs[name] = output.requires_grad

        return hook

    for name in ("conv1", "layer1", "layer2", "layer3", "layer4"):
        model.backbone.net.get_submodule(name).register_forward_hook(note(name))
    MapExtractor(model, views_of("layercam:3|region", "layercam:2|region"), (0, 1), 2).read(images(), LABELS, IDS)
    assert graphs == {"conv1": False, "layer1": False, "layer2": False, "layer3": True, "layer4": True}


def state(model):
    """Everything reading could have changed."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "hooks": [[list(getattr(m, n)) for n in names] for m in model.modules()],
        "modes": [m.training for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "tensors": {n: t.tolist() for n, t in model.state_dict().items()},
    }


def test_reading_changes_nothing_and_keeps_no_graph():
    model = model_of()
    model.head.weight.grad = torch.ones_like(model.head.weight)  # a training step is under way
    model.backbone.net.layer1.requires_grad_(False)
    model.dropout.train()
    outputs = []
    model.backbone.net.layer3.register_forward_hook(lambda _m, _i, out: outputs.append(weakref.ref(out)))
    before = state(model)
    assert len(before["tensors"]) > 20
    gc.disable()  # nothing may wait for it
    try:
        logits, maps = MapExtractor(model, views_of(*ALL), (0, 1), 2).read(images(), LABELS, IDS)
        assert [ref() for ref in outputs] == [None]
    finally:
        gc.enable()
    assert state(model) == before
    assert all(t.grad_fn is None and not t.requires_grad for t in (logits, *maps.values()))


def test_an_unknown_level_is_named():
    with pytest.raises(BenchError, match="levels 0 to 4, not 7"):
        MapExtractor(model_of(), views_of("layercam:7|region"), (0, 1), 2).read(images(), LABELS, IDS)


class Log:
    """Stands for a stopwatch: which parts were open when a part began."""

    def __init__(self):
        self.open, self.seen = [], []

    @contextmanager
    def part(self, name):
        self.open.append(name)
        self.seen.append(" > ".join(self.open))
        yield
        self.open.pop()


def test_parts_are_charged_to_what_is_shared_and_to_each_view():
    log = Log()
    views = views_of("gradcam|region", "layercam|region", "eigencam|any", "darkness|any")
    reader = MapExtractor(model_of(), views, (0, 1), 2, watch=log)
    reader.read(images(), LABELS, IDS)
    one, two, three, four = (f"read:{v.name}" for v in views)
    assert log.seen == ["forward", "forward", one, f"{one} > gradient:region", two, three, four]
    both, first, none = {"forward", "gradient:region"}, {"forward"}, set()
    assert reader.used == dict(zip((v.name for v in views), (both, both, first, none), strict=True))
    assert reader == MapExtractor(reader.model, views, (0, 1), 2)


def test_a_pass_with_shallow_levels_charges_the_same_parts():
    log = Log()
    views = views_of("layercam:1|true", "layercam:2|true", "cam|region")
    reader = MapExtractor(model_of(), views, (0, 1), 2, watch=log)
    reader.read(images(), LABELS, IDS)
    one, two, three = (f"read:{v.name}" for v in views)
    assert log.seen == ["forward", one, f"{one} > taps:true", two, three, f"{three} > gradient:region"]
    shallow, last = {"forward", "taps:true"}, {"forward", "gradient:region"}
    assert list(reader.used.values()) == [shallow, shallow, last]


def test_a_trained_method_is_charged_for_all_of_its_prediction():
    views = views_of("deepmil|true", "deepmil|region")
    watch = Stopwatch(torch.device("cpu"))
    reader = MapExtractor(model_of("deepmil"), views, (0, 1), 2, watch=watch)
    reader.read(images(), LABELS, IDS)
    seconds = watch.seconds()
    assert list(seconds) == [f"predict:{v.name}" for v in views]
    assert min(seconds.values()) > 0
    assert reader.used == {v.name: set() for v in views}
