"""`bench status`: what a results folder holds."""

import json
from collections import Counter
from pathlib import Path

import click


@click.command()
@click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
def status(results: Path, as_json: bool) -> None:
    """What is stored: finished, failed and interrupted stages. Reads records only, runs nothing."""
    from ..store import Store

    store = Store(results)
    records, failures = store.records(), store.failures()
    folders = {p.name for p in (results / "runs").glob("*") if p.is_dir()}
    begun = sorted(folders - set(records) - set(failures))
    if as_json:
        value = {
            "results": str(results),
            "finished": [{"stage": k, "kind": r["kind"], **r["labels"]} for k, r in records.items()],
            "failed": [
                {"stage": k, "kind": f["kind"], "error": f["error"], **f["labels"]} for k, f in failures.items()
            ],
            "interrupted": begun,
        }
        click.echo(json.dumps(value, indent=1))
        return
    if not folders:
        click.echo(f"Nothing is stored in {results} yet. `bench run` fills it.")
        return
    counts = Counter(r["kind"] for r in records.values())
    parts = [
        f"{counts[k]} {name}" for k, name in (("train", "trainings"), ("maps", "teacher map sets"), ("score", "scores"))
    ]
    click.echo(f"{results}: finished {', '.join(parts)}")
    for key, record in records.items():
        if record["kind"] == "train":
            labels = record["labels"]
            where = f"{labels['train']} fold {labels['fold']} seed {labels['seed']}"
            click.echo(f"  {key}  {labels['method']} · {labels['backbone']} · {where}  {record['seconds']:.0f} s")
    for key, failure in failures.items():
        click.echo(f"FAILED {key}  {failure['kind']} {failure['labels']['method']}: {failure['error']}")
    for key in begun:
        click.echo(f"interrupted {key}: the same `bench run` continues it")
