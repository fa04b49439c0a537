"""Options that several verbs share, so that they are spelt and explained alike."""

from collections.abc import Callable
from pathlib import Path

import click

DATA_ROOT = click.option(
    "--data-root", type=click.Path(path_type=Path), default=Path("data"), show_default=True,
    help="Folder that holds the datasets.",
)  # fmt: skip


def results(about: str = "Folder for everything stored.") -> Callable:
    """The option `--results`, with what this verb uses the folder for."""
    return click.option(
        "--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help=about
    )
