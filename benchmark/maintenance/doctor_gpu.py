"""Diagnosis of GPUs: whether driver, torch and GPUs go together, and how long one batch takes."""

import statistics
import time
from collections.abc import Iterator

from ..core.device import choose_device, gpu_facts, why_unusable
from ..core.errors import BenchError
from .findings import Finding

SIDE, REPEATS = 224, 3
NAMES = {"cpu": 4, "cuda": 32}  # images in the timed batch


def look_at_gpus(device: str) -> Iterator[Finding]:
    """Driver, torch and GPUs, and whether they go together."""
    facts = gpu_facts()
    details = {"torch": facts.torch, "cuda_build": facts.cuda_build, "driver": facts.driver, "gpus": list(facts.listed)}
    if reason := why_unusable(facts):
        level = "note" if device == "cpu" else "warning"
        advice = "On a CPU use --device cpu; a full training takes days there."
        yield Finding("gpu", level, f"no GPU can be used: {reason}", advice, details)
        return
    import torch

    driver = f"driver {facts.driver} (CUDA {facts.driver_cuda}), " if facts.driver else ""
    yield Finding("gpu", "ok", f"{driver}torch {facts.torch} built for CUDA {facts.cuda_build}", facts=details)
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
    details = {"device": str(place), "images_per_second": speed}
    yield Finding("batch", "note" if slow else "ok", text, advice, details)
