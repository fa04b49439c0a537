"""`bench list`: what there is to choose from."""

import dataclasses
import json
from typing import Any

import click

WHAT = ("methods", "datasets", "shifts", "backbones", "protocols", "presets")


@click.command("list")
@click.argument("what", type=click.Choice(WHAT), required=False)
@click.option("--results", type=click.Path(), default="results", hidden=True, help="As on the other read verbs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
def list_(what: str | None, results: str, as_json: bool) -> None:
    """Methods, datasets, shifts, backbones, protocols and presets. Imports no method, no dataset."""
    makers = {
        "methods": _methods,
        "datasets": _datasets,
        "shifts": _shifts,
        "backbones": _backbones,
        "protocols": _protocols,
        "presets": _presets,
    }
    found = {name: makers[name]() for name in ([what] if what else WHAT)}
    if as_json:
        click.echo(json.dumps(found[what] if what else found, indent=1))
        return
    for name, rows in found.items():
        click.secho(name.capitalize(), bold=True)
        width = max((len(r["name"]) for r in rows), default=0)
        for row in rows:
            mark = f"BROKEN: {row['error']}" if row.get("error") else row.get("summary", "")
            click.echo(f"  {row['name']:<{width}}  {mark}")
        click.echo()


def _methods() -> list[dict[str, Any]]:
    from ...methods import METHODS
    from ...methods.spec import spec_from_entry
    from ..errors import BenchError

    rows = []
    for entry in METHODS.entries():
        row: dict[str, Any] = {"name": entry.name, "origin": entry.origin, "module": entry.module, "error": entry.error}
        if not entry.error:
            try:
                spec = dataclasses.asdict(spec_from_entry(entry))
                row.update({k: v for k, v in spec.items() if k not in row and k != "source_hash"})
            except (BenchError, TypeError) as problem:
                row["error"] = str(problem)
        rows.append(row)
    return rows


def _datasets() -> list[dict[str, Any]]:
    from ...datasets import DATASETS

    rows = [
        {"name": e.name, "summary": e.summary, "origin": e.origin, "error": e.error, **e.facts}
        for e in DATASETS.entries()
    ]
    return [*rows, {"name": "FILE.csv", "summary": "Your own images: a manifest, see docs/datasets.md.", "error": ""}]


def _shifts() -> list[dict[str, Any]]:
    from ...datasets.shift import SHIFTS

    return [
        {
            "name": f"{card.name}-1 … {card.name}-{card.levels[-1]}",
            "summary": card.about,
            "error": "",
            "shift": card.name,
            "severity": card.severity,
            "axis": list(card.axis),
            "levels": list(card.levels),
        }
        for card in SHIFTS.values()
    ]


def _backbones() -> list[dict[str, Any]]:
    from ...methods.weights import IMAGENET_TAGS

    rows = [{"name": n, "summary": f"imagenet = {n}.{tag}", "error": ""} for n, tag in IMAGENET_TAGS.items()]
    return [*rows, {"name": "any timm name", "summary": "CNNs, ViT and DeiT, at their own stride.", "error": ""}]


def _protocols() -> list[dict[str, Any]]:
    from ..protocols import PROTOCOLS

    texts = {
        "fair": "Default. Only the images of the test set reach a prediction: maps of the predicted class, tau_val.",
        "paper": "As published, to compare with papers: maps of the true class, per-image min-max, oracle tau.",
    }
    return [{"summary": texts.get(p.name, ""), "error": "", **p.identity()} for p in PROTOCOLS.values()]


def _presets() -> list[dict[str, Any]]:
    from ..config import PRESETS, identity_fields, train_config

    texts = {
        "smoke": "Seconds to minutes on two CPU cores: to see that everything works.",
        "quick": "Minutes on one GPU: to try an idea.",
        "paper": "The published schedules.",
    }
    return [
        {"name": n, "summary": texts.get(n, ""), "error": "", "train": identity_fields(train_config(n))}
        for n in PRESETS
    ]
