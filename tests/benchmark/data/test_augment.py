"""Augmentation against torchvision, one image at a time, and the alignment of images, masks and maps."""

import pytest
import torch
import torchvision.transforms.v2
import torchvision.transforms.v2.functional as tv

from wsolbench.benchmark.data import augment as ours
from wsolbench.benchmark.planning.config import TrainConfig
from wsolbench.methods.backbones.normalisation import HALF, IMAGENET

CONFIG = TrainConfig(image_size=24, load_size=32)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 20, 26, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("operation", "reference", "low", "high"),
    [
        (ours._brightness, tv.adjust_brightness, 0.5, 1.5),
        (ours._contrast, tv.adjust_contrast, 0.5, 1.5),
        (ours._saturation, tv.adjust_saturation, 0.5, 1.5),
        (ours._hue, tv.adjust_hue, -0.4, 0.4),
    ],
)
def test_colour_operations_equal_torchvision(images, operation, reference, low, high):
    factors = torch.linspace(low, high, len(images))
    expected = torch.stack([reference(i, float(f)) for i, f in zip(images, factors, strict=True)])
    torch.testing.assert_close(operation(images.clone(), factors.view(-1, 1, 1, 1)), expected, atol=2e-3, rtol=0)


def test_grey_images_survive_a_hue_turn():
    grey = torch.full((2, 3, 4, 4), 0.3)
    torch.testing.assert_close(ours._hue(grey.clone(), torch.full((2, 1, 1, 1), 0.2)), grey)


def test_crop_equals_slicing_and_flipping():
    pixels = torch.arange(4 * 32 * 32 * 3, dtype=torch.int32).view(4, 32, 32, 3)
    drawn = ours.draw(4, CONFIG, torch.Generator().manual_seed(3))
    for k, found in enumerate(ours.crop(pixels, drawn, 24)):
        top, left = int(drawn.top[k]), int(drawn.left[k])
        expected = pixels[k, top : top + 24, left : left + 24]
        dims = [d for d, flip in ((0, drawn.flip_y[k]), (1, drawn.flip_x[k])) if flip]
        assert torch.equal(found, expected.flip(dims))


def test_maps_stay_on_their_pixels():
    """A map as large as the image is cropped exactly like the image."""
    maps = torch.rand(5, 32, 32)
    drawn = ours.draw(5, CONFIG, torch.Generator().manual_seed(4))
    torch.testing.assert_close(ours.crop_maps(maps, drawn, CONFIG), ours.crop(maps, drawn, 24), atol=1e-5, rtol=0)


def test_small_maps_agree_with_upsampling_then_cropping():
    maps = torch.rand(5, 4, 4)
    drawn = ours.draw(5, CONFIG, torch.Generator().manual_seed(5))
    whole = torch.nn.functional.interpolate(maps[:, None], size=(32, 32), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(ours.crop_maps(maps, drawn, CONFIG), ours.crop(whole, drawn, 24), atol=1e-5, rtol=0)


def test_draws_depend_on_the_generator_alone_and_cover_their_range():
    def drawn(seed):
        return ours.draw(4000, CONFIG, torch.Generator().manual_seed(seed))

    one, same, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(a, b) for a, b in zip(one[:5], same[:5], strict=True))
    assert not torch.equal(one.colour, other.colour)
    assert set(one.top.tolist()) == set(range(9))
    assert 0.45 < one.flip_x.float().mean() < 0.55
    for column, (low, high) in enumerate(((0.5, 1.5), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05))):
        values = one.colour[:, column]
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high


def test_without_jitter_and_flips_an_image_is_only_cropped_and_normalised():
    config = TrainConfig(image_size=32, load_size=32, flip=False, jitter=(0.0, 0.0, 0.0, 0.0))
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    drawn = ours.draw(2, config, torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.augment(pixels, drawn, config, HALF), pixels.permute(0, 3, 1, 2) / 127.5 - 1)


def test_the_moments_are_those_of_the_published_pipeline():
    """Random crop, both flips and colour jitter of torchvision, image by image, against ours in one batch."""
    config, times = TrainConfig(image_size=6, load_size=8, jitter=(0.5, 0.5, 0.5, 0.05)), 1200
    image = torch.randint(20, 236, (8, 8, 3), generator=torch.Generator().manual_seed(6), dtype=torch.uint8)
    pipeline = torchvision.transforms.v2.Compose(
        [
            torchvision.transforms.v2.RandomCrop(6),
            torchvision.transforms.v2.RandomHorizontalFlip(),
            torchvision.transforms.v2.RandomVerticalFlip(),
            torchvision.transforms.v2.ColorJitter(0.5, 0.5, 0.5, 0.05),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        whole = image.permute(2, 0, 1).float() / 255
        theirs = torch.stack([pipeline(whole) for _ in range(times)])
    source = torch.Generator().manual_seed(8)
    parts = [ours.draw(40, config, source) for _ in range(times // 40)]  # one order of operations a batch
    found = torch.cat([ours.augment(image.expand(40, -1, -1, -1), drawn, config, IMAGENET) for drawn in parts])
    found = IMAGENET.restore(found)
    noise = theirs.std(0) / times**0.5
    assert ((found.mean(0) - theirs.mean(0)).abs() < 6 * noise).all()
    torch.testing.assert_close(found.std(0), theirs.std(0), rtol=0.12, atol=0)
    # beside single pixels also what an image as a whole does: its brightness, and its spread of colours
    for statistic in (lambda t: t.mean((1, 2, 3)), lambda t: t.std((1, 2, 3))):
        a, b = statistic(found), statistic(theirs)
        assert abs(float(a.mean() - b.mean())) < 6 * float(b.std()) / times**0.5
        assert float(a.std() / b.std()) == pytest.approx(1, abs=0.12)
