"""Group ids in several spellings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsolbench.datasets.parts.identity import normal_group, spellings


@pytest.mark.parametrize(
    "one",
    [
        ("7", "7.0", "007", " 7 ", "7.00", "\uff17"),
        ("P7", "p7", "P-07", "P_007", "p 7"),
        ("Müller", "mu\u0308ller", "MÜLLER"),
        ("case  12 b", "Case 12 B"),
        ("TCGA-02-0001", "tcga-02-0001"),
    ],
)
def test_one_patient(one):
    assert len({normal_group(s) for s in one}) == 1


@pytest.mark.parametrize(
    "several",
    [
        ("7", "70", "0.7", "7.5", "77"),
        ("P7", "Q7", "P7a", "P70", "7"),
        ("TCGA-02-0001", "TCGA-2-1", "TCGA-02-0010"),
        ("patient_004_node_1", "patient_004_node_10", "patient_040_node_1"),
    ],
)
def test_several_patients(several):
    assert len({normal_group(s) for s in several}) == len(several)


@given(st.text(max_size=12))
def test_a_normal_form_is_its_own_normal_form(text):
    assert normal_group(normal_group(text)) == normal_group(text)


def test_only_several_spellings_are_named():
    assert spellings(["1", "2", "02", "x"]) == {"2": ["2", "02"]}
