"""Folders of image files: the same images from memory and from disk, with any number of workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nas.data import Augmentation, Batches, Folder, Memory
from nas.errors import DataError
from nas.space import Task


def write(folder, classes=("cat", "dog"), count=12, seed=0):
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            height, width = random.integers(8, 20, 2)
            pixels = random.integers(0, 256, (height, width, 3), np.uint8)
            image.fromarray(pixels).save(folder / name / f"{number}.png")
    return Folder(root=str(folder), image_size=8)


def batches(dataset, steps):
    splits = dataset.load()
    source = Batches(
        splits.train,
        4,
        seed=0,
        stream="train",
        mean=splits.mean,
        deviation=splits.deviation,
        device="cpu",
        augmentation=Augmentation(crop=1, flip=True),
    )
    return [source.batch(step) for step in steps]


def test_images_on_demand_equal_those_in_memory_for_any_number_of_workers(tmp_path):
    kept = write(tmp_path)
    assert isinstance(kept.load().train.pixels, Memory)
    expected = batches(kept, range(6))
    for workers in (1, 4):
        on_demand = replace(kept, memory_mb=0, workers=workers)
        assert not on_demand.load().train.in_memory
        for (images, labels), (images_kept, labels_kept) in zip(batches(on_demand, range(6)), expected, strict=True):
            assert torch.equal(images, images_kept)
            assert torch.equal(labels, labels_kept)


def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path):
    image = pytest.importorskip("PIL.Image")
    write(tmp_path)
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = 200
    for file in tmp_path.rglob("*.png"):
        image.fromarray(pixels).save(file)
    assert Folder(root=str(tmp_path), image_size=8).load().train.take(torch.tensor([0])).unique().tolist() == [200]


def test_the_task_counts_class_folders(tmp_path):
    dataset = write(tmp_path, classes=("a", "b", "c"))
    (tmp_path / ".hidden").mkdir()
    assert dataset.task() == Task(3, 8, 8, 3)


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_test_folder_is_the_test_split(tmp_path, name):
    write(tmp_path / "train")
    write(tmp_path / name, count=5, seed=1)
    dataset = Folder(root=str(tmp_path), image_size=8)
    assert dataset.task().classes == 2
    splits = dataset.load()
    assert len(splits.test) == 10
    assert len(splits.train) + len(splits.arch) + len(splits.select) == 24


@pytest.mark.parametrize("memory", [0, 100])
def test_a_damaged_image_is_named(tmp_path, memory):
    dataset = replace(write(tmp_path), memory_mb=memory)
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"\.png is no readable image"):
        dataset.load()


def test_errors_name_the_setting(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.root = .*none: no such folder"):
        Folder(root=str(tmp_path / "none")).task()
    with pytest.raises(DataError, match=r"has the class folders \[\]; make one for each"):
        Folder(root=str(tmp_path)).task()
    dataset = write(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images for \['empty'\]; accepted: \.bmp"):
        dataset.load()


def test_errors_of_the_test_folder(tmp_path):
    write(tmp_path / "train")
    (tmp_path / "test").mkdir()
    dataset = Folder(root=str(tmp_path))
    with pytest.raises(DataError, match="test has no images"):
        dataset.load()
    (tmp_path / "test" / "bird").mkdir()
    with pytest.raises(DataError, match=r"classes that the train part lacks: \['bird'\]"):
        dataset.load()


@pytest.mark.parametrize("settings", [{"image_size": 0}, {"memory_mb": -1}, {"workers": 0}])
def test_a_setting_out_of_range_is_named(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"^{name} must be at least"):
        Folder(root="x", **settings)
