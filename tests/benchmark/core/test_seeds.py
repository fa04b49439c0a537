"""Seeds are addresses: same address, same seed, on any machine and in any order."""

import pytest

from wsolbench.benchmark.core.seeds import seed_for


def test_seeds_are_the_same_on_every_machine():
    # fixed numbers: if they move, every stored result moves with them
    assert seed_for("order", 0, 1) == 152885240792400015
    assert seed_for() == 4090036724241674979


def test_other_addresses_give_other_seeds():
    addresses = [("order", s, e) for s in range(20) for e in range(50)]
    addresses += [("order", "0", 1), ("order", 0, "1"), ("orde", "r", 0, 1), ("order", 1), ("order,0", 1)]
    assert len({seed_for(*a) for a in addresses}) == len(addresses)


def test_seeds_fit_numpy_and_torch():
    assert all(0 <= seed_for(i) < 2**63 for i in range(1000))


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError):
        seed_for(object())  # pyright: ignore[reportArgumentType]
