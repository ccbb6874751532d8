"""Tabular benchmarks: what they know of an architecture, and what is said of a table that is none."""

import io
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nas.benchmarks import Benchmark, Entry, Table, tables_of
from nas.benchmarks.nats import read_nats
from nas.errors import ConfigError, DataError
from nas.report.costs import benchmark_lines
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


# Hardware

DEVICES = {
    "hwnas_names": np.array(["edgegpu_latency", "edgegpu_energy", "edgetpu_latency", "eyeriss_arithmetic_intensity"]),
    "hwnas_cifar10": np.array([[1.0, 10, -1, 5], [2, 20, 0.5, 5], [3, 30, 0.6, 5], [4, 40, 0.7, 5]], dtype=np.float32),
    "hwnas_cifar100": np.full((4, 4), 9.0),
    "help_devices": np.array(["titan_1"], dtype="S14"),
    "help_latency_ms": np.array([[7.0], [8.0], [9.0], [10.0]], dtype=np.float32),
}


@pytest.fixture
def both(tmp_path: Path) -> tuple[str, str]:
    """A table of accuracies and one of hardware, whose rows stand in another order."""
    order = [2, 0, 3, 1]
    rows = {name: column[order] for name, column in DEVICES.items() if len(column) == 4 and name != "hwnas_names"}
    np.savez(tmp_path / "hw.npz", **{**DEVICES, **rows}, arch=COLUMNS["arch"][order])
    save(tmp_path / "accuracies.npz")
    return str(tmp_path / "accuracies.npz"), str(tmp_path / "hw.npz")


@pytest.mark.parametrize("swapped", [False, True])
def test_two_tables_are_joined_by_architecture_in_either_place(both, swapped):
    accuracies, hardware = both[::-1] if swapped else both
    table = Table(Benchmark(path=accuracies, hardware=hardware))
    entry = table.entry(SPACE, SPACE.parse(CELLS[1]))
    assert (entry.test, entry.rank) == (80.0, 1)
    assert entry.hardware == {
        "edgegpu_latency": 2.0,
        "edgegpu_energy": 20.0,
        "edgetpu_latency": 0.5,
        "help_titan_1": 8.0,
    }


def test_a_device_that_cannot_run_a_cell_has_no_value(both):
    entry = Table(Benchmark(path=both[1])).entry(SPACE, SPACE.parse(CELLS[0]))
    assert "edgetpu_latency" not in entry.hardware
    assert entry.known() == {"hardware": {"edgegpu_latency": 1.0, "edgegpu_energy": 10.0, "help_titan_1": 7.0}}


def test_the_dataset_chooses_the_hardware_columns(both):
    table = Table(Benchmark(hardware=both[1], dataset="cifar100"))
    assert table.entry(SPACE, SPACE.parse(CELLS[0])).hardware["edgegpu_latency"] == 9.0


def test_tables_of_different_architectures_are_refused(both, tmp_path):
    np.savez(tmp_path / "other.npz", **DEVICES, arch=np.array(["a", "b", "c", "d"]))
    with pytest.raises(DataError, match=r"other.npz lacks .* which .*accuracies.npz has; give two tables of one space"):
        Table(Benchmark(path=both[0], hardware=str(tmp_path / "other.npz")))


@pytest.mark.parametrize(
    "columns",
    [
        {**DEVICES, "hwnas_cifar10": np.zeros((4, 3))},
        {**DEVICES, "hwnas_cifar10": np.zeros((3, 4))},
        {**DEVICES, "help_latency_ms": np.zeros((4, 2))},
        {**DEVICES, "cifar10_test": np.zeros(4)},  # and no validation accuracies
        {key: value for key, value in DEVICES.items() if key != "hwnas_names"},
    ],
)
def test_a_damaged_table_of_hardware_is_a_data_error(columns, path):
    np.savez(path, arch=COLUMNS["arch"], **columns)
    with pytest.raises(DataError, match=r"benchmark.hardware = .*table.npz is damaged .*hwnas_cifar10"):
        Table(Benchmark(hardware=str(path)))


def test_an_accuracy_that_is_no_number_is_a_data_error(path):
    with pytest.raises(DataError, match="an accuracy is no number"):
        save(path, cifar10_test=np.array([1.0, np.nan, 2.0, 3.0]))


def test_accuracies_after_twelve_epochs_are_given_if_they_are_there(path):
    assert save(path).entry(SPACE, SPACE.parse(CELLS[0])).valid_12ep is None
    table = save(path, cifar10_valid_12ep=np.array([41.0, 42.0, 43.0, 44.0]))
    assert table.entry(SPACE, SPACE.parse(CELLS[2])).known()["valid_12ep"] == 43.0


def test_many_cells_are_looked_up_at_once(path):
    table = save(path)
    genotypes = [SPACE.parse(cell) for cell in CELLS]
    assert table.entries(SPACE, genotypes) == [table.entry(SPACE, genotype) for genotype in genotypes]


def test_the_flag_takes_one_file_or_two(path, tmp_path):
    assert tables_of("a.npz") == {"path": "a.npz"}
    assert tables_of("a.npz,b.npz") == {"path": "a.npz", "hardware": "b.npz"}
    with_comma = tmp_path / "a,b.npz"
    save(with_comma)
    assert tables_of(str(with_comma)) == {"path": str(with_comma)}
    with pytest.raises(ConfigError, match=r"--benchmark takes .* both as A.npz,B.npz; got 'a,b,c'"):
        tables_of("a,b,c")


def test_lines_name_every_device_with_its_unit(both):
    table = Table(Benchmark(path=both[0], hardware=both[1]))
    lines = [*benchmark_lines(table.entry(SPACE, SPACE.parse(CELLS[1])).known())]
    assert lines == [
        "benchmark: test 80.00%, rank 1 of 4, regret 0.00 points",
        "benchmark: latency in ms: edgegpu 2, edgetpu 0.5",
        "benchmark: energy in mJ: edgegpu 20",
        "benchmark: latency in ms, device and batch size: titan_1 8",
    ]


# NATS-Bench


class FakeAPI:
    """What is used of nats_bench 1.8, with its names and arguments."""

    def __len__(self) -> int:
        return len(CELLS)

    def arch(self, index: int) -> str:
        return CELLS[index]

    def get_more_info(self, index, dataset, iepoch=None, hp="12", is_random=True):
        assert is_random is False  # the mean over seeds, not one of them
        assert iepoch is None
        sets = {"cifar10-valid": ("valid", "test"), "cifar10": ("test",)}
        kinds = sets.get(dataset, ("valid", "test"))
        offset = {"valid": 0.0, "test": 100.0}
        early = 1000.0 if hp == "12" else 0.0
        # After training on half the images the test accuracy of cifar10-valid is another one.
        half = 500.0 if dataset == "cifar10-valid" else 0.0
        numbers = {f"{kind}-accuracy": index + offset[kind] + early + half * (kind == "test") for kind in kinds}
        return {"train-accuracy": 1e6, **numbers}


@pytest.fixture
def nats(monkeypatch):
    """Installs a fake package; returns the arguments with which it was asked to read."""
    asked = []

    def create(file_path_or_dict, search_space, fast_mode=False, verbose=True):
        asked.append((file_path_or_dict, search_space, fast_mode, verbose))
        return FakeAPI()

    read_nats.cache_clear()
    monkeypatch.setitem(sys.modules, "nats_bench", types.SimpleNamespace(create=create))
    return asked


@pytest.fixture(params=["file", "folder"])
def nats_path(request, tmp_path):
    if request.param == "file":
        path = tmp_path / "NATS-tss-v1_0-3ffb9.pickle.pbz2"
        path.write_bytes(b"")
    else:
        path = tmp_path / "NATS-tss-v1_0-3ffb9-simple"
        path.mkdir()
        (path / "meta.pickle.pbz2").write_bytes(b"")
    return path


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "imagenet16"])
def test_natsbench_is_read_through_its_package(nats, nats_path, dataset):
    table = Table(Benchmark(path=str(nats_path), dataset=dataset))
    entry = table.entry(SPACE, SPACE.parse(CELLS[2]))
    assert entry == Entry(valid=2.0, test=102.0, rank=2, of=4, regret=1.0, valid_12ep=1002.0)
    assert nats == [(str(nats_path), "tss", nats_path.is_dir(), False)]
    Table(Benchmark(path=str(nats_path), dataset=dataset))
    assert len(nats) == 1  # reading takes minutes, so once


def test_natsbench_without_its_package_is_a_configuration_error_with_the_remedy(nats_path, monkeypatch):
    read_nats.cache_clear()
    monkeypatch.setitem(sys.modules, "nats_bench", None)
    with pytest.raises(ConfigError, match=r"benchmark.path = .* pip install nats_bench, or give an npz table"):
        Table(Benchmark(path=str(nats_path)))


def test_a_damaged_file_of_natsbench_is_a_data_error(nats, nats_path, monkeypatch):
    def create(*_, **__):
        raise EOFError("Compressed file ended")

    monkeypatch.setattr(sys.modules["nats_bench"], "create", create)
    with pytest.raises(DataError, match=r"cannot be read by nats_bench \(EOFError: Compressed file ended\)"):
        Table(Benchmark(path=str(nats_path)))


def test_the_published_tables_go_together(published):
    hardware = TABLE.with_name("nasbench201-hw.npz")
    if not hardware.is_file():
        pytest.skip("the published hardware table is not here")
    table = Table(Benchmark(path=str(TABLE), hardware=str(hardware)))
    best = SPACE.parse(table.architectures[6111])
    entry = table.entry(SPACE, best)
    assert entry.rank == 1
    assert entry.valid_12ep == pytest.approx(published["cifar10"].accuracies["valid_12ep"][6111])
    assert len(entry.hardware) == 9 + 27  # without the arithmetic intensity, which is no cost
    assert entry.hardware["help_1080ti_1"] > 0
