"""`bench demo`: from nothing to a page."""

import shlex
import sys
import time
from pathlib import Path

import click

METHODS = "pixelcam,negev,layercam,constant"
DATASETS = "glas,camelyon16"
BACKBONE = "resnet10t"  # a third of the default's work, and enough for 100 small images


@click.command()
@click.option("--data-root", type=click.Path(path_type=Path), default=Path("data/demo"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("results/demo"), show_default=True)
@click.option("--jobs", type=int, default=1, show_default=True, help="Stages at a time.")
def demo(data_root: Path, results: Path, jobs: int) -> None:
    """Synthetic GlaS and Camelyon16, the main job on both, out-of-distribution scores both ways, tables and the page.

    About ten minutes on two CPU cores, no download. A second call reuses what is there.
    """
    from ...datasets.synthesis.synthetic import WRITERS, refuse_real_data
    from ...reports.build import build_report
    from ...reports.rows.load import collect
    from ..core.results_store import Store
    from ..execution.scheduler import open_stages
    from ..planning.planner import Planner
    from .run import do_plan, make_request, say_problems, show_rows

    began = time.monotonic()
    refuse_real_data(data_root, DATASETS.split(","))
    if not any(data_root.rglob("SYNTHETIC.json")):
        click.echo(f"Writing synthetic histology in the layouts of {DATASETS} to {data_root} …", err=True)
    for name in DATASETS.split(","):
        WRITERS[name](data_root)
    typed = {
        "methods": METHODS,
        "datasets": DATASETS,
        "backbones": BACKBONE,
        "weights": "none",
        "preset": "smoke",
        "data_root": data_root,
        "results": results,
        **({"jobs": jobs} if jobs != 1 else {}),
    }
    words = [word for k, v in typed.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    click.echo(shlex.join(["bench", "run", *words]), err=True)
    planner = Planner(make_request(typed, (), None))
    store = Store(results)
    store.check_writable()
    plan = planner.build()
    fresh = bool(open_stages(plan, store))
    outcome = do_plan(plan, planner, store, quiet=False)
    show_rows(plan, store, collect(store, plan.rows), as_json=False)
    say_problems(plan, outcome, results)
    page = results / "report" / "index.html"
    if fresh or not page.is_file():
        build_report(store, results / "report")
    click.echo(
        f"\nThe data are SYNTHETIC: the numbers show that everything works, not how good a method is.\n"
        f"Page: {page.resolve()}  ({time.monotonic() - began:.0f} s)"
    )
    sys.exit(outcome.exit_code)
