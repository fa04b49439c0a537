"""Images, groups and labels that splits share: one judgement for `bench run` and `bench data verify`."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.base import DatasetCard, Item, Manifest
from wsolbench.datasets.open import FileFacts
from wsolbench.datasets.parts.leaks import KINDS, check_kinds, find_leaks, with_allowed

CARD = DatasetCard("mine", 1, ("normal", "tumour"), 1, (False, True), "", "group", "", "")
SPLITS = ("train", "train", "val", "val", "test", "test")


def manifest(**changes: dict[int, object]) -> tuple[Manifest, dict[Path, FileFacts]]:
    """Six images of two classes, all of their own; changes: field (or `bytes`) -> row -> value."""
    contents = {k: str(k) for k in range(6)} | changes.pop("bytes", {})
    items = [Item(f"i{k}", Path(f"i{k}.png"), None, k % 2, f"p{k}", s) for k, s in enumerate(SPLITS)]
    for field, values in changes.items():
        for k, value in values.items():
            items[k] = replace(items[k], **{field: value})
    facts = {i.image: FileFacts(contents[k], 8, 8) for k, i in enumerate(items)}
    return Manifest(CARD, "0", tuple(items)), facts


LEAKS = {
    "none": ({}, {}),
    "a patient in train and test": ({"group": {4: "p0"}}, {"groups": "'p0' is in train and test"}),
    "a patient in all": ({"group": {2: "p0", 4: "p0"}}, {"groups": "train and val and in train and test and in val"}),
    "a test image is a training image": ({"bytes": {4: "0"}}, {"images": "1 of 2 test images.*i4 = i0"}),
    "a val image is a training image": ({"bytes": {2: "0"}}, {"images": "1 of 2 val images.*i2 = i0"}),
    "val is test": ({"bytes": {4: "2", 5: "3"}}, {"val-is-test": "2 validation images are the very test images"}),
    "two labels": ({"bytes": {1: "0"}}, {"labels": r"i0 \(train\) is normal; i1 \(train\) is tumour"}),
    "two labels across": ({"bytes": {5: "0"}}, {"labels": r"i5 \(test\) is tumour", "images": "i5 = i0"}),
}


@pytest.mark.parametrize("name", LEAKS)
def test_each_leak_is_found_and_named(name):
    changes, expected = LEAKS[name]
    m, facts = manifest(**{k: dict(v) for k, v in changes.items()})
    found = {leak.kind: leak.text for leak in find_leaks(m, facts)}
    assert found.keys() == expected.keys()
    for kind, pattern in expected.items():
        assert re.search(pattern, found[kind])
    if expected:
        with pytest.raises(BenchError, match="--allow-leaks " + ",".join(found)):
            with_allowed(m, facts, ())
        allowed = with_allowed(m, facts, tuple(KINDS))
        assert [n[0] for n in allowed.notes] == ["!"] * len(expected)
        assert allowed.split_notes == allowed.notes
    else:
        assert with_allowed(m, facts, ()) is m


def test_declared_leaks_are_the_datasets_own_affair():
    m, facts = manifest(group={4: "p0"})
    assert find_leaks(replace(m, declared=frozenset({"groups"})), facts) == []


def test_kinds_are_checked():
    check_kinds(("groups", "images"))
    with pytest.raises(BenchError, match=r"no 'group'\. Did you mean groups"):
        check_kinds(("group",))
