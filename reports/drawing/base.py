"""Data, colours, axes and file output that all figures share; a method has one colour in a whole report."""

import hashlib
import io
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from ...benchmark.core.results_store import Store
from ..rows.load import StoredMaps
from ..statistics.spreads import spread_over_groups
from ..tables.aggregate import SYNTHETIC, USUAL, Line, Table
from ..tables.ood import OodTables
from ..tables.shifts import Shifted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow (too light on white), then dark colours of Tol's, all told apart by the
# colour-blind; black is kept for upper bounds, greys for baselines.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#999933", "#44AA99",
)  # fmt: skip
GREYS = ("#777777", "#A0A0A0", "#5A5A5A", "#B8B8B8")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "os^D"  # one a round of the colours, as the dashes of lines are
_DOTTED = (0, (1, 2))
# Seaborn's palette "colorblind", as in the figure per_image; importing seaborn takes longer than drawing.
CLASS_COLOURS = (
    "#0173B2", "#DE8F05", "#029E73", "#D55E00", "#CC78BC", "#CA9161", "#FBAFE4", "#949494", "#ECE133", "#56B4E9",
)  # fmt: skip
DPI = 130
LONGEST_STEM = 180  # characters of a file name without its ending; file systems take 255 bytes
FOREGROUND, BACKGROUND, WARNING = "#0072B2", "#D55E00", "#B3261E"


class NoFigureError(Exception):
    """There is nothing to draw; the message is the reason, shown on the page."""


@dataclass(frozen=True)
class Look:
    """Colour, dash pattern and width of a method's lines."""

    color: str
    linestyle: Any = "-"
    linewidth: float = 1.6

    @property
    def line(self) -> dict[str, Any]:
        """As keywords for `Axes.plot`."""
        return {"color": self.color, "linestyle": self.linestyle, "linewidth": self.linewidth}

    @property
    def marker(self) -> str:
        """The mark of points that no line joins, one for each dash pattern."""
        return MARKERS[DASHES.index(self.linestyle)] if self.linestyle in DASHES else "v"


class Palette:
    """One look per method name, the same in every figure of a report."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._looks: dict[str, Look] = {}
        counts = {"bound": 0, "baseline": 0, "method": 0}
        for name, kind in sorted({(line.name, _kind(line)) for line in lines if line.first.kind != "none"}):
            index = counts[kind]
            counts[kind] += 1
            self._looks.setdefault(name, _look(kind, index))

    def look(self, line: Line) -> Look:
        """The look of a line's method; the extra map of the positive class is dotted."""
        if line.first.kind == "none":
            return Look("#9A9A9A", "-", 2.4)  # a classifier: as its accuracy in the training curves
        look = self._looks.get(line.name, Look("#000000"))
        return replace(look, linestyle=_DOTTED) if line.label != line.marked else look

    @property
    def names(self) -> tuple[str, ...]:
        """All methods it has a look for, in the order of their looks."""
        return tuple(self._looks)

    def knows(self, method: str) -> bool:
        """Whether the report has a line of that name."""
        return method in self._looks

    def named(self, method: str) -> Look:
        """The look of a method by name; black where the report has no line of that name."""
        return self._looks.get(method, Look("#000000"))


def _kind(line: Line) -> str:
    return "bound" if line.first.upper_bound else "baseline" if line.first.baseline else "method"


def _look(kind: str, index: int) -> Look:
    if kind == "bound":
        return Look("#000000", DASHES[index % len(DASHES)], 2.0)
    if kind == "baseline":
        return Look(GREYS[index % len(GREYS)], DASHES[(index + 1) % len(DASHES)], 1.2)
    return Look(COLOURS[index % len(COLOURS)], DASHES[(index // len(COLOURS)) % len(DASHES)])


class FigureData(Protocol):
    """Data of a figure, as far as its title and its mark of synthetic data need them."""

    @property
    def synthetic(self) -> bool:
        """Whether the data are made up."""
        ...


@dataclass(frozen=True)
class Scene:
    """Data of the figures of one table."""

    table: Table
    evidence: Mapping[str, StoredMaps]
    records: Mapping[str, Mapping[str, Any]]
    store: Store
    palette: Palette

    @property
    def synthetic(self) -> bool:
        """Whether the data are made up."""
        return self.table.synthetic

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables it shows something of."""
        return (self.table,)

    @property
    def stem(self) -> tuple[str, ...]:
        """What the names of this table's figure files end with."""
        table = self.table
        sets = (table.eval,) if table.train == table.eval else (table.train, table.eval)
        scheme = () if table.scheme in USUAL else (table.scheme,)
        return (*sets, *scheme, table.protocol, *(["synthetic"] if table.synthetic else []))

    def with_maps(self) -> list[Line]:
        """The lines shown that have score histograms. Raises NoFigureError without any."""
        lines = [line for line in self.table.shown if line.evidence in self.evidence]
        if not lines:
            raise NoFigureError("no method of this table makes score maps")
        return lines


@dataclass(frozen=True)
class OodScene:
    """Data of the out-of-domain figures: a scene for each pair of sets, and the in-domain scenes of the protocol."""

    ood: OodTables
    pairs: tuple[Scene, ...]
    home: tuple[Scene, ...]
    palette: Palette

    @property
    def synthetic(self) -> bool:
        """Whether the data are made up."""
        return self.ood.synthetic

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables it shows something of."""
        return tuple(scene.table for scene in (*self.home, *self.pairs))

    @property
    def stem(self) -> tuple[str, ...]:
        """What the names of the figure files end with."""
        return (self.ood.protocol, *(["synthetic"] if self.synthetic else []))


@dataclass(frozen=True)
class ShiftScene:
    """Data of the figures of shifted sets."""

    shifted: Shifted
    palette: Palette

    @property
    def synthetic(self) -> bool:
        """Whether the data are made up."""
        return self.shifted.synthetic

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables it shows something of."""
        return tuple(table for ladder in self.shifted.ladders for table in ladder.levels.values())

    @property
    def stem(self) -> tuple[str, ...]:
        """What the names of the figure files end with."""
        s = self.shifted
        sets = (s.dataset,) if s.train == s.dataset else (s.train, s.dataset)
        sets = sets if s.scheme in USUAL else (*sets, s.scheme)
        return (*sets, s.protocol, *(["synthetic"] if s.synthetic else []))


@dataclass(frozen=True)
class Drawn:
    """A figure: `name` is its file stem, `how` tells how to read it, `alt` describes it."""

    name: str
    title: str
    how: str
    alt: str
    figure: "Figure"


def spread_of(line: Line, key: str) -> tuple[float, float, float]:
    """Mean over the estimates of a line, and the ends of its 95% interval over patients or slides.

    Both ends are the mean itself where no interval is claimed; all are NaN without a value. key: a field that has an
    interval, such as `pxap` or `accuracy`.
    """
    values = [v for r in line.estimates if not math.isnan(v := getattr(r, key))]
    if not values:
        return math.nan, math.nan, math.nan
    mean = statistics.fmean(values)
    low, high = spread_over_groups(line.estimates, key)
    return (mean, mean, mean) if math.isnan(low) else (mean, low, high)


def by_backbone(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Lines per backbone; lines without a backbone (baselines) stand with every one."""
    lines = list(lines)
    names = sorted({line.first.backbone for line in lines} - {"-"}) or ["-"]
    return {name: [line for line in lines if line.first.backbone in (name, "-")] for name in names}


def slug(*parts: str) -> str:
    """A file stem made of names; a name that does not survive gets a hash, so that two stems never clash."""
    words = []
    for part in parts:
        word = re.sub(r"[^A-Za-z0-9._+=-]+", "-", part).strip("-.")[:60]
        words.append(word if word == part else f"{word}-{hashlib.sha256(part.encode()).hexdigest()[:6]}".lstrip("-"))
    stem = "_".join(words)
    if len(stem) > LONGEST_STEM:
        stem = f"{stem[: LONGEST_STEM - 11]}-{hashlib.sha256(stem.encode()).hexdigest()[:10]}"
    return stem


def new_figure(scene: FigureData, title: str, size: tuple[float, float]) -> "Figure":
    """An empty figure of `size` inches with its title and, where it applies, the mark of synthetic data."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    width = size[0]
    figure.suptitle(title, x=0.12 / width, ha="left", fontsize=11, fontweight="bold")
    if scene.synthetic:
        box = {"facecolor": WARNING, "edgecolor": "none", "pad": 2.5}
        look = {"fontsize": 9, "fontweight": "bold", "color": "white", "bbox": box}
        figure.text(1 - 0.1 / width, 1 - 0.08 / size[1], SYNTHETIC, ha="right", va="top", **look)
    return figure


def label_axes(axes: "Axes", xlabel: str, ylabel: str, title: str = "") -> None:
    """Axis labels, title, a light grid and no box, as all figures have them."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if title:
        axes.set_title(title, loc="left", fontsize=9)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend_beside(axes: "Axes", title: str = "", entries: Mapping[str, Any] | None = None) -> None:
    """The legend right of its axes, where it hides no line however many there are.

    entries: name -> handle; without it, those of these axes.
    """
    handles = (list(entries.values()), list(entries)) if entries else ()
    axes.legend(
        *handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, title=title, alignment="left",
        title_fontsize=8,
    )  # fmt: skip


def legend_entries(panels: Iterable["Axes"]) -> dict[str, Any]:
    """Name -> handle of everything drawn in some panels, each name once."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    return entries


def run_of(line: Line) -> str:
    """Which run stands for a line in figures that show one."""
    return f"fold {line.first.fold}, seed {line.first.seed}"


STYLE: Any = {
    "font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
    "axes.edgecolor": "#555555", "xtick.color": "#333333", "ytick.color": "#333333", "text.parse_math": False,
    "pdf.fonttype": 42, "svg.hashsalt": "wsolbench", "legend.handlelength": 2.6,
}  # fmt: skip


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults and our style, whatever the user's matplotlibrc says."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
        yield


def render(figure: "Figure", form: str) -> bytes:
    """The bytes of a figure as `png` or `pdf`; the same figure gives the same bytes."""
    with house_style():
        return _render(figure, form)


def _render(figure: "Figure", form: str) -> bytes:
    import matplotlib

    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        # Each further drawing would shift the layout a little, and any engine costs a drawing that shows nothing.
        with matplotlib.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
            figure.set_layout_engine(None)
    stamp = (
        {"CreationDate": None, "Producer": None, "Creator": "wsolbench"} if form == "pdf" else {"Software": "wsolbench"}
    )
    fast: dict[str, Any] = {"pil_kwargs": {"compress_level": 4}} if form == "png" else {}  # 3% larger in half the time
    out = io.BytesIO()
    figure.savefig(out, format=form, dpi=DPI, metadata=stamp, **fast)
    return out.getvalue()
