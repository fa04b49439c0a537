"""Protocols: named, frozen, checked, and never mixed up."""

import dataclasses
import json

import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.protocols import FAIR, PAPER, Protocol, get_protocol


def test_fair_takes_nothing_of_the_test_set_but_its_images():
    assert FAIR.map_class == "region"
    assert FAIR.scale == "validation"
    assert (FAIR.selection, FAIR.ties, FAIR.teacher_selection) == ("cl", "loss", "cl")
    assert FAIR.first_epoch == 1


def test_paper_is_the_published_evaluation():
    assert PAPER.size == 224
    assert (PAPER.map_class, PAPER.scale, PAPER.selection, PAPER.ties) == ("true", "image", "loc", "last")
    assert PAPER.first_epoch == 0


def test_the_id_tells_every_change():
    assert FAIR.id == "fair"
    assert get_protocol("fair", size=112).id == "fair(size=112)"
    assert get_protocol("paper", map_class="region", size=64).id == "paper(size=64,map_class=region)"
    assert get_protocol("paper", size=224).id == "paper"


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Protocol)])
def test_every_field_is_part_of_the_identity(field):
    identity = FAIR.identity()
    assert field in identity
    assert json.loads(json.dumps(identity)) == identity


@pytest.mark.parametrize(
    "changes",
    [
        {"map_class": "prde"}, {"scale": "set"}, {"ties": "first"}, {"selection": "best"}, {"teacher_selection": "x"},
        {"size": 4}, {"size": 10**6}, {"scale_quantiles": (0.9, 0.1)}, {"scale_quantiles": (-0.1, 0.5)},
        {"sise": 10}, {"version": 2}, {"name": "mine"},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_and_named(changes):
    with pytest.raises(BenchError, match=f"protocol.{next(iter(changes))}"):
        get_protocol("fair", **changes)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(BenchError, match="Did you mean paper"):
        get_protocol("papper")


def test_protocols_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FAIR.size = 1  # pyright: ignore[reportAttributeAccessIssue]
