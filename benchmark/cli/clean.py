"""`bench clean`: show what a results folder no longer needs, ask, and remove it."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import BenchError
from . import options

if TYPE_CHECKING:
    from ..maintenance.clean import Removable

SHOWN = 12


@click.command()
@options.results()
@click.option(
    "--plan",
    "plans",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Keep only the stages of this configuration (as `bench run --config`); may be given more than once.",
)
@click.option(
    "--keep-failed", is_flag=True, help="Keep failed and interrupted stages: their messages, their snapshots."
)
@click.option("--yes", is_flag=True, help="Remove without asking.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else; removes only with --yes.")
def clean(results: Path, plans: tuple[Path, ...], keep_failed: bool, yes: bool, as_json: bool) -> None:
    """Remove leftovers of killed runs and stages that no plan refers to, after showing them with their sizes.

    Every `bench run` notes its plan in RESULTS/plans; a stage in none of them is nobody's. Nothing that is claimed or
    younger than an hour is touched, nor reports, nor anything behind a link. Without a terminal and without --yes it
    only shows.
    """
    from ..maintenance.clean import find_removable, remove
    from ..maintenance.findings import gib

    if not results.is_dir():
        raise BenchError(f"There is no results folder {results}. Name it with --results.")
    keys = _keys(plans, results) if plans else None
    removable, notes = find_removable(results, keys, keep_failed)
    total = sum(f.size for f in removable)
    agreed = yes
    if not as_json:
        _show(removable, notes, total)
        if removable and not yes and sys.stdin.isatty():
            agreed = click.confirm("Remove all of this?", default=False)
    if agreed and removable:  # a command may have begun while the question stood: only what is still nobody's
        still = {f.path for f in find_removable(results, keys, keep_failed)[0]}
        removable = [f for f in removable if f.path in still]
    gone = remove(results, removable) if agreed and removable else []
    freed = sum(f.size for f in gone)
    if as_json:
        rows = [{**dataclasses.asdict(f), "path": str(f.path)} for f in removable]
        value: dict[str, Any] = {"found": rows, "bytes": total, "removed": len(gone), "freed": freed, "notes": notes}
        click.echo(json.dumps(value, indent=1))
    elif gone:
        click.echo(f"Removed {len(gone)} of {len(removable)}, {gib(freed)}.")
    elif removable:
        click.echo("Nothing was removed: add --yes.")


def _keys(plans: tuple[Path, ...], results: Path) -> set[str]:
    """Keys of all stages of some configurations."""
    from ..planning.planner import Planner
    from .run import make_request

    stage_keys: set[str] = set()
    for config in plans:
        request = make_request({"results": results}, (), config)
        stage_keys |= set(Planner(request).build().stages)
    return stage_keys


def _show(removable: list["Removable"], notes: list[str], total: int) -> None:
    from ..maintenance.findings import gib

    for note in notes:
        click.echo(note)
    for why in dict.fromkeys(f.why for f in removable):
        alike = [f for f in removable if f.why == why]
        click.echo(click.style(f"{why}: {len(alike)}, {gib(sum(f.size for f in alike))}", bold=True))
        for one in alike[:SHOWN]:
            click.echo(f"  {gib(one.size):>9}  {one.path}  {one.what}".rstrip())
        if len(alike) > SHOWN:
            click.echo(f"  and {len(alike) - SHOWN} more (--json lists all)")
    click.echo(f"{len(removable)} things, {gib(total)} in all." if removable else "Nothing to remove.")
