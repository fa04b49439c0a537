"""`bench data`: verify, describe, divide and synthesise datasets."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...core.errors import BenchError, many, plain
from .. import options
from .patches import patches
from .split import split as split_table

if TYPE_CHECKING:
    from ....datasets.base import Dataset
    from ....datasets.info import Info
    from ....datasets.verify import Report

_RESULTS = options.results("Folder for reports, contact sheets and the index of file hashes.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")


@click.group()
def data() -> None:
    """Verify, describe, divide or synthesise datasets, or cut them from slides.

    DATASET is a registered name (see `bench list datasets`) or the path of a CSV manifest. Nothing is downloaded:
    `verify` and `info` read the copy under --data-root (docs/datasets.md says how it must lie there), `split` needs a
    CSV table of images, `patches` whole-slide images and the extra [wsi]. `synth` needs nothing.
    """


data.add_command(patches)
data.add_command(split_table)


@data.command()
@click.argument("dataset")
@options.DATA_ROOT
@click.option("--folds", default="", help="Folds to check, separated by commas.  [default: all]")
@_RESULTS
@_JSON
def verify(dataset: str, data_root: Path, folds: str, results: Path, as_json: bool) -> None:
    """Read every file of DATASET: decode, compare sizes, count, hash. Exits with 2 if anything is wrong."""
    from ....datasets.open import HASH_FILE
    from ....datasets.verify import verify as check
    from ...core.results_store import Store

    opened, names = _open(dataset, data_root, folds, "")
    store = Store(results)
    store.check_writable()
    path = _beside(results, opened, "verify.json")
    report = check(opened, names, store.cache_dir / HASH_FILE, path)
    if as_json:
        click.echo(json.dumps({**report.as_json(), "report": str(path)}, indent=1))
    else:
        _show_report(report, path)
    if report.problems:
        first = "\n  ".join(report.problems[:5])
        raise BenchError(f"{report.dataset}: {many(len(report.problems), 'problem')}, the first:\n  {first}")


@data.command()
@click.argument("dataset")
@options.DATA_ROOT
@click.option("--folds", default="", help="Folds to describe, separated by commas.  [default: the first]")
@_RESULTS
@_JSON
@click.option("--no-sheet", is_flag=True, help="Do not draw the contact sheet.")
def info(dataset: str, data_root: Path, folds: str, results: Path, as_json: bool, no_sheet: bool) -> None:
    """Show what DATASET holds, and draw a contact sheet with the masks outlined."""
    from ....datasets.info import contact_sheet, describe
    from ...core.results_store import Store

    opened, names = _open(dataset, data_root, folds, "first")
    summaries = []
    for fold in names:
        facts, sheet = describe(opened, fold), None
        if not no_sheet:
            Store(results).check_writable()
            sheet = contact_sheet(opened, fold, _beside(results, opened, f"fold-{fold}.png"))
        summaries.append({**facts.as_json(), "sheet": str(sheet) if sheet else None})
        if not as_json:
            _show_info(facts)
            click.echo(f"contact sheet  {sheet}\n" if sheet else "")
    if as_json:
        click.echo(json.dumps(summaries, indent=1))


@data.command()
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder to write to; use it as --data-root."
)
@click.option("--datasets", default="", help="Layouts to write, separated by commas.  [default: glas,camelyon16]")
@click.option("--train", type=int, help="Training images of each.  [default: 64]")
@click.option("--test", type=int, help="Test images of each.  [default: glas 20, camelyon16 24, camelyon17 24]")
@click.option("--size", type=int, help="Side of the images in px.  [default: glas 192, camelyon16 and 17 128]")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same files.")
@_JSON
def synth(
    out: Path, datasets: str, train: int | None, test: int | None, size: int | None, seed: int, as_json: bool
) -> None:
    """Write small synthetic histology in the official layouts of GlaS and Camelyon16, marked as synthetic.

    camelyon17, two centres to test on, is written if asked for.
    """
    from ....datasets.parts.marker import read_marker
    from ....datasets.synthesis.synthetic import DEFAULT, WRITERS, refuse_real_data
    from ...core.errors import did_you_mean

    names = [n.strip() for n in datasets.split(",") if n.strip()] or list(DEFAULT)
    if unknown := [n for n in names if n not in WRITERS]:
        raise BenchError(f"No synthetic layout is called '{unknown[0]}'.{did_you_mean(unknown[0], WRITERS)}")
    refuse_real_data(out, names)
    sizes = {k: v for k, v in {"train": train, "test": test, "size": size}.items() if v is not None}
    folders = {name: WRITERS[name](out, **sizes, seed=seed) for name in names}
    if as_json:
        click.echo(json.dumps({"datasets": {n: str(f) for n, f in folders.items()}, "data_root": str(out)}, indent=1))
        return
    for folder in folders.values():
        made = read_marker(folder)
        if made:
            click.echo(f"{made.train} + {made.test} synthetic images of {made.size} px are in {folder}")
    click.echo(f"Use them with --data-root {out}")


def _open(name: str, data_root: Path, folds: str, default: str) -> tuple["Dataset", list[str]]:
    """The dataset and the folds asked for; without any, all of them or only the first."""
    from ....datasets.open import open_dataset

    opened = open_dataset(name, data_root)
    fold_names = [f.strip() for f in folds.split(",") if f.strip()]
    if fold_names:
        return opened, opened.expand_folds(fold_names)
    return opened, list(opened.folds[:1] if default == "first" else opened.folds)


def _beside(results: Path, dataset: "Dataset", ending: str) -> Path:
    """A file about a dataset in the results folder; the name of a user's dataset may hold anything."""
    from ...core.files import key_of

    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in dataset.card.name)
    if len(safe.encode()) > 100:  # file systems take 255 bytes
        safe = f"{safe[:25]}-{key_of(dataset.card.name)[:8]}"
    return results / "data" / f"{safe}-{ending.replace('/', '_')}"


def _say(line: str) -> None:
    """Prints a line; names in it come from anybody's files and must not steer the terminal."""
    click.echo(plain(line))


def _show_report(report: "Report", path: Path) -> None:
    kind = " (SYNTHETIC)" if report.synthetic else ""
    _say(f"{report.dataset}{kind}: {many(report.files, 'file')} read, {many(len(report.problems), 'problem')}")
    for fold in report.folds:
        held = {split: counts for split, counts in fold.counts.items() if any(counts.values())}
        parts = [f"{split} {' + '.join(map(str, counts.values()))}" for split, counts in held.items()]
        _say(f"  fold {fold.fold:<10} {', '.join(parts)}")
    folds_of: dict[str, list[str]] = {}
    for fold in report.folds:
        for note in fold.notes:
            folds_of.setdefault(note, []).append(fold.fold)
    for note, folds in folds_of.items():
        _say(f"  note (fold {', '.join(folds)}): {note}")
    if report.before:
        _say(f"  note: {report.before}")
    if report.changed:
        some = ", ".join(report.changed[:5]) + (", …" if len(report.changed) > 5 else "")
        count = many(len(report.changed), "image")
        _say(f"  note: {count} changed since the last verification, the first: {some}")
    _say(f"report with all hashes  {path}")


def _show_info(info: "Info") -> None:
    card: dict[str, Any] = info.card
    _say(f"{info.dataset}, fold {info.fold}{' (SYNTHETIC)' if info.synthetic else ''}")
    classes = list(card["classes"])
    groups = f"{card['group']}s"
    header = ["split", *classes, "all", groups, "foreground"]
    rows = []
    for split, counts in info.counts.items():
        if not any(counts.values()):
            continue  # a set for evaluation has a test split alone
        share = f"{100 * info.foreground[split]:.1f} %" if split in info.foreground else ""
        rows.append([split, *map(str, counts.values()), str(sum(counts.values())), str(info.groups[split]), share])
    widths = [max(len(r[k]) for r in [header, *rows]) for k in range(len(header))]
    for row in [header, *rows]:
        _say(
            "  " + "  ".join(c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        )
    _say(f"foreground     {card['foreground']} (share at 224 px; of test: the chance level of PxAP)")
    _say(f"image sizes    {_sizes(info.sizes)}")
    _say(f"licence        {card['licence']}\ncitation       {card['citation']}")
    for note in info.notes:
        _say(f"note           {note}")


def _sizes(sizes: dict[str, int], shown: int = 4) -> str:
    """The most frequent sizes, and the range of the others: a set of tissue cut out by hand has one for every image."""
    parts = [f"{n} of {size}" for size, n in list(sizes.items())[:shown]]
    rest = list(sizes.items())[shown:]
    if not rest:
        return ", ".join(parts)
    sides = [[int(side) for side in size.split(" x ")] for size, _ in rest]
    (left, right), (top, bottom) = ((min(side), max(side)) for side in zip(*sides, strict=True))
    others = f"{sum(n for _, n in rest)} of {len(rest)} other sizes"
    return f"{', '.join(parts)}, and {others}, {left} to {right} px wide and {top} to {bottom} px high"
