"""The Triton kernels: their counts in Triton's interpreter against the processor's; on a GPU where there is one."""

import importlib.util
import os
import subprocess
import sys
import types

import pytest
import torch

from wsolbench.benchmark.scoring import histograms
from wsolbench.benchmark.scoring.histograms import GpuCounter, count_on_cpu, count_with_torch, resize_by_steps
from wsolbench.benchmark.scoring.map_scaling import resize_maps

# runs in a process of its own: the interpreter is chosen when the kernels are defined
INTERPRETED = """
import torch
from wsolbench.benchmark.scoring import histograms_gpu as kernels
from wsolbench.benchmark.scoring.histograms import count_on_cpu, count_with_torch, resize_by_steps
from wsolbench.benchmark.core.metrics import THRESHOLDS

torch.set_num_threads(1)
source = torch.Generator().manual_seed(0)
edges = torch.from_numpy(THRESHOLDS).float()
around = torch.cat([edges, edges.nextafter(torch.tensor(-1.0)), edges.nextafter(torch.tensor(2.0))]).clamp(0, 1)
masks = torch.rand(3, 97, 101, generator=source) < 0.3
masks[0], masks[1] = True, False
maps = torch.rand(3, 97, 101, generator=source)
maps.view(-1)[: around.numel()] = around
for parts in (1, 2):  # each program one tile, and programs that share an image
    kernels._parts = lambda maps, tiles: min(tiles, parts)
    for some, inside in ((maps, masks), (maps[:1, :, ::3], masks[:1, :, ::3]), (maps[:, :1, :1], masks[:, :1, :1])):
        assert torch.equal(kernels.count(some, inside), count_on_cpu(some, inside))
    for native, size in (((3, 7, 5), (97, 65)), ((3, 1, 9), (33, 64)), ((3, 28, 28), (13, 11))):
        small = torch.rand(native, generator=source)
        small[1] = 0.123  # constant: it must not spread over two bins
        inside = torch.rand(3, *size, generator=source) < 0.5
        expected = count_with_torch(resize_by_steps(small, size), inside)
        assert torch.equal(kernels.count_resized(small, inside), expected), (native, size)
assert kernels.count(maps[:0], masks[:0]).shape == (0, 2, 1001)
print("same counts")
"""


@pytest.mark.slow
def test_the_kernels_count_as_the_processor_does():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed; it comes with torch's CUDA builds on Linux")
    surroundings = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "same counts"


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    return torch.rand(2, 6, 5, generator=source), torch.rand(2, 40, 50, generator=source) < 0.5


def kernels(monkeypatch, **functions) -> None:
    module = types.SimpleNamespace(WIDEST=4096, **functions)
    monkeypatch.setitem(sys.modules, "wsolbench.benchmark.scoring.histograms_gpu", module)
    monkeypatch.setattr(sys.modules["wsolbench.benchmark"], "counting_gpu", module, raising=False)


def test_a_kernel_that_counts_right_is_checked_once_and_trusted(monkeypatch, caplog):
    maps, masks = batch()
    right = count_with_torch(resize_by_steps(maps, (40, 50)), masks)
    checks = []
    monkeypatch.setattr(histograms, "count_with_torch", lambda *a: checks.append(1) or count_with_torch(*a))
    kernels(monkeypatch, count_resized=lambda maps, masks: right.clone())
    counter = GpuCounter()
    for _ in range(3):
        assert torch.equal(counter.count_resized(maps, masks), right)
    assert len(checks) == 1
    assert not caplog.records


@pytest.mark.parametrize("fault, reason", [("wrong", "its counts differ"), ("raise", "RuntimeError: no compiler")])
def test_a_kernel_that_fails_is_reported_once_and_replaced(monkeypatch, caplog, fault, reason):
    calls = []

    def kernel(maps, masks):
        calls.append(1)
        if fault == "raise":
            raise RuntimeError("no compiler")
        return count_with_torch(maps, masks) + 1

    kernels(monkeypatch, count=kernel)
    maps, masks = resize_maps(batch()[0], (40, 50)), batch()[1]
    counter = GpuCounter()
    for _ in range(3):
        assert torch.equal(counter.count(maps, masks), count_on_cpu(maps, masks))
    assert len(calls) == 1
    assert [reason in r.getMessage() for r in caplog.records] == [True]


@pytest.mark.gpu
def test_the_kernels_prove_themselves_on_the_gpu(caplog):
    source = torch.Generator().manual_seed(2)
    native = torch.rand(64, 28, 28, generator=source).cuda()
    masks = (torch.rand(64, 512, 512, generator=source) < 0.3).cuda()
    counter = GpuCounter()
    full = resize_maps(native, 512)
    for _ in range(2):  # checked against torch, then on its own
        assert torch.equal(counter.count(full, masks).cpu(), count_on_cpu(full.cpu(), masks.cpu()))
        by_steps = resize_by_steps(native.cpu(), (512, 512))  # each operation is rounded alike on both devices
        assert torch.equal(counter.count_resized(native, masks).cpu(), count_on_cpu(by_steps, masks.cpu()))
    assert not caplog.records
