"""Live progress display on a terminal: one line for the whole command, a short one for each running stage."""

import logging
import sys
from collections.abc import Collection
from typing import Any

from rich.console import Console, OverflowMethod
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..core.errors import many, plain
from ..planning.estimate import Outlook, Running, duration
from ..planning.stage import Stage

NARROW = 72  # columns from which on bars are shown
MOST = 8  # running stages shown; a cluster may run hundreds
_NAMES = ("method", "options", "backbone", "train", "eval", "fold", "seed")


class ProgressBoard:
    """Draws an Outlook on stderr, anew at every event: no thread of its own, which signals and forks would meet."""

    def __init__(self, outlook: Outlook, console: Console | None = None) -> None:
        """console: where to draw, by default stderr."""
        self.outlook = outlook
        self.console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
        unicode = (self.console.encoding or "").lower().startswith("utf")
        self._overflow: OverflowMethod = "ellipsis" if unicode else "crop"
        self._live = Live(console=self.console, auto_refresh=False, transient=True, get_renderable=self._draw)
        self._live.start()
        # handlers hold the stream of before; what they say must stand above the lines, not among them
        self._streams = [(h, h.stream) for h in logging.root.handlers if isinstance(h, logging.StreamHandler)]
        for handler, _ in self._streams:
            handler.setStream(sys.stderr)

    def show(self, line: str, warning: bool = False) -> None:
        """Prints a line above and draws the rest again."""
        if line:
            self.console.print(Text(line, style="yellow" if warning else ""), soft_wrap=True)
        self._live.refresh()

    def close(self) -> None:
        """Removes the live lines."""
        self._live.stop()
        for handler, stream in self._streams:
            handler.setStream(stream)

    def _draw(self) -> Table:
        """A grid as wide as the terminal: what, a bar where there is room, numbers; names are cut first."""
        wide = self.console.width >= NARROW
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True, overflow=self._overflow, ratio=1, min_width=10)
        if wide:
            grid.add_column(width=bar_width(self.console.width))
        grid.add_column(no_wrap=True, overflow=self._overflow, justify="right")

        def add(name: Text, total: int, done: int, text: str) -> None:
            bar = [ProgressBar(total=total, completed=done) if total else ""] if wide else []
            grid.add_row(name, *bar, self._printable(text))

        done, stages = self.outlook.count()
        add(Text("all", style="bold"), max(1, stages), done, self.outlook.whole())
        running = list(self.outlook.running.values())
        differing = varying([*(r.stage for r in running), *self.outlook.todo.values()])
        for run in running[:MOST]:
            name = Text(self._printable(short_title(run.stage, differing)))
            add(name, run.event.get("epochs", 0), run.event.get("epoch", 0), numbers(run, self.outlook))
        if len(running) > MOST:
            add(Text(f"and {len(running) - MOST} more", style="dim"), 0, 0, "")
        return grid

    def _printable(self, text: str) -> str:
        """Text in the characters that the terminal has, each as wide as it was."""
        if self._overflow == "ellipsis":
            return text
        return text.replace("·", "-").replace("→", ">").encode("ascii", "replace").decode()


def bar_width(width: int) -> int:
    """Columns of a bar on a terminal of so many: an eighth, at least 6, to leave space for names."""
    return max(6, min(40, width // 8))


def varying(stages: Collection[Stage]) -> frozenset[str]:
    """Names of the labels in which stages differ; what is the same everywhere is left out of their lines."""
    values_of: dict[str, set[Any]] = {}
    for stage in stages:
        for name in _NAMES:
            values_of.setdefault(name, set()).add(stage.labels.get(name))
    return frozenset(name for name, values in values_of.items() if len(values - {None, "-", ""}) > 1)


def short_title(stage: Stage, differing: Collection[str]) -> str:
    """A stage by its method and what differs between stages: `train pixelcam · glas · seed 1`."""
    labels = stage.labels
    parts = [f"{stage.kind} {labels['method']}"]
    away = labels.get("eval", labels["train"]) != labels["train"]
    if away or "train" in differing:
        parts.append(f"{labels['train']} → {labels['eval']}" if away else labels["train"])
    parts += [labels["backbone"]] if "backbone" in differing and labels["backbone"] != "-" else []
    parts += [f"{name} {labels[name]}" for name in ("fold", "seed") if name in differing]
    return plain(" · ".join(map(str, parts)))


def numbers(run: Running, outlook: Outlook) -> str:
    """Line of a running stage: `12/40 · loss 0.412 · 38 s left`."""
    event = run.event
    if run.stage.kind != "train":
        return many(event["images"], "image") if "images" in event else ""
    parts = [f"{event['epoch']}/{event['epochs']}"]
    if "losses" in event:
        parts.append(f"loss {event['losses']['total']:.3f}")
    left = run.seconds_left(outlook.rates)
    parts.append(f"{duration(left)} left" if left is not None else "…")
    return " · ".join(parts)
