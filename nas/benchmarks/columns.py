"""What a table's file holds, read from NAS-Bench-201's accuracies or from measurements on hardware in an npz file."""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.errors import DataError

Column = NDArray[np.float64]

ACCURACIES = ("valid", "test")
EARLY = ("valid_12ep",)
"""Columns that a table may have besides."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of one file, (N,) each.

    Attributes:
        architectures: Texts of the architectures.
        accuracies: In %: none, or `valid` and `test`, and perhaps `valid_12ep`.
        hardware: Latencies in ms and energies in mJ by device, NaN where a device cannot run an architecture.
    """

    architectures: NDArray[np.str_]
    accuracies: Mapping[str, Column]
    hardware: Mapping[str, Column]

    def ordered(self, architectures: NDArray[np.str_]) -> "Columns":
        """Returns the same rows in another order.

        Raises:
            KeyError: A row is missing.
        """
        places = {text: row for row, text in enumerate(self.architectures.tolist())}
        rows = np.array([places[text] for text in architectures.tolist()])
        accuracies = {name: column[rows] for name, column in self.accuracies.items()}
        return Columns(architectures, accuracies, {name: column[rows] for name, column in self.hardware.items()})


def read_npz(path: Path, dataset: str, where: str) -> Columns:
    """Reads the columns of one dataset.

    Args:
        path: The file.
        dataset: Which columns.
        where: What messages call the file.

    Raises:
        DataError: The file is damaged, or no such table.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            hardware = _hardware(archive, dataset)
            accuracies = {}
            if not hardware or any(f"{dataset}_{name}" in archive for name in ACCURACIES):
                names = (*ACCURACIES, *(name for name in EARLY if f"{dataset}_{name}" in archive))
                accuracies = {name: archive[f"{dataset}_{name}"].astype(np.float64) for name in names}
            found = Columns(archive["arch"].astype(str), accuracies, hardware)
        if any(column.shape != (len(found.architectures),) for column in (*accuracies.values(), *hardware.values())):
            raise ValueError("the columns differ in length")
        if not all(np.isfinite(column).all() for column in accuracies.values()):
            raise ValueError("an accuracy is no number")
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{where} is damaged or no such table ({error}); it needs arch, and {dataset}_valid and _test or "
            f"hwnas_{dataset}"
        ) from error
    return found


def _hardware(archive: Mapping[str, NDArray[np.generic]], dataset: str) -> dict[str, Column]:
    """Returns the costs in HW-NAS-Bench and HELP; a value below 0 says that a device cannot run the architecture.

    Sources: Li et al., 2021, arXiv:2103.10584; Lee et al., 2021, arXiv:2106.08630.
    """
    found: dict[str, Column] = {}
    if f"hwnas_{dataset}" in archive:
        names = archive["hwnas_names"].astype(str).tolist()
        found = dict(zip(names, archive[f"hwnas_{dataset}"].astype(np.float64).T, strict=True))
    if found and "help_latency_ms" in archive:
        devices = archive["help_devices"].astype(str).tolist()
        found |= {f"help_{name}": row for name, row in zip(devices, archive["help_latency_ms"].T, strict=True)}
    costs = {name: column for name, column in found.items() if not name.endswith("_intensity")}
    return {name: np.where(column >= 0, column, np.nan).astype(np.float64) for name, column in costs.items()}
