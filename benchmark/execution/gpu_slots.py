"""GPU slots: how many stages share a GPU, and which GPU a stage runs on.

One small training leaves a large GPU idle most of the time, so several may share it. A slot is a lock file that its
process holds while it works; a killed process frees it. A stage whose memory is known from an earlier one takes a slot
beside others only where that much is free.
"""

import contextlib
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..core import shutdown
from ..core.errors import BenchError
from ..core.results_store import Store
from ..planning.config import RunConfig
from ..planning.stage import Plan, Stage

POLL_SECONDS = 0.2
RESERVE = 1.15  # of the memory an earlier stage took: fragments, and what torch keeps


def allowed_gpus(device: str) -> list[int]:
    """Indices of the GPUs that `--device` allows: all for auto and cuda, one for cuda:N, none for cpu."""
    import torch

    kind, _, index = device.partition(":")
    if kind not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    return [int(index)] if index else list(range(torch.cuda.device_count()))


def worker_count(run: RunConfig) -> int:
    """Stages at a time here: `--jobs`, or as many as there are slots where `--jobs-per-gpu` says how many a GPU has.

    Raises BenchError where several GPUs shall train one model and several stages share GPUs: which ones are free for a
    training could not be told.
    """
    allowed = allowed_gpus(run.device)
    at_once = len(allowed) * run.jobs_per_gpu if run.jobs_per_gpu and allowed else run.jobs or 1
    if run.devices > 1 and allowed and at_once > 1 and not run.scheduler:
        raise BenchError(
            f"--devices {run.devices} trains one model on that many GPUs, so one stage runs at a time: leave out "
            "--jobs and --jobs-per-gpu, or give each of several `bench run` its own GPUs with CUDA_VISIBLE_DEVICES."
        )
    return at_once


@contextlib.contextmanager
def gpu_slot(run: RunConfig, folder: Path, at_once: int, need: float = 0.0) -> Iterator[str]:
    """Waits for a free slot and yields its device (`cuda:1`) while the slot is held; else the device as asked for.

    Slots matter where stages run beside each other; a single one takes the device it was given. They are counted per
    machine and results folder. at_once: stages at a time on this machine, 0 if that is not known. need: GPU memory in
    MiB that the stage will take, 0 if unknown.
    """
    allowed = allowed_gpus(run.device)
    if not allowed or at_once == 1 or run.devices > 1:
        yield run.device
        return
    per_gpu = run.jobs_per_gpu or max(1, -(-at_once // len(allowed)))
    folder.mkdir(parents=True, exist_ok=True)
    slots = {g: [folder / _slot_name(g, k) for k in range(per_gpu)] for g in allowed}
    with _first_free(slots, need * RESERVE) as device:
        yield device


def known_needs(plan: Plan, store: Store, run: RunConfig) -> dict[str, float]:
    """GPU memory in MiB by stage key, from finished stages of the same kind, method, backbone and sizes.

    Empty unless stages share GPUs.
    """
    if not run.jobs_per_gpu > 1:
        return {}
    peaks: dict[tuple[Any, ...], float] = {}
    for record in store.records().values():
        on_gpu = record.get("environment", {}).get("cuda")
        if on_gpu and record.get("peak_memory_mb"):
            group = _memory_group(record["kind"], record["labels"], record["config"])
            peaks[group] = max(peaks.get(group, 0.0), record["peak_memory_mb"])
    return {k: peaks[p] for k, s in plan.stages.items() if (p := _memory_group_of(s)) in peaks}


def _memory_group_of(stage: Stage) -> tuple[Any, ...]:
    config = stage.inputs.config
    sizes = {name: getattr(config, name) for name in ("image_size", "batch_size", "micro_batch", "precision", "stride")}
    return _memory_group(stage.kind, stage.labels, sizes)


def _memory_group(kind: str, labels: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Any, ...]:
    """Facts that stages of the same need of memory have in common."""
    sizes = (config.get(name) for name in ("image_size", "batch_size", "micro_batch", "precision", "stride"))
    return (kind, labels["method"], labels["backbone"], *sizes)


def free_memory(gpu: int) -> float:
    """Free memory of a GPU in MiB, whoever has the rest."""
    import torch

    return torch.cuda.mem_get_info(gpu)[0] / 2**20


def _slot_name(gpu: int, slot: int) -> str:
    """A file name for a slot of a GPU of this machine, however its GPUs are numbered for this process."""
    visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
    number = visible[gpu] if gpu < len(visible) else str(gpu)
    return f"gpu-{platform.node()}-{number}-{slot}.lock".replace(os.sep, "-")


@contextlib.contextmanager
def _first_free(slots: Mapping[int, list[Path]], need: float) -> Iterator[str]:
    """The first slot nobody holds, GPU after GPU, so that one fills up only when all have work.

    A GPU that other stages use is passed over if it lacks the memory; one that no stage uses is taken whatever it has,
    as waiting would not help.
    """
    while True:
        for k in range(len(next(iter(slots.values())))):
            for gpu, paths in slots.items():
                with _try_lock(paths[k]) as got:
                    if got and (not need or _unused(paths, k) or free_memory(gpu) >= need):
                        yield f"cuda:{gpu}"
                        return
        shutdown.check()
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Holds a lock if it is free, and says whether."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _unused(paths: list[Path], own: int) -> bool:
    """Whether no other process holds a slot of this GPU."""
    for k, path in enumerate(paths):
        if k != own:
            with _try_lock(path) as free:
                if not free:
                    return False
    return True
