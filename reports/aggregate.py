"""From rows to tables: runs of one kind averaged, protocols and data sets kept apart, every number formatted once."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..benchmark.protocols import PROTOCOLS
from .declared import SEEN, normalisation_notes, seen_notes
from .rows import Row, sort_key

UNDEFINED = "n/a"
SYNTHETIC = "SYNTHETIC DATA"
ORACLE, BOUND = "†", "‡"
POSITIVE = " (positive class)"


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    key: field of Row. title, tex: heading as plain text and as LaTeX. digits: decimals. scale: factor for display.
    interval: prefix of the fields that bound a single run, empty without. sd: whether the spread over runs is shown.
    best: whether the highest value is bold. oracle: whether the number has seen what it is judged on.
    optional: left out where it says nothing new. brief: heading where room is scarce, empty to leave it out there.
    """

    key: str
    title: str
    hint: str
    tex: str = ""
    digits: int = 1
    scale: float = 1.0
    interval: str = ""
    sd: bool = True
    best: bool = False
    oracle: bool = False
    optional: bool = False
    brief: str = ""


COLUMNS = (
    Column("pxap", "PxAP", "Pixel average precision in percent, the pixels of all images pooled.", interval="pxap",
           best=True),
    Column("chance", "chance", "PxAP of a constant map: the share of foreground pixels, in percent.", sd=False),
    Column("pxap_positives", "PxAP pos.", "PxAP of the images whose class has a region.", best=True, optional=True),
    Column("chance_positives", "chance pos.", "Chance level of those images.", sd=False, optional=True),
    Column("accuracy", "Accuracy", "Share of images classified right, in percent.", interval="accuracy", best=True),
    Column("dice_tau_val", "Dice", "Dice of the foreground in percent at tau_val, pixels pooled.", best=True),
    Column("iou_tau_val", "IoU", "Intersection over union of the foreground in percent at tau_val.", best=True),
    Column("tau_val", "tau_val", "Threshold chosen on the validation masks, in [0, 1].", r"$\tau_\mathrm{val}$",
           digits=3, sd=False),
    Column("dice_oracle", f"Dice {ORACLE} oracle", "Dice at the threshold chosen on the test masks: no fair number.",
           r"Dice$^\dagger$ oracle", oracle=True),
    Column("iou_oracle", f"IoU {ORACLE} oracle", "IoU at the threshold chosen on the test masks: no fair number.",
           r"IoU$^\dagger$ oracle", oracle=True),
    Column("seconds_train", "Train [s]", "Seconds of the training whose checkpoint is scored.", sd=False),
    Column("seconds_parents", "Parents [s]", "Seconds of all that training builds on: its teacher and that one's maps.",
           sd=False, optional=True),
    Column("seconds_score", "Score [s]", "Seconds to score the test set.", sd=False),
    Column("parameters", "Params [M]", "Parameters of the scored model in millions.", scale=1e-6, sd=False),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A formatted number: `value` and `spread` are what every format prints, `number` is what sorting uses."""

    value: str
    spread: str = ""
    number: float = math.nan
    best: bool = False

    @property
    def text(self) -> str:
        """Value and spread."""
        return f"{self.value} {self.spread}".rstrip()


@dataclass(frozen=True)
class Line:
    """A line of a table: runs that differ in fold and seed only."""

    runs: tuple[Row, ...]
    cells: dict[str, Cell]
    extra: str = ""  # what tells it from a line of the same name

    @property
    def first(self) -> Row:
        """The run of the lowest fold and seed: the one figures show."""
        return self.runs[0]

    @property
    def name(self) -> str:
        """The method with the options that differ from its defaults."""
        inner = ", ".join(t for t in (self.first.options, self.extra) if t)
        return self.first.method + (f" ({inner})" if inner else "")

    @property
    def marked(self) -> str:
        """The name, marked if masks were seen in training, or these images by the starting weights."""
        return f"{self.bounded} {SEEN}" if any(r.weights_seen for r in self.runs) else self.bounded

    @property
    def bounded(self) -> str:
        """The name, marked if masks were seen in training."""
        return f"{self.name} {BOUND}" if self.first.upper_bound else self.name

    @property
    def label(self) -> str:
        """The name in a figure, where no column tells the extra map of the positive class from the other."""
        return self.marked + (POSITIVE if self.first.map_class == "positive" else "")


@dataclass(frozen=True)
class Block:
    """Lines that may be compared with each other: one selection, or the baselines."""

    key: str
    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """All rows of one evaluation set under one protocol, of models trained on one data set."""

    train: str
    eval: str
    protocol: str
    synthetic: bool
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    caption: str
    footnotes: tuple[str, ...]
    rows: tuple[Row, ...] = field(repr=False)

    @property
    def lines(self) -> list[Line]:
        """The lines of all blocks."""
        return [line for block in self.blocks for line in block.lines]

    @property
    def shown(self) -> list[Line]:
        """The lines figures show: the protocol's own selection (the first there is) and the baselines."""
        main = next((b for b in self.blocks if b.key != "-"), None)
        return [line for b in self.blocks if b is main or b.key == "-" for line in b.lines]

    @property
    def title(self) -> str:
        """Evaluation set and protocol, and whether the data are real."""
        return f"{self.sets} · protocol {self.protocol}" + (f" · {SYNTHETIC}" if self.synthetic else "")

    @property
    def sets(self) -> str:
        """The evaluation set; for models trained on another one, both."""
        return self.eval if self.train == self.eval else f"{self.train} → {self.eval}"


Settings = Mapping[str, Mapping[str, str]]
_Place = tuple[str, int, str, str, bool, str]


def build_tables(rows: Iterable[Row], settings: Settings | None = None) -> list[Table]:
    """In-domain tables: one per data set and protocol; synthetic and real data never share one.

    settings: stage key -> flat settings (`Findings.settings`), used to say in what two lines of one name differ.
    """
    return tables_of((r for r in rows if not r.ood), settings)


def tables_of(rows: Iterable[Row], settings: Settings | None = None) -> list[Table]:
    """One table per evaluation set, data set trained on and protocol, whatever the evaluation sets are."""
    found: dict[_Place, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=sort_key):
        # The shift and its level come before the name, so that level 10 does not stand before level 2.
        found[f"{row.dataset}:{row.shift}", row.level, row.eval, row.train, row.synthetic, row.protocol].append(row)
    return [_table(place[2:], tuple(members), settings or {}) for place, members in sorted(found.items())]


def _table(place: tuple[str, str, bool, str], rows: tuple[Row, ...], settings: Settings) -> Table:
    evaluated, trained, synthetic, protocol = place
    columns = tuple(c for c in COLUMNS if not c.optional or _says_something(c, rows))
    lines = [Line(runs, _cells(runs, columns)) for runs in _groups(rows)]
    by_selection: dict[str, list[Line]] = defaultdict(list)
    for line in _told_apart(lines, settings):
        by_selection["-" if line.first.baseline else line.first.selection].append(line)
    blocks = tuple(_block(s, by_selection[s], columns) for s in block_order(by_selection, protocol))
    caption, notes = _caption(evaluated, synthetic, protocol, rows), _footnotes(rows)
    return Table(trained, evaluated, protocol, synthetic, columns, blocks, caption, notes, rows)


def block_order(selections: Iterable[str], protocol: str) -> list[str]:
    """Selections in the order of a table: the protocol's own first, baselines last."""
    known, own = list(BLOCK_TITLES), _own_selection(protocol)
    return sorted(selections, key=lambda s: (s == "-", s != own, known.index(s) if s in known else len(known), s))


def _own_selection(protocol: str) -> str:
    known = PROTOCOLS.get(protocol.partition("(")[0])
    return known.selection if known else ""


def _says_something(column: Column, rows: Iterable[Row]) -> bool:
    if column.key == "seconds_parents":
        return any(r.seconds_parents > 0 for r in rows)
    return any(r.images_positive != r.images for r in rows)


def _groups(rows: Iterable[Row]) -> list[tuple[Row, ...]]:
    """Runs that differ in fold and seed only; where those do not tell runs apart, each run stands alone."""
    found: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for r in rows:
        place = (r.train, r.backbone, r.method, r.options, r.settings, r.map_class, r.selection, r.supervision)
        found[place].append(r)
    groups: list[tuple[Row, ...]] = []
    for runs in found.values():
        repeated = len({(r.fold, r.seed) for r in runs}) < len(runs)
        groups += [(r,) for r in runs] if repeated else [tuple(runs)]
    return groups


def _told_apart(lines: Sequence[Line], settings: Settings) -> list[Line]:
    """Lines of one name get what they differ in: changed settings, or failing that the stage."""
    by_name: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in lines:
        r = line.first
        by_name[r.train, r.backbone, line.name, r.map_class, r.selection].append(line)
    out = []
    for twins in by_name.values():
        if len(twins) == 1:
            out += twins
            continue
        flat = [settings.get(line.first.stage, {}) for line in twins]
        names = sorted(k for k in set().union(*flat) if len({f.get(k, "") for f in flat}) > 1)
        said = [", ".join(f"{k.rpartition('.')[2]}={f.get(k, 'none')}" for k in names[:2]) for f in flat]
        if len(set(said)) < len(twins):
            said = [f"run {line.first.stage[:8]}" for line in twins]
        out += [replace(line, extra=text) for line, text in zip(twins, said, strict=True)]
    return sorted(out, key=lambda line: (line.first.backbone, line.first.upper_bound, line.name, line.first.map_class))


BLOCK_TITLES = {  # in the order of the table, but for the protocol's own selection, which comes first
    "cl": "Checkpoint cl: best validation accuracy",
    "loc": "Checkpoint loc: best PxAP on the validation masks",
    "last": "Checkpoint last: end of training",
    "-": "Baselines: nothing learned",
}


def _block(selection: str, lines: Sequence[Line], columns: Sequence[Column]) -> Block:
    marked = list(lines)
    for column in columns:
        if column.best and selection != "-":
            marked = _mark_best(marked, column.key)
    return Block(selection, block_title(selection), tuple(marked))


def block_title(selection: str) -> str:
    """The heading of the lines of one selection, `-` for the baselines."""
    return BLOCK_TITLES.get(selection, f"Checkpoint {selection}")


def _mark_best(lines: list[Line], key: str) -> list[Line]:
    """Marks the highest defined value of the lines trained without masks, unless all are equal as printed.

    Lines whose weights had seen the images are left out.
    """
    clean = [line for line in lines if not any(r.weights_seen for r in line.runs)]
    fair = [line for line in clean if not line.first.upper_bound and not math.isnan(line.cells[key].number)]
    values = {line.cells[key].value for line in fair}
    if len(values) < 2:
        return lines
    top = max(fair, key=lambda line: line.cells[key].number).cells[key].value
    return [
        replace(line, cells={**line.cells, key: replace(line.cells[key], best=True)})
        if line in fair and line.cells[key].value == top
        else line
        for line in lines
    ]


def _cells(runs: Sequence[Row], columns: Iterable[Column]) -> dict[str, Cell]:
    return {c.key: make_cell(runs, c) for c in columns}


def make_cell(runs: Sequence[Row], column: Column) -> Cell:
    """Mean over the runs where it is defined; a single run has its interval instead of a standard deviation."""
    cell = mean_cell([float(getattr(r, column.key)) * column.scale for r in runs], column)
    if len(runs) == 1 and column.interval and not math.isnan(cell.number):
        low, high = (getattr(runs[0], f"{column.interval}_{end}") for end in ("low", "high"))
        if not math.isnan(low):
            return replace(cell, spread=f"[{_number(low, column)}, {_number(high, column)}]")
    return cell


def mean_cell(values: Sequence[float], column: Column) -> Cell:
    """Mean over the defined values, as many as there are runs, with their standard deviation."""
    defined = [v for v in values if not math.isnan(v)]
    if not defined:
        return Cell(UNDEFINED)
    mean = statistics.fmean(defined)
    spread = f"± {_number(statistics.stdev(defined), column)}" if len(defined) > 1 and column.sd else ""
    if len(defined) < len(values):
        spread = f"{spread} ({len(defined)} of {len(values)})".strip()
    return Cell(_number(mean, column), spread, mean)


def _number(value: float, column: Column) -> str:
    if not column.key.startswith(("seconds", "parameters")):
        text = f"{value:.{column.digits}f}"
        return text.removeprefix("-") if float(text) == 0 else text  # no minus before a zero
    # Amounts span many orders of magnitude, and a plain 0 says that there is nothing, not that there is little.
    return f"{value:.{0 if value == 0 or value >= 100 else 1 if value >= 10 else 2}f}"


def _caption(evaluated: str, synthetic: bool, protocol: str, rows: Sequence[Row]) -> str:
    trained = sorted({r.train for r in rows})
    masks = span(r.validation_masks for r in rows if r.kind != "none")
    group = rows[0].group or "group"
    text = f"{SYNTHETIC}. " if synthetic else ""
    text += f"Evaluated on {evaluated}, protocol {protocol}, trained on {', '.join(trained)}: "
    text += f"{span(r.images for r in rows)} test images of {span(r.groups for r in rows)} {group}s. "
    text += f"tau_val was chosen on {masks} validation masks. " if masks else ""
    spread = {len(runs) for runs in _groups(rows)}
    if 1 in spread:
        text += f"[low, high]: 95% interval of one run, resampling {group}s. "
    if spread - {1}:
        text += "Mean ± standard deviation over the n runs (folds and seeds). "
    return text.rstrip()


def span(numbers: Iterable[int]) -> str:
    """One number, or the lowest and the highest; nothing without any."""
    found = sorted(set(numbers))
    if not found:
        return ""
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _footnotes(rows: Sequence[Row]) -> tuple[str, ...]:
    notes = [
        f"{ORACLE} oracle: tau of the best mean IoU on the test masks themselves, only for comparison with papers."
    ]
    if any(r.upper_bound for r in rows):
        notes.append(f"{BOUND} upper bound: trained with pixel masks, so no weakly supervised method.")
    if any(math.isnan(r.pxap) or math.isnan(r.accuracy) for r in rows):
        notes.append(f"{UNDEFINED}: not defined, because the method makes no map or classifies no image.")
    seen = {r.foreground for r in rows if r.foreground}
    notes += [f"Foreground: {text}." if not text.endswith(".") else f"Foreground: {text}" for text in sorted(seen)]
    notes += seen_notes(rows)
    notes += constant_notes(rows)
    notes += _effort_notes(rows)
    notes += normalisation_notes(rows)
    return (*notes, *dict.fromkeys(note for r in rows for note in r.notes))


def constant_notes(rows: Iterable[Row]) -> list[str]:
    """How many maps say the same everywhere, one sentence a method and evaluation set; baselines are meant to."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for r in rows:
        if r.degenerate and not r.baseline:
            found[r.eval, r.method].append(r)
    return [
        f"{method}: {span(r.degenerate for r in runs)} of {span(r.images for r in runs)} maps are constant{_on(runs)}."
        for (_, method), runs in sorted(found.items())
    ]


def _on(runs: Sequence[Row]) -> str:
    """The set, where it is not the one trained on."""
    return f" on {runs[0].eval}" if runs[0].ood else ""


def _effort_notes(rows: Sequence[Row]) -> list[str]:
    """Which runs were trained otherwise than asked, or on several devices; one sentence a method and kind."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for r in rows:
        if r.micro_batch:
            asked = str(r.micro_batch_asked) if r.micro_batch_asked else "whole batches"
            text = f"in parts of {r.micro_batch} images instead of {asked} after memory ran out (same effective batch)"
            found[r.method, text].add(r.stage_train)
        if r.devices > 1:
            found[r.method, f"on {r.devices} devices at once (same effective batch)"].add(r.stage_train)
    of = {m: len({r.stage_train for r in rows if r.method == m}) for m, _ in found}
    return [f"{m}: {len(runs)} of {of[m]} trainings went {text}." for (m, text), runs in sorted(found.items())]
