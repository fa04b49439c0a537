"""The device a stage runs on: choosing it, its memory, and why torch can use no GPU where it cannot."""

import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import BenchError

SMI_SECONDS = 20.0


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where torch can use one, else the CPU. Raises BenchError for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BenchError(f"--device {name} is not a device; choose auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise BenchError(f"--device {name} is not supported; choose auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BenchError(
            f"--device {name}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs. "
            "Use --device cpu, or install the torch build that matches your driver."
        )
    return device


def compute(device: torch.device) -> dict[str, Any]:
    """The device a stage ran on, and its thread count or GPU name."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return {"device": "cpu", "threads": torch.get_num_threads()}


def forget_peak(device: torch.device) -> None:
    """Starts a GPU's peak anew; that of a process cannot be."""
    if device.type == "cuda":
        torch.cuda.init()  # a process whose first call this is has no GPU numbers yet
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory use so far in MiB: of the GPU where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


@dataclass(frozen=True)
class GpuFacts:
    """Facts of torch and the driver. cuda_build: CUDA version torch was built for, empty for a CPU build.

    smi: whether nvidia-smi is there; driver, driver_cuda: their versions, empty without a driver; listed: lines of
    `nvidia-smi -L`. capabilities: (major, minor) of each GPU torch sees; archs: those torch was built for, as sm_90.
    """

    torch: str
    cuda_build: str
    usable: bool
    visible: str | None = None
    driver: str = ""
    driver_cuda: str = ""
    listed: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()
    said: str = ""

    @property
    def mig(self) -> bool:
        """Whether a GPU is cut into MIG instances."""
        return any(line.strip().startswith("MIG") for line in self.listed)


def why_no_gpu() -> str:
    """Why torch can use no GPU here, as a sentence with its remedy; empty if it can use one."""
    return why_unusable(gpu_facts())


def gpu_facts() -> GpuFacts:
    """The facts of this machine; nvidia-smi is asked only if torch sees no GPU."""
    usable, build = torch.cuda.is_available(), torch.version.cuda or getattr(torch.version, "hip", None) or ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if usable:
        seen = tuple(torch.cuda.get_device_capability(k) for k in range(torch.cuda.device_count()))
        driver, cuda, listed = _smi()
        archs = tuple(torch.cuda.get_arch_list())
        return GpuFacts(torch.__version__, build, True, visible, driver, cuda, listed, archs, seen)
    complaint = ""
    if build:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as problem:
            complaint = str(problem).partition("\n")[0]
    return GpuFacts(torch.__version__, build, False, visible, *_smi(), said=complaint)


def _smi() -> tuple[str, str, tuple[str, ...]]:
    """Driver version, the CUDA version it supports, and its list of GPUs; all empty without a driver."""
    head = _run("nvidia-smi")
    driver, cuda = (re.search(rf"{what} Version:\s*([\d.]+)", head) for what in ("Driver", "CUDA"))
    kernel = Path("/proc/driver/nvidia/version")
    version = driver.group(1) if driver else ""
    if not version and kernel.is_file():
        match = re.search(r"Kernel Module\D*([\d.]+)", kernel.read_text(encoding="utf-8", errors="replace"))
        version = match.group(1) if match else "of unknown version"
    listed = tuple(line for line in _run("nvidia-smi", "-L").splitlines() if line.strip().startswith(("GPU", "MIG")))
    return version, cuda.group(1) if cuda else "", listed


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def why_unusable(facts: GpuFacts) -> str:
    """The reason in words, from the first cause to the last; empty for a GPU that torch can use."""
    if facts.usable:
        return _too_old_a_gpu(facts)
    if not facts.cuda_build:
        if facts.driver:
            return (
                f"torch {facts.torch} is a build for CPUs, though an NVIDIA driver ({facts.driver}) is here: install "
                "the build for your CUDA version (pytorch.org shows the command)."
            )
        return f"there is no NVIDIA driver, and torch {facts.torch} is a build for CPUs."
    if not facts.driver:
        return (
            f"torch {facts.torch} is built for CUDA {facts.cuda_build}, but there is no NVIDIA driver. In a container, "
            "start it with the GPU passed through; in a cluster, ask for a GPU in the job."
        )
    if _major(facts.driver_cuda) and _major(facts.driver_cuda) < _major(facts.cuda_build):
        return (
            f"the driver {facts.driver} supports CUDA {facts.driver_cuda}, but torch {facts.torch} is built for CUDA "
            f"{facts.cuda_build}: update the driver, or install a torch built for CUDA {facts.driver_cuda} or older."
        )
    if facts.visible is not None and facts.visible.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={facts.visible!r} hides every GPU: unset it, or name one."
    if not facts.listed:
        return f"the driver {facts.driver} is here, but lists no GPU (`nvidia-smi -L`): ask for one in the job."
    why = f" ({facts.said})" if facts.said else ""
    hidden = f" CUDA_VISIBLE_DEVICES={facts.visible} may name none of them." if facts.visible else ""
    return (
        f"torch {facts.torch} (CUDA {facts.cuda_build}) cannot open the GPU that the driver {facts.driver} lists, "
        f"{facts.listed[0].strip()}{why}.{hidden}"
    )


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdecimal() else 0


def _too_old_a_gpu(facts: GpuFacts) -> str:
    """Empty if torch has code for one of the GPUs: of its own architecture, an older one of its family, or PTX."""
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", a) for a in facts.archs]
    known = [(m.group(1), (int(m.group(2)), int(m.group(3)))) for m in built if m]
    if not known or not facts.capabilities:
        return ""
    for mine in facts.capabilities:
        same = any(kind == "sm" and arch[0] == mine[0] and arch <= mine for kind, arch in known)
        if same or any(kind == "compute" and arch <= mine for kind, arch in known):
            return ""
    mine = ".".join(map(str, facts.capabilities[0]))
    return (
        f"the GPU has compute capability {mine}, and torch {facts.torch} holds no code for it "
        f"({', '.join(facts.archs)}): install a torch release that still supports it."
    )
