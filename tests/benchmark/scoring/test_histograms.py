"""Counting of score maps on the processor: exact, bounded, and without the weight of OpenCV where nothing is scored."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from wsolbench.benchmark.core.metrics import BINS, THRESHOLDS
from wsolbench.benchmark.scoring import histograms
from wsolbench.benchmark.scoring.histograms import count_on_cpu, count_with_torch, resize_by_steps
from wsolbench.benchmark.scoring.map_scaling import resize_maps, resized_histogram


def numpy_counts(values: np.ndarray) -> np.ndarray:
    edges = np.append(np.arange(0, 1, 0.001), [1.0, 2.0, 3.0])  # the published evaluator's
    return np.histogram(values.astype(np.float64), edges)[0][:BINS]


def neighbours(steps: int) -> np.ndarray:
    """All float32 numbers up to so many steps from each edge, within [0, 1], with denormals and the like."""
    bits = THRESHOLDS.astype(np.float32).view(np.int32)
    around = (bits[:, None] + np.arange(-steps, steps + 1, dtype=np.int32)).ravel()
    around = around[(around >= 0) & (around <= np.float32(1).view(np.int32))].view(np.float32)
    return np.concatenate([around, np.float32([0, -0.0, 1e-45, 1e-40, np.finfo(np.float32).tiny, 1.0])])


@pytest.mark.parametrize("count", [count_on_cpu, count_with_torch])
def test_each_float_beside_an_edge_is_counted_where_numpy_counts_it(count):
    values = neighbours(1)
    each = count(torch.from_numpy(values)[:, None, None], torch.ones(len(values), 1, 1, dtype=torch.bool))
    expected = np.searchsorted(THRESHOLDS, values.astype(np.float64), side="right") - 1
    np.testing.assert_array_equal(each[:, 1].argmax(1).numpy(), expected)
    assert int(each[:, 0].sum()) == 0
    values = neighbours(8)
    together = count(torch.from_numpy(values)[None, None], torch.zeros(1, 1, len(values), dtype=torch.bool))
    np.testing.assert_array_equal(together[0, 0].numpy(), numpy_counts(values))


@pytest.mark.parametrize("shape", [(70, 64, 64), (3, 224, 224), (2, 512, 700), (5, 1, 1), (1, 37, 41), (0, 4, 4)])
@pytest.mark.parametrize("strip, block", [(1 << 15, 1 << 18), (1000, 5000)])
def test_counts_are_those_of_torch_however_the_work_is_cut(monkeypatch, shape, strip, block):
    monkeypatch.setattr(histograms, "_STRIP", strip)
    monkeypatch.setattr(histograms, "_BLOCK", block)
    source = torch.Generator().manual_seed(len(shape) + shape[0])
    maps = torch.rand(shape, generator=source) ** 2
    masks = torch.rand(shape, generator=source) < torch.rand(shape[0], 1, 1, generator=source)
    masks[1:2], masks[2:3] = True, False
    found = count_on_cpu(maps, masks)
    assert found.dtype == torch.int64
    assert torch.equal(found, count_with_torch(maps, masks))


def test_a_map_of_one_value_is_counted_beyond_what_float32_counts_exactly():
    side = 4100  # 16,810,000 pixels, more than 2^24
    maps = torch.full((1, 1, 1), 0.5).expand(1, side, side)
    found = count_on_cpu(maps, torch.ones(1, 1, 1, dtype=torch.bool).expand(1, side, side))
    assert int(found[0, 1, 500]) == int(found.sum()) == side * side


@pytest.mark.parametrize(
    "native, size", [((28, 28), (224, 224)), ((7, 5), (30, 41)), ((20, 31), (9, 31)), ((1, 1), (4, 4))]
)
def test_resizing_by_steps_is_the_resize_within_rounding(native, size):
    maps = torch.rand(3, *native, generator=torch.Generator().manual_seed(0))
    by_steps, usual = resize_by_steps(maps, size), resize_maps(maps, size)
    torch.testing.assert_close(by_steps, usual, rtol=0, atol=3e-6)
    constant = torch.full((1, *native), 0.123)
    assert bool((resize_by_steps(constant, size) == constant[0, 0, 0]).all())


def test_resized_histogram_resizes_and_counts():
    source = torch.Generator().manual_seed(0)
    maps, masks = torch.rand(2, 7, 5, generator=source), torch.rand(2, 40, 30, generator=source) < 0.5
    foreground, background = resized_histogram(maps, masks)
    expected = count_with_torch(resize_maps(maps, (40, 30)), masks)
    assert torch.equal(torch.stack([background, foreground], 1), expected)


def test_opencv_and_triton_are_imported_where_something_is_counted_only():
    for path in Path(histograms.__file__).parent.glob("*.py"):
        if path.name == "histograms_gpu.py":  # imported by a function itself
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not {"cv2", "triton", "histograms_gpu"} & set(names), path
