"""Slots of a GPU: how many stages may share it, and which of the GPUs a stage runs on.

A large GPU is idle most of the time when one small training runs on it, so several may share one. A slot is a lock file
that its process holds while it works; a killed process frees it.
"""

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .config import RunConfig

POLL_SECONDS = 0.2


def gpus(device: str) -> list[int]:
    """Indices of the GPUs that `--device` allows: all for auto and cuda, one for cuda:N, none for cpu."""
    import torch

    kind, _, index = device.partition(":")
    if kind not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    return [int(index)] if index else list(range(torch.cuda.device_count()))


def workers(run: RunConfig) -> int:
    """Stages at a time: `--jobs`, or as many as there are slots where `--jobs-per-gpu` says how many a GPU has."""
    return len(gpus(run.device)) * run.jobs_per_gpu if run.jobs_per_gpu and gpus(run.device) else run.jobs or 1


@contextlib.contextmanager
def gpu_slot(run: RunConfig, folder: Path) -> Iterator[str]:
    """Waits for a free slot and yields its device (`cuda:1`) while the slot is held; else the device as asked for.

    Slots matter where stages run beside each other; a single one takes the device it was given. They are counted per
    machine and results folder.
    """
    allowed, at_once = gpus(run.device), workers(run)
    if not allowed or at_once == 1:
        yield run.device
        return
    each = run.jobs_per_gpu or -(-at_once // len(allowed))
    folder.mkdir(parents=True, exist_ok=True)
    with _first_free([(f"cuda:{g}", folder / _name(g, k)) for k in range(each) for g in allowed]) as device:
        yield device


def _name(gpu: int, slot: int) -> str:
    """A file name for a slot of a GPU of this machine, however its GPUs are numbered for this process."""
    visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
    seen = visible[gpu] if gpu < len(visible) else str(gpu)
    return f"gpu-{platform.node()}-{seen}-{slot}.lock".replace(os.sep, "-")


@contextlib.contextmanager
def _first_free(slots: list[tuple[str, Path]]) -> Iterator[str]:
    """The first slot nobody holds, GPU after GPU, so that one fills up only when all have work."""
    while True:
        for device, path in slots:
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield device
            finally:
                lock.release()
            return
        time.sleep(POLL_SECONDS)
