"""Rows that are not there: trainings that diverged and stages that failed, told as what they are, without a number."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...benchmark.core.results_store import Store
from .stored import read_stored

DIVERGED, FAILED = "diverged", "failed"
_KINDS = {"train": "training", "maps": "teacher maps", "score": "scoring"}
_SHOWN_IDS = 5


@dataclass(frozen=True)
class Unfinished:
    """Stages of one training or of one kind that stopped for one reason.

    status: `diverged` or `failed`. kind: `train`, `maps` or `score`. eval: the sets they would have scored. epoch,
    step, ids: of the batch at which a training diverged, as far as they are known. stages: their keys.
    """

    status: str
    kind: str
    method: str
    options: str
    backbone: str
    train: str
    fold: str
    seed: str
    error: str
    epoch: int | None = None
    step: int | None = None
    ids: tuple[str, ...] = ()
    eval: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The method with the options that differ from its defaults."""
        return f"{self.method} ({self.options})" if self.options else self.method

    @property
    def where(self) -> str:
        """What names the run: method, backbone, fold and seed."""
        return f"{self.name} on {self.backbone}, fold {self.fold} seed {self.seed}"

    @property
    def what(self) -> str:
        """The kind of stage in words."""
        return _KINDS.get(self.kind, self.kind)

    @property
    def outcome(self) -> str:
        """The status, with the epoch if it is known: `diverged (epoch 2)`."""
        return self.status if self.epoch is None else f"{self.status} (epoch {self.epoch})"

    @property
    def why(self) -> str:
        """The error and, unless it names them itself, images of the batch."""
        if not self.ids or self.ids[0] in self.error:
            return self.error
        some = ", ".join(self.ids[:_SHOWN_IDS]) + (", …" if len(self.ids) > _SHOWN_IDS else "")
        return f"{self.error} (images of the batch: {some})"

    @property
    def data(self) -> str:
        """The set trained on, and the sets scored."""
        others = [e for e in self.eval if e != self.train]
        return f"{self.train} → {', '.join(others)}" if others else self.train


def unfinished_of(failures: Mapping[str, Mapping[str, Any]]) -> list[Unfinished]:
    """Failures by stage key as rows; stages that share all but what they were to score are one row."""
    rows: dict[tuple[Any, ...], Unfinished] = {}
    for key, failure in failures.items():
        one = _read(key, failure)
        place = (one.status, one.kind, one.method, one.options, one.backbone, one.train, one.fold, one.seed, one.error)
        known = rows.get(place)
        rows[place] = one if known is None else _joined(known, one)
    return sorted(rows.values(), key=lambda u: (u.status, u.train, u.backbone, u.method, u.options, u.fold, u.seed))


def load_unfinished(store: Store, keys: Container[str]) -> list[Unfinished]:
    """What did not finish of some stages of a results folder."""
    failures = read_stored(store).failures
    return unfinished_of({k: f for k, f in failures.items() if k in keys})


def _read(key: str, failure: Mapping[str, Any]) -> Unfinished:
    """One failure; whatever a record of it lacks is left empty."""
    labels = failure.get("labels")
    labels = labels if isinstance(labels, Mapping) else {}
    ids = failure.get("ids")

    def text(name: str) -> str:
        return str(labels.get(name, ""))

    def number(name: str) -> int | None:
        value = failure.get(name)
        return value if isinstance(value, int) else None

    return Unfinished(
        status=DIVERGED if failure.get("status") == DIVERGED else FAILED,
        kind=str(failure.get("kind", "")), method=text("method"), options=text("options"), backbone=text("backbone"),
        train=text("train"), fold=text("fold"), seed=text("seed"), error=str(failure.get("error", "no reason stored")),
        epoch=number("epoch"), step=number("step"), ids=tuple(map(str, ids)) if isinstance(ids, list) else (),
        eval=(text("eval"),) if text("eval") else (), protocols=(text("protocol"),) if text("protocol") else (),
        stages=(key,),
    )  # fmt: skip


def _joined(one: Unfinished, other: Unfinished) -> Unfinished:
    return replace(
        one, eval=tuple(dict.fromkeys(one.eval + other.eval)), stages=one.stages + other.stages,
        protocols=tuple(dict.fromkeys(one.protocols + other.protocols)),
    )  # fmt: skip
