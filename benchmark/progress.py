"""Progress on the terminal: a bar where there is one, plain lines where there is not."""

import sys
import time
from typing import Any

from .costs import shares
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
    stage = event["stage"]
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
    """Shows events of stages that run in this process."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self._bar, self._key, self._last = quiet, None, "", 0.0
        self.live = sys.stderr.isatty()

    def __call__(self, event: dict[str, Any]) -> None:
        """Shows one event."""
        if self.quiet:
            return
        if not self.live:
            if line := describe(event):
                print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the terminal
            return
        self._draw(event)

    def _draw(self, event: dict[str, Any]) -> None:
        from tqdm import tqdm

        stage = event["stage"]
        if event["kind"] != "train":
            self.close()
            tqdm.write(describe(event), file=sys.stderr)
            return
        if self._key != stage.key:
            self.close()
            self._key = stage.key
            self._bar = tqdm(
                total=event["epochs"], desc=title(stage), unit="epoch", initial=event["epoch"], file=sys.stderr
            )
        elif self._bar is not None:
            self._bar.update(event["epoch"] - self._bar.n)
        if self._bar is not None and time.monotonic() - self._last > 0.1:
            self._bar.set_postfix_str(_numbers(event))
            self._last = time.monotonic()

    def close(self) -> None:
        """Ends the bar that is shown, if any."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._key = None, ""
