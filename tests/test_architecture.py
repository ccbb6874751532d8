"""Architecture parameters: where they start, what is masked, and how they are described."""

import math

import pytest
import torch

from nas.architecture import Architecture, describe
from nas.space import Cell, Edge
from search_spaces.chain import Chain
from search_spaces.darts import DARTS


def test_initial_logits_are_a_function_of_seed_and_cell():
    one, again, other = Architecture(DARTS(), 0), Architecture(DARTS(), 0), Architecture(DARTS(), 1)
    for name, logits in one.logits().items():
        assert torch.equal(logits, again.logits()[name])
        assert not torch.equal(logits, other.logits()[name])
    assert not torch.equal(one.logits()["normal"], one.logits()["reduce"])


def test_the_logits_of_a_cell_do_not_depend_on_other_cells_or_the_global_generator():
    state = torch.get_rng_state()
    short, long = Architecture(Chain(stages=1), 0).logits(), Architecture(Chain(stages=3), 0).logits()
    assert set(short) < set(long)
    assert all(torch.equal(logits, long[name]) for name, logits in short.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_logits_are_normal_with_deviation_one_thousandth():
    logits = torch.cat([torch.cat([*Architecture(DARTS(), seed).logits().values()]) for seed in range(10)]).double()
    count = logits.numel()  # 2,240 draws; five deviations of the mean and of the standard deviation
    assert abs(logits.mean()) < 5e-3 / math.sqrt(count)
    assert abs(logits.std() - 1e-3) < 5e-3 / math.sqrt(2 * count)


def test_masked_candidates_are_minus_infinity_and_get_no_gradient():
    architecture = Architecture(MASKED, 0)
    (logits,) = architecture.logits().values()
    assert torch.equal(logits == -torch.inf, ~MASKED.cells["cell"].mask)
    logits.softmax(-1)[:, 0].sum().backward()
    (gradient,) = [p.grad for p in architecture.parameters()]
    assert torch.equal(gradient != 0, torch.tensor([[True, True, True], [True, True, False], [False] * 3]))


def test_a_checkpoint_holds_tables_which_are_parameters_and_masks_by_cell_name():
    architecture = Architecture(DARTS(), 0)
    assert set(architecture.state_dict()) == {"tables.normal", "tables.reduce", "live-normal", "live-reduce"}
    assert all(p.requires_grad and p.device.type == "cpu" for p in architecture.parameters())


class _Masked:
    """Edges with three, two candidates and one."""

    cells = {"cell": Cell((Edge(0, 1, ("a", "b", "c")), Edge(0, 2, ("b", "a")), Edge(1, 2, ("c",))), outputs=(2,))}


MASKED = _Masked()


def test_describe_gives_the_mean_entropy_and_the_mean_share_of_each_candidate():
    table = torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0], [1.0, 0.0, 0.0]])
    found = describe(MASKED.cells, {"cell": table})
    entropies = [1.5 * math.log(2), 2 * math.log(2) - 0.75 * math.log(3), 0.0]
    assert list(found) == ["entropy", "share/a", "share/b", "share/c"]
    # Float32 probabilities: a relative 6e-8 in each logarithm.
    assert found["entropy"] == pytest.approx(sum(entropies) / 3, rel=1e-6)
    assert found["share/a"] == (0.5 + 0.25) / 2
    assert found["share/b"] == (0.25 + 0.75) / 2
    assert found["share/c"] == (0.25 + 1.0) / 2


def test_describe_averages_over_the_edges_of_all_cells():
    cells = {"x": Cell((Edge(0, 1, ("a", "b")),), outputs=(1,)), "y": Cell((Edge(0, 1, ("a",)),), outputs=(1,))}
    found = describe(cells, {"x": torch.tensor([[0.5, 0.5]]), "y": torch.tensor([[1.0]])})
    assert found == {"entropy": pytest.approx(math.log(2) / 2), "share/a": 0.75, "share/b": 0.5}
