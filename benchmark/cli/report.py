"""`bench report`: tables, figures and the page, from what is stored."""

import json
from pathlib import Path

import click

from . import options


@click.command()
@options.results("Folder of a `bench run`.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to.  [default: RESULTS/report]")
@click.option("--format", "formats", default="md,tex,csv,html", show_default=True,
              help="What to write, separated by commas; figures come with md and html.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON, write nothing.")
def report(results: Path, out: Path | None, formats: str, as_json: bool) -> None:
    """Markdown, LaTeX, CSV and one self-contained HTML page from what is stored; runs no model.

    Undefined values are `n/a`, in JSON null.
    """
    from ..core.results_store import Store

    store = Store(results)
    if as_json:
        from ...reports.rows.load import load_report_rows

        click.echo(json.dumps([row.to_json() for row in load_report_rows(store)], indent=1, allow_nan=False))
        return
    from ...reports.build import build_report

    out = out or results / "report"
    paths = build_report(store, out, [name.strip() for name in formats.split(",") if name.strip()])
    figures = [p for p in paths if p.parent != out]
    for path in paths:
        if path.parent == out:
            click.echo(str(path))
    if figures:
        click.echo(f"{out / 'figures'}: {len(figures)} files")
