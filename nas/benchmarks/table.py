"""Looking architectures up: accuracy, rank and regret, and what they cost on devices."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nas.benchmarks.columns import Column, Columns, read_npz
from nas.benchmarks.nats import is_nats, read_nats
from nas.errors import ConfigError, DataError
from nas.space import Genotype, SearchSpace


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Tables of every architecture of a space: NAS-Bench-201 (Dong and Yang, 2020, arXiv:2001.00326), and devices.

    Attributes:
        path: An npz file with `arch` (strings) and `<dataset>_valid`, `<dataset>_test` (accuracies in %), or a file or
            folder of NATS-tss; None for none.
        hardware: An npz file with `arch`, `hwnas_<dataset>` and `hwnas_names`, and perhaps `help_latency_ms` and
            `help_devices`; None for none. The two files may be given in either place.
        dataset: Which of the tables' datasets counts.
    """

    path: str | None = None
    hardware: str | None = None
    dataset: Literal["cifar10", "cifar100", "imagenet16"] = "cifar10"

    @property
    def named(self) -> bool:
        """Whether there is any table."""
        return bool(self.path or self.hardware)


def tables_of(text: str) -> dict[str, str]:
    """Returns the settings of `Benchmark` that `--benchmark` asks for: one file, or two with a comma between them.

    Raises:
        ConfigError: There are more.
    """
    parts = [text] if Path(text).exists() else text.split(",")
    if len(parts) > 2:
        raise ConfigError(
            f"--benchmark takes a table of accuracies, one of hardware, or both as A.npz,B.npz; got {text!r}"
        )
    return dict(zip(("path", "hardware"), parts, strict=False))


@dataclass(frozen=True)
class Entry:
    """What a table knows of one architecture; accuracies are None in a table of hardware alone.

    Attributes:
        valid: Accuracy in %, after the published training.
        test: Likewise.
        rank: 1 for the best test accuracy of the table.
        of: Number of architectures in the table.
        regret: Best test accuracy of the table minus this one's, in points.
        valid_12ep: Accuracy in % after twelve epochs, if the table has it.
        hardware: Latency in ms, or energy in mJ for names that end so, by device; what the table lacks is left out.
    """

    valid: float | None = None
    test: float | None = None
    rank: int | None = None
    of: int | None = None
    regret: float | None = None
    valid_12ep: float | None = None
    hardware: Mapping[str, float] | None = None

    def known(self) -> dict[str, Any]:
        """Returns what is not None, ready for JSON."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None}


class Table:
    """Tables that were read, row by row of the same architectures.

    Raises:
        DataError: A file is missing, damaged, or lacks the columns.
    """

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        parts = [
            _read(Path(path), benchmark.dataset, f"benchmark.{name} = {path}")
            for name, path in (("path", benchmark.path), ("hardware", benchmark.hardware))
            if path
        ]
        self.architectures: NDArray[np.str_] = parts[0].architectures
        try:
            parts = [part.ordered(self.architectures) for part in parts]
        except KeyError as error:
            raise DataError(
                f"benchmark.hardware = {benchmark.hardware} lacks {error}, which {benchmark.path} has; give two tables "
                "of one space"
            ) from error
        self.accuracies = {name: column for part in reversed(parts) for name, column in part.accuracies.items()}
        self.hardware = {name: column for part in reversed(parts) for name, column in part.hardware.items()}

    @property
    def test(self) -> Column:
        """Test accuracies in %, (N,).

        Raises:
            ConfigError: The table has none.
        """
        if "test" not in self.accuracies:
            raise ConfigError(
                f"benchmark.path = {self.benchmark.path} has no accuracies; add a table that has: "
                "--benchmark nasbench201.npz"
            )
        return self.accuracies["test"]

    def column(self, name: str) -> Column:
        """Returns a column of the hardware table, (N,), NaN where it has no value."""
        return self.hardware[name]

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
        costs = {name: float(column[row]) for name, column in self.hardware.items() if np.isfinite(column[row])}
        hardware = costs if self.hardware else None
        if not self.accuracies:
            return Entry(hardware=hardware)
        test, early = self.test, self.accuracies.get("valid_12ep")
        return Entry(
            valid=float(self.accuracies["valid"][row]),
            test=float(test[row]),
            rank=1 + int((test > test[row]).sum()),
            of=len(test),
            regret=float(test.max() - test[row]),
            valid_12ep=None if early is None else float(early[row]),
            hardware=hardware,
        )

    def entries(self, space: SearchSpace, genotypes: Iterable[Genotype]) -> list[Entry]:
        """Looks architectures up; raises as `entry`."""
        return [self.entry(space, genotype) for genotype in genotypes]


def _read(path: Path, dataset: str, where: str) -> Columns:
    if is_nats(path):
        return read_nats(path, dataset, where)
    if not path.is_file():
        raise DataError(f"{where}: no such file; give a NAS-Bench-201 table with --benchmark path.npz")
    return read_npz(path, dataset, where)
