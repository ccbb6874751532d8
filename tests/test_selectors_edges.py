"""Selection among edges: which run, with what gradient, on every engine, around every selector, and what is derived."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from test_selectors import PROGRESS, SPACES, TASK, build_supernet, draw_logits, estimate

from nas import registry
from nas.derivation import Argmax, Darts, Judge, Sampled
from nas.errors import ConfigError
from nas.estimators import deterministic_gate
from nas.estimators.gates import l0_penalty
from nas.randomness import generator as keyed
from nas.runs.search import loss_at_border
from nas.schedules import Constant
from nas.selection import Selection
from nas.selectors import Selector
from nas.selectors.edges import EdgeGates, EdgeTopK
from nas.selectors.score_function import Reinforce
from nas.selectors.softmax import Softmax
from nas.selectors.straight_through import StraightThroughGumbelSoftmax
from nas.selectors.uniform import Uniform
from nas.supernet import Network
from nas.supernet.backends import choose
from nas.testing import check_selector
from search_spaces.darts import DARTS

INNER = [
    name
    for name in registry.names(Selector.registry)
    if registry.load(Selector.registry, name).learns and not registry.load(Selector.registry, name).weighs_edges
]
SPACE = SPACES["nas-bench-201"]
EDGES = SPACE.cells["cell"].edges
JUDGE = Judge(genotype=lambda genotype: 0.0, restricted=lambda masks, decisions: None, tune=lambda masks, steps: None)


@pytest.fixture(scope="module")
def supernet():
    return SPACE, *build_supernet(SPACE)


@pytest.mark.parametrize(("cls", "inner"), [*product((EdgeTopK, EdgeGates), INNER)])
def test_any_selector_that_learns_passes_the_conformance_suite_inside(cls, inner):
    selector = cls(inner=registry.load(Selector.registry, inner)())
    # The suite's tables have two edges, so that keeping two would leave nothing to draw.
    check_selector(replace(selector, keep=1) if isinstance(selector, EdgeTopK) else selector)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_every_node_keeps_its_number_of_inputs(keep):
    selector = EdgeTopK(keep=keep).on(SPACE.cells)
    for seed in range(20):
        decision = selector.decide(draw_logits(SPACE, seed), PROGRESS, keyed(seed))["cell"].detach()
        for node in (1, 2, 3):
            running = [e for e in SPACE.cells["cell"].in_edges(node) if decision.paths[e]]
            assert len(running) == min(keep, node)


def test_edges_are_kept_with_their_plackett_luce_probabilities():
    """For one of three in-edges: proportional to the mean of exp(logits) over its row."""
    selector, logits = EdgeTopK(keep=1).on(SPACE.cells), {"cell": torch.randn(6, 5, generator=keyed(1))}
    level = logits["cell"].exp().mean(-1)[3:]
    counts, draws, repeats = torch.zeros(3), keyed(2), 2000
    for _ in range(repeats):
        paths = selector.decide(logits, PROGRESS, draws)["cell"].detach().paths
        counts += torch.tensor([float(len(paths[e])) for e in (3, 4, 5)])
    expected = level / level.sum()
    error = (expected * (1 - expected) / repeats).sqrt()
    assert ((counts / repeats - expected).abs() < 4 * error).all()


def test_the_gradient_of_an_edge_is_its_relaxations(supernet):
    """With one path per edge, the level of edge e has <g_e, o_e>, through the relaxed one-of-n sample."""
    space, network, images, labels = supernet
    selector = EdgeTopK(inner=Reinforce(baseline="none"), keep=1, temperature=Constant(value=0.7)).on(space.cells)
    logits = draw_logits(space, 4)
    table = logits["cell"]
    draws = keyed(9)
    live = torch.isfinite(table).sum(-1)
    levels = table.logsumexp(-1) - live.log()
    gates, soft = torch.ones(6, dtype=torch.float64), {}
    for group in ([1, 2], [3, 4, 5]):  # the first node has one input only
        noise = -torch.empty(len(group), dtype=torch.float64).exponential_(generator=draws).log()
        soft[tuple(group)] = ((levels[group] + noise) / 0.7).softmax(0)
        hard = F.one_hot(soft[tuple(group)].argmax(), len(group)).double()
        gates[group] = hard
    noise = -torch.empty(6, 5, dtype=torch.float64).exponential_(generator=draws).log()
    path = F.one_hot((table.detach() + noise).argmax(-1), 5).double()
    leaf = gates.clone().requires_grad_()

    selection = Selection(tuple((int(k),) for k in path.argmax(-1)), path * leaf[:, None])
    loss = F.cross_entropy(network(images, {"cell": selection}).scores, labels)
    (at_gates,) = torch.autograd.grad(loss, leaf)
    surrogate = sum((at_gates[list(group)] * y).sum() for group, y in soft.items())
    score = loss.detach() * torch.log_softmax(table, -1)[path.bool()].sum()
    (expected,) = torch.autograd.grad(surrogate + score, table)
    found = torch.autograd.grad(
        selector.objective(lambda s: loss_at_border(network, images, labels, s), logits, PROGRESS, keyed(9), None),
        table,
    )[0]
    # Float64 through a dozen layers.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11 * expected.abs().max().item())


@pytest.mark.parametrize("backend", ["aten", "native"])
@pytest.mark.parametrize(
    "selector", [EdgeTopK(keep=1), EdgeGates(), EdgeGates(inner=Softmax()), EdgeTopK(inner=Reinforce())]
)
def test_engines_agree_on_scaled_and_closed_edges(backend, selector, supernet):
    space, network = supernet[:2]
    for seed in range(4):
        logits = draw_logits(space, seed)
        expected = estimate(selector, supernet, logits, seed)["cell"]
        network.run = choose(backend, torch.device("cpu"))
        found = estimate(selector, supernet, logits, seed)["cell"]
        network.run = choose("reference", torch.device("cpu"))
        # The engines' own promise: 1e-9 of the largest entry.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


def test_a_closed_gate_runs_nothing_and_an_open_one_scales():
    selector = EdgeGates().on(SPACE.cells)
    seen = set()
    for seed in range(30):
        chosen = selector.decide(draw_logits(SPACE, seed), PROGRESS, keyed(seed))["cell"]
        for e in range(6):
            gate = chosen.weights[e].sum().item()
            seen.add("closed" if gate == 0 else "whole" if gate == 1 else "between")
            assert bool(chosen.paths[e]) == (gate != 0) == bool(chosen.probes[e])
    assert seen == {"closed", "whole", "between"}


def test_gates_pay_for_open_edges():
    logits = {"cell": torch.zeros(6, 5, requires_grad=True)}
    dear, free = EdgeGates(penalty=Constant(value=0.5)), EdgeGates(penalty=Constant(value=0.0))
    dear_value, free_value = (
        each.objective(lambda selections: torch.zeros(()), logits, 0.0, keyed(0), None).item() for each in (dear, free)
    )
    assert dear_value - free_value == pytest.approx(0.5 * l0_penalty(torch.zeros(6)).item())


def test_derivation_keeps_the_strongest_edges_of_a_node():
    table = torch.zeros(6, 5)
    table[:, 3] += 1.0  # nor_conv_3x3 everywhere
    table[4] += 2.0
    table[5] += 1.0
    selector = EdgeTopK(keep=2).on(SPACE.cells)
    for rule in (Argmax(), Darts(), Sampled(samples=3)):
        ranks = selector.ranking({"cell": table})
        genotype = rule.derive(SPACE, ranks, JUDGE, keyed(0))
        kept = {(source, target) for source, target, _ in genotype.cells["cell"]}
        assert kept == {(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)}


def test_derivation_leaves_closed_edges_out():
    table = torch.zeros(6, 5)
    table[:, 3] += 1.0
    table[2] -= 5.0  # a gate whose test-time value is exactly zero
    ranks = EdgeGates().ranking({"cell": table})
    assert deterministic_gate(table.logsumexp(-1) - torch.tensor(5.0).log())[2] == 0
    genotype = Argmax().derive(SPACE, ranks, JUDGE, keyed(0))
    assert (1, 2) not in {(source, target) for source, target, _ in genotype.cells["cell"]}
    Network(SPACE.fix(genotype), TASK, searching=False)(torch.randn(2, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"every edge is left out; lower selector\.penalty"):
        Argmax().derive(SPACE, {"cell": torch.zeros(6, 5)}, JUDGE, keyed(0))


def test_two_cells_have_their_own_groups():
    space = DARTS(channels=4, depth=3, nodes=2)
    selector = EdgeTopK(keep=1).on(space.cells)
    logits = {
        name: torch.zeros(cell.mask.shape).masked_fill(~cell.mask, -torch.inf) for name, cell in space.cells.items()
    }
    for name, selection in selector.decide(logits, 0.0, keyed(0)).items():
        cell = space.cells[name]
        for node in cell.order:
            assert sum(bool(selection.detach().paths[e]) for e in cell.in_edges(node)) == 1


def test_schedules_are_logged_by_their_names():
    inner = StraightThroughGumbelSoftmax(temperature=Constant(value=0.4))
    assert EdgeGates(inner=inner).settings(0.0) == {"temperature": 2 / 3, "penalty": 0.01, "inner.temperature": 0.4}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EdgeTopK(keep=0), "keep must be at least 1, got 0"),
        (lambda: EdgeTopK(temperature=Constant(value=0.0)), "temperature.value must be positive, got 0"),
        (lambda: EdgeTopK(inner=Uniform()), "inner must learn logits"),
        (lambda: EdgeGates(inner=EdgeTopK()), "inner must decide among candidates"),
        (lambda: EdgeGates(penalty=Constant(value=-1.0)), "penalty.value must be at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_a_bound_selector_is_the_same_configuration():
    selector = EdgeTopK(keep=1)
    assert selector.on(SPACE.cells) == selector
    assert replace(selector.on(SPACE.cells), keep=2).keep == 2
