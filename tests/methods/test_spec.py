"""Facts of a method about its training batches: read as literals, refused where they make no sense, and in no key."""

import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.registry import Entry
from wsolbench.benchmark.planning.method_refs import Resolver
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


# -- options with an earlier name -------------------------------------------------------------------------------------
def test_an_earlier_name_of_an_option_works_and_is_told(caplog):
    for name in ("twostep", "negev", "fcam"):
        caplog.clear()
        new = Resolver({name: {"lambda_pseudo": "0.5"}}).ref(name)
        assert not caplog.text
        old = Resolver({name: {"lambda_seed": "0.5"}}).ref(name)
        assert f"{name}.lambda_seed is now called {name}.lambda_pseudo" in caplog.text
        assert old == new
        assert old.options["lambda_pseudo"] == 0.5
        assert old.changed == "lambda_pseudo=0.5"


def test_an_earlier_name_stands_in_keys():
    options = Resolver({}).ref("negev").identity()["options"]
    assert options["lambda_seed"] == 1.0
    assert "lambda_pseudo" not in options


def test_both_names_at_once_are_refused():
    with pytest.raises(BenchError, match=r"negev.lambda_seed is the earlier name of negev.lambda_pseudo: set one"):
        Resolver({"negev": {"lambda_seed": "1", "lambda_pseudo": "2"}}).ref("negev")


def test_a_mistyped_option_is_told_the_present_name():
    with pytest.raises(BenchError, match=r"no option 'lambda_psuedo'.*lambda_pseudo"):
        Resolver({"negev": {"lambda_psuedo": "1"}}).ref("negev")


@pytest.mark.parametrize(
    ("facts", "words"),
    [({"renamed": {"new": "old"}}, "names the option 'new', which it does not have"),
     ({"options": {"new": 1, "old": 2}, "renamed": {"new": "old"}}, "belongs to another option too"),
     ({"options": {"a": 1, "b": 2}, "renamed": {"a": "old", "b": "old"}}, "belongs to another option too")],
)  # fmt: skip
def test_renamings_that_make_no_sense_are_refused(facts, words):
    with pytest.raises(BenchError, match=words):
        spec_from_entry(Entry("x", "file", "x.py", facts=facts))
