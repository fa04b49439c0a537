"""Estimate of the time left: rates of stages timed before on a results folder, or in the command under way."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.results_store import Store
from .stage import Stage

SECONDS_SHOWN, MINUTES_SHOWN = 120, 7200  # from here on minutes, then hours
_KEPT = 64  # rates kept a kind and place: the latest say most


class Rates:
    """Seconds per unit of work by kind of stage and what its speed depends on; a unit is one image seen once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, tuple[Any, ...]], list[float]] = {}

    def learn(self, kind: str, place: tuple[Any, ...], seconds: float, units: float) -> None:
        """Adds a measurement; one without work or time says nothing."""
        if seconds > 0 and units > 0:
            kept = self._found.setdefault((kind, place), [])
            kept.append(seconds / units)
            del kept[:-_KEPT]

    def of(self, kind: str, place: tuple[Any, ...]) -> float | None:
        """The median where the place was measured, else of all places of the kind, else of a training; None without."""
        for wanted in (
            self._found.get((kind, place)),
            [rate for (k, _), rates in self._found.items() if k == kind for rate in rates],
            # an image that is scored is seen as in a training once, without its backward pass: dearer, not cheaper
            [rate for (k, _), rates in self._found.items() if k == "train" != kind for rate in rates],
        ):
            if wanted:
                return median(wanted)
        return None

    def seconds(self, stage: Stage) -> float | None:
        """Seconds for a whole stage; None where nothing like it was measured."""
        rate = self.of(stage.kind, place_of(stage.kind, stage.identity))
        return None if rate is None else rate * units_of(stage)


def units_of(stage: Stage) -> float:
    """Images a stage sees: of a training those of training and validation in each epoch, else each image once."""
    if stage.kind == "train":
        return float(stage.identity["data"]["images"] * stage.inputs.config.epochs)
    scope = stage.identity.get("eval") or stage.identity.get("data") or {}
    return float(scope.get("images", 1))


def place_of(kind: str, identity: Mapping[str, Any]) -> tuple[Any, ...]:
    """Facts that stages of one speed have in common."""
    if kind != "train":
        return (identity.get("image_size"), identity["method"]["name"])
    settings = identity["train"]
    return (*(settings.get(k) for k in ("image_size", "stride", "precision")), identity["backbone"].get("name"))


def rates_of(store: Store) -> Rates:
    """The rates of all finished stages of a results folder."""
    rates = Rates()
    for record in store.records().values():
        identity, seconds = record.get("identity"), record.get("seconds")
        if not identity or not seconds:
            continue
        data = identity.get("eval") or identity.get("data") or {}
        units = float(data.get("images", 1)) * (record.get("epochs", 1) if record["kind"] == "train" else 1)
        rates.learn(record["kind"], place_of(record["kind"], identity), seconds, units)
    return rates


def estimate_seconds(stages: Sequence[Stage], store: Store) -> float | None:
    """Seconds for the stages, from the speed of stored stages of the same kind; None where some kind has none."""
    return total_seconds(rates_of(store), stages) if stages else 0.0


def total_seconds(rates: Rates, stages: Iterable[Stage]) -> float | None:
    """The sum over stages; None if one of them is like nothing that was measured."""
    total, known = 0.0, dict[tuple[str, tuple[Any, ...]], float | None]()
    for stage in stages:
        place = stage.kind, place_of(stage.kind, stage.identity)
        if place not in known:  # asked at every epoch of a plan of thousands of stages in few places
            known[place] = rates.of(*place)
        if (rate := known[place]) is None:
            return None
        total += rate * units_of(stage)
    return total


def median(values: Sequence[float]) -> float:
    """The middle value, the upper one of two."""
    return sorted(values)[len(values) // 2]


def duration(seconds: float) -> str:
    """Seconds as a reader wants them: `48 s`, `12 min`, `3.4 h`."""
    if seconds < SECONDS_SHOWN:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < MINUTES_SHOWN else f"{seconds / 3600:.1f} h"


@dataclass
class Running:
    """A stage under way. first: its first epoch and when that was told; latest: the last one."""

    stage: Stage
    event: Mapping[str, Any]
    first: tuple[int, float] | None = None
    latest: tuple[int, float] | None = None

    @property
    def epoch_seconds(self) -> float | None:
        """Seconds an epoch takes, evaluation and writing included; None before two were told."""
        if self.first is None or self.latest is None or self.latest[0] <= self.first[0]:
            return None
        return (self.latest[1] - self.first[1]) / (self.latest[0] - self.first[0])

    def seconds_left(self, rates: Rates) -> float | None:
        """Until a training ends, from its own epochs, else from others; a score is not followed image by image."""
        if self.stage.kind != "train" or self.latest is None:
            return rates.seconds(self.stage)
        left = self.event["epochs"] - self.latest[0]
        if (own := self.epoch_seconds) is not None:
            return own * left
        whole = rates.seconds(self.stage)
        return None if whole is None else whole * left / max(1, self.event["epochs"])


@dataclass
class Outlook:
    """Clock of a whole command: fed with the events of its stages, it estimates what is left. clock: in seconds."""

    todo: Mapping[str, Stage]
    rates: Rates
    clock: Callable[[], float]
    settled: set[str] = field(default_factory=set)  # done, failed, or blocked by one that failed
    running: dict[str, Running] = field(default_factory=dict)

    def see(self, event: Mapping[str, Any]) -> None:
        """Takes an event of a stage into account."""
        kind, now = event["kind"], self.clock()
        if kind == "settled":
            self._settle(event["stages"])
        elif kind == "train":
            self._see_epoch(event, now)
        elif kind == "score":
            self.running[event["stage"].key] = Running(event["stage"], event)
        elif kind == "done":
            stage, keys = event["stage"], event.get("stages") or [event["stage"].key]
            units = sum(units_of(self.todo.get(k, stage)) for k in keys)
            self.rates.learn(stage.kind, place_of(stage.kind, stage.identity), event["seconds"], units)
            self._settle(keys)

    def _see_epoch(self, event: Mapping[str, Any], now: float) -> None:
        place = (event["epoch"], now)
        run = self.running.setdefault(event["stage"].key, Running(event["stage"], event))
        if run.first is None or place[0] < run.first[0]:
            run.first = place
        run.event, run.latest = event, place
        if run.epoch_seconds is not None:  # so that trainings that wait have a rate before the first has ended
            images = event["stage"].identity["data"]["images"]
            stage = event["stage"]
            self.rates.learn(stage.kind, place_of(stage.kind, stage.identity), run.epoch_seconds, images)

    def _settle(self, keys: Collection[str]) -> None:
        self.settled.update(k for k in keys if k in self.todo)
        for key in keys:
            self.running.pop(key, None)

    def count(self, kind: str = "") -> tuple[int, int]:
        """Stages (of one kind, if given) that are settled, and all."""
        of_kind = [k for k, s in self.todo.items() if kind in ("", s.kind)]
        return sum(k in self.settled for k in of_kind), len(of_kind)

    def seconds_left(self) -> float | None:
        """Until the whole command ends, if as many stages run together as now; None where a kind was never timed."""
        waiting = total_seconds(
            self.rates, (s for k, s in self.todo.items() if k not in self.settled and k not in self.running)
        )
        under_way = [r.seconds_left(self.rates) for k, r in self.running.items() if k not in self.settled]
        if waiting is None or None in under_way:
            return None
        each = [s for s in under_way if s is not None]
        return max(max(each, default=0.0), (waiting + sum(each)) / max(1, len(each)))

    def whole(self) -> str:
        """The state in words: `12/70 stages, 3/7 trainings, about 4 min left`."""
        (done, stages), (trained, trainings) = self.count(), self.count("train")
        parts = [f"{done}/{stages} stages"]
        if trainings:
            parts.append(f"{trained}/{trainings} trainings")
        if done < stages:
            left = self.seconds_left()
            parts.append(f"about {duration(left)} left" if left is not None else "time left: …")
        return ", ".join(parts)
