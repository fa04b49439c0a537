"""Which epoch takes a slot: better values, ties by the protocol, epoch 0 only as published."""

import pytest

from wsolbench.benchmark.training.checkpoint_selection import update_slots

NAN = float("nan")


def after(*epochs):
    """Slots after (accuracy, loss, PxAP) of epochs 0, 1, …, the same PxAP under both protocols."""
    slots = {}
    for number, (accuracy, loss, quality) in enumerate(epochs):
        update_slots(slots, number, accuracy, loss, {(p, "cam"): quality for p in ("fair", "paper")})
    return {name: slot["epoch"] for name, slot in slots.items()}


def test_the_best_value_is_taken():
    slots = after((90, 1, 10), (70, 1, 30), (80, 1, 20))
    assert slots["cl/paper"] == 0
    assert slots["cl/fair"] == 2, "the model before any update cannot be selected"
    assert slots["loc/paper/cam"] == slots["loc/fair/cam"] == 1
    assert slots["last"] == 2


@pytest.mark.parametrize(("losses", "fair"), [((3, 1, 2), 2), ((1, 3, 2), 1), ((2, 2, 2), 3), ((1, 1, 2), 2)])
def test_ties_go_to_the_lower_loss_or_to_the_later_epoch(losses, fair):
    slots = after((50, 9, NAN), *((80, loss, NAN) for loss in losses))
    assert slots["cl/fair"] == fair
    assert slots["cl/paper"] == 3


def test_a_frozen_classifier_is_taken_at_the_end():
    """Its accuracy and loss never change, so the first epoch would be a decoder that has learned nothing."""
    assert after(*[(80, 0.5, q) for q in (5, 10, 20, 15)])["cl/fair"] == 3


def test_an_undefined_quality_takes_no_slot():
    assert "loc/fair/cam" not in after((50, 1, NAN), (60, 1, NAN))
