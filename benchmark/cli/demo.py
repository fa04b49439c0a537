"""`bench demo`: from nothing to a page."""

import sys
import time
from pathlib import Path

import click

METHODS = "classifier,cam,gradcampp,layercam,pixelcam,unet,darkness,random,constant"


@click.command()
@click.option("--data-root", type=click.Path(path_type=Path), default=Path("data/demo"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("results/demo"), show_default=True)
def demo(data_root: Path, results: Path) -> None:
    """Synthetic data, the main job on it, the table and the page: minutes on two CPU cores, no download.

    A second call reuses what is there.
    """
    from ...datasets.synthetic import write_glas
    from ...reports.build import build_report
    from ..execute import open_stages
    from ..plan import Planner
    from ..store import Store
    from .run import _do, _show_rows, make_request

    began = time.monotonic()
    if not any(data_root.rglob("SYNTHETIC.json")):
        click.echo(f"Writing synthetic histology in the layout of GlaS to {data_root} …", err=True)
        write_glas(data_root)
    typed = {
        "methods": METHODS,
        "datasets": "glas",
        "weights": "none",
        "preset": "smoke",
        "data_root": data_root,
        "results": results,
    }
    click.echo("bench run " + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in typed.items()), err=True)
    planner = Planner(make_request(typed, (), None))
    store = Store(results)
    store.check_writable()
    plan = planner.build()
    fresh = bool(open_stages(plan, store))
    outcome = _do(plan, planner, store, quiet=False)
    _show_rows(plan, store, as_json=False)
    for error in outcome.failed.values():
        click.echo(f"FAILED: {error}", err=True)
    page = results / "report" / "index.html"
    if fresh or not page.is_file():
        build_report(store, results / "report")
    click.echo(
        f"\nThe data are SYNTHETIC: the numbers show that everything works, not how good a method is.\n"
        f"Report: {page.resolve()}  ({time.monotonic() - began:.0f} s)"
    )
    sys.exit(outcome.exit_code)
