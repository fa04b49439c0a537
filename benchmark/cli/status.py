"""`bench status`: what a results folder holds."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import many, plain

if TYPE_CHECKING:
    from ...reports.rows.stored import Stored


@click.command()
@click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
def status(results: Path, as_json: bool) -> None:
    """What is stored: finished, failed, diverged, running, interrupted and ignored stages.

    Reads records only, runs nothing.
    """
    from ...reports.rows.stored import read_stored
    from ..core.results_store import Store
    from ..maintenance.doctor_places import held

    stored = read_stored(Store(results))
    folders = {p.name for p in (results / "runs").glob("*") if p.is_dir()}
    begun = sorted(folders - set(stored.records) - set(stored.failures) - set(stored.ignored))
    running = [key for key in begun if held(results / "locks" / f"{key}.lock")]
    begun = [key for key in begun if key not in running]
    if as_json:
        click.echo(json.dumps({**_value(results, stored, begun), "running": running}, indent=1))
        return
    if not folders:
        _say(f"Nothing is stored in {results} yet. `bench run` fills it.")
        return
    counts = Counter(str(r.get("kind")) for r in stored.records.values())
    names = {"train": "training", "maps": "teacher map set", "score": "score"}
    parts = [many(counts[k], name) for k, name in names.items()]
    _say(f"{results}: finished {', '.join(parts)}")
    for key, record in stored.records.items():
        if record.get("kind") == "train":
            _say(f"  {key}  {_title(record)}  {record.get('seconds') or 0:.0f} s")
    for key, failure in stored.failures.items():
        what = f"{failure.get('kind')} {_title(failure)}: {failure.get('error', '')}"
        _say(f"{_outcome(failure).upper()} {key}  {what}", "red")
    for key in running:
        _say(f"running {key}: a `bench run` is at work on it (`bench doctor` says which process)", "green")
    for key in begun:
        _say(f"interrupted {key}: the same `bench run` continues it", "yellow")
    for key, why in stored.ignored.items():
        _say(f"ignored {key}: {why}; the same `bench run` does it again", "yellow")


def _value(results: Path, stored: "Stored", begun: list[str]) -> dict[str, Any]:
    """All of it as a JSON value."""
    return {
        "results": str(results),
        "finished": [{"stage": k, "kind": r.get("kind"), **_labels(r)} for k, r in stored.records.items()],
        "failed": [
            {
                "stage": k, "kind": f.get("kind"), "error": f.get("error", ""), "status": _outcome(f),
                **{n: f[n] for n in ("epoch", "step", "ids") if n in f}, **_labels(f),
            }
            for k, f in stored.failures.items()
        ],
        "interrupted": begun,
        "ignored": [{"stage": k, "reason": why} for k, why in stored.ignored.items()],
    }  # fmt: skip


def _outcome(failure: Mapping[str, Any]) -> str:
    return "diverged" if failure.get("status") == "diverged" else "failed"


def _labels(note: Mapping[str, Any]) -> dict[str, Any]:
    labels = note.get("labels")
    return dict(labels) if isinstance(labels, Mapping) else {}


def _title(note: Mapping[str, Any]) -> str:
    """Title of a stored stage: `classifier · resnet18 · glas fold 0 seed 0`; a question mark for what is not known."""
    labels = {k: _labels(note).get(k, "?") for k in ("method", "backbone", "train", "fold", "seed")}
    return "{method} · {backbone} · {train} fold {fold} seed {seed}".format(**labels)


def _say(line: str, colour: str = "") -> None:
    """Prints a line; names in it come from anybody's files and must not steer the terminal."""
    click.secho(plain(line), fg=colour or None, color=False if "NO_COLOR" in os.environ else None)
