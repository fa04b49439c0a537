"""Progress on the terminal: a bar where there is one, plain lines where there is not."""

import contextlib
import sys
import time
from typing import Any

from .costs import shares
from .errors import plain
from .plan import Stage


def title(stage: Stage) -> str:
    """A stage in a few words, e.g. `score pixelcam · resnet18 · glas fold 0 seed 0 → camelyon16`."""
    labels = stage.labels
    where = f"{labels['train']} fold {labels['fold']} seed {labels['seed']}"
    if labels.get("eval", labels["train"]) != labels["train"]:
        where += f" → {labels['eval']}"
    parts = [labels["method"], labels["backbone"], where]
    return f"{stage.kind} " + " · ".join(p for p in parts if p != "-")


def describe(event: dict[str, Any]) -> str:
    """One line for an event, empty where a line would say too little (a plain log gets about ten an epoch series)."""
    if event["kind"] in ("warning", "note"):
        return f"{'WARNING: ' if event['kind'] == 'warning' else ''}{event['text']}"
    stage = event["stage"]
    if event["kind"] == "waiting":
        more = f" and {event['groups'] - 1} more" if event["groups"] > 1 else ""
        return f"{title(stage)}{more}: done by {event['owner']} at this moment; waiting for it"
    if event["kind"] == "done":
        return f"{title(stage)}: {_cost(event)}"
    if event["kind"] == "score":
        many = f"{event['methods']} maps of " if event["methods"] > 1 else ""
        return f"{title(stage)}: scoring {many}{event['images']} {stage.labels['split']} images"
    epoch, epochs = event["epoch"], event["epochs"]
    if epoch % max(1, epochs // 10) and epoch != epochs:
        return ""
    return f"{title(stage)}: {_numbers(event)}"


def _cost(event: dict[str, Any]) -> str:
    """What a finished stage took and where the time went, e.g. `42.0 s, 96 img/s: backward 52%, forward 38%`."""
    many = f" of {event['methods']} maps" if event.get("methods", 1) > 1 else ""
    parts = shares(event["times"])
    took = f"{event['seconds']:.1f} s, {event['images_per_second']:.0f} img/s{many}"
    return f"{took}: {parts}" if parts else took


def _numbers(event: dict[str, Any]) -> str:
    parts = [f"epoch {event['epoch']}/{event['epochs']}"]
    if "losses" in event:
        parts.append(f"loss {event['losses']['total']:.3f}")
    parts.append(f"val acc {event['val']['accuracy']:.1f}%")
    if event.get("seconds"):
        parts.append(f"{event['images'] / event['seconds']:.0f} img/s")
        parts.append(f"{event['seconds'] * (event['epochs'] - event['epoch']):.0f} s left")
    return ", ".join(parts)


class Terminal:
    """Shows events of stages, wherever they run: one bar for each training under way."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self._bars, self._last = quiet, dict[str, Any](), 0.0
        self.live = sys.stderr.isatty()

    def __call__(self, event: dict[str, Any]) -> None:
        """Shows one event; warnings even where nothing else is shown. A terminal that has gone is no reason to fail."""
        with contextlib.suppress(OSError):
            self._show(event)

    def _show(self, event: dict[str, Any]) -> None:
        if self.quiet and event["kind"] != "warning":
            return
        if not self.live or self.quiet:
            if line := describe(event):
                print(plain(line), file=sys.stderr, flush=True)  # noqa: T201 - this is the terminal
            return
        self._draw(event)

    def _draw(self, event: dict[str, Any]) -> None:
        from tqdm import tqdm

        if event["kind"] != "train":
            if event["kind"] == "done":
                self._end(event["stage"].key)
            tqdm.write(plain(describe(event)), file=sys.stderr)
            return
        key = event["stage"].key
        if key not in self._bars:
            bar = tqdm(total=event["epochs"], unit="epoch", initial=event["epoch"], file=sys.stderr, leave=False)
            bar.set_description_str(plain(title(event["stage"])))
            self._bars[key] = bar
        bar = self._bars[key]
        bar.update(event["epoch"] - bar.n)
        if time.monotonic() - self._last > 0.1:
            bar.set_postfix_str(_numbers(event))
            self._last = time.monotonic()

    def _end(self, key: str) -> None:
        if key in self._bars:
            self._bars.pop(key).close()

    def close(self) -> None:
        """Ends the bars that are shown."""
        for key in list(self._bars):
            self._end(key)
