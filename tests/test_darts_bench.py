"""DARTS-Bench-Suite: the published sizes and sets of candidates, and skips beside every candidate."""

import itertools
from functools import reduce
from operator import add

import pytest
import torch
from torch import nn

from nas import ops
from nas.derivation import sample, uniform
from nas.randomness import generator as keyed
from nas.selection import Selection
from nas.space import CellSlot, Task
from nas.supernet import MixedCell, Network
from nas.supernet.reference import run_cell
from nas.testing import check_space
from search_spaces.darts import DARTS, OPERATIONS
from search_spaces.darts_bench_suite import DARTSBenchSuite

TASK = Task(channels=3, height=8, width=8, classes=10)
NINE = [*itertools.product(("wide", "deep", "single-cell"), ("regular", "no-skip", "all-skip"))]


@pytest.mark.parametrize(
    ("setting", "channels", "reductions", "edges", "outputs", "features"),
    [
        ("wide", [18, 36, 72, 72], [1, 2], 14, (2, 3, 4, 5), 4 * 72),
        ("deep", [7] * 6 + [14] * 6 + [28] * 6, [6, 12], 14, (2, 3, 4, 5), 4 * 28),
        ("single-cell", [52], [0], 44, (6, 7, 8, 9), 4 * 52),
    ],
)
def test_networks_have_the_published_sizes(setting, channels, reductions, edges, outputs, features):
    space = DARTSBenchSuite(setting=setting)
    with torch.device("meta"):
        layers = space.layers(TASK, searching=True)
    slots = [layer for layer in layers if isinstance(layer, CellSlot)]
    assert [slot.channels for slot in slots] == channels
    assert [i for i, slot in enumerate(slots) if slot.cell == "reduce"] == reductions
    assert [i for i, slot in enumerate(slots) if slot.stride == 2] == reductions
    assert {slot.cell for slot in slots} == set(space.cells)
    for cell in space.cells.values():
        assert (len(cell.edges), cell.outputs, cell.inputs, cell.retain) == (edges, outputs, 2, 2)
    assert layers[-1][-1].in_features == features


def test_wide_regular_is_darts_of_that_size():
    suite, darts = DARTSBenchSuite(setting="wide", channels=2), DARTS(channels=2, depth=4)
    assert suite.cells == darts.cells
    shapes = [
        {name: value.shape for name, value in Network(space, TASK, searching=True).state_dict().items()}
        for space in (suite, darts)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("setting", "candidates"), NINE)
def test_candidates_are_darts_eight_or_the_seven_without_a_skip(setting, candidates):
    space = DARTSBenchSuite(setting=setting, candidates=candidates)
    expected = tuple(name for name in OPERATIONS if name != "skip_connect" or candidates != "no-skip")
    assert {edge.operations for cell in space.cells.values() for edge in cell.edges} == {expected}


@pytest.mark.parametrize(("setting", "candidates"), NINE)
@pytest.mark.slow
def test_all_nine_keep_the_frameworks_promises(setting, candidates):
    depth = None if setting == "single-cell" else 3
    check_space(DARTSBenchSuite(setting=setting, candidates=candidates, channels=2, depth=depth))


# All skip


@pytest.mark.parametrize("stride", [1, 2])
def test_beside_every_mixture_runs_one_whole_skip(stride):
    """With weights that sum to 1 an edge gives its skip and its mixture, as where a skip stands outside."""
    suite = DARTSBenchSuite(candidates="all-skip")
    torch.manual_seed(0)
    graph, slot = suite.cells["normal"], CellSlot("normal", 4, stride)
    cell = MixedCell(graph, slot, suite.operations, searching=True).double()
    for edge in cell.candidates:
        for candidate in edge:  # the published code has one skip for all candidates of an edge
            candidate.skip.load_state_dict(edge[0].skip.state_dict())
    inputs = [torch.randn(3, 4, 5, 6, generator=keyed(0, "input", i), dtype=torch.float64) for i in (0, 1)]
    weights = torch.rand(14, 8, generator=keyed(0, "weights"), dtype=torch.float64).softmax(1)

    nodes = dict(enumerate(inputs))
    for node in graph.order:
        terms = []
        for e in graph.in_edges(node):
            x, row = nodes[graph.edges[e].source], cell.candidates[e]
            mixture = reduce(add, (weights[e, k] * row[k].operation(x) for k in range(8)))
            terms.append(row[0].skip(x) + mixture)
        nodes[node] = reduce(add, terms)
    expected = torch.cat([nodes[node] for node in graph.outputs], dim=1)
    found = run_cell(cell, inputs, Selection.mixture(weights, graph.mask))
    # Up to a hundred sums in float64, through batch norms, which keep relative errors.
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_derived_networks_keep_the_skips():
    space = DARTSBenchSuite(candidates="all-skip", channels=2)
    genotype = sample(space, uniform(space), keyed(0, "genotype"))
    cells = Network(space.fix(genotype), TASK, searching=False).mixed_cells
    for cell in cells:
        for edge, (candidate,) in zip(cell.cell.edges, cell.candidates, strict=True):
            reduces = edge.source < 2 and cell.stride == 2
            assert type(candidate) is ops.BesideSkip
            assert type(candidate.skip) is (ops.FactorizedReduce if reduces else nn.Identity)


def test_other_sets_have_no_skip_beside():
    for candidates in ("regular", "no-skip"):
        modules = Network(DARTSBenchSuite(candidates=candidates, channels=2), TASK, searching=True).modules()
        assert not any(isinstance(module, ops.BesideSkip) for module in modules)


# Settings


def test_width_and_depth_can_be_set():
    assert DARTSBenchSuite(setting="deep", channels=5, depth=6).sizes == (5, 6, 4)
    assert DARTSBenchSuite(setting="single-cell", channels=5, depth=1).sizes == (5, 1, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"setting": "broad"}, "setting must be one of wide, deep, single-cell, got 'broad'"),
        ({"candidates": "some"}, "candidates must be one of regular, no-skip, all-skip, got 'some'"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"depth": 2}, "depth must be at least 3, but 1 where setting is single-cell, got 2"),
        ({"setting": "single-cell", "depth": 3}, "depth must be at least 3, but 1 where setting is single-cell, got 3"),
        ({"setting": "single-cell", "depth": 0}, "depth must be at least 3, but 1 where setting is single-cell, got 0"),
    ],
)
def test_what_is_not_in_the_suite_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        DARTSBenchSuite(**given)
