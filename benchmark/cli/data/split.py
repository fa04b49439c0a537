"""`bench data split`: divides a table of images into train, val and test."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...core.errors import plain
from .. import options

if TYPE_CHECKING:
    from ....datasets.parts.split_table import SplitReport

_SHARE = click.FloatRange(0, 1, max_open=True)


@click.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--val", type=_SHARE, help="Share for validation.  [default: 0.2]")
@click.option("--test", type=_SHARE, help="Share for the test set.  [default: 0.2; 0 if TABLE has test rows]")
@click.option("--folds", type=click.IntRange(2, 50), help="Divide into N equal parts and write N folds instead.")
@click.option("--seed", default=0, show_default=True, help="Another number, another division.")
@click.option("--out", type=click.Path(path_type=Path), help="New file beside TABLE.  [default: TABLE-split.csv]")
@options.DATA_ROOT
@click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
def split(
    table: Path,
    val: float | None,
    test: float | None,
    folds: int | None,
    seed: int,
    out: Path | None,
    data_root: Path,
    as_json: bool,
) -> None:
    """Divide the images of TABLE into train, val and test, no patient in two.

    TABLE is a CSV manifest (docs/datasets.md) whose column split is missing, or empty in the rows to divide; rows that
    name a split keep it. Images of one group stay together, and so do images that are the same byte for byte; every
    split gets its share of each class, as nearly as the groups allow.

    With --folds each part is the test set once, the next one is then the validation set. If TABLE has test rows, they
    stay the test set, and each part is the validation set once.
    """
    from ....datasets.parts.split_table import SplitRequest, split_table

    report = split_table(SplitRequest(table, data_root, val, test, folds, seed, out))
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=1))
        return
    for line in _lines(report):
        click.echo(plain(line))


def _lines(report: "SplitReport") -> list[str]:
    lines = []
    for fold in report.folds:
        lines.append(f"fold {fold.fold}" if len(report.folds) > 1 else "")
        header = ["split", *fold.images["train"], "all", "groups"]
        rows = [
            [name, *map(str, counts.values()), str(sum(counts.values())), str(fold.groups[name])]
            for name, counts in fold.images.items()
        ]
        widths = [max(len(r[k]) for r in [header, *rows]) for k in range(len(header))]
        for row in [header, *rows]:
            cells = [c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))]
            lines.append("  " + "  ".join(cells))
    lines += [f"note: {note}" for note in report.notes]
    return [line for line in lines if line] + [f"Written: {report.path}. Look through it, then use it as --datasets."]
