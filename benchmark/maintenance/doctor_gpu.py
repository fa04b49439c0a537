"""Why torch can use no GPU here, or what it says of those it can; and how long one batch takes."""

import os
import re
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import BenchError
from .findings import Finding

SMI_SECONDS = 20.0
SIDE, REPEATS = 224, 3
NAMES = {"cpu": 4, "cuda": 32}  # images in the timed batch


@dataclass(frozen=True)
class Facts:
    """What torch and the driver say. cuda_build: CUDA version torch was built for, empty for a CPU build.

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
    return explain(ask())


def ask() -> Facts:
    """The facts of this machine; nvidia-smi is asked only if torch sees no GPU."""
    import torch

    usable, build = torch.cuda.is_available(), torch.version.cuda or getattr(torch.version, "hip", None) or ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if usable:
        seen = tuple(torch.cuda.get_device_capability(k) for k in range(torch.cuda.device_count()))
        driver, cuda, listed = _smi()
        archs = tuple(torch.cuda.get_arch_list())
        return Facts(torch.__version__, build, True, visible, driver, cuda, listed, archs, seen)
    said = ""
    if build:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as problem:
            said = str(problem).partition("\n")[0]
    return Facts(torch.__version__, build, False, visible, *_smi(), said=said)


def _smi() -> tuple[str, str, tuple[str, ...]]:
    """Driver version, the CUDA version it supports, and its list of GPUs; all empty without a driver."""
    head = _run("nvidia-smi")
    driver, cuda = (re.search(rf"{what} Version:\s*([\d.]+)", head) for what in ("Driver", "CUDA"))
    kernel = Path("/proc/driver/nvidia/version")
    version = driver.group(1) if driver else ""
    if not version and kernel.is_file():
        found = re.search(r"Kernel Module\D*([\d.]+)", kernel.read_text(encoding="utf-8", errors="replace"))
        version = found.group(1) if found else "of unknown version"
    listed = tuple(line for line in _run("nvidia-smi", "-L").splitlines() if line.strip().startswith(("GPU", "MIG")))
    return version, cuda.group(1) if cuda else "", listed


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def explain(facts: Facts) -> str:
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


def _too_old_a_gpu(facts: Facts) -> str:
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


def look_at_gpus(device: str) -> Iterator[Finding]:
    """Driver, torch and GPUs, and whether they go together."""
    facts = ask()
    told = {"torch": facts.torch, "cuda_build": facts.cuda_build, "driver": facts.driver, "gpus": list(facts.listed)}
    if reason := explain(facts):
        level = "note" if device == "cpu" else "warning"
        advice = "On a CPU use --device cpu; a full training takes days there."
        yield Finding("gpu", level, f"no GPU can be used: {reason}", advice, told)
        return
    import torch

    driver = f"driver {facts.driver} (CUDA {facts.driver_cuda}), " if facts.driver else ""
    yield Finding("gpu", "ok", f"{driver}torch {facts.torch} built for CUDA {facts.cuda_build}", facts=told)
    for k in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(k)
        free, total = (n / 2**30 for n in torch.cuda.mem_get_info(k))
        busy = free < total / 2
        text = f"cuda:{k} {about.name}, compute {about.major}.{about.minor}, {free:.1f} of {total:.1f} GiB free"
        advice = "Somebody else uses it: see nvidia-smi." if busy else ""
        yield Finding("gpu", "note" if busy else "ok", text, advice, {"index": k, "free_gib": free})
    if facts.mig:
        yield Finding("gpu", "note", "a GPU is cut into MIG instances: torch sees one instance, named by its UUID.")


def time_a_batch(device: str) -> Iterator[Finding]:
    """One training step of a resnet18 on random images, the median of a few."""
    import torch
    import torch.nn.functional as F

    from ...methods.backbones.adapter import create_backbone
    from ..scoring.build import choose_device

    try:
        place = choose_device(device)
        count = NAMES[place.type]
        with torch.random.fork_rng(devices=[]):
            net = create_backbone("resnet18", None).to(place).train()
            images = torch.randn(count, 3, SIDE, SIDE).to(place)
        times = []
        for _ in range(REPEATS + 1):  # the first one warms up
            began = time.monotonic()
            F.mse_loss(net.grid(images).mean((2, 3)), torch.zeros(count, net.dims[-1], device=place)).backward()
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            times.append(time.monotonic() - began)
    except (BenchError, RuntimeError) as problem:
        advice = "Choose another --device, or mend what the message says."
        yield Finding("batch", "problem", f"a batch on {device} failed: {problem}", advice)
        return
    speed = count / statistics.median(times[1:])
    text = f"resnet18, {count} images of {SIDE} px on {place}: {speed:.0f} img/s (training step)"
    slow = place.type == "cpu"
    advice = "Full trainings want a GPU; a CPU does for --preset smoke." if slow else ""
    told = {"device": str(place), "images_per_second": speed}
    yield Finding("batch", "note" if slow else "ok", text, advice, told)
