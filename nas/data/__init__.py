"""Labelled images: datasets, their splits, and batches that are functions of a step."""

from nas.data.augment import Augmentation, augment, cutout, normalise
from nas.data.batches import Batches, in_order
from nas.data.dataset import Dataset, Samples, Splits
from nas.data.datasets import CIFAR10, CIFAR100, MNIST, Digits, FashionMNIST, Npz, TorchvisionDataset
from nas.data.folder import Folder
from nas.data.images import Images, Memory, Pixels

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Augmentation",
    "Batches",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "Folder",
    "Images",
    "Memory",
    "Npz",
    "Pixels",
    "Samples",
    "Splits",
    "TorchvisionDataset",
    "augment",
    "cutout",
    "in_order",
    "normalise",
]
