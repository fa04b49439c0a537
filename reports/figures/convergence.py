"""Training curves: validation accuracy, PxAP of the validation masks and losses by epoch."""

import json
from collections.abc import Mapping
from typing import Any

from ...benchmark.core.protocols import named_protocol
from ...benchmark.core.results_store import Store
from ..drawing.base import Drawn, NoFigureError, Palette, Scene, label_axes, new_figure, slug
from ..rows.load import Row

COLUMNS = 4
History = list[dict[str, Any]]


def draw(scene: Scene) -> list[Drawn]:
    """Two panels a trained model (quality, losses); its lowest fold and seed. Raises NoFigureError without history."""
    models = _models(scene)
    if not models:
        raise NoFigureError("no training of this table left a history")
    columns = min(COLUMNS, len(models))
    rows = -(-len(models) // columns)
    title = f"Training curves · {scene.table.sets}, protocol {scene.table.protocol}"
    figure = new_figure(scene, title, (max(3.3 * columns, 6.9), 0.6 + 4.3 * rows))
    panels = figure.subplots(2 * rows, columns, squeeze=False, sharex="col", height_ratios=[1.6, 1] * rows)
    for index, (name, (runs, history)) in enumerate(models.items()):
        row, column = divmod(index, columns)
        top, bottom = panels[2 * row, column], panels[2 * row + 1, column]
        _quality(top, runs, history, scene.palette, named_protocol(scene.table.protocol))
        _losses(bottom, history)
        label_axes(top, "", "validation [%]" if column == 0 else "", name)
        label_axes(bottom, "epoch", "training loss" if column == 0 else "")
    for spare in range(len(models), rows * columns):
        row, column = divmod(spare, columns)
        panels[2 * row, column].set_axis_off()
        panels[2 * row + 1, column].set_axis_off()
    how = (
        "Above: accuracy of all validation images (thick grey) and PxAP of the few that have a mask, one line a map; "
        "epoch 0 is before training. Circles mark the checkpoint loc, squares the checkpoint cl. "
        "Below: the training losses. Localisation often peaks before classification does, and then decays."
    )
    alt = "Validation accuracy, PxAP and training losses by epoch, one column a trained model."
    return [Drawn(slug("convergence", *scene.stem), "Training curves", how, alt, figure)]


def _models(scene: Scene) -> dict[str, tuple[list[Row], History]]:
    """Panel title -> the rows that read a training, and its history; one training a trained method and backbone."""
    trainings: dict[str, tuple[list[Row], History]] = {}
    first_training: dict[str, str] = {}
    for row in sorted(scene.table.rows, key=lambda r: (r.backbone, str(r.fold), r.seed)):
        if not row.stage_train:
            continue
        labels = scene.records[row.stage_train]["labels"]
        options = f" ({labels['options']})" if labels.get("options") else ""
        place = f"{labels['method']}{options} · {row.backbone} · {row.settings if row.kind != 'score' else ''}"
        if first_training.setdefault(place, row.stage_train) != row.stage_train:
            continue
        title = f"{labels['method']}{options} · {row.backbone}\nfold {labels['fold']}, seed {labels['seed']}"
        if title not in trainings:
            history = read_history(scene.store, row.stage_train)
            if not history:
                continue
            trainings[title] = ([], history)
        trainings[title][0].append(row)
    return trainings


def read_history(store: Store, key: str) -> History:
    """The lines of a training's history; lines that are no JSON (a write cut short) are left out."""
    path = store.run_dir(key) / "history.jsonl"
    lines: History = []
    if not path.is_file():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("epoch"), int):
            lines.append(entry)
    return lines


def _series(history: History, *path: str) -> tuple[list[int], list[float]]:
    """Epochs and values found under a path of keys; null and missing values are left out."""
    epochs, values = [], []
    for entry in history:
        value: Any = entry
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            epochs.append(entry["epoch"])
            values.append(float(value))
    return epochs, values


def _quality(axes: Any, runs: list[Row], history: History, palette: Palette, protocol: str) -> None:
    epochs, values = _series(history, "val", "accuracy")
    axes.plot(epochs, values, color="#9A9A9A", linewidth=3.0, label="accuracy", solid_capstyle="round")
    _mark(axes, epochs, values, {r.epoch for r in runs if r.selection == "cl"}, "s", "#6A6A6A")
    curves = {key for entry in history for key in entry.get("valpx", {}) if key.startswith(f"{protocol}/")}
    # The history of a classifier also follows explainers that this report has no row of.
    shown = {key for key in curves if palette.knows(key.partition("/")[2])}
    for key in sorted(shown or curves):
        name = key.partition("/")[2]
        look = palette.named(name)
        epochs, values = _series(history, "valpx", key, "pxap")
        axes.plot(epochs, values, label=f"PxAP {name}", **look.line)
        chosen = {r.epoch for r in runs if r.selection == "loc" and r.method == name}
        _mark(axes, epochs, values, chosen, "o", look.color)
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, fontsize=7)


def _mark(axes: Any, epochs: list[int], values: list[float], chosen: set[int | None], marker: str, color: str) -> None:
    points = [(e, v) for e, v in zip(epochs, values, strict=True) if e in chosen]
    if points:
        axes.plot(*zip(*points, strict=True), marker, color=color, markeredgecolor="#000000", markersize=7, zorder=5)


def _losses(axes: Any, history: History) -> None:
    names = sorted({n for entry in history for n in entry.get("losses", {})}, key=lambda n: (n != "total", n))
    for index, name in enumerate(names):
        style = ("-", "--", ":", "-.")[index % 4]
        axes.plot(*_series(history, "losses", name), style, color="#333333" if index == 0 else "#777777", label=name)
    if names:
        axes.legend(frameon=False, fontsize=7)
    low, high = axes.get_ylim()
    if low > 0:  # a loss may be negative, and then 0 is no floor
        axes.set_ylim(0, 1.1 * high)
    axes.locator_params(axis="x", integer=True)
