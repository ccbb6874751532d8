"""NAS-Bench-201: its strings, its classes of equal cells, and its sizes against the published table."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from nas.errors import ConfigError
from nas.space import Genotype, Task
from nas.supernet.inspection import inspect
from search_spaces.nas_bench_201 import OPERATIONS, NASBench201

SPACE = NASBench201()
TASK = Task(channels=3, height=32, width=32, classes=10)
EDGES = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
TABLE = Path(__file__).parents[1].parent / "shared" / "data" / "nasbench201.npz"
CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


def cell(*operations: str) -> Genotype:
    return Genotype({"cell": tuple((s, t, o) for (s, t), o in zip(EDGES, operations, strict=True))})


def size(genotype: Genotype):
    return inspect(SPACE.fix(genotype), TASK, searching=False)


@pytest.fixture(scope="module")
def genotypes() -> list[Genotype]:
    """All 15,625 cells."""
    return [cell(*operations) for operations in itertools.product(OPERATIONS, repeat=6)]


@pytest.fixture(scope="module")
def unique(genotypes) -> list[str]:
    return [SPACE.unique_string(genotype) for genotype in genotypes]


@pytest.fixture(scope="module")
def table(genotypes) -> dict[str, np.ndarray]:
    """The published columns, in the order of `genotypes`."""
    if not TABLE.is_file():
        pytest.skip("the published NAS-Bench-201 table is not here")
    with np.load(TABLE, allow_pickle=False) as archive:
        row = {text: i for i, text in enumerate(archive["arch"].astype(str).tolist())}
        order = [row[SPACE.format(genotype)] for genotype in genotypes]
        assert len(set(order)) == len(row) == 5**6
        return {name: archive[name][order] for name in ("params_cifar10", "flops_cifar10_M", "unique_id")}


@pytest.fixture(scope="module")
def parts() -> tuple[int, int, np.ndarray, np.ndarray]:
    """Parameters and multiply-adds of the network without cells, and what an operation adds on an edge, (6, 5)."""
    blank = size(cell(*["none"] * 6))
    extra = np.zeros((2, 6, 5), dtype=np.int64)
    for e, (k, operation) in itertools.product(range(6), enumerate(OPERATIONS)):
        one = size(cell(*["none"] * e, operation, *["none"] * (5 - e)))
        extra[:, e, k] = one.parameters - blank.parameters, one.multiply_adds - blank.multiply_adds
    return blank.parameters, blank.multiply_adds, extra[0], extra[1]


def everywhere(base: int, extra: np.ndarray) -> np.ndarray:
    """Returns the totals of all cells, (15625,), from what an operation adds on an edge, (6, 5)."""
    choices = np.array(list(itertools.product(range(5), repeat=6)))
    return base + extra[np.arange(6), choices].sum(axis=1)


def test_strings_and_genotypes_are_the_same_thing():
    expected = cell("nor_conv_3x3", "nor_conv_3x3", "nor_conv_3x3", "skip_connect", "nor_conv_3x3", "nor_conv_3x3")
    assert SPACE.parse(CELL) == SPACE.parse(f"  {CELL}\n") == expected
    assert SPACE.format(expected) == CELL
    assert SPACE.parse(expected.to_json()) == expected


def test_every_cell_reads_back_from_its_string(genotypes):
    texts = [SPACE.format(genotype) for genotype in genotypes]
    assert len(set(texts)) == 15625
    assert [SPACE.parse(text) for text in texts] == genotypes


def test_an_edge_that_is_not_listed_is_written_as_none():
    text = "|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"
    assert SPACE.format(Genotype({"cell": ((2, 3, "skip_connect"),)})) == text


@pytest.mark.parametrize(
    "text",
    [
        "|",
        "|skip_connect~0|",
        "|skip_connect~0|+|none~0|none~1|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|+|none~0|none~1|none~2|none~3|",
        CELL.replace("+", ""),
        CELL.replace("~2|", "~1|"),
        CELL.replace("~1|", "~0|", 1),
        CELL.replace("|nor_conv_3x3~0|+", "|nor_conv_3x3|+"),
        CELL.replace("skip_connect~0|", "skip_connect~0"),
        CELL.replace("skip_connect~0|", "skip_connect~0||"),
        CELL.replace("skip_connect~0|nor_conv_3x3~1", "nor_conv_3x3~1|skip_connect~0"),
        CELL + "x",
        CELL + "+",
    ],
)
def test_malformed_strings_are_refused_with_the_expected_form(text):
    with pytest.raises(ConfigError, match=r"no NAS-Bench-201 cell .* it reads \|op~0\|\+\|op~0\|op~1\|\+") as caught:
        SPACE.parse(text)
    assert caught.value.exit_code == 2


def test_an_unknown_operation_in_a_string_is_named_with_its_edge():
    with pytest.raises(ConfigError, match=r"edge 0-3: unknown operation 'skip_conect': did you mean 'skip_connect'"):
        SPACE.fix(SPACE.parse(CELL.replace("skip_connect", "skip_conect")))


def test_classes_of_equal_cells_over_the_whole_space(genotypes, unique):
    # Published nowhere but checkable by hand for `without`: with 1-2 absent (3,125 cells) the inner nodes may swap,
    # which leaves (3125 + 125) / 2 of them; the other 12,500 stay.
    assert len({SPACE.isomorphic_hash(genotype) for genotype in genotypes}) == 15625
    bare = [genotype.without("none") for genotype in genotypes]
    assert len({SPACE.isomorphic_hash(genotype) for genotype in bare}) == 12500 + (3125 + 125) // 2 == 14125
    assert len({SPACE.isomorphic_hash(SPACE.prune(genotype)) for genotype in bare}) == 8765
    assert len(set(unique)) == 6466


@pytest.mark.parametrize(
    ("operations", "normal_form"),
    [
        (["none"] * 6, "#+#+#"),
        (["skip_connect"] * 6, "0+0+0+0"),
        (["nor_conv_1x1", *["none"] * 3, "skip_connect", "none"], "#+#+(0)@nor_conv_1x1"),
    ],
)
def test_unique_string_folds_skip_and_none(operations, normal_form):
    nodes = sorted(SPACE.unique_string(cell(*operations)).split("+"))
    assert nodes == sorted(normal_form.split("+"))


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|", 73306),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", 73306),
        ("|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|", 129306),
        ("|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|", 802426),
        (CELL, 1288506),
        ("|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|", 1531546),
    ],
)
def test_derived_networks_have_the_published_number_of_parameters(text, parameters):
    assert size(SPACE.parse(text)).parameters == parameters


def test_sizes_add_up_over_edges(parts):
    blank, blank_work, extra, extra_work = parts
    draw = random.Random(0)
    for _ in range(20):
        choice = [draw.randrange(5) for _ in range(6)]
        full = size(cell(*(list(OPERATIONS)[k] for k in choice)))
        assert full.parameters == blank + extra[range(6), choice].sum()
        assert full.multiply_adds == blank_work + extra_work[range(6), choice].sum()


def test_all_parameter_counts_equal_the_table(parts, table):
    blank, _, extra, _ = parts
    np.testing.assert_array_equal(everywhere(blank, extra), table["params_cifar10"])


def test_all_multiply_adds_equal_the_table_which_also_counts_the_ten_biases_of_the_classifier(parts, table):
    _, blank, _, extra = parts
    published = table["flops_cifar10_M"] * 1e6
    rounded = np.rint(published).astype(np.int64)
    np.testing.assert_allclose(rounded, published, rtol=0, atol=1e-3)  # the table's megas are doubles near 200: 3e-8
    np.testing.assert_array_equal(everywhere(blank, extra) + TASK.classes, rounded)


def test_unique_string_makes_the_classes_of_the_table(unique, table):
    pairs = set(zip(unique, table["unique_id"].tolist(), strict=True))
    assert len(pairs) == len({text for text, _ in pairs}) == len({number for _, number in pairs}) == 6466
