"""`bench run`: the whole path from names to a table."""

import contextlib
import json
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import BenchError, did_you_mean, many, plain
from ..core.protocols import PROTOCOLS
from ..planning.config import PRESETS, REQUEST_LISTS, Request, RunConfig, flatten, parse_set, read_toml, update

if TYPE_CHECKING:
    from ...reports.rows.load import Findings
    from ..core.results_store import Store
    from ..execution.scheduler import PlanOutcome
    from ..planning.planner import Planner
    from ..planning.stage import Plan

WIDTH, NARROWEST = 120, 60  # columns of a table where there is no terminal, and the fewest that hold one
_RUN_FLAGS = ("data_root", "results", "device", "devices", "jobs", "jobs_per_gpu", "backend", "scheduler")


@click.command()
@click.option(
    "--methods",
    help="Names, NAME:VARIANT, NAME@MODEL or Python files, separated by commas: layercam, pixelcam:deepmil (another "
    "teacher), layercam@deepmil (an explainer of another model, or of an adapted one), gradcam:ScoreCAM (a class of "
    "the package grad-cam), ./mine.py",
)
@click.option("--datasets", help="Names or CSV manifests, separated by commas: glas,my.csv")
@click.option(
    "--ood",
    help="What else models are scored on: all, none, glas,camelyon17:centre-2, shifts of their own set (stain, jpeg-3, "
    "ladder) or of a named one (glas:stain). Methods that adapt are adapted to each other dataset named here.  "
    "[default: all, every other dataset of the command]",
)
@click.option(
    "--allow-leaks",
    help="Leaks between splits to go on with, each told in every table: groups, images, labels, val-is-test.",
)
@click.option("--backbones", help="timm names, separated by commas.  [default: resnet18]")
@click.option("--weights", help="none, imagenet, or a file (safetensors).  [default: imagenet]")
@click.option(
    "--weights-seen",
    metavar="SET[:SPLIT],…",
    help="What the starting weights were trained on: glas,my.csv:test. Rows on these sets are marked in every table.",
)
@click.option("--folds", help="Fold names, or `grouped` for the patient-disjoint folds.  [default: 0]")
@click.option("--seeds", help="Random seeds, separated by commas.  [default: 0]")
@click.option(
    "--selections", help="Checkpoints to score, of loc, cl and last: fewer passes.  [default: all that a method has]"
)
@click.option("--protocol", "protocols", help=f"{' or '.join(PROTOCOLS)}, or both.  [default: fair]")
@click.option("--preset", help=f"{', '.join(PRESETS)} (`bench list presets` says what for).  [default: quick]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="train.epochs=5, protocol.size=112, run.score_batch=8, pixelcam.teacher=cam, pixelcam.train.lr=1e-3",
)
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of these options and settings.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder that holds the datasets.  [default: data]")
@click.option("--results", type=click.Path(path_type=Path), help="Folder for everything stored.  [default: results]")
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--devices", type=int, help="GPUs (or CPU processes) that train one model together.  [default: 1]")
@click.option("--jobs", type=int, help="Stages at a time.  [default: 1; with --scheduler all its workers]")
@click.option(
    "--jobs-per-gpu", type=int, help="Stages that share a GPU; by itself it sets --jobs.  [default: as --jobs]"
)
@click.option("--backend", help="What starts the stages: loky (this machine), dask or ray.  [default: loky]")
@click.option("--scheduler", help="A running Dask or Ray cluster: its address or scheduler file (docs/clusters.md).")
@click.option("--deterministic", is_flag=True, default=None, help="Bitwise repeats on a GPU too, slower.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop; what a run would refuse is refused here too.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows (or the plan) as JSON, nothing else.")
def run(settings: tuple[str, ...], config: Path | None, dry_run: bool, as_json: bool, **typed: Any) -> None:
    """Train and score methods on datasets; the same command again continues where it stopped.

    Everything finished is stored and never computed twice, also by several such commands at once. Exit code: 0 all
    done, 1 some runs failed (the others are stored), 2 a mistake in the command, the data or the weights, found before
    any training, 3 ended by SIGTERM and 130 by Ctrl-C, both with a checkpoint to go on from.
    """
    request = make_request({k: v for k, v in typed.items() if v is not None}, settings, config)
    _check_names(request)
    from ..core.results_store import Store
    from ..planning.contamination import keep
    from ..planning.planner import Planner

    planner, store = Planner(request), Store(request.run.results)
    store.check_writable()  # planning already keeps the hashes of the files there
    plan = planner.build()
    _tell_notes(planner)
    if dry_run:
        _rehearse(plan, planner, store)
        _show_plan(plan, store, as_json)
        return
    from ...reports.rows.load import collect
    from ..execution.scheduler import heal_scores

    outcome = do_plan(plan, planner, store, quiet=as_json)
    keep(planner.weights_seen, store)
    findings = collect(store, plan.rows)
    if lines := heal_scores(plan, store, {r.stage for r in findings.rows}):
        for line in lines:
            click.echo(f"WARNING: {line}", err=True)
        outcome, findings = do_plan(plan, planner, store, quiet=as_json), collect(store, plan.rows)
    show_rows(plan, store, findings, as_json)
    if as_json:
        say_problems(plan, outcome, request.run.results)  # to stderr, the rows alone are on stdout
    else:
        _say_outcome(plan, outcome, request.run.results)
    sys.exit(outcome.exit_code)


def _tell_notes(planner: "Planner") -> None:
    """Notices of what was decided for the user, on stderr beside the progress.

    How the files of each dataset were read, what is to be known of its splits, what images are normalised by.
    """
    for notice in planner.notices:
        click.echo(plain(f"note: {notice}"), err=True)
    for source in planner.open_datasets.values():
        for note in source.notes():
            click.echo(plain(f"note: {source.title}: {note.removeprefix('! ')}"), err=True)


def make_request(typed: dict[str, Any], settings: tuple[str, ...], config: Path | None) -> Request:
    """The request from defaults, file and command line. Raises BenchError for a key or value that makes no sense."""
    merged, overrides = _read_config(config) if config else ({}, {})
    merged.update(typed)
    for section, values in parse_set(settings).items():
        overrides[section] = {**overrides.get(section, {}), **values}
    run = update(RunConfig(), overrides.get("run", {}), "run")
    flags = {k: merged.pop(k) for k in (*_RUN_FLAGS, "deterministic") if k in merged}
    run = update(run, flags, "run")
    for name in ("methods", "datasets"):
        if not merged.get(name):
            raise BenchError(f"Say which {name}: --{name} NAME,… (`bench list {name}` shows them).")
    lists: dict[str, Any] = {k: _names(merged[k], k) for k in REQUEST_LISTS if k in merged}
    if "seeds" in lists:
        lists["seeds"] = tuple(_seed(s) for s in lists["seeds"])
    rest: dict[str, Any] = {k: str(merged[k]) for k in ("weights", "preset") if k in merged}
    preset = rest.get("preset", "quick")
    if preset not in PRESETS:
        raise BenchError(f"There is no preset '{preset}'.{did_you_mean(preset, PRESETS)}")
    return Request(**lists, **rest, overrides=overrides, run=run)


def _check_names(request: Request) -> None:
    """Raises BenchError for a method or dataset that does not exist, before anything slow is imported."""
    from ...datasets import DATASETS
    from ...methods import METHODS
    from ..planning.method_refs import is_file

    if not any(is_file(name) for name in request.methods):  # a file may bring the other names along
        for name in (part for method in request.methods for part in method.split("@") if part):
            METHODS.entry(name)
    for name in request.datasets:
        if not name.lower().endswith(".csv"):
            DATASETS.entry(name)


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Top-level options and sections of settings of a TOML file."""
    options: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    known = {*REQUEST_LISTS, "protocol", "weights", "preset", *_RUN_FLAGS, "deterministic"}
    for key, value in read_toml(path).items():
        name = key.replace("-", "_")
        if isinstance(value, Mapping):
            sections[key] = flatten(value)
        elif name in known:
            options["protocols" if name == "protocol" else name] = value
        else:
            raise BenchError(f"{path}: there is no option '{key}'.{did_you_mean(name, known)}")
    return options, sections


def _names(value: Any, option: str) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    names = tuple(dict.fromkeys(str(p).strip() for p in parts if str(p).strip()))
    if not names:
        raise BenchError(f"--{option} is empty: give at least one.")
    return names


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BenchError(f"--seeds {text}: a seed is a whole number.") from None


def do_plan(plan: "Plan", planner: "Planner", store: "Store", quiet: bool) -> "PlanOutcome":
    """Checks what can be checked beforehand, then does what is missing. Ends the process if a signal asks to stop."""
    from ..core.shutdown import INTERRUPTED, TERMINATED, Stopped
    from ..execution.scheduler import PlanOutcome, execute, heal, open_stages
    from ..execution.terminal import Terminal
    from ..execution.worker import FULL, disk_full
    from ..planning.estimate import rates_of

    terminal = Terminal(quiet)
    for line in heal(plan, store):
        terminal({"kind": "warning", "text": line})
    todo = open_stages(plan, store)
    if not todo:
        return PlanOutcome(cached=list(plan.stages))
    from ..execution.preflight import preflight

    if not quiet:
        trainings = many(sum(s.kind == "train" for s in todo), "training")
        stored = len(plan.stages) - len(todo)
        click.echo(f"{many(len(todo), 'stage')} to do ({trainings}), {stored} stored.", err=True)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what code of methods prints; stdout is for rows
            notes = preflight(todo, planner)
        for note in notes:
            click.echo(plain(f"note: {note}"), err=True)
        store.note_plan(command_line(), plan.rows, plan.stages)
        terminal.begin(todo, rates_of(store))
    except OSError as problem:
        if problem.errno not in FULL:
            raise
        return PlanOutcome(blocked=[s.key for s in todo], full=disk_full(problem, store.root))
    try:
        return execute(plan, planner.request.run, planner.open_datasets, terminal)
    except (KeyboardInterrupt, Stopped) as how:
        terminal.close()
        code = how.code if isinstance(how, Stopped) else INTERRUPTED
        what = "Ended by SIGTERM" if code == TERMINATED else "Interrupted"
        with contextlib.suppress(OSError):  # Ctrl-C may have ended the reader of our words, too
            click.echo(f"\n{what}. Everything finished is stored. To continue:\n  {command_line()}", err=True)
        sys.exit(code)
    finally:
        terminal.close()


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["bench", *sys.argv[1:]])


def _rehearse(plan: "Plan", planner: "Planner", store: "Store") -> None:
    """Refuses what a run would refuse, and says what this machine lacks for it."""
    from ..execution.preflight import rehearse
    from ..execution.scheduler import open_stages

    with contextlib.redirect_stdout(sys.stderr):  # what code of methods prints
        for problem in rehearse(open_stages(plan, store), planner):
            click.echo(f"WARNING: not on this machine: {problem}", err=True)


def _show_plan(plan: "Plan", store: "Store", as_json: bool) -> None:
    from ..execution.scheduler import open_stages
    from ..planning.estimate import duration, estimate_seconds

    todo, done = {s.key for s in open_stages(plan, store)}, store.done(plan.stages)
    stages = [
        {
            "stage": k,
            "kind": s.kind,
            "what": s.title,
            "done": k in done,
            "to_do": k in todo,
            "parents": s.parents,
            "labels": s.labels,
        }
        for k, s in plan.stages.items()
    ]
    seconds = estimate_seconds([plan.stages[k] for k in plan.stages if k in todo], store)
    if as_json:
        summary = {"stages": stages, "rows": len(plan.rows), "to_do": len(todo), "estimated_seconds": seconds}
        summary["trainings"] = sum(s.kind == "train" for s in plan.stages.values())
        click.echo(json.dumps(summary, indent=1))
        return
    for kind, noun in (("train", "training"), ("maps", "teacher map set"), ("score", "score")):
        of_kind = plan.kinds(kind)
        waiting = [s for s in of_kind if s.key in todo]
        click.echo(f"{many(len(of_kind), noun)}, {len(waiting)} to do")
        if kind != "score":
            for stage in of_kind:
                mark = "to do " if stage.key in todo else "stored" if stage.key in done else "unused"
                click.echo(f"  {mark}  {stage.key}  {stage.title}")
    pairs = Counter((plan.stages[k].labels["train"], plan.stages[k].labels["eval"]) for k in plan.rows)
    for (train, evaluated), rows in pairs.items():
        click.echo(f"  {train} → {evaluated}: {many(rows, 'row')}")
    click.echo(f"{many(len(plan.rows), 'row')} of the tables, {sum(k in done for k in plan.rows)} stored")
    if todo:
        text = f"about {duration(seconds)}" if seconds is not None else "unknown (no finished training to learn from)"
        click.echo(f"estimated time: {text}")


def show_rows(plan: "Plan", store: "Store", findings: "Findings", as_json: bool) -> None:
    """The table of the rows that are there, or their JSON."""
    from ...reports.rows.unfinished import load_unfinished
    from ...reports.tables.formats import terminal_table

    wanted = set(plan.rows)
    rows = [r for r in findings.rows if r.stage in wanted]
    for problem in findings.problems:
        click.echo(f"WARNING: {problem}", err=True)
    if as_json:
        click.echo(json.dumps([r.to_json() for r in rows], indent=1))
    elif (unfinished := load_unfinished(store, plan.stages)) or rows:
        width = shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH
        click.echo(terminal_table(rows, max(width, NARROWEST), unfinished=unfinished))


def _say_outcome(plan: "Plan", outcome: "PlanOutcome", results: Path) -> None:
    if not outcome.done and not outcome.failed and not outcome.full:
        click.echo(f"Nothing to do: all {len(plan.stages)} stages were stored already.")
    say_problems(plan, outcome, results)
    click.echo(f"`bench report --results {results}` makes the page.")


def say_problems(plan: "Plan", outcome: "PlanOutcome", results: Path) -> None:
    """Failures with their reasons, what waits for them, and where to look."""

    if outcome.full:
        click.echo(f"STOPPED: {outcome.full}", err=True)
    for key, error in outcome.failed.items():
        line = plain(f"FAILED {key} {plan.stages[key].title}: {error}")
        click.secho(line, err=True, fg="red", color=False if "NO_COLOR" in os.environ else None)
    if outcome.failed:
        click.echo(f"Tracebacks: {results}/runs/<stage>/failure.json; the same command tries these again.", err=True)
    if outcome.blocked:
        why = "not done" if outcome.full else "waiting for those that failed"
        click.echo(f"{many(len(outcome.blocked), 'stage')} {why}.", err=True)
