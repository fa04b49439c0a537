"""EigenCAM against singular value decompositions, by hand and of the package grad-cam; signs, ranks, determinism."""

import numpy as np
import pytest
import pytorch_grad_cam as package
import torch

from wsolbench.methods import eigencam as module
from wsolbench.methods.base import Evidence
from wsolbench.methods.eigencam import leading_eigenvector


def seen_of(activations):
    return Evidence(torch.zeros(len(activations), 3, 8, 8), activations=activations)


def activations(dims, height, width, images=2, seed=0):
    """Smooth structure and noise, not negative, as after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(images, dims, (height + 2) // 3, (width + 2) // 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 0.3 * torch.randn(images, dims, height, width, generator=generator)).relu()


def component(image):
    """Scores (n,) of the first principal component of (D, h, w), positively correlated with the mean channel."""
    points = image.double().flatten(1).numpy().T
    points = points - points.mean(0)
    _, _, directions = np.linalg.svd(points, full_matrices=False)
    scores = points @ directions[0]
    return scores * np.sign(scores @ points.mean(1))


@pytest.mark.parametrize(
    ("dims", "height", "width"), [(96, 4, 6), (512, 7, 7), (128, 14, 14), (24, 14, 14), (5, 9, 3), (3, 1, 2)]
)
def test_is_the_first_component_with_the_sign_of_the_mean(make, dims, height, width):
    grid = activations(dims, height, width)
    maps = make.explain("eigencam", seen_of(grid))
    for image, found in zip(grid, maps, strict=True):
        wanted = component(image)
        assert found.shape == (height, width)
        assert np.abs(found.numpy().ravel() - wanted.clip(0)).max() <= 1e-5 * np.ptp(wanted)


def test_agrees_with_the_package_up_to_its_sign(make):
    grid = activations(64, 8, 10, images=3)
    maps = make.explain("eigencam", seen_of(grid)).numpy()
    theirs = package.EigenCAM.get_cam_image(None, None, None, None, grid.numpy(), None, False)
    for ours, other in zip(maps, theirs, strict=True):
        gaps = [np.abs(ours - (sign * other).clip(0)).max() for sign in (1, -1)]
        assert min(gaps) <= 1e-4 * np.ptp(other)
        assert max(gaps) > 0.1 * np.ptp(other)


def spectrum(values, seed=1):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator)).Q
    values = torch.tensor(values, dtype=torch.float64)
    return ((basis * values) @ basis.T).float()[None], basis[:, values.argmax()]


def apart(vector, wanted):
    """Distance of unit vectors, whatever their signs."""
    return min((vector.double() - sign * wanted).norm().item() for sign in (1, -1))


@pytest.mark.parametrize("second", [0.99, 0.9, 0.1, 0.0])
def test_a_flat_a_near_and_an_empty_spectrum_are_settled(second):
    matrix, wanted = spectrum([1.0, second] + [second * 0.999**k for k in range(98)])
    value, vector = leading_eigenvector(matrix)
    assert value.item() == pytest.approx(1, abs=1e-5)
    assert apart(vector[0], wanted) < 1e-4


def test_what_does_not_settle_is_decomposed_whole(monkeypatch):
    monkeypatch.setattr(module, "ROUNDS", 0)
    matrices = [spectrum([1.0, 0.95] + [0.95] * 38, seed) for seed in (1, 2)]
    value, vector = leading_eigenvector(torch.cat([m for m, _ in matrices]))
    for k, (_, wanted) in enumerate(matrices):
        assert apart(vector[k], wanted) < 1e-4
    torch.testing.assert_close(value, torch.ones(2))


def test_constant_activations_give_zeros_beside_a_map_and_bad_ones_are_not_hidden(make):
    grid = activations(16, 5, 5, images=4)
    grid[0] = torch.rand(16, 1, 1) * 1e3
    grid[1] = 0
    grid[2, 3, 1, 1] = float("nan")
    maps = make.explain("eigencam", seen_of(grid))
    assert torch.equal(maps[:2], torch.zeros(2, 5, 5))
    assert maps[2].isnan().all()
    torch.testing.assert_close(maps[3:], make.explain("eigencam", seen_of(grid[3:])))
    assert maps[3].max() > 0


def test_without_correlation_the_largest_value_is_positive(make):
    lobes = torch.tensor([[-3.0, 1.0, 1.0, 1.0], [3.0, -1.0, -1.0, -1.0]])
    grid = torch.stack([lobes, lobes.flip(0)])[:, :, None]  # the mean over channels is 0 everywhere
    maps = make.explain("eigencam", seen_of(grid))
    wanted = torch.tensor([3.0, 0.0, 0.0, 0.0]) * 2**0.5
    torch.testing.assert_close(maps[:, 0], wanted.expand(2, -1))


def test_repeats_itself_and_leaves_the_global_generators_alone(make):
    grid = activations(32, 6, 6)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = make.explain("eigencam", seen_of(grid))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    assert torch.equal(first, make.explain("eigencam", seen_of(grid)))


@pytest.mark.gpu
def test_gives_the_same_on_a_gpu(make):
    grid = activations(512, 14, 14, images=4)
    torch.testing.assert_close(
        make.explain("eigencam", seen_of(grid.cuda())).cpu(), make.explain("eigencam", seen_of(grid)), atol=1e-3, rtol=0
    )
