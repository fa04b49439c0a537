"""`bench new-method`: a file to start from."""

import keyword
from pathlib import Path

import click

from ..core.errors import BenchError
from .method_templates import TEMPLATES, method_file


@click.command("new-method")
@click.argument("name")
@click.option(
    "--kind", type=click.Choice(list(TEMPLATES)), default="trained", show_default=True,
    help="explainer: reads a trained model. trained: has a loss. student: learns from the maps of a teacher. "
    "adapter: starts from a trained model and sees unlabelled images of a target.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="File to write.  [default: ./NAME.py]")
def new_method(name: str, kind: str, out: Path | None) -> None:
    """Write a commented method file that passes `bench check`; edit it until it is yours."""
    from ...methods import METHODS
    from ..core.files import write_text

    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise BenchError(f"'{name}' is not a usable name: small letters, digits and underscores, for example my_cam.")
    if name in {e.name for e in METHODS.entries()}:
        raise BenchError(f"Method '{name}' exists already. Choose another name.")
    path = out or Path(f"{name}.py")
    if path.exists():
        raise BenchError(f"{path} exists already; it is left as it is. Choose another name or --out.")
    write_text(path, method_file(kind, name))
    where = "--datasets glas --ood camelyon16" if kind == "adapter" else "--datasets glas"
    click.echo(f"Wrote {path}. Next:\n  bench check {path}\n  bench run --methods {path} {where}")
