"""The command line, kept warm: one process imports everything heavy once and forks a child for every command.

A child is the leader of a session of its own and runs the real `wsolbench.benchmark.cli.main` and what is to be run at
exit; its output goes to files. So a command costs what it does, not the seconds that torch takes to import, and
can be killed at any moment like any other process. `python -c SERVE` is the server, `Bench` the side of the tests.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0  # seconds for any one command, on a machine that does a lot besides
HEAVY = (
    "torch", "timm", "torchvision", "joblib", "pandas", "scipy.stats", "matplotlib", "cv2", "safetensors.torch",
    "wsolbench.benchmark.cli.run", "wsolbench.benchmark.execution.scheduler", "wsolbench.benchmark.execution.preflight",
    "wsolbench.benchmark.stages.score_stage", "wsolbench.benchmark.planning.planner",
    "wsolbench.benchmark.execution.terminal",
    "wsolbench.methods.backbones.adapter", "wsolbench.reports.rows.load", "wsolbench.reports.tables.formats",
    "wsolbench.reports.build",
)  # fmt: skip
# A text, not a file: workers that joblib starts would import the file of a parent's `__main__` again.
SERVE = f"import sys; sys.path.append({str(ROOT)!r}); from tests.faults.warm import serve; serve()"


# -- in the server ---------------------------------------------------------------------------------------------------
def serve() -> None:
    """Answers requests, one JSON line each, until stdin ends; in a forked child, runs the command instead."""
    for name in HEAVY:
        importlib.import_module(name)
    if len(list(Path("/proc/self").glob("task/*"))) > 1:
        raise RuntimeError("the server has started threads, so it cannot fork safely: is OMP_NUM_THREADS 1?")
    gc.collect()
    gc.freeze()
    job = _listen()
    if job is not None:
        _become(job)


def _listen() -> dict | None:
    """Forks for every request; returns the request in the child, None in the server when stdin ends."""
    inbox, bell = os.pipe()
    os.set_blocking(bell, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(bell)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the tests is for the tests
    running: dict[int, tuple[Path, float]] = {}
    rest = b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(0, selectors.EVENT_READ)
        waiting.register(inbox, selectors.EVENT_READ)
        while True:
            for found, _ in waiting.select():
                data = os.read(found.fd, 1 << 16)
                if found.fd == inbox:
                    _reap(running)
                    continue
                if not data:
                    return None
                *lines, rest = (rest + data).split(b"\n")
                for job in map(json.loads, lines):
                    if "signal" in job:
                        _signal(job, running)
                    elif pid := os.fork():
                        running[pid] = Path(job["folder"]), time.monotonic()
                        os.write(1, b"%d\n" % pid)
                    else:
                        signal.set_wakeup_fd(-1)
                        os.close(inbox)
                        os.close(bell)
                        return job


def _reap(running: dict[int, tuple[Path, float]]) -> None:
    """Notes the end of children: the return code, as subprocess counts them, in a file that appears whole."""
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            folder, begun = running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            (folder / "rc.new").write_text(f"{code} {time.monotonic() - begun}")
            (folder / "rc.new").replace(folder / "rc")


def _signal(job: dict, running: Mapping[int, tuple[Path, float]]) -> None:
    """Signals a child or its whole session; whoever was reaped already is left in peace, as its number may be new."""
    sent = job["pid"] in running
    if sent:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if job["whole"] else os.kill)(job["pid"], job["signal"])
    os.write(1, b"%d\n" % sent)


def _become(job: dict) -> None:
    """Turns this process into the command: session, signals, files, environment, then `main`."""
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(job["folder"])
    for number, name in ((0, os.devnull), (1, folder / "stdout"), (2, folder / "stderr")):
        handle = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    sys.argv = ["bench", *job["words"]]
    code = 0
    try:
        if job["inject"]:
            exec(compile(job["inject"], "<inject>", "exec"), {"__name__": "__inject__"})
        from wsolbench.benchmark.cli import main

        main()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0 if done.code is None else 1
    except BaseException:  # noqa: BLE001 - what the interpreter does at its top
        traceback.print_exc()
        code = 1
    # The regular end, but for freeing the modules one by one: 0.4 s, and complaints of those the server froze.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):  # closed by the command
            stream.flush()
    os._exit(code)


# -- in the tests ----------------------------------------------------------------------------------------------------
class Job:
    """A command that was started: its pid, its output so far and how it ended."""

    def __init__(self, bench: "Bench", pid: int, folder: Path, words: tuple[str, ...]) -> None:
        self.bench, self.pid, self.folder, self.words = bench, pid, folder, words
        self.began = time.monotonic()

    def poll(self) -> int | None:
        """The return code as subprocess counts it (minus the signal's number), None while it runs."""
        try:
            return int((self.folder / "rc").read_text().split()[0])
        except FileNotFoundError:
            return None

    def wait(self, timeout: float = PATIENCE) -> int:
        """The return code once it has ended. Raises TimeoutError, and leaves it running, after so many seconds."""
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"bench {' '.join(self.words)} still runs after {timeout:.0f} s: {self.stderr}")
            self.bench.check()
            time.sleep(0.004)
        return code

    def signal(self, number: int, whole: bool = False) -> bool:
        """Sends a signal to the process, or to its whole session; whether it was still there to get it."""
        return bool(self.bench.ask({"pid": self.pid, "signal": int(number), "whole": whole}))

    def kill(self, whole: bool = True) -> bool:
        """SIGKILL, and waits for the end; whether that is what ended it."""
        self.signal(signal.SIGKILL, whole)
        return self.wait() == -signal.SIGKILL

    def members(self) -> list[int]:
        """The processes of its session that are alive, itself included."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, *numbers = entry.read_text().rpartition(")")[2].split()
                if int(numbers[2]) == self.pid and state != "Z":
                    found.append(int(entry.parent.name))
        return found

    @property
    def seconds(self) -> float:
        """What it took from start to end, once it has ended."""
        return float((self.folder / "rc").read_text().split()[1])

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text(encoding="utf-8") if (self.folder / "stdout").is_file() else ""

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(encoding="utf-8") if (self.folder / "stderr").is_file() else ""


class Bench:
    """`bench(*words)` runs a command to its end, `bench.start(*words)` only starts it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._count, self._jobs = 0, list[Job]()
        self._errors = Path(self._folder.name, "server")
        with self._errors.open("wb") as errors:
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, start_new_session=True,
            )  # fmt: skip

    def __call__(
        self, *words: object, timeout: float = PATIENCE, **options: object
    ) -> "subprocess.CompletedProcess[str]":
        """Runs `bench WORDS` to its end; options as of `start`."""
        job = self.start(*words, **options)
        try:
            code = job.wait(timeout)
        except TimeoutError:
            job.kill()
            raise
        return subprocess.CompletedProcess(["bench", *job.words], code, job.stdout, job.stderr)

    def start(
        self,
        *words: object,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        inject: str = "",
    ) -> Job:
        """Starts `bench WORDS`. env: the whole environment, without it that of the tests; inject: Python run before."""
        self._count += 1
        folder = Path(self._folder.name, str(self._count))
        folder.mkdir()
        typed = tuple(str(w) for w in words)
        environment = dict(os.environ if env is None else env) | {"OMP_NUM_THREADS": "1"}
        request = {"words": typed, "cwd": str(cwd or Path.cwd()), "env": environment, "inject": inject}
        job = Job(self, self.ask({**request, "folder": str(folder)}), folder, typed)
        self._jobs.append(job)
        return job

    def ask(self, request: dict) -> int:
        """The server's answer to a request: a number."""
        assert self._server.stdin
        assert self._server.stdout
        try:
            self._server.stdin.write(json.dumps(request).encode() + b"\n")
            self._server.stdin.flush()
            return int(self._server.stdout.readline())
        except (BrokenPipeError, ValueError):
            self.check()
            raise

    def check(self) -> None:
        """Raises RuntimeError with its traceback if the server has ended."""
        if self._server.poll() is not None:
            raise RuntimeError(f"the warm command line has ended: {self._errors.read_text(errors='replace')}")

    def close(self) -> None:
        """Ends the server and whatever it still runs."""
        if self._server.poll() is None:
            for job in self._jobs:
                if job.poll() is None:
                    job.kill()
            assert self._server.stdin
            self._server.stdin.close()
            self._server.wait(30)
        self._folder.cleanup()
