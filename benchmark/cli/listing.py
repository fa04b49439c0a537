"""`bench list`: what there is to choose from."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ...methods.backbones.normalisation import Statistics

MOST_MEASURED = 60  # networks; each takes up to a second
WHAT = ("methods", "datasets", "shifts", "backbones", "protocols", "presets", "settings")


@click.command("list")
@click.argument("what", type=click.Choice(WHAT), required=False)
@click.argument("pattern", required=False)
@click.option("--results", type=click.Path(), default="results", hidden=True, help="As on the other read verbs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
def list_(what: str | None, pattern: str | None, results: str, as_json: bool) -> None:
    """Methods, datasets, shifts, backbones, protocols, presets and the settings of --set, none of them imported.

    `bench list backbones PATTERN` measures the networks of timm whose names fit: 'deit_*', resnet50.

    Mean and std are what images are normalised by. Strides are taken away from layers, not dilated as timm's
    output_stride does: another network on the same weights (docs/methods.md).
    """
    if pattern and what != "backbones":
        raise click.UsageError("a pattern goes with backbones: bench list backbones 'deit_*'")
    from .list_settings import settings

    makers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "methods": _methods,
        "datasets": _datasets,
        "shifts": _shifts,
        "backbones": _backbones,
        "protocols": _protocols,
        "presets": _presets,
        "settings": settings,
    }
    if pattern:
        makers["backbones"] = partial(_measured_backbones, pattern)
    sections = {name: makers[name]() for name in ([what] if what else WHAT)}
    if as_json:
        click.echo(json.dumps(sections[what] if what else sections, indent=1))
        return
    for name, rows in sections.items():
        click.secho(name.capitalize(), bold=True)
        width = max((len(r["name"]) for r in rows), default=0)
        for row in rows:
            mark = f"BROKEN: {row['error']}" if row.get("error") else row.get("summary", "")
            click.echo(f"  {row['name']:<{width}}  {mark}")
        click.echo()


def _methods() -> list[dict[str, Any]]:
    from ...methods import METHODS
    from ...methods.spec import spec_from_entry
    from ..core.errors import BenchError

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
    from ...datasets.shifts.shift import SHIFTS

    return [
        {
            "name": f"{card.name}-1 … {card.name}-{card.levels[-1]}",
            "summary": card.about,
            "error": "",
            "shift": card.name,
            "step": card.step,
            "severity": card.severity,
            "axis": list(card.axis),
            "levels": list(card.levels),
        }
        for card in SHIFTS.values()
    ]


def _backbones() -> list[dict[str, Any]]:
    from ...methods.backbones.normalisation import STATISTICS
    from ...methods.backbones.weights import IMAGENET_TAGS, PUBLISHED_SHAPES

    rows = [_backbone(n, f"{n}.{tag}", STATISTICS[n], *PUBLISHED_SHAPES[n]) for n, tag in IMAGENET_TAGS.items()]
    text = "With a feature grid, at its own stride: `bench list backbones 'deit_*'` measures those that fit."
    return [*rows, {"name": "any timm name", "summary": text, "error": ""}]


def _backbone(
    name: str, tag: str, known: "Statistics", own: int, strides: Sequence[int], abilities: Sequence[str]
) -> dict[str, Any]:
    """A row of the list. own: stride of the grid in px. strides: those that `train.stride` can ask for."""
    mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (known.mean, known.std))
    others = ", ".join(str(s) for s in strides if s != own)
    summary = f"mean {mean}, std {std}; stride {own}{f' (or {others})' if others else ''}; {' '.join(abilities)}"
    return {
        "name": name, "summary": f"{summary}; imagenet = {tag}", "error": "", "tag": tag, **known.to_json(),
        "stride": own, "strides": list(strides), "abilities": list(abilities),
    }  # fmt: skip


def _measured_backbones(pattern: str) -> list[dict[str, Any]]:
    """The networks of timm that fit a pattern, measured; those without a grid say so."""
    import timm

    from ...methods.backbones.adapter import create_backbone
    from ...methods.backbones.weights import imagenet_tag
    from ..core.errors import BenchError

    names = timm.list_models(pattern) or [pattern]
    if len(names) > MOST_MEASURED:
        raise BenchError(
            f"{len(names)} networks of timm fit '{pattern}', more than {MOST_MEASURED}. Narrow the pattern, such as "
            "'deit_*'."
        )
    rows = []
    for name in names:
        try:
            body = create_backbone(name, device="meta")
        except BenchError as problem:
            if not timm.is_model(name.partition(".")[0]) or "." in name:
                raise
            rows.append({"name": name, "summary": str(problem), "error": "", "abilities": []})
            continue
        try:
            tag = imagenet_tag(name)
        except BenchError:
            tag = "none"
        shape = (body.strides[-1], body.possible_strides(), sorted(body.abilities))
        rows.append(_backbone(name, tag, body.statistics, *shape))
    return rows


def _protocols() -> list[dict[str, Any]]:
    from ..core.protocols import PROTOCOLS

    texts = {
        "fair": "Default. Only the images of the test set reach a prediction: maps of the predicted class, tau_val.",
        "paper": "As published, to compare with papers: maps of the true class, per-image min-max, oracle tau.",
    }
    return [{"summary": texts.get(p.name, ""), "error": "", **p.identity()} for p in PROTOCOLS.values()]


def _presets() -> list[dict[str, Any]]:
    from ..planning.config import PRESETS, identity_fields, train_config

    texts = {
        "smoke": "Seconds to minutes on two CPU cores: to see that everything works.",
        "quick": "Minutes on one GPU: to try an idea.",
        "paper": "The published schedules.",
    }
    return [
        {"name": n, "summary": texts.get(n, ""), "error": "", "train": identity_fields(train_config(n))}
        for n in PRESETS
    ]
