"""Batched augmentation against a plain loop over samples that draws the same numbers."""

import pytest
import torch

from nas.data import Augmentation, augment, cutout, normalise
from nas.data.augment import customary
from nas.randomness import generator
from nas.space import Task


@pytest.fixture
def images():
    return torch.randint(1, 256, (40, 3, 9, 7), generator=generator(0, "images"), dtype=torch.uint8)


@pytest.mark.parametrize(("crop", "flip"), [(0, True), (2, False), (3, True)])
def test_crop_and_flip_equal_a_loop_over_samples(images, crop, flip):
    size, channels, height, width = images.shape
    draws = generator(1, "augment")
    mirrored = torch.randint(2, (size,), generator=draws).tolist() if flip else [0] * size
    tops = torch.randint(2 * crop + 1, (size,), generator=draws).tolist() if crop else [0] * size
    lefts = torch.randint(2 * crop + 1, (size,), generator=draws).tolist() if crop else [0] * size
    expected = []
    for image, mirror, top, left in zip(images, mirrored, tops, lefts, strict=True):
        padded = torch.zeros(channels, height + 2 * crop, width + 2 * crop, dtype=torch.uint8)
        padded[:, crop : crop + height, crop : crop + width] = image
        window = padded[:, top : top + height, left : left + width]
        expected.append(window.flip(2) if mirror else window)
    result = augment(images, Augmentation(crop=crop, flip=flip), generator(1, "augment"))
    assert torch.equal(result, torch.stack(expected))
    assert not torch.equal(result, images)


@pytest.mark.parametrize("size", [1, 4, 5, 20])
def test_cutout_equals_a_loop_over_samples(images, size):
    images = images.float()
    count, _, height, width = images.shape
    draws = generator(2, "cutout")
    rows = torch.randint(height, (count,), generator=draws).tolist()
    columns = torch.randint(width, (count,), generator=draws).tolist()
    expected = images.clone()
    for image, row, column in zip(expected, rows, columns, strict=True):
        top, left = row - size // 2, column - size // 2
        image[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
    assert torch.equal(cutout(images, size, generator(2, "cutout")), expected)


def test_without_augmentation_images_stay_as_they_are(images):
    assert augment(images, Augmentation(cutout=4), generator(0, "x")) is images
    assert cutout(images, 0, generator(0, "x")) is images


def test_every_offset_and_both_directions_occur():
    images = torch.zeros(2000, 1, 3, 3, dtype=torch.uint8)
    images[:, 0, 1, 1], images[:, 0, 1, 2] = 1, 2
    seen = augment(images, Augmentation(crop=1, flip=True), generator(0, "x")).unique(dim=0)
    assert len(seen) == 18  # 3 x 3 offsets, 2 directions


def test_normalised_images_have_mean_0_and_deviation_1(images):
    values = images.double() / 255
    mean, deviation = values.mean((0, 2, 3)), values.std((0, 2, 3), unbiased=False)
    result = normalise(images, mean, deviation, torch.float64)
    # 2520 values per channel, each rounded once: 1e-12 is thousands of rounding errors.
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.std((0, 2, 3), unbiased=False), torch.ones(3).double(), rtol=0, atol=1e-12)
    assert normalise(images, mean, deviation).dtype == torch.float32


def test_customary_augmentation_at_32_pixels_is_that_of_darts():
    assert customary(Task(3, 32, 32, 10)) == Augmentation(crop=4, flip=True, cutout=16)


def test_grey_images_are_not_mirrored():
    assert customary(Task(1, 28, 28, 10)) == Augmentation(crop=3, flip=False, cutout=7)
    assert customary(Task(1, 8, 8, 10)) == Augmentation(crop=1, flip=False, cutout=2)


@pytest.mark.parametrize("name", ["crop", "cutout"])
def test_a_negative_setting_is_named(name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 0, got -1"):
        Augmentation(**{name: -1})
