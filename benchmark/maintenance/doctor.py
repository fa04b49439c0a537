"""Diagnosis of this machine, installation, data and results folder, one finding a line (`bench doctor`)."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..core.errors import BenchError
from .findings import Finding, gib

EXTRAS = {
    "distributed": ("dask", "--backend dask: many machines, SLURM, Kubernetes"),
    "ray": ("ray", "--backend ray: many machines"),
    "lightning-fabric": ("ddp", "--devices N: one training on several GPUs"),
    "openslide-python": ("wsi", "bench data patches: whole-slide images"),
}
PACKAGE = "wsolbench"


def examine(data_root: Path, results: Path, device: str) -> Iterator[Finding]:
    """All findings, section by section; what cannot be found out is a finding too. Nothing is left behind."""
    from .doctor_gpu import look_at_gpus, time_a_batch
    from .doctor_places import look_at_data, look_at_disks, look_at_locks, look_at_stages

    sections: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("versions", look_at_versions),
        ("extras", look_at_extras),
        ("gpu", lambda: look_at_gpus(device)),
        ("machine", look_at_machine),
        ("weights", look_at_weights),
        ("data", lambda: look_at_data(data_root, results)),
        ("disk", lambda: look_at_disks(results, data_root)),
        ("locks", lambda: look_at_locks(results)),
        ("stages", lambda: look_at_stages(results)),
        ("batch", lambda: time_a_batch(device)),
    )
    for section, look in sections:
        try:
            yield from look()
        except (BenchError, OSError, ImportError, RuntimeError, ValueError) as problem:
            # a machine in any state is what this is for: one question without an answer must not hide the others
            text = f"could not be looked at: {type(problem).__name__}: {problem}"
            yield Finding(section, "problem", text, "Mend what the message says.")


def look_at_versions() -> Iterator[Finding]:
    """Python, this package, and every package it needs against the oldest release that will do."""
    from packaging.requirements import Requirement

    from ... import __version__

    yield Finding(
        "versions", "ok", f"python {platform.python_version()}, wsolbench {__version__}, {platform.platform()}"
    )
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        text = "wsolbench runs from a folder and is not installed, so what it needs is not known"
        yield Finding("versions", "warning", text, "pip install -e . in that folder.")
        return
    needed = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": ""})]
    fine = []
    for requirement in needed:
        installed = version(requirement.name)
        if installed and requirement.specifier.contains(installed, prereleases=True):
            fine.append(f"{requirement.name} {installed}")
            continue
        text = f"{requirement.name} {installed or 'is not installed'}, needed: {requirement}"
        yield Finding("versions", "problem", text, f"pip install '{requirement}'")
    yield Finding("versions", "ok", ", ".join(fine), facts=dict(f.split(" ") for f in fine))
    yield from _torchvision()


def _torchvision() -> Iterator[Finding]:
    """torchvision is built against one release of torch."""
    from packaging.requirements import Requirement

    torch = version("torch")
    for requirement in map(Requirement, importlib.metadata.requires("torchvision") or []):
        if requirement.name == "torch" and torch and not requirement.specifier.contains(torch, prereleases=True):
            mine = version("torchvision")
            text = f"torchvision {mine} belongs to another torch: it wants {requirement}, here is {torch}"
            yield Finding("versions", "problem", text, "Install both again in one pip command.")


def version(package: str) -> str:
    """The installed version, empty without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def look_at_extras() -> Iterator[Finding]:
    """Packages that only some uses need."""
    for package, (extra, use) in EXTRAS.items():
        if installed := version(package):
            yield Finding("extras", "ok", f"{package} {installed} ({use})")
        else:
            advice = f"If you want that: pip install '{PACKAGE}[{extra}]'"
            yield Finding("extras", "note", f"{package} is not installed ({use})", advice)


def look_at_weights() -> Iterator[Finding]:
    """Pretrained backbones in the hub's cache; no network is asked."""
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    folder = Path(HF_HUB_CACHE)
    files = sorted(folder.glob("models--timm--*/snapshots/*/model.safetensors"))
    names = sorted({p.parents[2].name.removeprefix("models--timm--") for p in files if p.exists()})
    offline = ", HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else ""
    facts = {"folder": str(folder), "backbones": names}
    if names:
        yield Finding("weights", "ok", f"{folder}: {', '.join(names)}{offline}", facts=facts)
        return
    advice = "The first run with --weights imagenet fetches them; without network copy the cache, or give a file."
    yield Finding("weights", "note", f"no pretrained backbone in {folder}{offline}", advice, facts)


def look_at_machine() -> Iterator[Finding]:
    """Processors and memory, as far as a container or a job may use them."""
    import torch

    cores, share = len(_allowed()), _quota()
    limited = f", of which a limit leaves {share:.1f}" if share and share < cores else ""
    omp = os.environ.get("OMP_NUM_THREADS")
    threads = f"torch uses {torch.get_num_threads()} threads" + (f" (OMP_NUM_THREADS={omp})" if omp else "")
    yield Finding(
        "machine", "ok", f"{cores} processors{limited}; {threads}", facts={"processors": cores, "share": share}
    )
    if share and torch.get_num_threads() > share + 1:
        advice = f"Set OMP_NUM_THREADS={max(1, int(share))}: too many threads slow each other down."
        yield Finding("machine", "warning", f"{threads}, but may use {share:.1f} processors", advice)
    total, free = _memory()
    if total:
        low = free < 2 * 2**30
        advice = "Runs need a GiB or two each: end other work, or ask for more in the job." if low else ""
        text = f"{gib(free)} of {gib(total)} memory free"
        yield Finding("machine", "warning" if low else "ok", text, advice, {"memory": total, "free": free})
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        small = size < 2**29
        advice = "Ray and joblib pass arrays through it: start the container with --shm-size=2g." if small else ""
        yield Finding("machine", "note" if small else "ok", f"/dev/shm has {gib(size)}", advice, {"shm": size})


def _allowed() -> range | set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _quota() -> float:
    """Processors that the control group allows, 0 without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return 0.0


def _memory() -> tuple[int, int]:
    """Bytes of memory that may be used, and how many of them are free; zeros where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0, 0
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if len(line.split()) > 1}
    total, free = values.get("MemTotal", 0), values.get("MemAvailable", 0)
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return total, free
    return min(total, limit), min(free, max(0, limit - used))
