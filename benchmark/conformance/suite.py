"""`bench check`: the contract of a method, tested on a small synthetic task through the real harness.

The lines of the contract are numbered as in the documentation (docs/methods.md). Each check either passes, is skipped
because the method makes no such promise, or says which line broke and how.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...methods import METHODS
from ..core import mask_guard
from ..core.errors import BenchError
from ..core.results_store import Store
from ..planning.method_refs import is_file
from ..scoring.method_sandbox import Settings
from ..stages.context import load_model
from .training_lines import check_bf16, check_frozen, check_hooks, check_loss, check_resume
from .trial import Bench, BrokenError, SkippedError, do, exercise, make_planner, own_maps, prepare

LINE_SECONDS = 45.0  # of a processor; a line takes a few, what takes longer hangs
ROOM = 12.0  # times the processor seconds that preparing took: a slow or busy machine gives the same verdict
SOME = 8  # images that maps are made of: some explainers take hundreds of passes an image
LEAST_PAUSE = 1.0  # seconds of a clock between two rings
PATIENCE = 300.0  # seconds of a clock, for what waits without working


class _HangsError(BaseException):
    """A line that did not end. No Exception: a method must not swallow it."""


@dataclass(frozen=True)
class CheckedLine:
    """One line of the contract. state: ok, broken or skipped."""

    line: int
    promise: str
    state: str
    detail: str
    seconds: float


def run_checks(name: str, folder: Path, backbone: str) -> Iterator[CheckedLine]:
    """Tests a method, by name or by the path of its file, in a temporary folder; yields a result a line.

    Raises BenchError where the method cannot even be planned: unknown name, syntax error, facts out of range.
    """
    names = METHODS.load_file(Path(name)) if is_file(name) else [name]
    for index, one in enumerate(names):
        for result in _check_one(one, folder / str(index), backbone):
            yield result if len(names) == 1 else replace(result, promise=f"{one}: {result.promise}")


def _check_one(name: str, folder: Path, backbone: str) -> Iterator[CheckedLine]:
    worked = time.process_time()
    try:
        bench = prepare(name, folder, backbone)
    except BrokenError as problem:
        raise BenchError(f"What '{name}' builds on could not be trained on {backbone}: {problem}") from None
    limit = max(LINE_SECONDS, ROOM * (time.process_time() - worked))
    hangs = False
    for line, (promise, check) in enumerate(CHECKS, start=1):
        began, before = time.monotonic(), Settings.now()
        state, detail = "ok", ""
        try:
            if hangs:
                raise SkippedError("a line before did not end")
            with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(sys.stderr), _limited(limit):
                detail = check(bench) or ""
        except _HangsError:
            state, detail, hangs = "broken", f"it did not end within {time.monotonic() - began:.0f} s", True
        except SystemExit as reason:
            state, detail = "broken", f"it called exit({reason.code!r})"
        except SkippedError as reason:
            state, detail = "skipped", str(reason)
        except (BrokenError, BenchError) as reason:
            state, detail = "broken", str(reason)
        except Exception as problem:  # noqa: BLE001 - a stranger's method may raise anything; that is the finding
            state, detail = "broken", f"it raised {type(problem).__name__}: {problem}"
        finally:
            before.restore()
        yield CheckedLine(line, promise, state, detail, time.monotonic() - began)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises _HangsError in the main thread after so many processor seconds, or after PATIENCE by the clock."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    began, worked = time.monotonic(), time.process_time()

    def ring(number: int, frame: object) -> None:
        # armed again before it raises: where the error is swallowed, as in a destructor, the next one gets through
        signal.setitimer(signal.ITIMER_REAL, max(LINE_SECONDS / 4, LEAST_PAUSE))
        if time.process_time() - worked > seconds or time.monotonic() - began > PATIENCE:
            raise _HangsError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LINE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- the lines of the contract ---------------------------------------------------------------------------------------
def check_pure(bench: Bench) -> str | None:
    """predict twice: equal, and nothing of the model changed."""
    images = bench.batch().images[:SOME]
    model, read = bench.reading()
    with _unchanged(model):
        first, second = read(images, None), read(images, None)
    if not torch.equal(first, second):
        raise BrokenError(f"two calls on the same images differ by up to {float((first - second).abs().max()):.3g}")
    return None


@contextmanager
def _unchanged(model: torch.nn.Module | None) -> Iterator[None]:
    before = {k: v.clone() for k, v in model.state_dict().items()} if model else {}
    modes = [m.training for m in model.modules()] if model else []
    yield
    if model is None:
        return
    if changed := [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]:
        raise BrokenError(f"making maps changed {len(changed)} parameters or buffers, first {changed[0]}")
    if modes != [m.training for m in model.modules()]:
        raise BrokenError("making maps switched modules between train and eval mode")
    if touched := [n for n, p in model.named_parameters() if p.grad is not None]:
        raise BrokenError(f"making maps left gradients in parameters, first {touched[0]}")
    if hooked := [type(m).__name__ for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]:
        raise BrokenError(f"making maps left hooks behind, first on {hooked[0]}")


def check_shape(bench: Bench) -> str | None:
    """maps are (B, h, w), float, finite, in [0, 1] for kind prob, for batches of any size."""
    images = bench.batch().images
    _, read = bench.reading()
    for count in (1, 5):
        maps = read(images[:count], None)
        if maps.ndim != 3 or len(maps) != count:
            raise BrokenError(f"{count} images gave maps of shape {tuple(maps.shape)}; ({count}, h, w) is expected")
        if not maps.is_floating_point() or not torch.isfinite(maps).all():
            raise BrokenError(f"maps must be finite floats; these are {maps.dtype}")
        if bench.ref.spec.kind == "prob" and (float(maps.min()) < -1e-6 or float(maps.max()) > 1 + 1e-6):
            raise BrokenError(f"kind is prob, but values span [{float(maps.min()):.3g}, {float(maps.max()):.3g}]")
    alone = torch.cat([read(images[k : k + 1], None) for k in range(4)])
    together = read(images[:4], None)
    scale = float(together.abs().max()) + 1e-12
    if float((alone - together).abs().max()) / scale > 1e-3:
        raise BrokenError("an image's map depends on the other images of its batch")
    return f"{maps.shape[-2]} x {maps.shape[-1]} at {images.shape[-1]} px"


def check_class(bench: Bench) -> str | None:
    """a class-agnostic map ignores the class asked for; a class-specific one answers for it."""
    if bench.ref.spec.kind == "none":
        raise SkippedError("the method makes no maps")
    images = bench.batch().images[:4]
    _, read = bench.reading()
    zero, one = (read(images, torch.full((4,), k)) for k in (0, 1))
    if not bench.ref.spec.class_specific and not torch.equal(zero, one):
        raise BrokenError("it is declared class_specific=False, but the map changes with the class asked for")
    family = bench.ref.spec.name.endswith(":*")  # one declaration for many methods cannot speak for each
    if bench.ref.spec.class_specific and not family and torch.equal(zero, one) and float(zero.std()) > 0:
        raise BrokenError(
            "it is declared class_specific, but both classes give the same map: declare class_specific=False"
        )
    return None


def check_learns(bench: Bench) -> str | None:
    """through the whole harness, on images with one dark blob: the map finds the blob, far above chance."""
    do(bench.plan, bench.planner)
    if bench.ref.spec.kind == "none":
        raise SkippedError("the method makes no maps; it ran through the harness")
    if bench.ref.spec.supervision == "none" and not bench.ref.needs():
        raise SkippedError("a baseline learns nothing; it ran through the harness")
    if bench.draws:
        raise SkippedError("the map is random; it ran through the harness")
    from ...reports.rows.load import load_rows

    stored = load_rows(Store(bench.planner.request.run.results), bench.plan.rows)
    rows = [r for r in stored if r.selection == "last" and not r.ood]
    best = max((r.pxap_positives for r in rows), default=float("nan"))
    chance = rows[0].chance_positives if rows else float("nan")
    floor = chance + 0.4 * (100 - chance)
    if not best >= floor:
        raise BrokenError(
            f"on the images with a blob PxAP is {best:.1f}, chance {chance:.1f}; {floor:.0f} is expected. Is the "
            "map upside down (higher must mean more foreground)? Is it the map of another class?"
        )
    return f"PxAP {best:.1f} on the images with a blob, chance {chance:.1f}"


def check_flip(bench: Bench) -> str | None:
    """a mirrored image gives the mirrored map, up to what strides do to borders."""
    if bench.ref.spec.kind == "none":
        raise SkippedError("the method makes no maps")
    if bench.draws:
        raise SkippedError("the map is random")
    images = bench.batch().images[:SOME]
    if bench.train_stage is not None:
        role = next(iter(Store(bench.planner.request.run.results).record(bench.train_stage.key)["roles"]))
        model, _ = load_model(bench.score_stage, bench.ctx, role)
        if model is None:
            raise BrokenError("the trained model could not be loaded again")
        maps, mirrored = own_maps(model, images, None), own_maps(model, images.flip(-1), None).flip(-1)
    else:
        _, read = bench.reading()
        classes = torch.ones(len(images), dtype=torch.long)
        maps, mirrored = read(images, classes), read(images.flip(-1), classes).flip(-1)
    a, b = (m.flatten() - m.mean() for m in (maps, mirrored))
    if float(a.std()) == 0:
        return "constant map"
    agreement = float((a * b).sum() / (a.norm() * b.norm() + 1e-12))
    if agreement < 0.6:
        raise BrokenError(
            f"mirrored image and mirrored map agree by {agreement:.2f} only (correlation; 0.6 is expected)"
        )
    return f"correlation {agreement:.2f}"


def check_identity(bench: Bench) -> str | None:
    """the stage key changes with the settings of what it is built from, and with nothing else."""
    csv = Path(bench.planner.request.datasets[0])
    name, backbone = bench.planner.request.methods[0], bench.planner.request.backbones[0]
    results = bench.planner.request.run.results
    again = make_planner(name, csv, results, backbone).build()
    if again.rows != bench.plan.rows:
        raise BrokenError("planning the same request twice gives other keys: a fact of the method is not constant")
    other = make_planner(name, csv, results, backbone, lr="0.04").build()
    if bench.score_stage.parents.get("checkpoint") and set(other.rows) & set(bench.plan.rows):
        raise BrokenError("another learning rate of its training gives the same key: a stale result would be shown")
    return None


def check_masks(bench: Bench) -> str | None:
    """no mask is asked for, in the batch or on disk, by loss or by making maps."""
    experiment, results = bench.score_stage.inputs.experiment, bench.planner.request.run.results
    items = [i for place in (experiment, experiment.target) if place for i in bench.ctx.manifest(place).items]
    with mask_guard.watching(bench.ref.label, lambda: [i.mask for i in items if i.mask is not None], results):
        exercise(bench)
    return None


def check_process(bench: Bench) -> str | None:
    """gradient mode, default type, threads, working folder and signal handlers stay as they are."""
    before = Settings.now()
    exercise(bench)
    if changed := before.changed():
        raise BrokenError(f"a setting of the whole process changed: {changed}")
    return None


CHECKS: tuple[tuple[str, Callable[[Bench], str | None]], ...] = (
    ("maps are deterministic and making them changes nothing", check_pure),
    ("losses are finite on any mix of labels and maps", check_loss),
    ("maps are (B, h, w), finite and independent of the batch", check_shape),
    ("what is frozen stays bit for bit", check_frozen),
    ("class-agnostic maps ignore the class, class-specific ones do not", check_class),
    ("through the whole harness, the map finds a blob", check_learns),
    ("a mirrored image gives the mirrored map", check_flip),
    ("training works under bfloat16", check_bf16),
    ("the stage key follows the settings", check_identity),
    ("no mask is asked for", check_masks),
    ("the process stays as it was", check_process),
    ("after a step only values change", check_hooks),
    ("a stopped training goes on bit for bit", check_resume),
)
