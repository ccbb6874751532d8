"""Tabular benchmarks: published accuracies of every architecture of a space."""

import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError, DataError
from nas.space import Genotype, SearchSpace


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """NAS-Bench-201's table (Dong and Yang, 2020, arXiv:2001.00326) in an npz file.

    Attributes:
        path: The file, with `arch` (strings) and `<dataset>_valid`, `<dataset>_test` (accuracies in %); None for none.
        dataset: Which of the table's datasets counts.
    """

    path: str | None = None
    dataset: Literal["cifar10", "cifar100", "imagenet16"] = "cifar10"


@dataclass(frozen=True)
class Entry:
    """What a table knows of one architecture.

    Attributes:
        valid: Accuracy in %, after the published training.
        test: Likewise.
        rank: 1 for the best test accuracy of the table.
        of: Number of architectures in the table.
        regret: Best test accuracy of the table minus this one's, in points.
    """

    valid: float
    test: float
    rank: int
    of: int
    regret: float


class Table:
    """A table that was read.

    Raises:
        DataError: The file is missing, damaged, or lacks the columns.
    """

    def __init__(self, benchmark: Benchmark) -> None:
        assert benchmark.path is not None
        where = f"benchmark.path = {benchmark.path}"
        if not Path(benchmark.path).is_file():
            raise DataError(f"{where}: no such file; give a NAS-Bench-201 table with --benchmark path.npz")
        try:
            with open(benchmark.path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                self.architectures: NDArray[np.str_] = archive["arch"].astype(str)
                self.valid: NDArray[np.float64] = archive[f"{benchmark.dataset}_valid"].astype(np.float64)
                self.test: NDArray[np.float64] = archive[f"{benchmark.dataset}_test"].astype(np.float64)
            if not self.architectures.shape == self.valid.shape == self.test.shape == (len(self.architectures),):
                raise ValueError("the columns differ in length")
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{where} is damaged or no such table ({error}); it needs arch, {benchmark.dataset}_valid and _test"
            ) from error

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row by architecture string."""
        return {text: row for row, text in enumerate(self.architectures.tolist())}

    def entry(self, space: SearchSpace, genotype: Genotype) -> Entry:
        """Looks an architecture up.

        Raises:
            ConfigError: The space's text for it is not in the table.
        """
        text = space.format(genotype)
        if text not in self.rows:
            raise ConfigError(
                f"the table does not know {text[:90]!r}; --benchmark needs the table of the space that is searched"
            )
        row = self.rows[text]
        rank = 1 + int((self.test > self.test[row]).sum())
        regret = float(self.test.max() - self.test[row])
        return Entry(float(self.valid[row]), float(self.test[row]), rank, len(self.test), regret)
