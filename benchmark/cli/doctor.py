"""`bench doctor`: is this machine ready, and if not, what to do."""

import dataclasses
import json
import sys
from pathlib import Path

import click

from . import options

COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "red"}


@click.command()
@options.DATA_ROOT
@options.results()
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N: where a batch is timed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
def doctor(data_root: Path, results: Path, device: str, as_json: bool) -> None:
    """Look at versions, GPU, memory, weights, data, disks, locks and stored stages, and time one batch.

    Changes nothing. Exit code 0 without problems (notes and warnings are none), 1 with one.
    """
    from ..maintenance.doctor import examine
    from ..maintenance.findings import LEVELS

    findings, section = [], ""
    for finding in examine(data_root, results, device):
        findings.append(finding)
        if as_json:
            continue
        if finding.section != section:
            section = finding.section
            click.echo(click.style(section, bold=True))
        mark = click.style(f"{finding.level:8}", fg=COLOURS[finding.level])
        click.echo(f"  {mark} {finding.text}")
        if finding.advice:
            click.echo(f"           → {finding.advice}")
    counts = {level: sum(f.level == level for f in findings) for level in LEVELS}
    if as_json:
        value = {"ok": not counts["problem"], "counts": counts, "findings": [dataclasses.asdict(f) for f in findings]}
        click.echo(json.dumps(value, indent=1))
    else:
        summary = ", ".join(f"{n} {level}s" if n != 1 else f"1 {level}" for level, n in counts.items() if level != "ok")
        click.echo(f"\n{summary}.")
    sys.exit(1 if counts["problem"] else 0)
