"""The command line `bench`: verbs are imported when they are called, so that help and listing stay quick."""

import contextlib
import errno
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click

from ..core import shutdown
from ..core.environment import draw_to_files
from ..core.errors import BenchError, did_you_mean

VERBS = {
    "run": ("run:run", "Train and score methods on datasets; the same command again continues."),
    "list": ("listing:list_", "Methods, datasets, shifts, backbones, protocols and presets."),
    "status": ("status:status", "What is stored: finished, failed, running and interrupted stages."),
    "report": ("report:report", "Tables, figures and the HTML page from what is stored."),
    "score": ("score:score", "Score anybody's maps against masks, without a model."),
    "data": ("data.verbs:data", "Verify, describe, synthesise, divide or cut datasets (slides need the extra [wsi])."),
    "check": ("check:check", "Test a method against the contract, in under a minute."),
    "doctor": ("doctor:doctor", "Is this machine ready? GPU, memory, data, disks, locks, and what to do."),
    "clean": ("clean:clean", "Stages no plan refers to, and leftovers of killed runs: shown, then removed."),
    "new-method": ("new_method:new_method", "Write a commented method file to start from."),
    "demo": ("demo:demo", "Train, score and report on synthetic data: about ten minutes on two cores, no GPU."),
}


class Verbs(click.Group):
    """A group whose commands are imported by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order a newcomer meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a verb."""
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuses an unknown verb with the nearest ones."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"There is no verb '{args[0]}'.{did_you_mean(args[0], VERBS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with one line each, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="wsolbench", message="wsolbench %(version)s")
def bench() -> None:
    """Benchmark weakly supervised object localization on histology images.

    A model sees image labels only (benign or malignant, normal or tumour) and must classify the image and show where
    the evidence is.

    \b
    Try:      bench demo; on your data, --preset smoke (seconds to minutes on two CPU cores)
    Real use: bench run --methods pixelcam,negev --datasets glas,camelyon16 --data-root data
    Then:     bench report
    Guides:   `bench VERB --help`; docs/ of the sources: running.md, for your data datasets.md
    """


def main(args: list[str] | None = None) -> None:
    """Runs the command line.

    Exit codes: 0 all done, 1 some runs failed, 2 a mistake the message explains, 3 ended by SIGTERM, 130 by Ctrl-C.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    draw_to_files()
    sys.exit(_run(args))


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """SIGTERM raises Stopped while this lasts: a cluster ends a job also while data are read. Stages have their way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        shutdown.request(shutdown.TERMINATED)
        raise shutdown.Stopped

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        shutdown.forget()


def _run(args: list[str] | None) -> Any:
    try:
        with _time_limit():
            return bench.main(args=args, standalone_mode=False)
    except shutdown.Stopped as how:
        with contextlib.suppress(OSError):
            click.echo("Ended by SIGTERM. Everything finished so far is stored; the same command continues.", err=True)
        return how.code if how.code > 0 else 1
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as problem:
        problem.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted. Everything finished so far is stored; the same command continues.", err=True)
        return 130
    except BenchError as problem:
        coloured = False if "NO_COLOR" in os.environ else None  # None: where there is a terminal
        click.secho("Error:", err=True, nl=False, fg="red", bold=True, color=coloured)
        click.echo(f" {problem}", err=True)
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone, e.g. `bench list | head`
        return 0
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            click.echo(f"Error: {problem.filename or 'a file'} could not be written: the disk is full.", err=True)
            return 1
        where = f" {problem.filename}" if problem.filename else ""
        click.echo(f"Error:{where} cannot be read or written: {problem.strerror or problem}.", err=True)
        return 2
