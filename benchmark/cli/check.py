"""`bench check`: the conformance suite for a method."""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import click


@click.command()
@click.argument("method", metavar="NAME|FILE")
@click.option("--backbone", default="test_resnet", show_default=True, help="A small timm network; for ViT: test_vit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
def check(method: str, backbone: str, as_json: bool) -> None:
    """Test a method, by name or Python file, against the contract: synthetic data, CPU, under a minute.

    Says which line of the contract broke and how. Exit code 0 if every line holds, 1 if one broke, 2 if the method
    cannot be found or parsed.
    """
    from ..conformance.suite import run_checks

    results = []
    marks = {"ok": ("ok     ", "green"), "broken": ("BROKEN ", "red"), "skipped": ("skipped", "yellow")}
    with tempfile.TemporaryDirectory(prefix="bench-check-") as folder:
        for result in run_checks(method, Path(folder), backbone):
            results.append(result)
            if not as_json:
                mark, colour = marks[result.state]
                click.echo(f"{click.style(mark, fg=colour)} {result.line}  {result.promise}")
                if result.detail:
                    click.echo(f"           {result.detail}")
    broken = [r for r in results if r.state == "broken"]
    if as_json:
        click.echo(
            json.dumps(
                {"method": method, "ok": not broken, "lines": [dataclasses.asdict(r) for r in results]}, indent=1
            )
        )
    elif broken:
        click.echo(f"\n{method}: {len(broken)} of {len(results)} lines of the contract broke.")
    else:
        click.echo(f"\n{method} keeps the contract ({sum(r.seconds for r in results):.0f} s).")
    sys.exit(1 if broken else 0)
