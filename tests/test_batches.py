"""A batch is a function of seed, stream and step."""

import pytest
import torch

from nas.data import Augmentation, Batches, Images, Pixels, in_order

AUGMENTATION = Augmentation(crop=1, flip=True, cutout=2)
PLAIN = {"mean": (0.0,), "deviation": (1 / 255,), "device": "cpu"}  # normalised values are the uint8 values


class Slow(Pixels):
    """Images that are not in memory."""

    def __init__(self, tensor):
        self.tensor, self.taken = tensor, []

    def take(self, indices):
        self.taken.append(indices.tolist())
        return self.tensor[indices]

    def only(self, indices):
        return Slow(self.tensor[indices])


@pytest.fixture
def images():
    tensor = torch.arange(23, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    return Images.of(tensor, torch.arange(23))


def batches(images, size=5, seed=0, stream="train", augmentation=AUGMENTATION):
    return Batches(images, size, seed=seed, stream=stream, augmentation=augmentation, **PLAIN)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_random_access_equals_sequential_access(images):
    source = batches(images)
    sequential = [source.batch(step) for step in range(12)]
    for step in (11, 3, 4, 0, 7):
        assert same(batches(images).batch(step), sequential[step])
        assert same(source.batch(step), sequential[step])


def test_seed_stream_and_step_each_change_the_batch(images):
    first = batches(images).batch(0)
    for other in (batches(images, seed=1).batch(0), batches(images, stream="arch").batch(0), batches(images).batch(1)):
        assert not torch.equal(first[1], other[1])


def test_an_epoch_shows_each_sample_at_most_once_and_the_next_is_in_another_order(images):
    source = batches(images)
    assert source.steps_per_epoch == 4
    epochs = [torch.cat([source.batch(4 * epoch + step)[1] for step in range(4)]).tolist() for epoch in range(2)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_labels_belong_to_their_images(images):
    values, labels = batches(images, augmentation=None).batch(3)
    assert values.dtype == torch.float32
    # One rounding of x / 255 and one of its product with 255: less than 1e-4 below 256.
    torch.testing.assert_close(values, labels[:, None, None, None].expand(-1, 1, 4, 4).float(), rtol=0, atol=1e-4)


def test_a_split_smaller_than_a_batch_is_one_batch_of_everything(images):
    source = batches(images, size=64)
    assert source.steps_per_epoch == 1
    assert sorted(source.batch(5)[1].tolist()) == list(range(23))


def test_reading_ahead_changes_nothing(images):
    slow = Images(Slow(images.pixels.tensor), images.indices, images.labels)
    ahead = batches(slow)
    for step in [0, 1, 2, 3, 4, 5, 2, 9]:  # over the end of an epoch, and with jumps
        assert same(ahead.batch(step), batches(images).batch(step))


def test_the_next_batch_is_read_ahead(images):
    slow = Slow(images.pixels.tensor)
    source = batches(Images(slow, images.indices, images.labels))
    for step in range(6):
        source.batch(step)
    source._ahead[6].result()
    assert len(slow.taken) == 7  # each batch once, and the seventh in advance


def test_in_order_yields_every_sample_once(images):
    parts = list(in_order(images, 10, **PLAIN))
    assert [len(values) for values, _ in parts] == [10, 10, 3]
    assert torch.cat([labels for _, labels in parts]).tolist() == list(range(23))
    torch.testing.assert_close(parts[2][0][:, 0, 0, 0], torch.tensor([20.0, 21.0, 22.0]), rtol=0, atol=1e-4)


def test_a_batch_size_below_one_is_an_error(images):
    with pytest.raises(ValueError, match=r"^batch_size must be at least 1, got 0"):
        batches(images, size=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_equal_those_on_the_cpu(images):
    source = Batches(images, 5, seed=0, stream="train", augmentation=AUGMENTATION, **{**PLAIN, "device": "cuda"})
    for step in (0, 5):
        values, labels = source.batch(step)
        expected, expected_labels = batches(images).batch(step)
        assert values.is_cuda
        assert labels.tolist() == expected_labels.tolist()
        torch.testing.assert_close(values.cpu(), expected, rtol=1e-6, atol=0)
