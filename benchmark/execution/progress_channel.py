"""Progress channel between workers and the command: JSON lines in the results folder, which all of them share.

Each worker appends to a file of its own under `results/progress/<run>/`; the command reads them all and shows them as
if the stages ran in its own process. The file `stop` in that folder asks the workers to stop.
"""

import contextlib
import json
import logging
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.files import jsonable
from ..planning.stage import Stage

READ_SECONDS = 0.3
STOP_FILE = "stop"


def new_folder(results: Path) -> Path:
    """A folder for the progress of one command."""
    folder = results / "progress" / f"{platform.node()}-{os.getpid()}-{time.time_ns()}"
    folder.mkdir(parents=True)
    return folder


class ProgressWriter:
    """Worker's end: writes events and warnings. Once the command has ended nothing is written, and nothing fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / f"{platform.node()}-{os.getpid()}.jsonl"

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Writes an event of a stage."""
        plain = {k: v.key if isinstance(v, Stage) else v for k, v in event.items()}
        line = json.dumps(jsonable(plain)).encode() + b"\n"
        with contextlib.suppress(OSError):  # the folder goes with its command; a full disk shows in what matters
            if self.folder.is_dir():
                with self.path.open("ab") as handle:
                    handle.write(line)


class WarningForwarder(logging.Handler):
    """Log handler that sends warnings of a worker to the terminal of the command."""

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(logging.WARNING)
        self.write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Sends one."""
        self.write({"kind": "warning", "text": record.getMessage()})


class ProgressReader:
    """Command's end: reads what workers write, in a thread, while the `with` block lasts; then removes the folder."""

    def __init__(self, folder: Path, stages: Mapping[str, Stage], report: Callable[[dict[str, Any]], None]) -> None:
        self.folder, self._stages, self._report = folder, stages, report
        self._offsets: dict[Path, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="progress", daemon=True)

    def __enter__(self) -> "ProgressReader":
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._ended.set()
        self._thread.join()
        self.read()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: another command is at work
            self.folder.parent.rmdir()

    def _poll(self) -> None:
        while not self._ended.wait(READ_SECONDS):
            self.read()
            with contextlib.suppress(OSError):
                os.utime(self.folder)  # a young folder is in use: `bench clean` lets it be

    def read(self) -> None:
        """Reports what is new."""
        for path in sorted(self.folder.glob("*.jsonl")):
            start = self._offsets.get(path, 0)
            with path.open("rb") as handle:
                handle.seek(start)
                complete, _, _ = handle.read().rpartition(b"\n")  # the rest of a line comes with the next read
            if not complete:
                continue
            self._offsets[path] = start + len(complete) + 1
            for line in complete.split(b"\n"):
                with contextlib.suppress(ValueError):  # a worker died, or the disk filled, in the middle of a line
                    self._forward(json.loads(line))

    def _forward(self, event: dict[str, Any]) -> None:
        stage = self._stages.get(event.get("stage", ""))
        if stage is not None:
            self._report({**event, "stage": stage})
        elif event["kind"] == "warning":
            self._report(event)
