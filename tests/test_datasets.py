"""The named datasets: sizes without files, errors without files, and what is read from small files."""

import pickle
import struct
import subprocess
import sys
import urllib.error
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nas.data import CIFAR10, CIFAR100, MNIST, Digits, FashionMNIST
from nas.errors import DataError
from nas.space import Task


@pytest.mark.parametrize(
    ("dataset", "task"),
    [
        (Digits(), Task(1, 8, 8, 10)),
        (MNIST(), Task(1, 28, 28, 10)),
        (FashionMNIST(), Task(1, 28, 28, 10)),
        (CIFAR10(), Task(3, 32, 32, 10)),
        (CIFAR100(), Task(3, 32, 32, 100)),
    ],
)
def test_the_task_is_known_without_files(dataset, task):
    assert dataset.task() == task


def test_digits_are_those_of_scikit_learn(monkeypatch):
    expected = load_digits()
    samples = Digits().read()
    levels = samples.pixels.take(torch.arange(len(samples.labels)))[:, 0] * (16 / 255)
    assert torch.equal(levels.round().double(), torch.from_numpy(expected.images))
    assert torch.equal(samples.labels, torch.from_numpy(expected.target).long())
    moved = ModuleSpec("sklearn", None, origin="/nowhere/sklearn/__init__.py")
    monkeypatch.setattr("nas.data.datasets.find_spec", lambda name: moved)
    again = Digits().read()
    assert torch.equal(again.pixels.tensor, samples.pixels.tensor)
    assert torch.equal(again.labels, samples.labels)


def test_digits_are_read_without_importing_scikit_learn():
    program = "import sys; from nas.data import Digits; Digits().load(); assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_digits_are_all_there():
    splits = Digits().load()
    assert [len(split) for split in (splits.train, splits.arch, splits.select, splits.test)] == [647, 647, 144, 359]
    images = splits.train.take(torch.arange(len(splits.train)))
    assert images.dtype == torch.uint8
    assert images.shape == (647, 1, 8, 8)
    assert images.unique().tolist() == [round(level * 255 / 16) for level in range(17)]
    assert splits.train.labels.bincount().tolist() == pytest.approx([64.7] * 10, abs=3)


@pytest.mark.parametrize("cls", [MNIST, FashionMNIST, CIFAR10, CIFAR100])
def test_missing_files_are_an_error_with_a_remedy(cls, tmp_path):
    with pytest.raises(DataError, match=rf"dataset\.root = {tmp_path}: {cls.__name__} .*dataset\.download=true.*root="):
        cls(root=str(tmp_path)).load()


@pytest.mark.parametrize("cls", [MNIST, CIFAR10])
def test_a_failed_download_is_an_error_and_leaves_stdout_alone(cls, tmp_path, monkeypatch, capsys):
    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match="could not be downloaded; put its files there"):
        cls(root=str(tmp_path), download=True).load()
    assert capsys.readouterr().out == ""


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root, side=28):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, count in (("train", 40), ("t10k", 20)):
        write_idx(folder / f"{name}-images-idx3-ubyte", random.integers(0, 256, (count, side, side), np.uint8))
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return folder


def test_mnist_reads_the_original_files(tmp_path):
    folder = write_mnist(tmp_path)
    splits = MNIST(root=str(tmp_path)).load()
    assert [len(split) for split in (splits.train, splits.arch, splits.select, splits.test)] == [18, 18, 4, 20]
    raw = np.frombuffer((folder / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(-1, 1, 28, 28)
    images = splits.test.take(torch.arange(20)).numpy()
    assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in raw)


def test_a_truncated_file_is_an_error(tmp_path):
    file = write_mnist(tmp_path) / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="MNIST is not there or damaged"):
        MNIST(root=str(tmp_path)).load()


def test_images_of_another_size_are_an_error(tmp_path):
    write_mnist(tmp_path, side=8)
    with pytest.raises(DataError, match=r"holds images \(40, 1, 8, 8\) with 40 labels, not MNIST"):
        MNIST(root=str(tmp_path)).load()


def test_cifar_reads_the_original_files(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), np.uint8)
    labels = [index % 10 for index in range(20)]
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(label) for label in range(10)]}))
    reader = "torchvision.datasets.CIFAR10"
    monkeypatch.setattr(f"{reader}.train_list", [["data_batch_1", None]])
    monkeypatch.setattr(f"{reader}.test_list", [["test_batch", None]])
    monkeypatch.setattr(f"{reader}.meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    test = CIFAR10(root=str(tmp_path)).load().test
    images = test.take(torch.arange(20)).reshape(20, 3072).numpy()
    places = {row.tobytes(): label for row, label in zip(pixels, labels, strict=True)}
    assert [places[row.tobytes()] for row in images] == test.labels.tolist()


def test_importing_the_package_loads_neither_torchvision_nor_sklearn():
    program = "import sys, nas.data; assert not {'torchvision', 'sklearn', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
