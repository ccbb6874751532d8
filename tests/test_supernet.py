"""The engine: a cell computes what its graph says, and a discretised supernet is the derived network."""

import pytest
import torch
from torch import nn

from nas.derivation import discretise, sample, uniform
from nas.errors import ConfigError
from nas.ops import Zero, drop_path
from nas.randomness import generator as keyed
from nas.registry import load, names
from nas.selection import Selection
from nas.space import Cell, CellSlot, Edge, Genotype, Task
from nas.supernet import MixedCell, Network
from nas.supernet.reference import run_cell

SMALL = {
    "darts": {"channels": 2, "depth": 3, "nodes": 3},
    "nas-bench-201": {"channels": 2, "cells_per_stage": 1},
    "chain": {"channels": 2, "stages": 2, "blocks_per_stage": 2},
    "darts-s1": {"channels": 2, "depth": 3},
    "darts-s2": {"channels": 2, "depth": 3, "nodes": 2},
    "darts-s3": {"channels": 2, "depth": 3, "nodes": 2},
    "darts-s4": {"channels": 2, "depth": 3, "nodes": 2},
    "darts-bench": {"channels": 2, "depth": 3},
    "vit": {"channels": 4, "blocks": 2},
}
"""Quick configurations; a space that is not listed here runs with its defaults."""

SPACES = [
    pytest.param(load("nas.search_spaces", name)(**SMALL.get(name, {})), id=name) for name in names("nas.search_spaces")
]
TASK = Task(channels=3, height=9, width=9, classes=4)


def conv(kernel: int):
    return lambda site: nn.Sequential(
        nn.Conv2d(site.in_channels, site.channels, kernel, site.stride, kernel // 2),
        nn.BatchNorm2d(site.channels, affine=False),
    )


OPERATIONS = {
    "none": lambda site: Zero(site.channels, site.stride),
    "skip": lambda site: nn.Identity() if site.stride == 1 else nn.AvgPool2d(1, site.stride),
    "conv1": conv(1),
    "conv3": conv(3),
}
ALL = tuple(OPERATIONS)

EDGES = tuple(Edge(s, t, ALL[: 4 - (s + t) % 2]) for t in (2, 3, 4) for s in range(t))
"""Two inputs and three nodes, fully connected; every other edge has one candidate fewer."""


def mixed_cell(stride: int = 1, combine: str = "concatenate", preprocess=(), **changes) -> MixedCell:
    cell = Cell(EDGES, outputs=(3, 4), inputs=2, combine=combine, **changes)
    torch.manual_seed(0)
    return MixedCell(cell, CellSlot("cell", 3, stride, preprocess), OPERATIONS, searching=True).double()


def images(*shape: int, count: int = 2) -> list[torch.Tensor]:
    return [torch.randn(shape, generator=keyed(0, "image", i), dtype=torch.float64) for i in range(count)]


def plain(cell: MixedCell, inputs: list[torch.Tensor], weights: dict[tuple[int, int, str], torch.Tensor | float]):
    """Returns what the graph says: each node the sum over in-edges of weight times candidate, by names alone."""
    nodes = dict(enumerate(inputs))
    for i, module in enumerate(cell.preprocess):
        nodes[i] = module(nodes[i])
    for target in (2, 3, 4):
        height, width = (-(-side // cell.stride) for side in nodes[0].shape[2:])
        nodes[target] = torch.zeros(len(nodes[0]), 3, height, width, dtype=torch.float64)
        for (source, end, operation), weight in weights.items():
            if end == target:
                module = cell.get_submodule(f"edges.{source}-{target}.{operation}")
                nodes[target] = nodes[target] + weight * module(nodes[source])
    return torch.cat([nodes[3], nodes[4]], 1) if cell.cell.combine == "concatenate" else nodes[3] + nodes[4]


# A cell


@pytest.mark.parametrize("combine", ["concatenate", "sum"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_mixture_is_the_weighted_sum_over_candidates_and_edges(stride, combine, generator):
    cell, inputs = mixed_cell(stride, combine), images(2, 3, 5, 7)
    weights = torch.rand(len(EDGES), 4, dtype=torch.float64, generator=generator, requires_grad=True)
    named = {(e.source, e.target, o): weights[i, k] for i, e in enumerate(EDGES) for k, o in enumerate(e.operations)}
    found = run_cell(cell, inputs, Selection.mixture(weights, cell.cell.mask))
    expected = plain(cell, inputs, named)
    # Batch norms of five numbers per channel and deeper amplify rounding (2e-16) by less than 1e3.
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), [weights, *cell.parameters()]) for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    assert (gradients[0][0] != 0)[cell.cell.mask].sum() > 20  # the comparison is not of zeros
    assert (gradients[0][0][~cell.cell.mask] == 0).all()


@pytest.mark.parametrize("combine", ["concatenate", "sum"])
def test_a_path_without_weights_is_the_sum_of_what_it_runs(combine):
    cell, inputs = mixed_cell(1, combine), images(2, 3, 5, 5)
    chosen = {(0, 2): "conv3", (1, 3): "skip", (2, 3): "conv1", (0, 4): "conv3", (3, 4): "conv1", (2, 4): "none"}
    found = run_cell(cell, inputs, Selection(paths(chosen)))
    expected = plain(cell, inputs, {(*pair, operation): 1.0 for pair, operation in chosen.items()})
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def paths(chosen: dict[tuple[int, int], str]) -> tuple[tuple[int, ...], ...]:
    """Returns the candidate that each edge runs, by the edge's name."""
    running = [chosen.get((edge.source, edge.target)) for edge in EDGES]
    return tuple((ALL.index(operation),) if operation else () for operation in running)


@pytest.mark.parametrize("combine", ["concatenate", "sum"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_node_without_running_in_edges_is_zeros_of_its_shape(stride, combine):
    cell, inputs = mixed_cell(stride, combine), images(2, 3, 5, 7)
    y = run_cell(cell, inputs, Selection(paths({(0, 4): "conv3"})))
    height, width = -(-5 // stride), -(-7 // stride)
    assert y.shape == (2, 6 if combine == "concatenate" else 3, height, width)
    (node,) = [cell.get_submodule("edges.0-4.conv3")(inputs[0])]
    assert torch.equal(y, torch.cat([torch.zeros_like(node), node], 1) if combine == "concatenate" else node)
    blank = run_cell(cell, inputs, Selection(((),) * len(EDGES)))
    assert torch.equal(blank, torch.zeros_like(y))


def test_an_edge_reads_a_node_that_nothing_leads_into_as_zeros():
    cell, inputs = mixed_cell(), images(2, 3, 5, 5)
    y = run_cell(cell, inputs, Selection(paths({(2, 4): "conv3"})))
    expected = cell.get_submodule("edges.2-4.conv3")(torch.zeros(2, 3, 5, 5, dtype=torch.float64))
    assert torch.equal(y[:, 3:], expected)


def test_each_input_has_its_own_preprocessing():
    reduce, widen = nn.Conv2d(5, 3, 1, stride=2), nn.Conv2d(2, 3, 1)
    cell = mixed_cell(preprocess=(reduce, widen))
    inputs = [images(2, 5, 8, 8)[0], images(2, 2, 4, 4)[1]]
    chosen = {(0, 3): "conv1", (1, 4): "conv1"}
    expected = plain(cell, inputs, {(*pair, operation): 1.0 for pair, operation in chosen.items()})
    assert torch.equal(run_cell(cell, inputs, Selection(paths(chosen))), expected)


def test_preprocessing_some_inputs_only_is_refused():
    with pytest.raises(ConfigError, match=r"cell 'cell' preprocesses 1 of 2 inputs"):
        mixed_cell(preprocess=(nn.Identity(),))


def test_the_stride_applies_only_to_edges_that_leave_an_input():
    pairs = [(edge.source, edge.target) for edge in EDGES if "conv3" in edge.operations]
    cell = mixed_cell(stride=2)
    found = {pair: cell.get_submodule(f"edges.{pair[0]}-{pair[1]}.conv3.0").stride[0] for pair in pairs}
    assert found == {(0, 2): 2, (1, 3): 2, (0, 4): 2, (2, 4): 1}


# Drop-path


def test_drop_path_zeroes_whole_samples_scales_the_rest_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.rand(20_000, 2, 2, 1, dtype=torch.float64) + 0.5
    y = drop_path(x, 0.3)
    kept = (y != 0).flatten(1)
    assert (kept.all(1) | ~kept.any(1)).all()
    assert torch.equal(y[kept.all(1)], x[kept.all(1)] / 0.7)
    # Five deviations of a binomial share of 20,000: a false alarm has probability 6e-7.
    assert abs(kept.all(1).double().mean() - 0.7) < 5 * (0.3 * 0.7 / 20_000) ** 0.5


def test_drop_path_spares_the_identity_and_drops_every_other_candidate():
    cell, inputs = mixed_cell(), images(64, 3, 5, 5)
    cell.drop_path = 0.5
    identity = run_cell(cell, inputs, Selection(paths({(1, 4): "skip"})))[:, 3:]
    assert torch.equal(identity, inputs[1])
    y = run_cell(cell, inputs, Selection(paths({(0, 4): "conv3"})))[:, 3:]
    whole = cell.get_submodule("edges.0-4.conv3")(inputs[0]) / 0.5
    dropped = (y == 0).flatten(1).all(1)
    assert 0 < dropped.sum() < 64
    assert torch.equal(y[~dropped], whole[~dropped])


def test_drop_path_is_off_in_evaluation():
    cell, inputs = mixed_cell().eval(), images(8, 3, 5, 5)
    selection = Selection.everything(cell.cell)
    expected = run_cell(cell, inputs, selection)
    cell.drop_path = 0.5
    assert torch.equal(run_cell(cell, inputs, selection), expected)


# Supernet and derived network


def genotypes(space) -> list[Genotype]:
    """Returns random genotypes, complete ones and one in which half of the edges are missing."""
    found = [sample(space, uniform(space), keyed(0, "genotype", key)) for key in range(4)]
    return [*found, Genotype({name: edges[::2] for name, edges in found[0].cells.items()})]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("drop", [0.0, 0.4], ids=["", "drop-path"])
def test_the_discretised_supernet_equals_the_derived_network_bit_for_bit(space, training, drop):
    torch.manual_seed(0)
    supernet = Network(space, TASK, searching=True)
    batch = torch.randn(4, 3, 9, 9)
    supernet(batch, {name: Selection.everything(cell) for name, cell in space.cells.items()})  # moves statistics
    supernet.train(training)
    scores = []
    for genotype in genotypes(space):
        derived = Network(space.fix(genotype), TASK, searching=True).train(training)
        state = supernet.state_dict()
        derived.load_state_dict({key: state[key].clone() for key in derived.state_dict()})
        for network in (supernet, derived):
            for cell in network.mixed_cells:
                cell.drop_path = drop
        torch.manual_seed(1)
        scores.append(supernet(batch, discretise(space, genotype)).scores)
        torch.manual_seed(1)
        assert torch.equal(scores[-1], derived(batch).scores)
        moved = supernet.state_dict()
        assert all(torch.equal(value, moved[key]) for key, value in derived.state_dict().items())
    assert len({tuple(s.flatten().tolist()) for s in scores}) > 2  # the genotypes differ in what they compute


@pytest.mark.parametrize("space", SPACES)
def test_gradients_of_the_discretised_supernet_are_those_of_the_derived_network(space):
    torch.manual_seed(0)
    supernet = Network(space, TASK, searching=True)
    genotype = genotypes(space)[0]
    derived = Network(space.fix(genotype), TASK, searching=True)
    derived.load_state_dict({key: supernet.state_dict()[key] for key in derived.state_dict()})
    batch = torch.randn(4, 3, 9, 9)
    for network, selections in ((supernet, discretise(space, genotype)), (derived, None)):
        torch.manual_seed(0)  # a candidate may draw noise
        network(batch, selections).scores.square().sum().backward()
    gradients = {key: parameter.grad for key, parameter in supernet.named_parameters() if parameter.grad is not None}
    own = {key: parameter.grad for key, parameter in derived.named_parameters() if parameter.grad is not None}
    assert own.keys() == gradients.keys()
    assert all(torch.equal(own[key], gradients[key]) for key in own)


@pytest.mark.parametrize("space", SPACES)
def test_the_state_of_a_derived_network_is_a_subset_of_the_supernets(space):
    state = Network(space, TASK, searching=True).state_dict()
    for genotype in genotypes(space):
        derived = Network(space.fix(genotype), TASK, searching=True).state_dict()
        assert derived.keys() <= state.keys()
        assert all(value.shape == state[key].shape for key, value in derived.items())


@pytest.mark.parametrize("space", SPACES)
def test_candidates_are_named_by_edge_and_operation(space):
    for cell in Network(space, TASK, searching=True).mixed_cells:
        listed = [f"{e.source}-{e.target}.{o}" for e in cell.cell.edges for o in e.operations]
        built = [f"{edge}.{operation}" for edge, ops in cell.edges.named_children() for operation in dict(ops.items())]
        assert built == listed
        flat = [candidate for row in cell.candidates for candidate in row]
        assert all(cell.edges.get_submodule(name) is module for name, module in zip(listed, flat, strict=True))


def test_a_slot_of_an_unknown_cell_is_refused():
    space = load("nas.search_spaces", "chain")(**SMALL["chain"])

    class Broken(type(space)):
        def layers(self, task, searching):
            return [*super().layers(task, searching), CellSlot("stage9", 4)]

    with pytest.raises(ConfigError, match=r"slot of cell 'stage9'; the space has \['stage0-block0'"):
        Network(Broken(), TASK, searching=True)
