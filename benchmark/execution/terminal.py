"""Progress of a command: a live display on a terminal (progress_board.py), plain lines in a log."""

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core.errors import many, plain
from ..core.timing import shares
from ..planning.estimate import Outlook, Rates
from ..planning.stage import Stage

if TYPE_CHECKING:
    from .progress_board import ProgressBoard


def describe(event: dict[str, Any]) -> str:
    """One line for an event, empty where a line would say too little (a plain log gets about ten an epoch series)."""
    if event["kind"] in ("warning", "note"):
        return f"{'WARNING: ' if event['kind'] == 'warning' else ''}{event['text']}"
    stage = event["stage"]
    if event["kind"] == "waiting":
        more = f" and {event['groups'] - 1} more" if event["groups"] > 1 else ""
        return f"{stage.title}{more}: done by {event['owner']} at this moment; waiting for it"
    if event["kind"] == "done":
        what = f" ({event['what']})" if event.get("what") else ""
        return f"{stage.title}{what}: {_cost(event)}"
    if event["kind"] == "score":
        return f"{stage.title}: scoring {many(event['images'], 'image')} ({event['what']})"
    epoch, epochs = event["epoch"], event["epochs"]
    if epoch % max(1, epochs // 10) and epoch != epochs:
        return ""
    return f"{stage.title}: {_numbers(event)}"


def _cost(event: dict[str, Any]) -> str:
    """Cost of a finished stage in words, e.g. `42.0 s, 96 img/s: backward 52%, forward 38%`."""
    maps = f" of {event['methods']} maps" if event.get("methods", 1) > 1 else ""
    parts = shares(event["times"])
    took = f"{event['seconds']:.1f} s, {event['images_per_second']:.0f} img/s{maps}"
    return f"{took}: {parts}" if parts else took


def _numbers(event: dict[str, Any]) -> str:
    parts = [f"epoch {event['epoch']}/{event['epochs']}"]
    if "losses" in event:
        parts.append(f"loss {event['losses']['total']:.3f}")
    parts.append(f"val acc {event['val']['accuracy']:.1f}%")
    if event.get("seconds"):
        parts.append(f"{event['images'] / event['seconds']:.0f} img/s")
    return ", ".join(parts)


class Terminal:
    """Shows events of stages, wherever they run: one line for the whole command and a short one for each running stage.

    Where there is no terminal, plain lines, each with the state of the whole.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self.live = quiet, sys.stderr.isatty() and not quiet
        self._outlook = Outlook({}, Rates(), time.monotonic)
        self._board: ProgressBoard | None = None

    def begin(self, todo: Sequence[Stage], rates: Rates) -> None:
        """Plan of the work from now on, and the rates that foretell its time."""
        known = self._outlook
        self._outlook = Outlook({s.key: s for s in todo}, rates, time.monotonic, known.settled, known.running)
        if self.live and self._board is None:
            from .progress_board import ProgressBoard

            self._board = ProgressBoard(self._outlook)
        elif self._board is not None:
            self._board.outlook = self._outlook

    def __call__(self, event: dict[str, Any]) -> None:
        """Shows one event; warnings even where nothing else is shown. A terminal that has gone is no reason to fail."""
        self._outlook.see(event)
        with contextlib.suppress(OSError):
            self._show(event)

    def _show(self, event: dict[str, Any]) -> None:
        if self.quiet and event["kind"] != "warning":
            return
        line = plain(describe(event)) if event["kind"] != "settled" else ""
        if self._board is not None:
            moves = event["kind"] in ("train", "score")  # shown by the live display
            self._board.show("" if moves else line, warning=event["kind"] == "warning")
        elif line:
            state = self._outlook.whole() if self._outlook.todo and "stage" in event else ""
            print(f"[{state}] {line}" if state else line, file=sys.stderr, flush=True)  # noqa: T201 - the terminal

    def close(self) -> None:
        """Ends the live display; what was printed above it stays."""
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()
            self._board = None
