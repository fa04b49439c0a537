"""Columns of tables, and cells: every number is formatted once, with its interval, and printed by all formats."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..rows.row import Row
from ..statistics.spreads import spread_over_groups

UNDEFINED = "n/a"
ORACLE = "†"


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    key: field of Row. title, tex: heading as plain text and as LaTeX. digits: decimals. scale: factor for display.
    interval: what `spread_over_groups` calls it, empty without an interval. sd: whether the spread over runs is shown.
    best: whether the highest value is bold, and `chance` names the value it must exceed for that.
    oracle: whether the number has seen what it is judged on.
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
    chance: str = ""
    oracle: bool = False
    optional: bool = False
    brief: str = ""


_TAU = "at tau_val, the threshold of best mean IoU (of foreground and background) on the validation masks"
COLUMNS = (
    Column("pxap", "PxAP", "Pixel average precision in percent, the pixels of all images pooled.", interval="pxap",
           best=True, chance="chance"),
    Column("chance", "chance", "PxAP of a constant map: the share of foreground pixels, in percent.", sd=False),
    Column("ap", "AP exact", "PxAP without its 1,001 bins: the average precision of a sample of pixels.", sd=False,
           optional=True),
    Column("pxap_image", "PxAP/image", "Mean over patients of the mean over their images of each image's own PxAP.",
           interval="pxap_image", best=True, chance="chance_image"),
    Column("pxap_positives", "PxAP pos.", "PxAP of the images whose class has a region.", best=True,
           chance="chance_positives", optional=True),
    Column("chance_positives", "chance pos.", "Chance level of those images.", sd=False, optional=True),
    Column("accuracy", "Accuracy", "Share of images classified right, in percent.", interval="accuracy", best=True,
           chance="majority"),
    Column("dice_tau_val", "Dice", f"Dice of the foreground in percent, pixels pooled, {_TAU}.",
           interval="dice_tau_val", best=True, chance="chance_dice"),
    Column("chance_dice", "chance Dice", "Dice of a constant map at its best: everything called foreground.",
           sd=False),
    Column("dice_image", "Dice/image", "Mean over patients of the mean over their images of each image's own Dice.",
           interval="dice_image", best=True, chance="chance_dice_image"),
    Column("iou_tau_val", "IoU", f"Intersection over union of the foreground in percent, {_TAU}.", best=True,
           chance="chance"),
    Column("false_area", "false area", "Share of the pixels called foreground in images of classes without a region, "
           "mean over patients.", optional=True),
    Column("tau_val", "tau_val", "Threshold chosen on the validation masks, in [0, 1].", r"$\tau_\mathrm{val}$",
           digits=3, sd=False),
    Column("dice_oracle", f"Dice {ORACLE} oracle", "Dice at the threshold of best mean IoU on the test masks: no fair "
           "number, and not the highest Dice there is.", r"Dice$^\dagger$ oracle", oracle=True),
    Column("iou_oracle", f"IoU {ORACLE} oracle", "IoU at the threshold of best mean IoU on the test masks: no fair "
           "number.", r"IoU$^\dagger$ oracle", oracle=True),
    Column("seconds_train", "Train [s]", "Seconds of the training whose checkpoint is scored.", sd=False),
    Column("seconds_parents", "Parents [s]", "Seconds of all that training builds on: its teacher and that one's maps.",
           sd=False, optional=True),
    Column("seconds_score", "Score [s]", "Seconds to score the test set.", sd=False),
    Column("parameters", "Params [M]", "Parameters of the scored model in millions.", scale=1e-6, sd=False),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A formatted number: `value` and `spread` are what every format prints, `number` is what sorting uses.

    low, high: ends of the 95% interval over groups; sd: standard deviation over the runs it is the mean of; NaN where
    there is none. mark: a sign with a footnote.
    """

    value: str
    spread: str = ""
    number: float = math.nan
    best: bool = False
    low: float = math.nan
    high: float = math.nan
    sd: float = math.nan
    mark: str = ""

    @property
    def marked(self) -> str:
        """The value with its mark."""
        return f"{self.value}{self.mark}"

    @property
    def text(self) -> str:
        """Value and spread."""
        return f"{self.marked} {self.spread}".rstrip()


def make_cell(rows: Sequence[Row], column: Column) -> Cell:
    """Mean over rows where it is defined, with its interval over groups and, of several, the spread over runs."""
    cell = mean_cell([float(getattr(r, column.key)) * column.scale for r in rows], column)
    if not column.interval or math.isnan(cell.number):
        return cell
    low, high = spread_over_groups(rows, column.interval)
    interval = f"[{UNDEFINED}]" if math.isnan(low) else f"[{_number(low, column)}, {_number(high, column)}]"
    return replace(cell, spread=f"{interval} {cell.spread}".rstrip(), low=low, high=high)


def mean_cell(values: Sequence[float], column: Column) -> Cell:
    """Mean over the defined values, as many as there are runs, with their standard deviation."""
    defined = [v for v in values if not math.isnan(v)]
    if not defined:
        return Cell(UNDEFINED)
    mean = statistics.fmean(defined)
    sd = statistics.stdev(defined) if len(defined) > 1 else math.nan
    spread = f"± {_number(sd, column)}" if len(defined) > 1 and column.sd else ""
    if len(defined) < len(values):
        spread = f"{spread} ({len(defined)} of {len(values)})".strip()
    return Cell(_number(mean, column), spread, mean, sd=sd)


def mark_best_cells(cells: Sequence[Cell], fair: Sequence[bool], floors: Sequence[float]) -> list[Cell]:
    """The cells of a column with the highest of those that count (`fair`) marked, unless all are equal as printed.

    floors: what is had for nothing, per cell; a value no higher than it is never marked; NaN where there is no floor.
    """
    counted = [k for k, cell in enumerate(cells) if fair[k] and not math.isnan(cell.number)]
    above = [k for k in counted if math.isnan(floors[k]) or cells[k].number > floors[k]]
    if len({cells[k].value for k in counted}) < 2 or not above:
        return list(cells)
    top = cells[max(above, key=lambda k: cells[k].number)].value
    return [replace(cell, best=True) if k in above and cell.value == top else cell for k, cell in enumerate(cells)]


def chance_of(rows: Sequence[Row], column: Column) -> float:
    """What is had for nothing in a column, mean over the rows that know it; NaN where none does."""
    levels = [v for r in rows if not math.isnan(v := float(getattr(r, column.chance)))] if column.chance else []
    return statistics.fmean(levels) if levels else math.nan


def _number(value: float, column: Column) -> str:
    if not column.key.startswith(("seconds", "parameters")):
        text = f"{value:.{column.digits}f}"
        return text.removeprefix("-") if float(text) == 0 else text  # no minus before a zero
    # Amounts span many orders of magnitude, and a plain 0 says that there is nothing, not that there is little.
    return f"{value:.{0 if value == 0 or value >= 100 else 1 if value >= 10 else 2}f}"
