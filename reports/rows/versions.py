"""Rows of earlier versions: what in a stage, or in one it builds on, is no longer as the suite is now."""

from collections.abc import Iterator, Mapping
from typing import Any

from ...benchmark.core import metrics
from ...benchmark.core.protocols import HARNESS_VERSION, PROTOCOLS

Records = Mapping[str, Mapping[str, Any]]


def earlier_versions(key: str, records: Records) -> str:
    """The versions a stage was made by where they are not the present ones, such as `fair 1, harness 2`; or nothing."""
    waiting, seen, texts = [key], set[str](), dict[str, None]()
    while waiting:
        stage = waiting.pop()
        if stage not in seen and stage in records:
            seen.add(stage)
            record = records[stage]
            texts.update(dict.fromkeys(_earlier(record.get("identity") or {})))
            waiting += (record.get("parents") or {}).values()
    return ", ".join(sorted(texts))


def _earlier(identity: Mapping[str, Any]) -> Iterator[str]:
    harness = identity.get("harness", HARNESS_VERSION)
    if harness != HARNESS_VERSION:
        yield f"harness {harness}"
    choice = identity.get("selection") or {}
    if isinstance(choice, Mapping):
        if choice.get("metrics", metrics.VERSION) != metrics.VERSION:
            yield f"metrics {choice['metrics']}"
        for protocol in choice.get("protocols", ()):
            yield from _earlier_protocol(protocol)
    yield from _earlier_protocol(identity.get("protocol"))


def _earlier_protocol(protocol: Any) -> Iterator[str]:
    if isinstance(protocol, Mapping) and protocol.get("name") in PROTOCOLS:
        version = protocol.get("version", PROTOCOLS[protocol["name"]].version)
        if version != PROTOCOLS[protocol["name"]].version:
            yield f"{protocol['name']} {version}"
