"""NATS-Bench's own files (Dong et al., 2021, arXiv:2009.00437), read through the package `nats_bench`.

That package unpickles the files, which runs what they contain: read only files that you trust.
"""

import importlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nas.benchmarks.columns import Columns
from nas.errors import ConfigError, DataError

META = "meta.pickle.pbz2"
"""In every folder of NATS-tss."""

DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet16": "ImageNet16-120"}


def is_nats(path: Path) -> bool:
    """Returns whether a path looks like a file or a folder of NATS-Bench."""
    return (path / META).is_file() or (path.is_file() and path.name.endswith(".pbz2"))


@lru_cache(maxsize=3)
def read_nats(path: Path, dataset: str, where: str) -> Columns:
    """Reads the accuracies of all architectures of NATS-tss: after 200 epochs, means over seeds, and after 12.

    Args:
        path: The file NATS-tss-v1_0-*.pickle.pbz2, or the folder of the same name that ends in -simple.
        dataset: A key of `DATASETS`.
        where: What messages call the file.

    Raises:
        ConfigError: The package is not installed.
        DataError: The file cannot be read.
    """
    try:
        package = importlib.import_module("nats_bench")
    except ImportError as error:
        raise ConfigError(
            f"{where} is of NATS-Bench, which the package nats_bench reads ({error}); pip install nats_bench, "
            "or give an npz table"
        ) from error
    try:
        api = package.create(str(path), "tss", fast_mode=path.is_dir(), verbose=False)
        architectures = np.array([api.arch(index) for index in range(len(api))])
        rows = [_accuracies(api, index, dataset) for index in range(len(api))]
    except Exception as error:  # whatever its code raises on a damaged file
        raise DataError(f"{where} cannot be read by nats_bench ({type(error).__name__}: {error})") from error
    names = ("valid", "test", "valid_12ep")
    columns = np.array(rows, dtype=np.float64).T
    return Columns(architectures, dict(zip(names, columns, strict=True)), {})


def _accuracies(api: Any, index: int, dataset: str) -> tuple[float, float, float]:
    """Returns validation and test accuracy after 200 epochs, and validation accuracy after 12, in %."""
    name = DATASETS[dataset]
    # CIFAR-10's validation images are training images of the networks that are tested.
    validated = "cifar10-valid" if name == "cifar10" else name
    valid, early = (
        api.get_more_info(index, validated, hp=epochs, is_random=False)["valid-accuracy"] for epochs in ("200", "12")
    )
    return valid, api.get_more_info(index, name, hp="200", is_random=False)["test-accuracy"], early
