"""What a row cost: seconds of all training behind it, milliseconds to score an image, and on which devices.

Read from the records alone. What a record does not say is NaN and printed n/a, never 0; only what trains nothing is 0.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..rows.frame import rows_frame
from ..rows.row import Row
from .aggregate import UNDEFINED, Cell, Line, Table
from .grid import BLANK, Grid, GridBlock, GridLine, Group, Head

if TYPE_CHECKING:
    import pandas as pd

NAN = math.nan
MIXED = "§"
UNKNOWN = "unknown device"
Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class RunCost:
    """The cost of one row. Seconds and milliseconds; NaN where a record does not say.

    seconds_own: of the row's own training, 0 for what reads another method's. seconds_all: of every distinct training
    and maps stage behind the row. images_per_second: of the training whose checkpoint is read. ms_per_image: what the
    method alone would take on its test set, reading pixels left out. peak_memory_mb: highest of the stages behind it.
    device_train: of the training whose checkpoint is read, empty without. devices_all: of all stages behind, sorted.
    """

    seconds_own: float
    seconds_all: float
    images_per_second: float
    ms_per_image: float
    peak_memory_mb: float
    device_train: str
    devices_all: tuple[str, ...]
    device_score: str


def run_cost(row: Row, records: Records) -> RunCost:
    """The cost of a row."""
    score = records.get(row.stage, {})
    behind = stages_behind(row, records)
    reads = records.get(row.stage_train, {})
    own = bool(row.stage_train) and reads.get("labels", {}).get("method", row.method) == row.method
    # Only trainings have to say their memory: maps are made by the model that was trained, with less.
    memory = [_number(r, "peak_memory_mb") for r in behind.values() if r.get("kind") != "maps" or "peak_memory_mb" in r]
    return RunCost(
        _number(reads, "seconds") if own else 0.0,
        sum((_number(r, "seconds") for r in behind.values()), 0.0),
        _number(reads, "images_per_second"),
        _number(score, "ms_per_image"),
        NAN if any(map(math.isnan, memory)) else max(memory, default=NAN),
        device_of(reads) if row.stage_train else "",
        tuple(sorted({device_of(r) for r in behind.values()})),
        device_of(score),
    )


def stages_behind(row: Row, records: Records) -> dict[str, Mapping[str, Any]]:
    """Every training and maps stage a row builds on, each once; an empty record for one that is gone."""
    waiting, stages = [row.stage_train] if row.stage_train else [], dict[str, Mapping[str, Any]]()
    while waiting:
        key = waiting.pop()
        if key not in stages:
            stages[key] = records.get(key, {})
            waiting += stages[key].get("parents", {}).values()
    return {key: record for key, record in stages.items() if record.get("kind", "gone") in ("gone", "train", "maps")}


def _number(record: Mapping[str, Any], name: str) -> float:
    """A number of a record; NaN where it has none."""
    value = record.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else NAN


def device_of(record: Mapping[str, Any]) -> str:
    """The GPU a stage ran on, or the CPU with its threads."""
    place = record.get("environment") or {}
    threads = place.get("threads")
    name = str(place.get("device") or UNKNOWN)
    return f"{name} ({threads} thread{'s' if threads != 1 else ''})" if threads else name


@dataclass(frozen=True)
class LineCost:
    """The cost of a line of a table: one `RunCost` a run."""

    runs: tuple[RunCost, ...]

    def mean(self, name: str) -> float:
        """Mean over the runs that say it; NaN if none does."""
        defined = [v for r in self.runs if not math.isnan(v := getattr(r, name))]
        return statistics.fmean(defined) if defined else NAN

    def cell(self, name: str) -> Cell:
        """The mean as a cell, marked where numbers of several devices went into it."""
        missing = sum(math.isnan(getattr(r, name)) for r in self.runs)
        value = self.mean(name)
        if math.isnan(value):
            return Cell(UNDEFINED)
        marks = [MIXED] if value and len(self.devices(name)) > 1 else []
        marks += [f"({len(self.runs) - missing} of {len(self.runs)})"] if missing else []
        return Cell(amount(value), " ".join(marks), value)

    def devices(self, name: str) -> tuple[str, ...]:
        """Where a number was measured, as far as there is one: one device, or several that should not be mixed."""
        return _devices((r for r in self.runs if not math.isnan(getattr(r, name))), name)

    @property
    def places(self) -> str:
        """All devices in words: those of the training, and that of the score where it differs."""
        trained, scored = (_devices(self.runs, name) for name in ("seconds_all", "ms_per_image"))
        if not trained or trained == scored:
            return " + ".join(scored)
        return f"trained: {' + '.join(trained)}; scored: {' + '.join(scored)}"


_DEVICES: dict[str, Callable[[RunCost], tuple[str, ...]]] = {
    "seconds_own": lambda r: (r.device_train,) if r.device_train else (),
    "seconds_all": lambda r: r.devices_all,
    "images_per_second": lambda r: (r.device_train,) if r.device_train else (),
    "peak_memory_mb": lambda r: r.devices_all,
    "ms_per_image": lambda r: (r.device_score,),
}


def _devices(runs: Iterable[RunCost], name: str) -> tuple[str, ...]:
    return tuple(sorted({d for r in runs for d in _DEVICES[name](r)}))


def line_cost(line: Line, records: Records) -> LineCost:
    """The cost of all runs of a line."""
    return LineCost(tuple(run_cost(run, records) for run in line.runs))


def amount(value: float) -> str:
    """An amount as text: three digits or all before the point, and a plain 0 only where there is nothing."""
    if value == 0 or value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


# -- rows of the CSV file ----------------------------------------------------------------------------------------------
def costed_frame(rows: Sequence[Row], records: Records) -> "pd.DataFrame":
    """`rows_frame` with a column for each field of `RunCost`, and `times_train` and `times_score`: seconds by part."""
    import pandas as pd

    costs = [
        {**asdict(run_cost(row, records)), "times_train": parts_of(records.get(row.stage_train, {})),
         "times_score": parts_of(records.get(row.stage, {}))}
        for row in rows
    ]  # fmt: skip
    return rows_frame(rows).join(pd.DataFrame(costs))


# -- the cost table ----------------------------------------------------------------------------------------------------
_TRAINING = (
    ("seconds_own", "own [s]", "Seconds of the method's own training; 0 for what reads another method's checkpoint."),
    ("seconds_all", "in all [s]", "Seconds of all training and teacher maps behind the line, each stage once."),
    ("images_per_second", "images/s", "Training images a second, of the training whose checkpoint is read."),
    ("peak_memory_mb", "peak [MiB]", "Highest memory use of any stage behind the line."),
)
_SCORING = (("ms_per_image", "ms/image", "Milliseconds to score one image with this method alone."),)
_QUALITY = Head("PxAP", "Pixel average precision in percent, as in the table above.")
_NAMES = ("Method", "Backbone", "Map", "Device", "n")
_TEXT = (
    "What each line cost. In all counts every distinct training and every set of teacher maps behind a line once: an "
    "explainer pays for its classifier, a student for its teacher as well."
)


def cost_grids(table: Table, records: Records) -> tuple[Grid, ...]:
    """The cost of the lines shown, and where the time of their stages went; the latter only where records say it."""
    shown = {id(line): line_cost(line, records) for line in table.shown}
    groups = (
        Group("", (_QUALITY,)),
        Group("Training", tuple(Head(title, hint) for _, title, hint in _TRAINING)),
        Group("Scoring", tuple(Head(title, hint) for _, title, hint in _SCORING)),
    )
    blocks = []
    for block in table.blocks:
        lines = [_cost_line(line, shown[id(line)]) for line in block.lines if id(line) in shown]
        if lines:
            blocks.append(GridBlock(block.key, block.title, tuple(lines)))
    costs, parts = list(shown.values()), parts_grid(table, records)
    notes = _footnotes([c for b in blocks for line in b.lines for c in line.cells], parts is not None)
    title = f"Cost of {table.sets} · protocol {table.protocol}"
    grid = Grid("cost", title, table.protocol, table.synthetic, groups, tuple(blocks), _caption(costs), notes,
                _NAMES, _TEXT)  # fmt: skip
    return (grid, parts) if parts else (grid,)


def _cost_line(line: Line, cost: LineCost) -> GridLine:
    first = line.first
    look = "bound" if first.upper_bound else "baseline" if first.baseline else ""
    names = (line.marked, first.backbone, line.map, cost.places, str(len(line.runs)))
    trained = [cost.cell(name) if first.stage_train or name.startswith("seconds") else BLANK for name, *_ in _TRAINING]
    return GridLine(names, (line.cells["pxap"], *trained, cost.cell("ms_per_image")), look)


def devices_of(costs: Iterable[LineCost]) -> list[str]:
    """Every device that some line was trained or scored on."""
    return sorted({d for c in costs for name in ("seconds_all", "ms_per_image") for d in c.devices(name)})


def _caption(costs: Iterable[LineCost]) -> str:
    return (
        f"Means over the n runs, of the checkpoint the protocol selects and the baselines. {where(devices_of(costs))}"
    )


def where(devices: Sequence[str], told: str = "see the column Device") -> str:
    """A sentence on the devices, with a warning where there are several. told: how the reader tells them apart."""
    if not devices:
        return "No record says what anything cost."
    if len(devices) == 1:
        return f"All measured on {devices[0]}."
    return (
        f"Measured on {len(devices)} devices ({'; '.join(devices)}), {told}: times of different devices do not compare."
    )


def _footnotes(cells: Sequence[Cell], has_parts: bool) -> tuple[str, ...]:
    notes = [
        "The column *in all* counts each training and teacher map set once; where one pass made the maps of several "
        "teachers, its seconds are divided among them.",
        "ms/image: what a method would take if it were scored alone; reading the pixels and writing are left out.",
        "peak: memory of the GPU where there is one, else of the whole process since it began, which may have done "
        "other stages before.",
    ]
    if any(MIXED in cell.spread for cell in cells):
        notes.append(f"{MIXED} adds up or averages numbers of different devices, so it compares with no other.")
    if any(cell.value == UNDEFINED for cell in cells):
        notes.append(
            f"{UNDEFINED}: no record says it, as those made before it was measured do not; or no maps, so no PxAP."
        )
    if not has_parts:
        notes.append("No record here says where the time of its stage went.")
    return tuple(notes)


# -- where the time went -----------------------------------------------------------------------------------------------
_PARTS = (
    "load", "augment", "forward", "backward", "step", "gradient", "explain", "evaluate", "score", "write",
)  # fmt: skip
_REST = "other"
_BLOCKS = {"train": "Training", "maps": "Maps of teachers", "score": "Scoring the test set"}


def parts_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a stage by part, as recorded; nothing where the record does not say."""
    times = record.get("times")
    return {str(k): _number(times, k) for k in times} if isinstance(times, Mapping) else {}


def parts_with_rest(record: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by part of a stage that says them, and of a training also the rest of its seconds."""
    parts = {name: value for name, value in parts_of(record).items() if not math.isnan(value)}
    # Seconds of other stages are shared between the methods of a pass, their parts are not.
    rest = _number(record, "seconds") - sum(parts.values()) if record.get("kind") == "train" and parts else 0.0
    return {**parts, _REST: parts.get(_REST, 0.0) + rest} if rest > 0 else parts


def parts_grid(table: Table, records: Records) -> Grid | None:
    """Shares of every part in the time of each training, set of teacher maps and score; None if no record says it."""
    groups = {name: members for name, members in _alike(table, records) if any(map(parts_with_rest, members))}
    if not groups:
        return None
    met = {part for members in groups.values() for r in members for part in parts_with_rest(r)}
    order = [*(p for p in _PARTS if p in met), *sorted(met - {*_PARTS, _REST}), *([_REST] if _REST in met else [])]
    heads = tuple(Head(f"{part} [%]", f"Share of {part} in percent of the time.") for part in order)
    total = Head("total [s]", "Seconds of all parts, mean over the stages that say them.")
    blocks = []
    for kind, title in _BLOCKS.items():
        lines = tuple(_parts_line(name[1:], members, order) for name, members in groups.items() if name[0] == kind)
        if lines:
            blocks.append(GridBlock(kind, title, lines))
    notes = [
        "Maps and scoring: load, forward and gradient belong to a pass that all methods of a checkpoint share, and "
        "stand in full with each that uses them; explain, score and write are the method's own.",
        "write: not part of the seconds that other tables give for a score, and only partly of those for a training.",
    ]
    if _REST in met:
        notes.append(f"{_REST}: seconds of the training that no part was charged with.")
    if any(MIXED in line.cells[-1].spread for b in blocks for line in b.lines):
        notes.append(f"{MIXED} adds up seconds of different devices.")
    return Grid(
        "time", f"Where the time went · {table.sets} · protocol {table.protocol}", table.protocol, table.synthetic,
        (Group("", (*heads, total)),), tuple(blocks),
        "Shares of the seconds summed over the stages of a line; n is their number. Empty: no such part.",
        tuple(notes), ("Stage of", "Backbone", "Map", "Device", "n"),
    )  # fmt: skip


def _alike(table: Table, records: Records) -> Iterator[tuple[tuple[str, ...], list[Mapping[str, Any]]]]:
    """(kind, method, backbone, map) and the records of it: trainings that differ in seed and data, scores of a line."""
    behind: dict[str, Mapping[str, Any]] = {}
    for line in table.shown:
        for run in line.runs:
            behind.update(stages_behind(run, records))
    by_place: dict[tuple[str, ...], dict[str, list[Mapping[str, Any]]]] = {}
    for record in behind.values():
        if record:
            labels = record.get("labels", {})
            options = f" ({labels['options']})" if labels.get("options") else ""
            name = (record["kind"], f"{labels.get('method', '')}{options}", str(labels.get("backbone", "")), "-")
            same = repr(sorted((k, str(v)) for k, v in record["identity"].items() if k not in ("seed", "data")))
            by_place.setdefault(name, {}).setdefault(same, []).append(record)
    for name, settings in by_place.items():
        for number, members in enumerate(settings.values(), 1):
            which = f" (settings {number} of {len(settings)})" if len(settings) > 1 else ""
            yield (name[0], name[1] + which, *name[2:]), members
    for line in table.shown:
        name = ("score", line.marked, line.first.backbone, line.map)
        yield name, [records.get(run.stage, {}) for run in line.runs]


def _parts_line(names: tuple[str, ...], members: Sequence[Mapping[str, Any]], order: Sequence[str]) -> GridLine:
    timed = [r for r in members if parts_with_rest(r)]
    sums: dict[str, float] = {}
    for record in timed:
        for part, seconds in parts_with_rest(record).items():
            sums[part] = sums.get(part, 0.0) + seconds
    whole, places = sum(sums.values()), sorted({device_of(r) for r in timed})
    cells = [_share(sums[part], whole) if part in sums else BLANK for part in order]
    total = Cell(amount(whole / len(timed)), MIXED if len(places) > 1 else "", whole / len(timed))
    method, backbone, map_class = names
    return GridLine((method, backbone, map_class, " + ".join(places), str(len(timed))), (*cells, total))


def _share(part: float, whole: float) -> Cell:
    share = 100 * part / whole if whole else NAN
    # A plain 0 is a part that the stage has no use for.
    return Cell(UNDEFINED) if math.isnan(share) else Cell(f"{share:.1f}" if share else "0", number=share)
