"""Images in npz files: every layout, every error, and real files where they are present."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nas.data import Augmentation, Npz
from nas.errors import DataError
from nas.space import Task

DATA = Path(__file__).parents[1].parent / "shared" / "data"
RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (24, 9, 10), np.uint8)
COLOUR = RANDOM.integers(0, 256, (24, 9, 10, 3), np.uint8)
PLANES = COLOUR.transpose(0, 3, 1, 2)
LABELS = np.arange(24) % 4


def write(folder, **arrays):
    path = folder / "images.npz"
    np.savez_compressed(path, **arrays)
    return str(path)


def train(images=COLOUR, labels=LABELS):
    return {"train_images": images, "train_labels": labels}


def everything(splits):
    return torch.cat([s.take(torch.arange(len(s))) for s in (splits.train, splits.arch, splits.select, splits.test)])


@pytest.mark.parametrize(
    ("images", "layout", "expected"),
    [
        (GREY, "auto", GREY[:, None]),
        (GREY, "nhwc", GREY[:, None]),
        (COLOUR, "auto", PLANES),
        (COLOUR, "nhwc", PLANES),
        (PLANES, "auto", PLANES),
        (PLANES, "nchw", PLANES),
        (PLANES[:, :1], "auto", PLANES[:, :1]),
    ],
)
def test_every_layout_gives_the_same_images(tmp_path, images, layout, expected):
    dataset = Npz(path=write(tmp_path, **train(images)), layout=layout)
    assert dataset.task() == Task(*expected.shape[1:], classes=4)
    found = everything(dataset.load()).numpy()
    assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in expected)


def test_an_ambiguous_layout_must_be_set(tmp_path):
    path = write(tmp_path, **train(np.zeros((24, 3, 8, 4), np.uint8)))
    with pytest.raises(DataError, match=r"which axis is C\? set dataset\.layout to nhwc or nchw"):
        Npz(path=path).task()
    assert Npz(path=path, layout="nhwc").task() == Task(4, 3, 8, 4)
    assert Npz(path=path, layout="nchw").task() == Task(3, 8, 4, 4)


def test_the_keys_of_keras_and_labels_in_a_column_are_accepted(tmp_path):
    path = write(tmp_path, x_train=COLOUR, y_train=LABELS[:, None], x_test=COLOUR[:5], y_test=LABELS[:5, None])
    splits = Npz(path=path).load()
    assert sorted(splits.test.labels.tolist()) == [0, 0, 1, 2, 3]


def test_classes_can_be_set(tmp_path):
    assert Npz(path=write(tmp_path, **train()), classes=7).task().classes == 7


def test_augmentation_follows_the_size_unless_it_is_set(tmp_path):
    path = write(tmp_path, **train())
    assert Npz(path=path).load().augmentation == Augmentation(crop=1, flip=True, cutout=4)
    assert Npz(path=path, augmentation=Augmentation()).load().augmentation == Augmentation()


TEST = {"test_images": COLOUR[:4], "test_labels": LABELS[:4]}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": COLOUR}, r"no training images; keys found: \['images'\]; accepted: train_images, train_labels or"),
        ({"train_images": COLOUR}, r"lacks the key train_labels; keys found: \['train_images'\]"),
        ({**train(), "test_images": COLOUR}, "lacks the key test_labels"),
        (train(COLOUR.astype(np.float32)), "train_images of type float32; save them as uint8"),
        (train(COLOUR[:, 0, 0]), r"train_images of shape \(24, 3\); save them as"),
        (train(COLOUR[:0], LABELS[:0]), "is empty"),
        (train(labels=LABELS[:9]), r"train_labels of shape \(9,\) for 24 images"),
        (train(labels=LABELS / 1), "train_labels of type float64; save them as integers"),
        (train(labels=LABELS - 1), "label -1 in train_labels"),
        (train(labels=LABELS * 0), "has one class"),
        ({**train(), **TEST, "test_labels": LABELS[:4] + 3}, "label 6 beside test_images, but 4 classes"),
        ({**train(), **TEST, "test_images": GREY[:4]}, r"train images of \(3, 9, 10\) and test images of \(1, 9, 10\)"),
        (train(labels=np.array(["a"] * 24, dtype=object)), "train_labels of type object"),
    ],
)
def test_every_error_names_the_setting_and_what_is_wrong(tmp_path, arrays, message):
    path = write(tmp_path, **arrays)
    with pytest.raises(DataError, match=rf"^dataset\.path = {path} .*{message}"):
        Npz(path=path).load()


def test_a_label_beyond_the_classes_is_an_error(tmp_path):
    with pytest.raises(DataError, match="label 3 beside train_images, but 3 classes"):
        Npz(path=write(tmp_path, **train()), classes=3).load()


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no such file; give an npz file with --set dataset\.path"):
        Npz(path=str(tmp_path / "none.npz")).task()


@pytest.mark.parametrize("damage", [lambda data: data[:-500], lambda _: b"no zip", lambda _: b""])
def test_a_damaged_file_is_an_error(tmp_path, damage):
    path = Path(write(tmp_path, **train()))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="is damaged or no npz file"):
        Npz(path=str(path)).load()


def test_damaged_images_are_an_error(tmp_path):
    path = Path(write(tmp_path, **train()))
    data = bytearray(path.read_bytes())
    data[2000:2020] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged or no npz file"):
        Npz(path=str(path)).load()


@pytest.mark.parametrize("classes", [1, -3])
def test_a_setting_out_of_range_is_named(classes):
    with pytest.raises(ValueError, match=r"^classes must be at least 2, got"):
        Npz(path="x.npz", classes=classes)


@pytest.mark.skipif(not (DATA / "cifar10-16x16.npz").exists(), reason="needs ../shared/data/cifar10-16x16.npz")
def test_real_cifar_at_16_pixels():
    dataset = Npz(path=str(DATA / "cifar10-16x16.npz"))
    assert dataset.task() == Task(3, 16, 16, 10)
    splits = dataset.load()
    sizes = [split.labels.bincount().tolist() for split in (splits.train, splits.arch, splits.select, splits.test)]
    assert sizes == [[2250] * 10, [2250] * 10, [500] * 10, [1000] * 10]
    # The published mean of 50,000 images; ours is that of 45,000: standard error below 0.002.
    assert splits.mean == pytest.approx((0.4913, 0.4821, 0.4465), abs=0.005)
    assert splits.augmentation == Augmentation(crop=2, flip=True, cutout=8)


@pytest.mark.skipif(not (DATA / "mnist.npz").exists(), reason="needs ../shared/data/mnist.npz")
def test_real_mnist():
    splits = Npz(path=str(DATA / "mnist.npz"), limit=1000).load()
    assert [len(split) for split in (splits.train, splits.arch, splits.select, splits.test)] == [1000] * 4
    assert splits.train.take(torch.arange(2)).shape == (2, 1, 28, 28)
    assert splits.augmentation == Augmentation(crop=3, cutout=7)
