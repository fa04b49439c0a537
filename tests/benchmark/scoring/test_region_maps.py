"""Whose map is asked for under `fair`: the most probable class among those with a region of interest."""

import numpy as np
import pytest
import torch
from torch import nn

from wsolbench.benchmark.core.metrics import Histograms, pxap
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring.map_extractor import MapExtractor, MapRequest, likeliest
from wsolbench.benchmark.scoring.map_scaling import histogram, scale_maps
from wsolbench.methods.base import Evidence, Method, Prediction


class Planted(Method):
    """A model with perfect maps: in each image the map of a class is high where that class is, known by the test."""

    registered_name = "planted"

    def __init__(self, logits, maps):
        super().__init__()
        self.kept, self.maps, self.backbone = logits, maps, nn.Identity()

    def loss(self, batch, context):
        raise NotImplementedError

    def predict(self, images, classes=None):
        asked = self.kept.argmax(1) if classes is None else classes
        return Prediction(self.kept, self.maps[torch.arange(len(asked)), asked])


def planted_maps(labels, masks, count, background):
    """Maps (N, classes, h, w) of a perfect model: of the image's own lesion its mask, of any other lesion what is no
    lesion (nothing in an image of the background class), of background all that is no lesion."""
    maps = torch.zeros(len(labels), count, *masks.shape[1:])
    for image, label in enumerate(labels.tolist()):
        for c in range(count):
            other = label == background != c  # a lesion, asked for where there is none
            maps[image, c] = masks[image].float() if c == label != background or other else (~masks[image]).float()
    return maps


def score(map_class, regions, logits, maps, labels, masks):
    view = MapRequest(Resolver({}).ref("deepmil"), map_class)  # any trained method: its model is the planted one
    _, found = MapExtractor(Planted(logits, maps), (view,), regions, logits.shape[1]).read(
        maps[:, :1], labels, [""] * 99
    )
    scaled, _ = scale_maps(found[view.name], "prob", "image")
    return pxap(Histograms(*(h.numpy() for h in histogram(scaled, masks))))


@pytest.fixture
def camelyon():
    """Two classes, normal (0) and tumour (1); half of the tumour images are predicted normal."""
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    masks = torch.zeros(8, 20, 20, dtype=torch.bool)
    masks[4:, 2:14, 3:17] = True
    guessed = torch.tensor([0, 0, 1, 0, 1, 0, 1, 0])
    return labels, masks, nn.functional.one_hot(guessed, 2).float(), planted_maps(labels, masks, 2, background=0)


def test_a_perfect_cam_is_perfect_also_where_an_image_is_predicted_as_background(camelyon):
    labels, masks, logits, maps = camelyon
    assert score("region", (1,), logits, maps, labels, masks) == 100
    by_prediction, _ = scale_maps(maps[torch.arange(8), logits.argmax(1)], "prob", "image")  # what was scored before
    assert pxap(Histograms(*(h.numpy() for h in histogram(by_prediction, masks)))) < 60


def test_of_several_lesion_classes_the_likeliest_is_asked():
    labels = torch.tensor([0, 1, 2, 3, 1, 2])
    masks = torch.zeros(6, 16, 16, dtype=torch.bool)
    masks[labels > 0, 4:9, 2:12] = True
    maps = planted_maps(labels, masks, 4, background=0)
    logits = 3 * nn.functional.one_hot(labels, 4).float()
    logits[4:, 0] = 5  # two lesion images are called background; their lesion is the likeliest of the lesions
    some = labels > 0
    assert score("region", (1, 2, 3), logits[some], maps[some], labels[some], masks[some]) == 100
    # the map of one fixed positive class, as before, is that of another lesion in most images
    fixed, _ = scale_maps(maps[some, 1], "prob", "image")
    assert pxap(Histograms(*(h.numpy() for h in histogram(fixed, masks[some])))) < 60


@pytest.mark.parametrize(
    ("classes", "wanted"), [((0, 1, 2), [2, 0, 1]), ((1,), [1, 1, 1]), ((0, 1), [1, 0, 1]), ((1, 2), [2, 1, 1])]
)
def test_the_likeliest_of_some_classes(classes, wanted):
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, 4.0, 4.0], [0.0, 3.0, -1.0]])
    assert likeliest(logits, classes).tolist() == wanted


def test_explainers_are_asked_about_the_same_class():
    """An explainer reads the class the rule gives, whatever the model predicts."""
    asked = []

    class Model(nn.Module):
        registered_name = "model"
        backbone = nn.Identity()

        def features(self, images):
            return images

        def classify(self, grid):
            return torch.tensor([[3.0, 1.0, 2.0]]).expand(len(grid), 3)

    view = MapRequest(Resolver({}).ref("cam"), "region")
    reader = MapExtractor(Model(), (view,), (1, 2), 3)
    plain = Evidence.of

    def noted(self, classes, levels=(), about=""):
        asked.append(classes.tolist())
        return plain(self, classes, levels, about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evidence, "of", noted)
        patch.setattr(
            "wsolbench.benchmark.scoring.map_extractor.load_function",
            lambda ref: lambda evidence, _: evidence.images[:, 0],
        )
        reader.read(torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.long), ["a", "b"])
    assert asked == [[2, 2]]
    assert np.isfinite(asked).all()
