"""Tabular benchmarks: what they know of an architecture, and what is said of a table that is none."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nas.benchmarks import Benchmark, Entry, Table
from nas.errors import ConfigError, DataError
from nas.space import Genotype
from search_spaces.nas_bench_201 import NASBench201

SPACE = NASBench201()
TABLE = Path(__file__).parents[1].parent / "shared" / "data" / "nasbench201.npz"
EDGES = [("skip_connect", "none"), ("none", "skip_connect"), ("none", "none"), ("nor_conv_1x1", "none")]
CELLS = [f"|{a}~0|+|{b}~0|none~1|+|none~0|none~1|none~2|" for a, b in EDGES]
COLUMNS = {
    "arch": np.array(CELLS, dtype="S95"),
    "cifar10_valid": np.array([50.0, 60.0, 55.0, 10.0]),
    "cifar10_test": np.array([70.0, 80.0, 70.0, 12.5], dtype=np.float32),
    "cifar100_valid": np.array([1.0, 2.0, 3.0, 4.0]),
    "cifar100_test": np.array([5.0, 6.0, 7.0, 8.0]),
}


def save(path: Path, **columns: np.ndarray) -> Table:
    np.savez_compressed(path, **{**COLUMNS, **columns})
    return Table(Benchmark(path=str(path)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.npz"


@pytest.mark.parametrize(
    ("row", "entry"),
    [
        (0, Entry(valid=50.0, test=70.0, rank=2, of=4, regret=10.0)),
        (1, Entry(valid=60.0, test=80.0, rank=1, of=4, regret=0.0)),
        (2, Entry(valid=55.0, test=70.0, rank=2, of=4, regret=10.0)),  # equal accuracies share a rank
        (3, Entry(valid=10.0, test=12.5, rank=4, of=4, regret=67.5)),
    ],
)
def test_an_entry_is_accuracy_rank_and_regret(path, row, entry):
    assert save(path).entry(SPACE, SPACE.parse(CELLS[row])) == entry


def test_an_edge_that_is_not_listed_is_looked_up_as_none(path):
    assert save(path).entry(SPACE, Genotype({"cell": ((0, 1, "nor_conv_1x1"),)})).test == 12.5


def test_the_dataset_chooses_the_columns(path):
    save(path)
    table = Table(Benchmark(path=str(path), dataset="cifar100"))
    assert table.entry(SPACE, SPACE.parse(CELLS[3])) == Entry(valid=4.0, test=8.0, rank=1, of=4, regret=0.0)


def test_strings_may_be_stored_as_text(path):
    assert save(path, arch=np.array(CELLS)).entry(SPACE, SPACE.parse(CELLS[1])).rank == 1


def test_an_architecture_the_table_does_not_know_is_a_configuration_error(path):
    table = save(path)
    unknown = CELLS[0].replace("skip_connect", "nor_conv_3x3")
    with pytest.raises(ConfigError, match=r"does not know '\|nor_conv_3x3~0.*the space that is searched") as caught:
        table.entry(SPACE, SPACE.parse(unknown))
    assert caught.value.exit_code == 2


def zipped() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **COLUMNS)
    return buffer.getvalue()


def garbled() -> bytes:
    """Returns the archive with the compressed bytes of every column overwritten."""
    data = bytearray(zipped())
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        for item in archive.infolist():
            start = item.header_offset + 30 + len(item.filename) + 20
            data[start : start + item.compress_size - 20] = b"\xff" * (item.compress_size - 20)
    return bytes(data)


def plain_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def without(name: str) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{key: value for key, value in COLUMNS.items() if key != name})
    return buffer.getvalue()


def with_column(name: str, column: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{**COLUMNS, name: column})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no table at all", id="text"),
        pytest.param(zipped()[:200], id="cut short"),
        pytest.param(garbled(), id="garbled"),
        pytest.param(plain_array(), id="one array"),
        pytest.param(without("arch"), id="no arch"),
        pytest.param(without("cifar10_valid"), id="no valid"),
        pytest.param(without("cifar10_test"), id="no test"),
        pytest.param(with_column("arch", np.array(CELLS, dtype=object)), id="pickled"),
        pytest.param(with_column("cifar10_test", np.array(["high"] * 4)), id="words for numbers"),
        pytest.param(with_column("cifar10_test", np.zeros(3)), id="another length"),
        pytest.param(with_column("cifar10_valid", np.zeros((4, 2))), id="two columns in one"),
    ],
)
def test_a_damaged_table_is_a_data_error_that_names_file_and_columns(path, content):
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"benchmark.path = .*table.npz is damaged or no such table .*_valid") as caught:
        Table(Benchmark(path=str(path)))
    assert caught.value.exit_code == 3


def test_a_missing_file_is_a_data_error_with_the_remedy(path):
    for place in (path, path.parent):
        with pytest.raises(DataError, match=r"no such file; give a NAS-Bench-201 table with --benchmark") as caught:
            Table(Benchmark(path=str(place)))
        assert caught.value.exit_code == 3


@pytest.fixture(scope="module")
def published() -> dict[str, Table]:
    if not TABLE.is_file():
        pytest.skip("the published NAS-Bench-201 table is not here")
    return {name: Table(Benchmark(path=str(TABLE), dataset=name)) for name in ("cifar10", "cifar100", "imagenet16")}


@pytest.mark.parametrize(
    ("dataset", "row", "best"), [("cifar10", 6111, 94.37), ("cifar100", 9930, 73.51), ("imagenet16", 857, 47.31)]
)
def test_the_best_published_cells(published, dataset, row, best):
    table = published[dataset]
    entry = table.entry(SPACE, SPACE.parse(table.architectures[row]))
    assert (entry.rank, entry.of, entry.regret) == (1, 15625, 0.0)
    assert entry.test == pytest.approx(best, abs=0.005)  # two decimals


def test_the_published_cell_of_skips(published):
    skip = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
    table = published["cifar10"]
    entry = table.entry(SPACE, SPACE.parse(skip))
    assert table.rows[skip] == 1835
    assert (entry.valid, entry.test) == (pytest.approx(39.77, abs=0.005), pytest.approx(54.30, abs=0.005))
    assert entry.regret == pytest.approx(94.37 - 54.30, abs=0.01)
    assert 15000 < entry.rank < 15625
