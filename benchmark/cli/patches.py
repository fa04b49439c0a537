"""`bench data patches`: from whole-slide images and their annotations to a dataset of patches."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BenchError

if TYPE_CHECKING:
    from ...datasets.patches_settings import PatchSettings
    from ...datasets.patches_slides import Listing

_FOLDER = click.Path(path_type=Path)
_LEVEL_0 = "level-0"


class _Mpp(click.ParamType):
    """Microns per px, or the finest level as it is."""

    name = "µm"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """A positive number or `level-0`."""
        if value == _LEVEL_0 or isinstance(value, float):
            return value
        try:
            return float(value)
        except ValueError:
            self.fail(f"'{value}' is neither a number of microns per px nor {_LEVEL_0}.", param, ctx)


@click.command()
@click.option("--slides", type=_FOLDER, required=True, help="Folder with the slides, also in folders below it.")
@click.option("--annotations", type=_FOLDER, help="Folder with the ASAP annotations, NAME.xml for slide NAME.")
@click.option("--out", type=_FOLDER, required=True, help="Folder to write to; the same command continues there.")
@click.option("--splits", type=_FOLDER, help="CSV file slide,split[,label] for slides not named as in Camelyon16.")
@click.option("--size", default=512, show_default=True, help="Side of a patch in px.")
@click.option(
    "--mpp",
    type=_Mpp(),
    metavar="NUMBER",
    default=0.25,
    show_default=True,
    help=f"Microns per px, or {_LEVEL_0} as it is.",
)
@click.option("--assume-mpp", type=float, help="Microns per px of level 0, for slides that do not state it.")
@click.option("--tumor-share", default=0.2, show_default=True, help="Least share of tumour in a tumour patch.")
@click.option("--tissue-share", default=0.1, show_default=True, help="Least share of tissue in any patch.")
@click.option("--rgb-floor", default=10.0, show_default=True, help="Grey level that R, G and B of tissue exceed.")
@click.option("--dense-share", default=0.01, show_default=True,
              help="Patches kept above a tumour share of 0.5, per patch kept below it.")  # fmt: skip
@click.option("--max-per-slide", default=0, help="Most patches of one slide.  [default: no limit]")
@click.option("--val-share", default=0.2, show_default=True, help="Share of the training slides set aside as val.")
@click.option("--unannotated", type=click.Choice(["auto", "normal", "skip", "error"]), default="auto",
              show_default=True, help="What a slide of unknown class without XML is; auto knows Camelyon16's test "
              "slides.")  # fmt: skip
@click.option("--include-bad", is_flag=True, help="Cut slides with known faults too.")
@click.option("--as-published", is_flag=True, help="Sample as the published patches were, defects included.")
@click.option("--name", default="camelyon16", show_default=True, help="Folder below --out, and name of the dataset.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same files.")
@click.option("--jobs", default=-1, show_default=True, help="Processes; -1: one a core.")
@click.option("--dry-run", is_flag=True, help="List slides, annotations and what is missing; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
@click.pass_context
def patches(ctx: click.Context, /, **options: Any) -> None:
    """Cut whole-slide images into patches with masks: a dataset for `bench run --datasets OUT/dataset.csv`.

    Reads slides with openslide (pip install 'wsolbench[wsi]') and polygons from ASAP XML files. Exits with 1 if some
    slides could not be cut; the others are done, and the same command does the rest.
    """
    from ...datasets.patches_slides import list_slides

    settings = _settings(ctx, options)
    listing = list_slides(
        options["slides"], options["annotations"], options["splits"], options["unannotated"], options["include_bad"]
    )
    if options["dry_run"]:
        _show_listing(listing, options["as_json"])
        sys.exit(1 if listing.problems else 0)
    _cut(listing, settings, options)


def _settings(ctx: click.Context, options: dict[str, Any]) -> "PatchSettings":
    from ...datasets.patches_settings import PatchSettings, as_published

    jobs = options["jobs"]
    if jobs == 0 or jobs < -1:
        raise BenchError(f"--jobs {jobs}: give a number of processes, or -1 for one a core.")
    names = ("size", "assume_mpp", "tumor_share", "tissue_share", "rgb_floor", "dense_share", "max_per_slide",
             "val_share", "seed", "name")  # fmt: skip
    mpp = None if options["mpp"] == _LEVEL_0 else options["mpp"]
    settings = PatchSettings(mpp=mpp, **{n: options[n] for n in names})
    if not options["as_published"]:
        return settings
    given = [n for n in ("mpp", "assume_mpp", "rgb_floor") if _was_given(ctx, n)]
    if given:
        flags = ", ".join(f"--{n.replace('_', '-')}" for n in given)
        raise BenchError(f"--as-published sets {flags} itself. Leave out one or the other.")
    return as_published(settings)


def _was_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE


def _cut(listing: "Listing", settings: "PatchSettings", options: dict[str, Any]) -> None:
    from ...datasets.patches import make_patches

    out: Path = options["out"]
    outcome = make_patches(listing, settings, out, options["jobs"], _progress())
    if options["as_json"]:
        click.echo(json.dumps({"out": str(out), **outcome.summary}, indent=1))
    else:
        _show_summary(outcome.summary, out)
    if outcome.failed:
        click.echo(f"\n{len(outcome.failed)} slides could not be cut:", err=True)
        for slide, reason in outcome.failed:
            click.echo(f"  {slide}: {reason}", err=True)
        sys.exit(1)


def _progress() -> Any:
    """Counts slides on one line of a terminal, and says only when a step is done elsewhere."""

    def show(what: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{what}: {done} of {total}", err=True, nl=done == total)
        elif done == total:
            click.echo(f"{what}: {total}", err=True)

    return show


def _show_listing(listing: "Listing", as_json: bool) -> None:
    if as_json:
        slides = [
            {"slide": j.name, "label": j.label, "split": j.split, "path": str(j.path),
             "annotation": str(j.annotation) if j.annotation else None} for j in listing.jobs
        ]  # fmt: skip
        left = {"skipped": [s._asdict() for s in listing.skipped], "problems": [p._asdict() for p in listing.problems]}
        click.echo(json.dumps({"slides": slides, **left}, indent=1))
        return
    for job in listing.jobs:
        click.echo(f"{job.split:<6} {job.label:<7} {job.name:<20} {job.annotation or 'no annotation'}")
    for title, rows in (("left out", listing.skipped), ("PROBLEM", listing.problems)):
        for slide, reason in rows:
            click.echo(f"{title:<14} {slide:<20} {reason}")
    click.echo(
        f"{len(listing.jobs)} slides to cut, {len(listing.skipped)} left out, {len(listing.problems)} with a problem. "
        "Nothing was written."
    )


def _show_summary(summary: dict[str, Any], out: Path) -> None:
    for split, classes in summary["counts"].items():
        parts = [f"{c['patches']} {name} of {c['slides']} slides" for name, c in classes.items()]
        click.echo(f"{split:<6} {', '.join(parts)}")
    for slide in summary["skipped"]:
        click.echo(f"left out: {slide['slide']}: {slide['reason']}")
    for note in summary["notes"]:
        click.echo(f"note: {note}")
    click.echo(f"Everything is listed in {out / 'patches.csv'}. Use it with --datasets {out / 'dataset.csv'}")
