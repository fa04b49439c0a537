"""Why torch can use no GPU, from what torch and the driver say; devices that are refused."""

import os

import pytest

from wsolbench.benchmark.core import device
from wsolbench.benchmark.core.device import GpuFacts, choose_device, why_unusable
from wsolbench.benchmark.core.errors import BenchError

CUDA = {"torch": "2.6.0+cu124", "cuda_build": "12.4", "usable": False}
LISTED = ("GPU 0: NVIDIA H200 (UUID: GPU-1)",)
NO_GPU = {
    "neither": (GpuFacts("2.6.0+cpu", "", False), "no NVIDIA driver, and torch 2.6.0+cpu is a build for CPUs"),
    "cpu build": (GpuFacts("2.6.0+cpu", "", False, driver="550.54", listed=LISTED), "though an NVIDIA driver"),
    "no driver": (GpuFacts(**CUDA), "built for CUDA 12.4, but there is no NVIDIA driver"),
    "old driver": (GpuFacts(**CUDA, driver="470", driver_cuda="11.4", listed=LISTED), "supports CUDA 11.4, but torch"),
    "hidden": (GpuFacts(**CUDA, driver="550", driver_cuda="12.4", listed=LISTED, visible=""), "DEVICES='' hides"),
    "none listed": (GpuFacts(**CUDA, driver="550", driver_cuda="12.4"), "lists no GPU"),
    "broken": (GpuFacts(**CUDA, driver="550", driver_cuda="12.8", listed=LISTED, said="unknown"), "(unknown)"),
    "too old a GPU": (
        GpuFacts("2.6", "12.4", True, archs=("sm_70", "sm_90"), capabilities=((6, 1),)), "capability 6.1, and torch",
    ),
}  # fmt: skip
FINE = {
    "same": GpuFacts("2.6", "12.4", True, archs=("sm_80", "sm_90"), capabilities=((9, 0),)),
    "older of the family": GpuFacts("2.6", "12.4", True, archs=("sm_80",), capabilities=((8, 6),)),
    "PTX": GpuFacts("2.6", "12.4", True, archs=("sm_80", "compute_80"), capabilities=((12, 0),)),
    "one of two": GpuFacts("2.6", "12.4", True, archs=("sm_90a",), capabilities=((6, 1), (9, 0))),
}


@pytest.mark.parametrize("name", NO_GPU)
def test_the_reason_for_no_gpu_is_told(name):
    facts, expected = NO_GPU[name]
    assert expected in why_unusable(facts)


@pytest.mark.parametrize("name", FINE)
def test_a_gpu_that_torch_has_code_for_is_fine(name):
    assert why_unusable(FINE[name]) == ""


def test_nvidia_smi_is_read(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\n[ \"$1\" = -L ] && echo 'GPU 0: NVIDIA A100 (UUID: GPU-1)' && echo '  MIG 1g.5gb Device 0: (MIG-1)'"
        " || echo '| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: 12.4 |'\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    driver, cuda, listed = device._smi()
    assert (driver, cuda, len(listed)) == ("550.54.15", "12.4", 2)
    assert GpuFacts("2.6", "12.4", True, listed=listed).mig
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert device._smi()[2] == ()


def test_why_no_gpu_agrees_with_torch():
    import torch

    assert torch.cuda.is_available() or device.why_no_gpu()


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(BenchError, match=f"--device {name}"):
        choose_device(name)
