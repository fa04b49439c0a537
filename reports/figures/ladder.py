"""Quality under a shift of the test images: PxAP and accuracy by level of severity.

Target stains are no levels of severity: they stand in the order of their measured change, as points without a line.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..drawing.base import (
    Drawn,
    Look,
    NoFigureError,
    ShiftScene,
    by_backbone,
    label_axes,
    legend_entries,
    new_figure,
    slug,
    spread_of,
)
from ..tables.aggregate import Line
from ..tables.grid import Place
from ..tables.shifts import Ladder

METRICS = (("pxap", "PxAP [%]"), ("accuracy", "accuracy [%]"))
COLUMNS, FEW = 3, 8  # shifts side by side; methods up to which bars are drawn
LONG = 6  # levels; a longer ladder (many target stains) has a figure of its own
DODGE = 0.6  # width over which points that no line joins are spread, so that none hides another


def draw(scene: ShiftScene) -> list[Drawn]:
    """One figure a backbone: a column of panels a shift, one line a method. Raises NoFigureError without methods."""
    ladders = scene.shifted.ladders
    short = [x for x in ladders if len(x.levels) - 1 <= LONG]
    groups = [("", short), *((x.shift, [x]) for x in ladders if x not in short)]
    drawn = []
    for name, members in groups:
        lines = _lines(members)
        for backbone, group in by_backbone(lines.values()).items() if lines else ():
            places = [place for place, line in lines.items() if line in group]
            labels = [text for text in (name, backbone) if text not in ("", "-")]
            drawn.append(_figure(scene, members, places, lines, labels))
    if not drawn:
        raise NoFigureError("no method was scored on a shifted set")
    return drawn


def _lines(ladders: Sequence[Ladder]) -> dict[Place, Line]:
    """The methods of the main selection scored on any level, by place; baselines with maps among them."""
    methods: dict[Place, Line] = {}
    for ladder in ladders:
        for level, table in ladder.levels.items():
            if level:
                shown = set(map(id, table.shown))
                methods |= {p: line for p, line in ladder.lines(level).items() if id(line) in shown}
    return dict(sorted(methods.items()))


def _figure(
    scene: ShiftScene, ladders: Sequence[Ladder], places: Sequence[Place], lines: dict[Place, Line], labels: list[str]
) -> Drawn:
    columns = min(COLUMNS, len(ladders))
    bands = -(-len(ladders) // columns)
    width = max(3.3, *(0.55 * len(x.levels) for x in ladders))
    title = ", ".join([f"Shifted {scene.shifted.sets} · protocol {scene.shifted.protocol}", *labels])
    figure = new_figure(scene, title, (max(7.5, 1.2 + columns * width), 0.6 + 5.7 * bands + 0.04 * len(places)))
    panels = figure.subplots(2 * bands, columns, squeeze=False, sharey=True)
    for index, ladder in enumerate(ladders):
        band, column = divmod(index, columns)
        pair = panels[2 * band : 2 * band + 2, column]
        for axes, (key, label) in zip(pair, METRICS, strict=True):
            for index, place in enumerate(places):
                offset = DODGE * ((index + 0.5) / len(places) - 0.5)
                _draw_trace(
                    axes, ladder, _Trace(place, key, scene.palette.look(lines[place]), len(places) <= FEW, offset)
                )
            label_axes(axes, "", label if column == 0 else "", ladder.shift if key == "pxap" else "")
            axes.set_ylim(0, 104)
            axes.set_xticks(list(_places(ladder).values()))
        _level_axis(pair[1], ladder)
    for spare in range(len(ladders), bands * columns):
        band, column = divmod(spare, columns)
        for axes in panels[2 * band : 2 * band + 2, column]:
            axes.set_axis_off()
    entries = legend_entries(panels.flat)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower left",
        ncols=min(6, max(1, len(entries))),
        frameon=False,
    )
    how = _how(ladders)
    steps = dict.fromkeys(x.step for x in ladders)
    alt = f"PxAP and accuracy of every method by {' or '.join(steps)} of each shift."
    name = " · ".join(["Performance by shift", *labels])
    return Drawn(slug("shift", *scene.stem, *labels), name, how, alt, figure)


def _how(ladders: Sequence[Ladder]) -> str:
    sentences = []
    if any(x.graded for x in ladders):
        sentences.append(
            "From left to right the test images are changed more, level by level; the number under each level is its "
            "place on the axis named below it."
        )
    for ladder in (x for x in ladders if not x.graded):
        order = "how much it changes the pixels, which stands under it" if _measured(ladder) else "its number"
        sentences.append(
            f"{ladder.shift}: one place a {ladder.step}, ordered by {order}; the numbers of the {ladder.step}s are no "
            "severity, so no line joins them. Points of several methods stand beside each other."
        )
    sentences.append(
        "0 is the images as they are. The masks never change, so the chance level (the constant map, where it is "
        f"drawn) does not either. Bars: 95% interval over patients or slides (left out for more than {FEW} methods)."
    )
    return " ".join(sentences)


def _measured(ladder: Ladder) -> bool:
    """Whether the change of the pixels is known at every level."""
    return not any(math.isnan(ladder.change(level).number) for level in ladder.levels)


def _places(ladder: Ladder) -> dict[int, int]:
    """Level -> where it stands: at its number, or where it is no severity in the order of the measured change."""
    levels = sorted(ladder.levels)
    if ladder.graded:
        return {level: level for level in levels}
    if _measured(ladder):
        levels.sort(key=lambda level: ladder.change(level).number)
    return {level: x for x, level in enumerate(levels)}


class _Trace(NamedTuple):
    """A method's values of one metric, how they look, and the shift in x of points that no line joins."""

    place: Place
    key: str
    look: Look
    bars: bool
    offset: float


def _draw_trace(axes: Any, ladder: Ladder, trace: _Trace) -> None:
    """The values of a method; a line through them only where levels are severities."""
    place, key, look, bars, offset = trace
    points = []
    for level, x in _places(ladder).items():
        line = ladder.lines(level).get(place)
        if line:
            mean, low, high = spread_of(line, key)
            points.append((x if ladder.graded else x + offset, mean, mean - low, high - mean))
    points = [p for p in points if not math.isnan(p[1])]
    if points:
        x, y, below, above = zip(*points, strict=True)
        dots = {**look.line, "elinewidth": 0.6, "marker": "o", "markersize": 3}
        if not ladder.graded:
            dots |= {"linestyle": "none", "marker": look.marker, "markersize": 4}
        axes.errorbar(x, y, (below, above) if bars else None, label=place.label, **dots)


def _level_axis(axes: Any, ladder: Ladder) -> None:
    """Ticks at the levels, under each its severity or, where it has none, the change of the pixels."""
    places, known = _places(ladder), _measured(ladder)
    if ladder.graded:
        under = {k: f"{v:.3g}" for k, v in ladder.severities.items()}
        name = f"level, {ladder.axis}" if ladder.axis else "level"
    else:
        under = {k: ladder.change(k).value for k in places if known}
        name = f"{ladder.step}, RMS change of the pixels [grey levels]" if known else f"{ladder.step} (no severity)"
    axes.set_xticks(list(places.values()), [f"{k}\n{under[k]}" if k in under else f"{k}" for k in places])
    words, text = name.split(), ""
    for word in words:  # a panel is narrow, an axis may be named in a sentence
        text += ("\n" if len(text.rpartition("\n")[2]) + len(word) > 34 else " ") + word
    axes.set_xlabel(text.strip())
