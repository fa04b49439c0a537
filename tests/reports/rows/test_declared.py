"""Marks and notes on what starting weights had seen, and on what images were normalised by."""

from dataclasses import replace

import pytest

from wsolbench.reports.rows.declared import SEEN, normalisation_notes, seen_notes
from wsolbench.reports.rows.weights import fed
from wsolbench.reports.tables.aggregate import build_tables
from wsolbench.reports.tables.formats import latex_table, markdown_table, terminal_table
from wsolbench.reports.tables.ood import build_ood
from wsolbench.reports.tables.shifts import build_shifted

HALF, IMAGENET = "mean 0.5 0.5 0.5, std 0.5 0.5 0.5", "mean 0.485 0.456 0.406, std 0.229 0.224 0.225"


@pytest.fixture(scope="module")
def rows(wide_found):
    return wide_found.rows


def seen(rows, dataset, names=("glas:test",), methods=None):
    """The rows with those of a set declared as seen; baselines have no weights."""
    return [
        replace(r, weights_seen=names)
        if r.dataset == dataset and not r.baseline and (methods is None or r.method in methods)
        else r
        for r in rows
    ]


def test_a_line_that_was_seen_is_marked_and_never_the_best(rows):
    plain = next(t for t in build_tables(rows) if t.eval == "glas")
    (best,) = {line.first.method for line in plain.blocks[0].lines if line.cells["pxap"].best}
    table = next(t for t in build_tables(seen(rows, "glas", methods=(best,))) if t.eval == "glas")
    lines = {line.first.method: line for line in table.blocks[0].lines}
    assert lines[best].marked.endswith(SEEN)
    assert not lines[best].cells["pxap"].best
    assert [m for m, line in lines.items() if line.cells["pxap"].best] not in ([], [best])
    assert not any(SEEN in line.marked for m, line in lines.items() if m != best)
    (note,) = (n for n in table.footnotes if n.startswith(SEEN))
    assert note == (
        f"{SEEN} glas: the starting weights of resnet18 are declared to have seen glas:test, so these numbers say "
        "little about unseen images."
    )
    assert note[2:30] in markdown_table(table)
    assert r"\S{} glas: the starting weights" in latex_table(table, 1)
    assert note in terminal_table(seen(rows, "glas", methods=(best,)))


def test_a_pair_of_sets_that_was_seen_is_marked_as_a_column(rows):
    (away,) = build_ood(seen(rows, "camelyon16", ("camelyon16",)))
    (plain,) = build_ood(rows)
    marked = [g.title for g in away.grid.groups if SEEN in g.title]
    assert marked
    assert all(title.endswith(f"→ camelyon16 {SEEN}") for title in marked)
    assert [line.names for b in away.grid.blocks for line in b.lines] == [
        line.names for b in plain.grid.blocks for line in b.lines
    ]
    for group in away.grid.groups:
        assert any(h.best for h in group.heads) is (SEEN not in group.title)
    assert any(n.startswith(f"{SEEN} camelyon16") for n in away.grid.footnotes)
    assert not any(SEEN in n for n in plain.grid.footnotes)


def test_shifted_copies_of_what_was_seen_are_marked_too(rows):
    (shifted,) = build_shifted(seen(rows, "glas"))
    assert f"Shifted glas {SEEN} " in shifted.grid.title
    assert any(n.startswith(f"{SEEN} glas") for n in shifted.grid.footnotes)
    assert SEEN not in build_shifted(rows)[0].grid.title


def test_without_a_declaration_nothing_is_said(rows):
    assert seen_notes(rows) == []
    assert SEEN not in terminal_table(rows)


def test_what_images_were_normalised_by_is_said_where_it_is_not_imagenets(rows):
    some = [replace(r, normalisation=IMAGENET) for r in rows]
    assert normalisation_notes(some) == []
    assert normalisation_notes([replace(r, normalisation="") for r in rows]) == []  # baselines
    assert normalisation_notes([replace(some[0], backbone="vit", normalisation=HALF), some[1]]) == [
        f"vit: images normalised by {HALF} (RGB in [0, 1])."
    ]
    (mixed,) = normalisation_notes(
        [replace(r, backbone="x", normalisation=n) for r, n in zip(rows, (HALF, IMAGENET), strict=False)]
    )
    assert mixed == f"x: images normalised by {HALF} and, in other runs, {IMAGENET} (RGB in [0, 1])."


def test_records_in_words():
    assert fed({"normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3}}) == HALF
    assert fed({"normalisation": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}) == IMAGENET
    assert fed({"normalisation": None}) == fed({}) == ""
