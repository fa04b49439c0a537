"""Facts of a method about its training batches: read as literals, refused where they make no sense, and in no key."""

import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.registry import Entry
from wsolbench.methods.spec import spec_from_entry


def entry(shape="class", **facts):
    return Entry("one", "file", "one.py", shape, facts=facts, source_hash="abc")


def test_views_groups_and_sampling_are_facts_and_no_fields_of_the_key():
    plain, rich = (spec_from_entry(entry(**f)) for f in ({}, {"views": 2, "groups": True, "sampling": "class"}))
    assert (plain.views, plain.groups, plain.sampling) == (1, False, "shuffle")
    assert (rich.views, rich.groups, rich.sampling) == (2, True, "class")
    assert plain.identity() == rich.identity() == {"name": "one", "version": 1, "options": {}, "source": "abc"}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"views": 0}, "views=0 must be a whole number"),
        ({"views": True}, "views=True must be a whole number"),
        ({"views": 2.0}, r"views=2\.0 must be"),
        ({"groups": "slide"}, "groups='slide' must be True or False"),
        ({"sampling": "classes"}, "sampling 'classes' of method 'one' is not one of shuffle, class, group"),
        ({"shape": "function", "views": 2}, "is a function and trains nothing"),
    ],
)
def test_facts_that_make_no_sense_are_refused(facts, message):
    with pytest.raises(BenchError, match=message):
        spec_from_entry(entry(**facts))


@pytest.mark.parametrize("need", ["maps@:cam", "maps@a@b:cam", "maps@soft", "maps:", "maps"])
def test_a_need_that_is_not_a_role_and_a_method_is_refused(need):
    with pytest.raises(BenchError, match="which is not ROLE:METHOD or ROLE@NAME:METHOD"):
        spec_from_entry(entry(needs=(need,)))


def test_a_function_reads_one_model():
    with pytest.raises(BenchError, match="it reads one model"):
        spec_from_entry(entry("function", needs=("checkpoint:classifier", "checkpoint:deepmil")))
