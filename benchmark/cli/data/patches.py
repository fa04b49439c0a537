"""`bench data patches`: from whole-slide images and their annotations to a dataset of patches."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...core.errors import BenchError

if TYPE_CHECKING:
    from ....datasets.patches.extract import Preview
    from ....datasets.patches.settings import PatchSettings
    from ....datasets.patches.slides import Listing, SlideJob

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


class _Group(click.ParamType):
    """NAME=ROLE, the role being one of three."""

    name = "name=role"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """(name, role)."""
        name, _, role = value.rpartition("=")
        if not name.strip() or role.strip() not in ("tumor", "excluded", "ignored"):
            self.fail(f"'{value}' is not NAME=tumor, NAME=excluded or NAME=ignored.", param, ctx)
        return name.strip(), role.strip()


@click.command()
@click.option("--slides", type=_FOLDER, required=True, help="Folder with the slides, also in folders below it.")
@click.option("--annotations", type=_FOLDER, help="Folder with what is drawn on them: NAME.xml of ASAP or NAME.geojson "
              "of QuPath for slide NAME.")  # fmt: skip
@click.option("--out", type=_FOLDER, required=True, help="Folder to write to; the same command continues there.")
@click.option("--splits", type=_FOLDER, help="CSV file slide,split[,label][,patient] for slides not named as in "
              "Camelyon16, or Camelyon17's stage_labels.csv as it is.")  # fmt: skip
@click.option("--test-share", default=0.0, help="Where --splits names no splits: share of the patients set aside as "
              "the test set.  [default: with stage_labels.csv all slides are test]")  # fmt: skip
@click.option("--size", default=512, show_default=True, help="Side of a patch in px.")
@click.option(
    "--mpp",
    type=_Mpp(),
    metavar="NUMBER",
    default=0.25,
    show_default=True,
    help=f"Microns per px, or {_LEVEL_0} as it is.",
)
@click.option("--assume-mpp", type=float, help="Microns per px of level 0, for slides that state none that can be.")
@click.option("--group", "groups", type=_Group(), multiple=True, help="What an annotation group (QuPath: class) of "
              "another name is: NAME=tumor, excluded or ignored. May be repeated.")  # fmt: skip
@click.option("--overlaps", type=click.Choice(["excluded", "innermost"]), default="excluded", show_default=True,
              help="Where outlines of tumour and of exclusions lie over each other: the exclusion wins, or the smaller "
              "outline (a tumour island inside an exclusion stays).")  # fmt: skip
@click.option("--geojson-origin", type=click.Choice(["slide", "scanned"]), help="Where GeoJSON counts px from, for "
              "slides whose scanned part does not begin in the corner of the slide (MIRAX).")  # fmt: skip
@click.option("--tumor-share", default=0.2, show_default=True, help="Least share of tumour in a tumour patch.")
@click.option("--tissue-share", default=0.1, show_default=True, help="Least share of tissue in any patch.")
@click.option("--rgb-floor", default=10.0, show_default=True, help="Grey level that R, G and B of tissue exceed.")
@click.option("--dense-share", default=0.01, show_default=True,
              help="Patches kept above a tumour share of 0.5, per patch kept below it.")  # fmt: skip
@click.option("--max-per-slide", default=0, help="Most patches of one slide and class.  [default: no limit]")
@click.option("--normal-from-tumor-slides", "normal_from_tumor", type=float, metavar="UM", help="Take normal patches "
              "from tumour slides too, at least so many µm (and one patch) from any outline.  [default: "
              "from normal slides only]")  # fmt: skip
@click.option("--val-share", default=0.2, show_default=True, help="Share of the training patients set aside as val.")
@click.option("--unannotated", type=click.Choice(["auto", "normal", "skip", "error"]), default="auto",
              show_default=True, help="What a slide of unknown class without annotation is; auto knows Camelyon16's "
              "test slides.")  # fmt: skip
@click.option("--include-bad", is_flag=True, help="Cut slides with known faults too.")
@click.option("--as-published", is_flag=True, help="Sample as the published patches were, defects included.")
@click.option("--name", help="Folder below --out, and name of the dataset.  [default: camelyon16 or camelyon17 by the "
              "names of the slides, else the name of --out]")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same files.")
@click.option("--jobs", default=-1, show_default=True, help="Processes; -1: one a core.")
@click.option("--dry-run", is_flag=True, help="Open slides and annotations, name every problem; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
@click.pass_context
def patches(ctx: click.Context, /, **options: Any) -> None:
    """Cut whole-slide images into patches with masks: a dataset for `bench run --datasets OUT/dataset.csv`.

    Reads slides with openslide (pip install 'wsolbench[wsi]') and outlines of tumour from ASAP XML or QuPath GeoJSON
    files. Every slide ends as used, as left out with a reason, or as failed with a reason; exits with 1 if some failed:
    the others are done, and the same command does the rest.
    """
    from ....datasets.patches.slides import list_slides

    names = ("slides", "annotations", "splits", "unannotated", "include_bad", "test_share")
    listing = list_slides(**{n: options[n] for n in names})
    settings = _settings(ctx, options, listing)
    if options["dry_run"]:
        _preview(listing, settings, options)
    else:
        _cut(listing, settings, options)


def _settings(ctx: click.Context, options: dict[str, Any], listing: "Listing") -> "PatchSettings":
    from ....datasets.patches.settings import PatchSettings, as_published

    jobs = options["jobs"]
    if jobs == 0 or jobs < -1:
        raise BenchError(f"--jobs {jobs}: give a number of processes, or -1 for one a core.")
    names = ("size", "assume_mpp", "tumor_share", "tissue_share", "rgb_floor", "dense_share", "max_per_slide",
             "val_share", "seed", "overlaps", "groups", "normal_from_tumor")  # fmt: skip
    mpp = None if options["mpp"] == _LEVEL_0 else options["mpp"]
    settings = PatchSettings(
        mpp=mpp, name=options["name"] or _name(listing, options["out"]), geojson_origin=options["geojson_origin"] or "",
        **{n: options[n] for n in names},
    )  # fmt: skip
    if not options["as_published"]:
        return settings
    given = [n for n in ("mpp", "assume_mpp", "rgb_floor", "overlaps") if _was_given(ctx, n)]
    if given:
        flags = ", ".join(f"--{n.replace('_', '-')}" for n in given)
        raise BenchError(f"--as-published sets {flags} itself. Leave out one or the other.")
    return as_published(settings)


def _name(listing: "Listing", out: Path) -> str:
    """The name of the set: as an earlier call chose it, after the slides, or after the folder."""
    from ....datasets.patches.extract import stored_name
    from ....datasets.patches.patients import is_camelyon17
    from ....datasets.patches.slides import is_camelyon16

    slides = [j.name for j in listing.jobs] or [p.slide for p in listing.problems]
    for name, known in (("camelyon16", is_camelyon16), ("camelyon17", is_camelyon17)):
        if slides and all(map(known, slides)):
            return stored_name(out) or name
    words = re.sub(r"[^A-Za-z0-9_-]+", "-", out.resolve().name).strip("-")
    return stored_name(out) or words or "patches"


def _was_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE


def _cut(listing: "Listing", settings: "PatchSettings", options: dict[str, Any]) -> None:
    from ....datasets.patches.extract import make_patches

    out: Path = options["out"]
    outcome = make_patches(listing, settings, out, options["jobs"], _progress())
    if options["as_json"]:
        click.echo(json.dumps({"out": str(out), **outcome.summary}, indent=1))
    else:
        _show_summary(outcome.summary, out)
    if outcome.failed:
        _show_failed(outcome.failed)
        sys.exit(1)


def _show_failed(failed: Sequence[Any]) -> None:
    click.echo(f"\n{len(failed)} slide{'s' * (len(failed) > 1)} could not be cut:", err=True)
    for slide, reason in failed:
        click.echo(f"  {slide}: {reason}", err=True)
    click.echo("Mend them and give the same command again; what is done is kept.", err=True)


def _progress() -> Any:
    """Counts slides on one line of a terminal, and says only when a step is done elsewhere."""

    def show(what: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{what}: {done} of {total}", err=True, nl=done == total)
        elif done == total:
            click.echo(f"{what}: {total}", err=True)

    return show


def _preview(listing: "Listing", settings: "PatchSettings", options: dict[str, Any]) -> None:
    """Shows all that a run would say before it searches the slides, and exits as it would."""
    from ....datasets.patches.extract import preview

    sheet = preview(listing, settings, options["out"], options["jobs"], _progress())
    failed = {f.slide for f in sheet.failed}
    sound = [j for j in listing.jobs if j.name not in failed]
    if options["as_json"]:
        slides = [
            {"slide": j.name, "label": j.label, "split": j.split, "group": j.group, "path": str(j.path),
             "annotation": str(j.annotation) if j.annotation else None} for j in sound
        ]  # fmt: skip
        left = {"skipped": [s._asdict() for s in listing.skipped], "problems": [p._asdict() for p in sheet.failed]}
        click.echo(json.dumps({"slides": slides, **left, "notes": sheet.notes, "refusals": sheet.refusals}, indent=1))
    else:
        _show_listing(sound, listing, sheet)
    sys.exit(2 if sheet.refusals else 1 if sheet.failed else 0)


def _show_listing(sound: Sequence["SlideJob"], listing: "Listing", sheet: "Preview") -> None:
    for job in sound:
        click.echo(f"{job.split:<6} {job.label:<7} {job.name:<20} {job.annotation or 'no annotation'}")
    for title, rows in (("left out", listing.skipped), ("PROBLEM", sheet.failed)):
        for slide, reason in rows:
            click.echo(f"{title:<14} {slide:<20} {reason}")
    for note in sheet.notes:
        click.echo(f"note: {note}")
    for refusal in sheet.refusals:
        click.echo(f"REFUSED: {refusal}")
    click.echo(
        f"{len(sound)} slides to cut, {len(listing.skipped)} left out, {len(sheet.failed)} with a problem. "
        f"Nothing was written.{' A run would stop before it cuts anything.' if sheet.refusals else ''}"
    )


def _show_summary(summary: dict[str, Any], out: Path) -> None:
    for split, classes in summary["counts"].items():
        parts = [f"{c['patches']} {name} of {c['slides']} slides" for name, c in classes.items()]
        click.echo(f"{split:<6} {', '.join(parts)}")
    for slide in summary["skipped"]:
        click.echo(f"left out: {slide['slide']}: {slide['reason']}")
    for note in summary["notes"]:
        click.echo(f"note: {note}")
    click.echo(f"Everything is listed in {out / 'patches.csv'}. {_what_next(summary, out / 'dataset.csv')}")


def _what_next(summary: dict[str, Any], table: Path) -> str:
    """Use of the table of patches as it is, by the reader that `bench run` has."""
    from ....datasets.open import open_dataset

    failed = len(summary["failed"])
    without = f" (it lacks what {failed} failed slide{'s' * (failed > 1)} would give)" if failed else ""
    try:
        card = open_dataset(str(table), table.parent).manifest("0").card
    except BenchError as problem:
        return f"It cannot be run on yet: {problem}"
    if card.evaluation_only:
        return f"It holds test patches alone: score models of another set on it with --ood {table}{without}"
    lacking = [f"{split} has no {name} patch" for split, classes in summary["counts"].items()
               for name, c in classes.items() if not c["patches"]]  # fmt: skip
    though = f", though {' and '.join(lacking)}: what needs them stays empty in tables" if lacking else ""
    return f"Use it with --datasets {table}{though}{without}"
