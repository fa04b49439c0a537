"""Models on other data than they were trained on: one table a protocol, one group of columns a pair of sets."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..rows.declared import COLLAPSED, bound_notes, marked_sets, normalisation_notes, seen_notes
from ..rows.row import Row
from .aggregate import Settings, Table, tables_of
from .captions import constant_notes, saturation_notes, spread_sentences, tested
from .cells import UNDEFINED, Cell, Column, chance_of, make_cell, mean_cell
from .grid import NAMES, Grid, GridBlock, GridLine, Group, Head, Place, make_blocks, place_of

CHANCE = "Chance level: a constant map, or the largest class always"
COLUMNS = (
    Column("pxap", "PxAP", "Pixel average precision in percent, the pixels of all images pooled.", interval="pxap",
           best=True, chance="chance", brief="PxAP"),
    Column("pxap_positives", "PxAP pos.", "PxAP of the images whose class has a region.", best=True,
           chance="chance_positives", optional=True),
    Column("dice_tau_val", "Dice", "Dice in percent at tau_val, the threshold chosen on the set trained for.",
           interval="dice_tau_val", best=True, chance="chance_dice", brief="Dice"),
    Column("dice_oracle", "Dice † oracle", "Dice at the threshold of best mean IoU on these masks: no fair number.",
           oracle=True, chance="chance_dice", brief="Dice†"),
    Column("false_area", "false area", "Share of the pixels called foreground at tau_val in images of classes without "
           "a region.", optional=True),
    Column("accuracy", "Accuracy", "Share of images classified right, in percent.", interval="accuracy", best=True,
           chance="majority", brief="Acc."),
    Column("balanced_accuracy", "bal. Acc.", "Mean of the shares classified right of each class."),
    Column("predicted_positive", "called pos.", "Share of all images that were predicted as positive.", sd=False),
    Column("drop_pxap", "drop PxAP", "Percentage points of PxAP lost against the set trained for.", brief="drop"),
    Column("drop_skill", "drop skill", "Points lost of PxAP above chance, in percent of what chance leaves."),
    Column("drop_accuracy", "drop Acc.", "Percentage points of accuracy lost against the set trained for."),
)  # fmt: skip
_LOST = 0.5  # share of the oracle's Dice below which a threshold has not survived


def collapsed(rows: Sequence[Row]) -> bool:
    """Whether the threshold of the set trained for fails here: its Dice is below that of a constant map, and less than
    half of what the maps reach at the threshold of these masks."""
    triples = [(r.dice_tau_val, r.dice_oracle, r.chance_dice) for r in rows]
    if not triples or any(math.isnan(v) for values in triples for v in values):
        return False
    dice, oracle, chance = (sum(v) / len(triples) for v in zip(*triples, strict=True))
    return dice < chance and dice < _LOST * oracle


@dataclass(frozen=True)
class OodTables:
    """Out-of-domain tables of one protocol: a table a pair of sets, and the grid that holds them side by side."""

    protocol: str
    synthetic: bool
    tables: tuple[Table, ...]
    grid: Grid


def build_ood(rows: Iterable[Row], settings: Settings | None = None) -> list[OodTables]:
    """All rows on other data sets (no shift), one `OodTables` a protocol; synthetic and real data never share one."""
    rows = list(rows)
    home = {r.train: r.foreground for r in rows if not r.ood}
    by_protocol: dict[tuple[str, bool], list[Table]] = defaultdict(list)
    for table in tables_of((r for r in rows if r.pair), settings):
        by_protocol[table.protocol, table.synthetic].append(table)
    out = []
    for (protocol, synthetic), tables in sorted(by_protocol.items()):
        ordered = tuple(sorted(tables, key=lambda t: (t.train, t.eval)))
        out.append(OodTables(protocol, synthetic, ordered, _grid(protocol, synthetic, ordered, home)))
    return out


def _grid(protocol: str, synthetic: bool, tables: Sequence[Table], home: Mapping[str, str]) -> Grid:
    columns = [_columns(table) for table in tables]
    groups = tuple(Group(marked_sets(t.sets, t.rows), _heads(t, c)) for t, c in zip(tables, columns, strict=True))
    lines: list[Mapping[Place, tuple[Cell, ...]]] = []
    runs: dict[Place, set[int]] = defaultdict(set)
    for table, own in zip(tables, columns, strict=True):
        cells = {}
        for line in table.lines:
            cells[place_of(line)] = tuple(_cell(line.estimates, c) for c in own)
            runs[place_of(line)].add(len(line.runs))
        lines.append(cells)
    chance = tuple(cell for t, own in zip(tables, columns, strict=True) for cell in _chance(t.estimates, own))
    blocks = make_blocks(lines, runs, [g.heads for g in groups], protocol)
    title = f"Out of domain · protocol {protocol}"
    text = "Models as they were trained, scored on the test set of other data: train → evaluated on."
    return Grid("ood", title, protocol, synthetic, groups, (chance_block(chance), *blocks), _caption(tables),
                _footnotes(tables, home), text=text)  # fmt: skip


def _columns(table: Table) -> tuple[Column, ...]:
    """The positives stand apart where some class has no region."""
    apart = any(r.images_positive != r.images for r in table.rows)
    return tuple(c for c in COLUMNS if apart or not c.optional)


def _heads(table: Table, columns: Iterable[Column]) -> tuple[Head, ...]:
    """Headings of one pair of sets; nothing is the best where starting weights had seen the images."""
    heads = heads_of(columns, table.estimates)
    return tuple(h._replace(best=False) for h in heads) if any(r.weights_seen for r in table.rows) else heads


def heads_of(columns: Iterable[Column], rows: Sequence[Row] = ()) -> tuple[Head, ...]:
    """Columns as headings of a grid; rows: those of a set, which know what is had there for nothing."""
    return tuple(Head(c.title, c.hint, c.best, brief=c.brief, chance=chance_of(rows, c)) for c in columns)


def _cell(rows: Sequence[Row], column: Column) -> Cell:
    """A number; a Dice whose threshold has not survived is marked."""
    cell = make_cell(rows, column)
    lost = column.key == "dice_tau_val" and not rows[0].baseline and collapsed(rows)
    return replace(cell, mark=f" {COLLAPSED}") if lost else cell


def chance_block(cells: tuple[Cell, ...]) -> GridBlock:
    """The line that says what a constant map reaches; it stands first."""
    return GridBlock("chance", CHANCE, (GridLine(("chance", *("-",) * (len(NAMES) - 1)), cells, "chance"),))


def _chance(rows: Sequence[Row], columns: Iterable[Column]) -> list[Cell]:
    return [chance_cell(rows, c.chance) if c.chance else Cell("") for c in columns]


def chance_cell(rows: Sequence[Row], key: str) -> Cell:
    """The chance level of a set; folds may divide it differently, and then both ends are said."""
    defined = [v for r in rows if not math.isnan(v := getattr(r, key))]
    if not defined:
        return Cell(UNDEFINED)
    mean = mean_cell(defined, Column(key, "", "", sd=False))
    ends = sorted({f"{v:.1f}" for v in (min(defined), max(defined))}, key=float)
    return mean if len(ends) == 1 else Cell(" to ".join(ends), number=mean.number)


def _caption(tables: Sequence[Table]) -> str:
    sizes = [f"{t.sets} ({tested(t.estimates)})" for t in tables]
    text = f"Trained on one data set, scored on another: {'; '.join(sizes)}. "
    text += "tau_val and the scale of the maps come from the validation images of the set trained on. "
    lines = [(line.runs, line.estimates) for t in tables for line in t.lines]
    return f"{text}{spread_sentences(lines)}".rstrip()


def _footnotes(tables: Sequence[Table], home: Mapping[str, str]) -> tuple[str, ...]:
    rows, estimates = [r for t in tables for r in t.rows], [r for t in tables for r in t.estimates]
    lost = any(not r.baseline and collapsed([r]) for r in estimates)
    notes = [
        "drop: percentage points lost against the same checkpoint on the set it was trained for; negative: gained.",
        *([f"{COLLAPSED} collapse: at tau_val, chosen at home, the Dice is below that of a constant map and less than "
           "half of the oracle's: the maps may still rank pixels, but the threshold did not survive."] if lost else []),
        "Chance levels differ between sets, so drops of PxAP mix what a model lost with what a set gives away: skill "
        "is 100 (PxAP - chance) / (100 - chance), 0 for a constant map and 100 for a perfect one on any set.",
        "Accuracy moves with the share of each class: beside it stand the mean over classes, how many images were "
        "called positive, and, as its chance level, always saying the largest class.",
        "Bold: the highest value of a block, if it is above the chance level.",
    ]  # fmt: skip
    notes += saturation_notes(estimates)
    for table in tables:
        notes += _pair_notes(table, home.get(table.train, ""))
    if any(r.images_positive != r.images for r in rows):
        notes.append("PxAP pos.: only images whose class has a region; the other images are all background.")
    if adapted := sorted({r.method for r in rows if r.target}):
        notes.append(
            f"Adapted to the set evaluated on, from its training images without labels: {', '.join(adapted)}. Others "
            "never saw it."
        )
    notes += bound_notes(rows)
    notes.append(
        f"{UNDEFINED}: not defined, because the method makes no map or classifies no image, or because it has no row "
        "on the set it was trained for. Empty: not scored."
    )
    notes += [*seen_notes(rows), *constant_notes(rows), *normalisation_notes(rows)]
    return (*notes, *dict.fromkeys(note for r in rows for note in r.notes))


def _pair_notes(table: Table, home: str) -> list[str]:
    """How classes were matched, and what a mask marks on either side."""
    maps = sorted({r.label_map for r in table.rows} - {""})
    notes = [f"{table.sets}: classes are matched, {text}." for text in maps]
    at_home = sorted({r.train_foreground or home for r in table.rows} - {""})
    away = sorted({r.foreground for r in table.rows} - {""})
    if at_home and away and at_home != away:
        notes.append(
            f"{table.sets}: a mask of {table.train} marks {'; '.join(at_home)}, a mask of {table.eval} "
            f"{'; '.join(away)}. Part of the drop is this change of what is asked."
        )
    return notes
