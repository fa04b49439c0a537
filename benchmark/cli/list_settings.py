"""`bench list settings`: every key of `--set` and of a TOML file."""

import dataclasses
import re
from typing import Any


def settings() -> list[dict[str, Any]]:
    """Every key: its type, default, meaning, and whether it can change a number."""
    from ..core.protocols import FAIR, PAPER, Protocol
    from ..planning.config import PRESETS, RunConfig, TrainConfig

    rows = []
    for section, config in (("train", TrainConfig()), ("run", RunConfig())):
        for field in dataclasses.fields(config):
            presets = {n: v[field.name] for n, v in PRESETS.items() if section == "train" and field.name in v}
            rows.append(_setting(section, field.name, field.default, field.metadata["help"], presets))
            rows[-1]["identity"] = field.metadata["identity"]
    meanings = _meanings(Protocol.__doc__ or "")
    for field in dataclasses.fields(Protocol):
        if field.name in ("name", "version"):
            continue
        values = {p.name: getattr(p, field.name) for p in (FAIR, PAPER)}
        others = {n: v for n, v in values.items() if v != values["fair"]}
        rows.append(_setting("protocol", field.name, values["fair"], meanings.get(field.name, ""), others))
        rows[-1]["identity"] = True
    rows.append(_setting("shift", "stains", "", "dataset that lends its stains to restain", {}))
    rows.append(
        _setting("METHOD", "OPTION", "", "an option of a method (bench list methods --json): pixelcam.teacher", {})
    )
    rows.append(_setting("METHOD", "train.KEY", "", "a setting of train for this method alone: pixelcam.train.lr", {}))
    return rows


def _setting(section: str, key: str, default: Any, about: str, others: dict[str, Any]) -> dict[str, Any]:
    """One setting. others: values it has in a preset or protocol beside the default."""
    shown = "" if default == "" else f" [{_value(default)}{''.join(f', {n}: {_value(v)}' for n, v in others.items())}]"
    kind = "text" if isinstance(default, str) else type(default).__name__
    return {
        "name": f"{section}.{key}", "summary": f"{about}{shown}", "error": "", "type": kind,
        "default": _value(default), "others": {n: _value(v) for n, v in others.items()}, "identity": section != "run",
    }  # fmt: skip


def _value(value: Any) -> Any:
    """A value as one types it."""
    return (
        ",".join(map(str, value))
        if isinstance(value, tuple)
        else value
        if isinstance(value, int | float)
        else str(value)
    )


def _meanings(text: str) -> dict[str, str]:
    """`name: what it means` of a docstring, continued on indented lines."""
    meanings: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        match = re.match(r"    (\w+): (.*)", line)
        if match:
            name = match[1]
            meanings[name] = match[2]
        elif name and line.startswith("        "):
            meanings[name] += " " + line.strip()
        else:
            name = ""
    return {k: v.rstrip(".") for k, v in meanings.items()}
