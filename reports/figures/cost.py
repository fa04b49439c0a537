"""Cost and quality: PxAP against seconds of training and against milliseconds to score an image."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..drawing.base import Drawn, NoFigureError, Scene, by_backbone, label_axes, new_figure, slug, spread_of
from ..tables.aggregate import BOUND, UNDEFINED, Line
from ..tables.cost import MIXED, LineCost, amount, devices_of, line_cost, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP<>"  # one a device, where there are several
UNTRAINED = "X"  # the marker of methods without training where several devices have theirs
STRIP = 0.15  # share of the logarithmic axis given to a strip for a cost of 0, which has no logarithm
FAR = 10.0  # a cost so many times below that of the cheapest trained method goes to the strip too
GAP, STEP = 9.0, 0.52  # between a point and its label in px; between two places tried, in heights of a label


class Measure(NamedTuple):
    """A cost: the field of a `LineCost`, the label of its axis, what 0 means, and a word for its panel."""

    key: str
    label: str
    nothing: str
    word: str


MEASURES = (
    Measure("seconds_all", "seconds of all training behind the method", "no training", "training"),
    Measure("ms_per_image", "milliseconds to score an image", "0", "scoring"),
)


class Point(NamedTuple):
    """A line of the table in one panel. x: its cost; low, high: ends of the interval of y, in percent."""

    name: str
    x: float
    y: float
    low: float
    high: float
    color: str
    bound: bool
    trained: bool
    devices: tuple[str, ...]


class Box(NamedTuple):
    """A rectangle in px."""

    left: float
    bottom: float
    right: float
    top: float

    def covers(self, other: "Box") -> float:
        """Shared area in px²."""
        width = min(self.right, other.right) - max(self.left, other.left)
        return max(0.0, width) * max(0.0, min(self.top, other.top) - max(self.bottom, other.bottom))

    def within(self, other: "Box") -> bool:
        """Whether it lies inside the other."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.bottom >= other.bottom
            and self.top <= other.top
        )


def draw(scene: Scene) -> list[Drawn]:
    """A row of panels a backbone. Raises NoFigureError where no record says what anything but baselines cost."""
    lines = [line for line in scene.with_maps() if not math.isnan(line.cells["pxap"].number)]
    costs = {id(line): line_cost(line, scene.records) for line in lines}
    measures = [m for m in MEASURES if any(costs[id(x)].mean(m.key) > 0 for x in lines)]
    if not measures:
        raise NoFigureError("no record says how long training or scoring took")
    groups = by_backbone(lines)
    title = f"Cost and quality · {scene.table.sets}, protocol {scene.table.protocol}"
    tall = 1.6 + 0.16 * max(15, *(len(group) for group in groups.values()))
    figure = new_figure(scene, title, (max(6.9, 6.1 * len(measures)), 0.7 + tall * len(groups)))
    panels = figure.subplots(len(groups), len(measures), squeeze=False, sharey=True)
    markers = _markers(lines, costs, measures)
    drawn: list[tuple[Axes, list[Point], dict[str, float]]] = []
    for row, (backbone, group) in zip(panels, groups.items(), strict=True):
        for axes, measure in zip(row, measures, strict=True):
            points = _points(scene, group, costs, measure)
            places = _panel(axes, points, measure, markers)
            heading = " · ".join(t for t in (measure.word, backbone if backbone != "-" else "") if t)
            label_axes(axes, measure.label, "PxAP [%]" if axes is row[0] else "", heading)
            drawn.append((axes, points, places))
    _legend(figure, panels.flat, markers)
    figure.draw_without_rendering()  # labels are placed in px, so everything else has to stand where it will stay
    figure.set_layout_engine("none")
    for axes, points, places in drawn:
        _label(axes, points, places)
    alt = "PxAP of every method against its training seconds and against its milliseconds to score an image."
    return [Drawn(slug("cost", *scene.stem), "Cost and quality", _how(lines, costs, measures), alt, figure)]


def _how(lines: Sequence[Line], costs: Mapping[int, LineCost], measures: Sequence[Measure]) -> str:
    text = (
        "Further up is better, further left is cheaper; both axes of cost are logarithmic. In the grey strip stands "
        f"what costs nothing, or less than 1/{FAR:.0f} of the cheapest trained method. Training counts everything "
        "behind a method, each stage once: the classifier it explains or starts from, its teacher and that one's maps. "
        "Scoring leaves out reading pixels and writing. Bars: 95% interval over patients or slides, "
        "where it is defined. The grey steps join the methods that no other beats at the same cost or less; "
        f"{BOUND} upper bounds, which saw masks, are left out of them. "
    )
    text += where(devices_of(costs.values()), "one marker each")
    if any(len(costs[id(x)].devices(m.key)) > 1 for x in lines for m in measures):
        text += f" {MIXED}: adds up or averages numbers of different devices, so it compares with no other."
    for measure in MEASURES:
        lost = sorted({x.label for x in lines if math.isnan(costs[id(x)].mean(measure.key))})
        if lost:
            who = "all methods" if len(lost) == len({x.label for x in lines}) else ", ".join(lost)
            text += f" {UNDEFINED}: no record says the cost of {measure.word} for {who}."
    return text


def _markers(
    lines: Sequence[Line], costs: Mapping[int, LineCost], measures: Sequence[Measure]
) -> dict[tuple[str, ...], str]:
    """A marker for each device or set of devices that a cost was measured on."""
    places = {costs[id(x)].devices(m.key) for x in lines for m in measures} - {()}
    return dict(zip(sorted(places), itertools.cycle(MARKERS), strict=False))


def _points(scene: Scene, lines: Iterable[Line], costs: Mapping[int, LineCost], measure: Measure) -> list[Point]:
    points = []
    for line in lines:
        cost = costs[id(line)]
        x, devices = cost.mean(measure.key), cost.devices(measure.key)
        if not math.isnan(x):
            name = f"{line.label} {MIXED}" if len(devices) > 1 else line.label
            color, bound = scene.palette.look(line).color, line.first.upper_bound
            trained = not line.first.baseline
            points.append(Point(name, x, *spread_of(line, "pxap"), color, bound, trained, devices))
    return points


def _panel(
    axes: "Axes", points: Sequence[Point], measure: Measure, markers: Mapping[tuple[str, ...], str]
) -> dict[str, float]:
    """Draws the points and fronts; returns where each point stands on the x axis, by name."""
    places = _axis(axes, points, measure)
    for devices in markers:
        # Times of several devices do not compare, so each device has its front; a cost of 0 belongs to every one.
        comparable = [p for p in points if len(devices) == 1 and (p.devices == devices or (p.x == 0 and not p.devices))]
        steps = front(p for p in comparable if not p.bound)
        if len(steps) > 1:
            x, y = [places[p.name] for p in steps], [p.y for p in steps]
            axes.step(x, y, where="post", color="#C4C4C4", linewidth=1.3, zorder=1, label="best for their cost")
    for p in points:
        x, marker = places[p.name], markers.get(p.devices, UNTRAINED if len(markers) > 1 else MARKERS[0])
        axes.plot([x, x], [p.low, p.high], color=p.color, linewidth=0.9, alpha=0.45, zorder=2)
        look = {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.6, "zorder": 4}
        axes.plot([x], [p.y], marker, color=p.color, gid=p.name, **look)
    return places


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats at the same cost or less, the cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def _axis(axes: "Axes", points: Sequence[Point], measure: Measure) -> dict[str, float]:
    """Scales the x axis; returns the place on it of every point by name."""
    known = [p.x for p in points if p.trained and p.x > 0] or [p.x for p in points if p.x > 0] or [1.0]
    strip = [p.x for p in points if p.x < min(known) / FAR]
    shown = [*known, *(p.x for p in points if p.x not in strip)]
    middle, factor = math.sqrt(min(shown) * max(shown)), max(2.2, 1.5 * math.sqrt(max(shown) / min(shown)))
    low, high = middle / factor, middle * factor
    left = low / (high / low) ** (STRIP / (1 - STRIP)) if strip else low
    axes.set_xscale("log")
    axes.set_xlim(left, high)
    ticks = _ticks(low, high)
    labels, place = [f"{tick:g}" for tick in ticks], math.sqrt(left * low)
    if strip:
        axes.axvspan(left, low, color="#F1F1F1", linewidth=0, zorder=0)
        ticks, labels = [place, *ticks], [f"≤ {amount(max(strip))}" if max(strip) else measure.nothing, *labels]
    axes.set_xticks(ticks, labels)
    axes.set_xticks([], minor=True)
    return {p.name: place if p.x in strip else p.x for p in points}


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends, as many as an axis can hold."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [t for k in decades for d in digits if low <= (t := float(f"{d}e{k}")) <= high]
        if len(ticks) <= 7:
            return ticks
    return ticks[:: -(-len(ticks) // 7)]


def _legend(figure: "Figure", panels: Iterable["Axes"], markers: Mapping[tuple[str, ...], str]) -> None:
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for axes in panels:
        entries |= {str(h.get_label()): h for h in axes.get_lines() if not str(h.get_label()).startswith("_")}
    if len(markers) > 1:
        for devices, marker in (*markers.items(), ((), UNTRAINED)):
            name = " + ".join(devices) + (f" {MIXED}" if len(devices) > 1 else "") or "trained nowhere"
            entries[name] = Line2D([], [], color="#555555", marker=marker, linestyle="none", markersize=6.5)
    if entries:
        handles, names = list(entries.values()), list(entries)
        figure.legend(handles, names, loc="outside lower left", ncols=min(4, len(names)), frameon=False)


# -- labels ------------------------------------------------------------------------------------------------------------
def _label(axes: "Axes", points: Sequence[Point], places: Mapping[str, float]) -> None:
    """Writes each name beside its point, moved where it would hide another name or point, then joined by a line."""
    from matplotlib.patheffects import withStroke

    at = {p.name: axes.transData.transform((places[p.name], p.y)) for p in points}
    frame = Box(*axes.get_window_extent().extents)
    taken = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in at.values()]
    to_points = 72 / axes.figure.dpi
    for p in sorted(points, key=lambda p: -p.y):
        x, y = at[p.name]
        halo = [withStroke(linewidth=2.2, foreground="white")]
        look: dict[str, Any] = {"fontsize": 7.5, "color": p.color, "va": "center", "zorder": 5, "path_effects": halo}
        note = axes.annotate(p.name, (places[p.name], p.y), (0, 0), textcoords="offset points", **look)
        note.set_in_layout(False)
        size = note.get_window_extent()
        box = _free_place(x, y, size.width, size.height, frame, taken)
        taken.append(box)
        # Each from its end at the point: a name saved at another resolution is wider or narrower by some px.
        note.set_horizontalalignment("right" if box.right < x else "left")
        dx, dy = (box.right if box.right < x else box.left) - x, (box.bottom + box.top) / 2 - y
        note.set_position((dx * to_points, dy * to_points))
        if abs(dy) > size.height:
            near = box.left - 1 if box.left > x else box.right + 1 if box.right < x else (box.left + box.right) / 2
            ends = axes.transData.inverted().transform([(x, y), (near, y + dy)])
            axes.plot(*ends.T, color=p.color, linewidth=0.6, alpha=0.9, zorder=3, scalex=False, scaley=False)


def _free_place(x: float, y: float, width: float, height: float, frame: Box, taken: Sequence[Box]) -> Box:
    """The free place nearest to a point, right of it before left; where none is free, the one that hides least."""
    boxes = []
    for step in range(60):
        for side, direction in itertools.product((1, -1), (1, -1) if step else (1,)):
            away = GAP + 2.0 * min(step, 4)
            left = x + away if side > 0 else x - away - width
            middle = y + direction * step * STEP * height
            boxes.append((step + 0.6 * (side < 0), Box(left, middle - height / 2, left + width, middle + height / 2)))
    inside = [(far, box) for far, box in boxes if box.within(frame)] or boxes
    return min(inside, key=lambda b: (sum(map(b[1].covers, taken)), b[0]))[1]
