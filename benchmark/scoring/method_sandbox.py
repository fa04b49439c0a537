"""Sandbox for method code: checks that global state and the model are unchanged, and names the method otherwise.

Cheap enough for every stage. `bench check` looks closer, at one method, before anything trains.
"""

import _signal  # pyright: ignore[reportMissingImports] - signal.getsignal is slower, and this is asked for every map
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..core import mask_guard
from ..core.errors import BenchError
from ..planning.method_refs import MethodRef

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
_OURS = ("deterministic_algorithms", "threads")  # what the harness itself may set while a stage runs
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
LEFT_ALONE = "making maps changes nothing: line 1 of the contract, docs/methods.md"
PROCESS = "line 11 of the contract, docs/methods.md"


class Settings(NamedTuple):
    """Settings of the process that every number may depend on."""

    grad_mode: bool
    default_dtype: torch.dtype
    deterministic_algorithms: bool
    threads: int
    working_folder: str
    signal_handlers: tuple[Any, ...]

    @classmethod
    def now(cls) -> "Settings":
        """Settings of this moment."""
        torch_says = torch.is_grad_enabled(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
        return cls(*torch_says, torch.get_num_threads(), os.getcwd(), _handlers())  # noqa: PTH109 - a Path costs more

    def restore(self) -> None:
        """Sets the process back to them."""
        torch.set_grad_enabled(self.grad_mode)
        torch.set_default_dtype(self.default_dtype)
        torch.use_deterministic_algorithms(self.deterministic_algorithms)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        if os.getcwd() != self.working_folder:  # noqa: PTH109
            os.chdir(self.working_folder)
        if _handlers() != self.signal_handlers:
            for number, handler in zip(SIGNALS, self.signal_handlers, strict=True):
                if handler is not None:  # None: not one of Python's, and so not Python's to set
                    signal.signal(number, handler)

    def changed(self, but: Sequence[str] = ()) -> str:
        """Differences by now, with both values, some settings left out; empty if there are none."""
        both = zip(self._fields, self, Settings.now(), strict=True)
        pairs = [(name, was, now) for name, was, now in both if was != now and name not in but]
        return ", ".join(f"{name.replace('_', ' ')} from {was} to {now}" for name, was, now in pairs)


@contextlib.contextmanager
def method_call(method: str) -> Iterator[None]:
    """A call into one method's code: names it to the guard, and takes back what it changes of the process.

    Raises BenchError naming the method if it changed a setting, MaskAccessError if it asked for a mask.
    """
    before = Settings.now()
    with mask_guard.at_work(method):
        yield
        mask_guard.check()
    if changed := before.changed():
        before.restore()
        raise BenchError(f"Method '{method}' changed a setting of the whole process: {changed} ({PROCESS}).")


@contextlib.contextmanager
def model_unchanged(model: nn.Module | None) -> Iterator[None]:
    """A block that leaves weights, buffers and hooks of the model as they were: other methods read the same model.

    Raises BenchError otherwise. Compared by sums over the bits of each tensor.
    """
    if model is None:
        yield
        return
    before, hooks = _sums(model), _hooks(model)
    yield
    if not torch.equal(before, after := _sums(model)):
        moved = (before != after).nonzero()[:, 0].tolist()
        names = list(model.state_dict())
        raise BenchError(f"{len(moved)} parameters or buffers changed, first {names[moved[0]]} ({LEFT_ALONE}).")
    if _hooks(model) != hooks:
        raise BenchError(f"Hooks were left behind on the model ({LEFT_ALONE}).")


def _sums(model: nn.Module) -> torch.Tensor:
    """One whole number a tensor of the model: the sum over its values' bits, which no order of adding changes."""
    tensors = [t.detach() for t in model.state_dict().values()]
    if not tensors:
        return torch.zeros(0, dtype=torch.int64)
    return torch.stack([t.view(_WHOLE[t.element_size()]).sum(dtype=torch.int64) for t in tensors])


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@contextlib.contextmanager
def modes_unchanged(model: nn.Module | None) -> Iterator[None]:
    """A block that leaves every part of a model in the mode it was in, train or eval. Raises BenchError otherwise."""
    before = [m.training for m in model.modules()] if model is not None else []
    yield
    if model is None or before == [m.training for m in model.modules()]:
        return
    moved = [n for (n, m), was in zip(model.named_modules(), before, strict=False) if m.training != was]
    where = f", first {moved[0] or 'the whole of it'}" if moved else ""
    raise BenchError(f"Making maps switched the model between train and eval mode{where} ({LEFT_ALONE}).")


@contextlib.contextmanager
def method_code(label: str, methods: Sequence[MethodRef]) -> Iterator[None]:
    """A block that runs code of methods and leaves the process as it was, whatever they do.

    Printed lines go to the error output, settings of the process are put back. What a plug-in does wrong becomes a
    BenchError that names it and its line.
    """
    before, environ, outer = Settings.now(), dict(os.environ), _Stage.began
    _Stage.began = before
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what `--json` prints is ours alone
            yield
    except SystemExit as problem:
        raise BenchError(f"Method '{label}' called exit({problem.code!r}) ({PROCESS}).") from problem
    except Exception as problem:
        raise _named(problem, label, methods, before) from problem
    finally:
        changed, _Stage.began = before.changed(), outer
        before.restore()
        os.environ.update({k: v for k, v in environ.items() if os.environ.get(k) != v})
    if changed:
        raise BenchError(f"Method '{label}' changed a setting of the whole process: {changed} ({PROCESS}).")


class _Stage:
    """The settings with which the present stage began."""

    began: Settings | None = None


def check_stage() -> None:
    """Raises BenchError if a setting is not what it was when the stage began, where a method alone can have changed it.

    Asked before maps are read, so that a training learns of it before its record is written.
    """
    if _Stage.began is not None and (changed := _Stage.began.changed(_OURS)):
        raise BenchError(f"A method changed a setting of the whole process: {changed} ({PROCESS}).")


def _handlers() -> tuple[Any, ...]:
    """Handlers of the signals a run depends on; only the main thread can set them."""
    if threading.current_thread() is not threading.main_thread():
        return ()
    return tuple(map(_signal.getsignal, SIGNALS))


def _named(problem: Exception, label: str, methods: Sequence[MethodRef], before: Settings) -> Exception:
    """The error as it is, or naming the method where a plug-in's own code raised it or changed what it rests on.

    Memory and disks that are full are not a method's fault, and errors of ours say all there is.
    """
    short = isinstance(problem, BenchError | MemoryError | OSError | torch.OutOfMemoryError)
    if short or "memory" in str(problem):
        return problem
    what = f"{type(problem).__name__}: {problem}"
    for method in methods:
        if (path := _file_of(method)) and (frame := _frame_in(problem, path)):
            return BenchError(
                f"Method '{method.label}' raised {what} in {frame.name}(), line {frame.lineno} of {path}. "
                f"`bench check {path}` tests it against the contract."
            )
    if changed := before.changed():
        return BenchError(
            f"Method '{label}' changed a setting of the whole process: {changed} ({PROCESS}); then {what}"
        )
    return problem


def _file_of(method: MethodRef) -> str:
    """The file of a method that is not the suite's own."""
    if method.spec.origin == "built-in":
        return ""
    if method.spec.origin == "file":
        return method.spec.module
    return getattr(sys.modules.get(method.spec.module), "__file__", None) or ""


def _frame_in(problem: Exception, path: str) -> traceback.FrameSummary | None:
    """The innermost frame of a file that an error passed through."""
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if f.filename == path]
    return frames[-1] if frames else None
