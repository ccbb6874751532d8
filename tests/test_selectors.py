"""The equations: each selector's gradient equals its formula, whatever runs, is probed, or stays out.

The formulas are section 5 of the design: v_k = <g, o_k> with g = dL/d(edge output) and o_k candidate k's output, both
taken at the forward point from a plain execution that runs every candidate; noise is drawn again from the same seed.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas import ops, registry, yaml_guard
from nas.config import build, dump, from_mapping
from nas.data import Digits
from nas.randomness import generator as keyed
from nas.runs.configuration import Config, Search
from nas.runs.search import BilevelSearch, loss_at_border
from nas.runs.session import session
from nas.schedules import Constant, Exponential, Linear
from nas.selection import Selection
from nas.selectors import Selector
from nas.selectors.control_variates import Rebar, Relax
from nas.selectors.edge_normalised import EdgeNormalised
from nas.selectors.edges import EdgeGates, EdgeTopK
from nas.selectors.gdas import GDAS
from nas.selectors.gumbel_softmax import GumbelSoftmax
from nas.selectors.mixtures import Dirichlet, Entmax, Sigmoid
from nas.selectors.score_function import Reinforce, ScoreControlVariate
from nas.selectors.softmax import Softmax
from nas.selectors.straight_through import (
    GumbelRao,
    PairReinMax,
    ReinMax,
    SinglePath,
    StraightThrough,
    StraightThroughGumbelSoftmax,
)
from nas.selectors.uniform import Uniform
from nas.space import Cell, CellSlot, Edge, SearchSpace, Task
from nas.supernet import Network
from search_spaces.chain import Chain
from search_spaces.nas_bench_201 import NASBench201

TASK = Task(channels=3, height=8, width=8, classes=5)
PROGRESS = 0.4
TEMPERED = [GumbelSoftmax, StraightThroughGumbelSoftmax, SinglePath, GDAS, GumbelRao]
SURROGATES = [StraightThrough, ReinMax, PairReinMax]
DETERMINISTIC = [Softmax, Entmax, Sigmoid]
LEARNING = [*DETERMINISTIC, *TEMPERED, *SURROGATES]
SCORE = [Reinforce, ScoreControlVariate, Rebar, Relax]
SEEDS = range(5)


@dataclass(frozen=True, kw_only=True)
class Padded(SearchSpace):
    """Edges with three, two and one candidates, so that masks pad the logits; two cells share them."""

    operations = NASBench201.operations

    @property
    def cells(self):
        edges = (
            Edge(0, 1, ("skip_connect", "nor_conv_3x3", "nor_conv_1x1")),
            Edge(0, 2, ("none", "avg_pool_3x3")),
            Edge(1, 2, ("nor_conv_1x1",)),
        )
        return {"cell": Cell(edges, outputs=(1, 2))}

    def layers(self, task, searching):
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, task.classes))
        stem = nn.Conv2d(task.channels, 4, 3, padding=1)
        return [stem, CellSlot("cell", 4), nn.Conv2d(8, 4, 1), CellSlot("cell", 4, stride=2), head]


SPACES = {
    "nas-bench-201": NASBench201(channels=4, cells_per_stage=1),
    "chain": Chain(channels=4, stages=2, blocks_per_stage=2),
    "padded": Padded(),
}


def build_supernet(space, task=TASK, batch=6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(space, task, searching=True).double().train()
    draws = keyed(0, "images")
    images = torch.randn(batch, task.channels, task.height, task.width, generator=draws, dtype=torch.float64)
    return network, images, torch.arange(batch) % task.classes


def draw_logits(space, seed):
    draws = keyed(seed, "logits")
    tables = {n: torch.randn(c.mask.shape, generator=draws, dtype=torch.float64) for n, c in space.cells.items()}
    return {n: t.masked_fill(~space.cells[n].mask, -torch.inf).requires_grad_() for n, t in tables.items()}


@pytest.fixture(scope="module", params=SPACES)
def supernet(request):
    return SPACES[request.param], *build_supernet(SPACES[request.param])


def estimate(selector, supernet, logits, seed):
    """Returns the gradient that a search would use, by cell name."""
    space, network, images, labels = supernet
    loss = selector.on(space.cells).objective(
        lambda selections: loss_at_border(network, images, labels, selections),
        logits,
        PROGRESS,
        keyed(seed),
        memory_of(selector, space),
    )
    return dict(zip(logits, torch.autograd.grad(loss, list(logits.values())), strict=True))


def memory_of(selector, space):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        memory = selector.memory(space.cells)
    return memory if memory is None else memory.double()


def inner_products(supernet, weights):
    """Runs every candidate with these weights; returns v (E, K) and the sums of g (E,), by cell name."""
    _, network, images, labels = supernet
    record = []

    def run_everything(mixed, inputs, selection):
        nodes = dict(enumerate(inputs))
        for node in mixed.cell.order:
            total = 0.0
            for e in mixed.cell.in_edges(node):
                outputs = [candidate(nodes[mixed.cell.edges[e].source]) for candidate in mixed.candidates[e]]
                edge = sum(w * o for w, o in zip(weights[mixed.name][e], outputs, strict=False))
                edge = edge.detach().requires_grad_() if not edge.requires_grad else edge
                record.append((mixed.name, e, edge, [o.detach() for o in outputs]))
                total = total + edge
            nodes[node] = total
        return torch.cat([nodes[node] for node in mixed.cell.outputs], dim=1)

    network.run, kept = run_everything, network.run
    loss = F.cross_entropy(network(images, weights).scores, labels)
    network.run = kept
    gradients = torch.autograd.grad(loss, [edge for _, _, edge, _ in record])
    v = {name: torch.zeros_like(table) for name, table in weights.items()}
    ones = {name: torch.zeros_like(table[:, 0]) for name, table in weights.items()}
    for (name, e, _, outputs), g in zip(record, gradients, strict=True):
        ones[name][e] += g.sum()
        for k, output in enumerate(outputs):
            v[name][e, k] += (g * output).sum()
    return v, ones


def jacobian_product(y, v):
    """Returns (diag(y) - y y') v for each edge."""
    return torch.stack([(torch.diag(row) - torch.outer(row, row)) @ values for row, values in zip(y, v, strict=True)])


def formula(cls, tau, supernet, logits, seed):
    """Returns the gradient that section 5 of the design promises, by cell name."""
    draws, soft, perturbed, again = keyed(seed), {}, {}, {}
    for name, table in logits.items():
        table = table.detach()
        noise = 0.0
        if cls not in DETERMINISTIC:
            noise = -torch.empty(table.shape, dtype=table.dtype).exponential_(generator=draws).log()
        perturbed[name] = table + noise
        soft[name] = (perturbed[name] / tau).softmax(-1)
        if cls is GumbelRao:
            noise = torch.empty((10, *table.shape), dtype=table.dtype).exponential_(generator=draws)
            again[name] = torch.stack([given_winner(table, perturbed[name].argmax(-1), one) for one in noise])
    hard = {name: F.one_hot(y.argmax(-1), y.shape[1]).to(y.dtype) for name, y in soft.items()}
    mixtures = {Softmax: soft, GumbelSoftmax: soft, **WEIGHTS}
    weights = mixtures.get(cls, hard)
    if callable(weights):
        weights = {name: weights(table.detach()) for name, table in logits.items()}
    v, ones = inner_products(supernet, weights)
    result = {}
    for name, y in soft.items():
        pi, values, d = logits[name].detach().softmax(-1), v[name], hard[name]
        if cls is SinglePath:
            values = values * d
        if cls is GDAS:
            values = values * d + ones[name][:, None] * (1 - d)
        if cls in SURROGATES:
            result[name] = torch.stack(
                [surrogate(cls, *row) for row in zip(pi, values, d, perturbed[name], strict=True)]
            )
        elif cls is GumbelRao:
            result[name] = sum(jacobian_product((p / tau).softmax(-1), values) for p in again[name]) / tau / 10
        elif cls is Entmax:
            s = weights[name].sqrt()
            result[name] = s * (values - (s * values).sum(-1, keepdim=True) / s.sum(-1, keepdim=True))
        elif cls is Sigmoid:
            y, live = weights[name], sum(int((w > 0).sum()) for w in weights.values())
            result[name] = y * (1 - y) * (values - 2 * (y - 0.5) / live)
        else:
            result[name] = jacobian_product(y, values) / tau
    return result


def surrogate(cls, pi, v, d, perturbed):
    """Returns the gradient of one edge for sample e_i: J_pi v, ReinMax's sum over j, or the pair's one term."""
    if cls is StraightThrough:
        return (torch.diag(pi) - torch.outer(pi, pi)) @ v
    i, unit = int(d.argmax()), torch.eye(len(pi), dtype=pi.dtype)
    if cls is PairReinMax:
        live = perturbed.isfinite().sum()
        j = int(perturbed.topk(2).indices[1]) if live > 1 else i
        return (1 - pi[i]) / 2 * (v[i] - v[j]) * (unit[i] - unit[j])
    return sum(pi[j] * (v[i] - v[j]) * (unit[i] - unit[j]) for j in range(len(pi))) / 2


def given_winner(logits, winner, exponential):
    """Returns logits + Gumbel noise given the winners, by the formula of Maddison et al."""
    rows = []
    for table, i, e in zip(logits, winner.tolist(), exponential, strict=True):
        z = table.exp().sum()
        row = -(e / table.exp() + e[i] / z).log()
        row[i] = (z / e[i]).log()
        rows.append(row)
    return torch.stack(rows)


def entmax_by_bisection(logits):
    """Returns max(x / 2 - t, 0)^2 with the t at which rows sum to 1."""
    x = logits / 2
    low, high = x.amax(-1, keepdim=True) - 1, x.amax(-1, keepdim=True)
    for _ in range(100):
        t = (low + high) / 2
        above = (x - t).clamp_min(0).square().sum(-1, keepdim=True) > 1
        low, high = torch.where(above, t, low), torch.where(above, high, t)
    return (x - low).clamp_min(0).square()


WEIGHTS = {Entmax: entmax_by_bisection, Sigmoid: torch.sigmoid}


@pytest.mark.parametrize("cls", LEARNING)
def test_the_gradient_is_its_formula(cls, supernet):
    space = supernet[0]
    selector = cls()
    tau = selector.settings(PROGRESS).get("temperature", 1.0)
    moved = {name: torch.zeros(cell.mask.shape, dtype=torch.bool) for name, cell in space.cells.items()}
    for seed in SEEDS:
        logits = draw_logits(space, seed)
        found, expected = estimate(selector, supernet, logits, seed), formula(cls, tau, supernet, logits, seed)
        largest = max(value.abs().max().item() for value in expected.values())
        for name, value in expected.items():
            # Float64 through a dozen layers: 1e-12 of the largest, thousands of roundings of 1e-16.
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12 * largest)
            assert not found[name][~space.cells[name].mask].any()
            moved[name] |= value.abs() > 1e-3 * largest
    for name, cell in space.cells.items():
        # A batch norm takes the scale of a stage's last block out of the loss, which is all that one path tells.
        blind = cls in (SinglePath, GDAS) and name.endswith("-block1")
        for edge, candidates in zip(cell.edges, moved[name].tolist(), strict=True):
            moves = (len(edge.operations) > 1 or cls is Sigmoid) and not blind
            assert any(candidates) == moves, f"these seeds do not test {name} {edge}"


def test_the_formulas_differ(supernet):
    """So that none of the selectors can pass by another's formula."""
    space = supernet[0]
    logits = draw_logits(space, 0)
    every = {cls: torch.cat([g.flatten() for g in formula(cls, 0.7, supernet, logits, 0).values()]) for cls in LEARNING}
    for one, other in itertools.combinations(LEARNING, 2):
        # Batch norms take a constant added to a block's output out of the loss: sum(g) = 0 throughout a chain.
        same = isinstance(space, Chain) and {one, other} == {SinglePath, GDAS}
        apart = (every[one] - every[other]).abs().max() / every[one].abs().max()
        assert apart < 1e-12 if same else apart > 1e-3


RUN_AND_PROBED: dict[type[Selector], Callable[[int], tuple[int, int]]] = {
    Softmax: lambda k: (k, 0),
    GumbelSoftmax: lambda k: (k, 0),
    StraightThroughGumbelSoftmax: lambda k: (1, k - 1),
    SinglePath: lambda k: (1, 0),
    GDAS: lambda k: (1, 0),
    Uniform: lambda k: (1, 0),
    StraightThrough: lambda k: (1, k - 1),
    GumbelRao: lambda k: (1, k - 1),
    ReinMax: lambda k: (1, k - 1),
    PairReinMax: lambda k: (1, min(1, k - 1)),
    Reinforce: lambda k: (1, 0),
    ScoreControlVariate: lambda k: (1, 0),
    Rebar: lambda k: (2 * k + 1, 0),
    Relax: lambda k: (1, 0),
    Dirichlet: lambda k: (k, 0),
    Sigmoid: lambda k: (k, 0),
    EdgeNormalised: lambda k: (k, 0),
}
MIXTURES = {Softmax, GumbelSoftmax, Dirichlet, Sigmoid, EdgeNormalised}
ELSEWHERE = {Entmax, EdgeTopK, EdgeGates}
"""Whose count depends on the logits; below."""


@pytest.fixture
def calls(supernet):
    """Counts calls of candidates with gradients on (run) and off (probed), by cell instance and edge."""
    counts, handles = defaultdict(lambda: [0, 0]), []
    for index, mixed in enumerate(supernet[1].mixed_cells):
        for e, candidates in enumerate(mixed.candidates):
            for candidate in candidates:

                def count(module, inputs, key=(index, e)):
                    counts[key][0 if torch.is_grad_enabled() else 1] += 1

                handles.append(candidate.register_forward_pre_hook(count))
    yield counts
    for handle in handles:
        handle.remove()


def test_every_registered_selector_is_counted_here():
    names = registry.names(Selector.registry)
    assert {registry.load(Selector.registry, name) for name in names} == {*RUN_AND_PROBED} | ELSEWHERE


@pytest.mark.parametrize("cls", RUN_AND_PROBED)
def test_an_architecture_step_runs_and_probes_as_the_table_says(cls, supernet, calls):
    space, network, images, labels = supernet
    memory = memory_of(cls(), space)
    logits = draw_logits(space, 1)
    cls().objective(lambda s: loss_at_border(network, images, labels, s), logits, PROGRESS, keyed(1), memory)
    for index, mixed in enumerate(network.mixed_cells):
        for e, edge in enumerate(mixed.cell.edges):
            assert tuple(calls[index, e]) == RUN_AND_PROBED[cls](len(edge.operations)), (mixed.name, edge)


@pytest.mark.parametrize("cls", RUN_AND_PROBED)
def test_a_weight_step_runs_what_the_decision_says_and_probes_nothing(cls, supernet, calls):
    _, network, images, labels = supernet
    draws = keyed(1)
    with torch.no_grad():
        decision = {n: cls().select(t, PROGRESS, draws).detach() for n, t in draw_logits(supernet[0], 1).items()}
    F.cross_entropy(network(images, decision).scores, labels).backward()
    network.zero_grad(set_to_none=True)
    for index, mixed in enumerate(network.mixed_cells):
        for e, edge in enumerate(mixed.cell.edges):
            count = len(edge.operations) if cls in MIXTURES else 1
            assert tuple(calls[index, e]) == (count, 0), (mixed.name, edge)


@pytest.mark.parametrize("cls", [c for c in [*LEARNING, Dirichlet] if c is not Sigmoid])
def test_the_border_does_not_change_the_gradient(cls, supernet):
    space, network, images, labels = supernet
    logits, draws = draw_logits(space, 2), keyed(2)
    selections = {name: cls().select(table, PROGRESS, draws) for name, table in logits.items()}
    loss = F.cross_entropy(network(images, selections).scores, labels)
    plain = torch.autograd.grad(loss, list(logits.values()))
    found = estimate(cls(**({"anchor": 0.0} if cls is Dirichlet else {})), supernet, logits, 2)
    for table, expected in zip(found.values(), plain, strict=True):
        # The same sums, once by way of a copy: a few roundings.
        torch.testing.assert_close(table, expected, rtol=1e-13, atol=1e-15)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("cls", LEARNING)
def test_the_border_has_the_value_of_the_loss(cls, supernet):
    space, network, images, labels = supernet
    logits, draws = draw_logits(space, 3), keyed(3)
    selections = {name: cls().select(table, PROGRESS, draws) for name, table in logits.items()}
    expected = F.cross_entropy(network(images, selections).scores, labels)
    assert loss_at_border(network, images, labels, selections).item() == expected.item()


def test_a_decision_without_gradient_crosses_the_border_as_a_number(supernet):
    space, network, images, labels = supernet
    selections = {name: Selection(tuple((0,) for _ in cell.edges)) for name, cell in space.cells.items()}
    assert not loss_at_border(network, images, labels, selections).requires_grad


def test_uniform_learns_nothing_and_draws_equally(supernet):
    space, network, images, labels = supernet
    logits, selector = draw_logits(space, 4), Uniform()
    assert not selector.learns
    loss = selector.objective(
        lambda selections: loss_at_border(network, images, labels, selections), logits, PROGRESS, keyed(4), None
    )
    assert not loss.requires_grad
    for name, cell in space.cells.items():
        rows = selector.probabilities(logits[name]).tolist()
        for edge, row in zip(cell.edges, rows, strict=True):
            count = len(edge.operations)
            assert row == pytest.approx([1 / count] * count + [0.0] * (cell.candidates - count), abs=1e-15)


@dataclass(frozen=True, kw_only=True)
class SingleInput(SearchSpace):
    """One edge into a node that a batch norm reads: the loss knows neither the scale nor the shift of the edge."""

    operations = {
        "conv_1x1": lambda s: nn.Conv2d(s.in_channels, s.channels, 1),
        "conv_3x3": lambda s: nn.Conv2d(s.in_channels, s.channels, 3, padding=1),
        "pool": lambda s: ops.average_pool(3, s.stride),
    }

    @property
    def cells(self):
        return {"cell": Cell((Edge(0, 1, tuple(self.operations)),), outputs=(1,))}

    def layers(self, task, searching):
        norm = nn.BatchNorm2d(4, eps=1e-30)  # the loss knows the scale to relative order eps / variance
        head = nn.Sequential(norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, task.classes))
        return [nn.Conv2d(task.channels, 4, 1), CellSlot("cell", 4), head]


@pytest.mark.parametrize("seed", range(3))
def test_one_path_into_a_batch_norm_has_no_gradient_without_probes(seed):
    supernet = SingleInput(), *build_supernet(SingleInput())
    logits = draw_logits(SingleInput(), seed)
    size = {cls: estimate(cls(), supernet, logits, seed)["cell"].abs().max().item() for cls in LEARNING}
    assert size[StraightThroughGumbelSoftmax] > 1e-4
    # <g, o> and sum(g) of 6 x 4 x 64 terms of order 1e-2 cancel.
    assert size[SinglePath] < 1e-12
    assert size[GDAS] < 1e-12


@pytest.mark.parametrize("cls", [cls for cls in TEMPERED if cls is not GumbelRao])
def test_the_temperature_follows_its_schedule(cls):
    selector = cls(temperature=Linear(start=4.0, end=1.0))
    assert [selector.settings(progress) for progress in (0.0, 0.5, 1.0)] == [{"temperature": t} for t in (4, 2.5, 1)]
    logits = torch.tensor([[0.5, -0.4, 0.2]], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for progress, tau in ((0.0, 4.0), (0.5, 2.5), (1.0, 1.0)):
        weights = selector.select(logits, progress, keyed(0)).weights
        (found,) = torch.autograd.grad((weights * v).sum(), logits)
        noise = -torch.empty(1, 3, dtype=torch.float64).exponential_(generator=keyed(0)).log()
        y = ((logits.detach() + noise) / tau).softmax(-1)
        # Sums of three products of order one.
        torch.testing.assert_close(found, jacobian_product(y, v[None]) / tau, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("cls", [Softmax, Uniform])
def test_without_a_schedule_there_are_no_settings(cls):
    assert cls().settings(0.3) == {}


@pytest.mark.parametrize("cls", TEMPERED)
@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Constant(value=0.0), "temperature.value must be positive, got 0"),
        (Constant(value=math.nan), "temperature.value must be positive, got nan"),
        (Linear(start=1.0, end=-0.5), "temperature.end must be positive, got -0.5"),
        (Linear(start=0.0, end=1.0), "temperature.start must be positive, got 0"),
    ],
)
def test_a_temperature_that_is_not_positive_is_refused_by_its_name(cls, schedule, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        cls(temperature=schedule)


@pytest.mark.parametrize("cls", TEMPERED)
def test_yaml_gives_a_selector_back(cls):
    for selector in (cls(), cls(temperature=Exponential(start=3.0, end=0.25)), cls(temperature=Constant(value=0.5))):
        tree, _ = yaml_guard.parse(dump(selector), "YAML")
        assert build(Selector, [from_mapping(tree, "YAML")]) == selector


@pytest.fixture
def search(tmp_path):
    config = Config(
        space=NASBench201(channels=4, cells_per_stage=1), dataset=Digits(), search=Search(epochs=1, batch_size=8)
    )
    with session(tmp_path, config, "search", quiet=True) as work:
        yield BilevelSearch(work)


def test_an_architecture_step_leaves_the_network_as_it_was(search):
    network = search.network
    search.step(0, 0.0)  # a weight step, so that statistics are no longer the initial ones
    search.weights.zero_grad(set_to_none=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    logits = {name: value.detach().clone() for name, value in search.architecture.logits().items()}
    search._architecture_step(1, 0.5)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert all(norm.track_running_stats for norm in network.modules() if isinstance(norm, nn.BatchNorm2d))
    assert not any(torch.equal(logits[name], value) for name, value in search.architecture.logits().items())


def test_a_weight_step_leaves_the_logits_as_they_were(search):
    logits = {name: value.detach().clone() for name, value in search.architecture.logits().items()}
    search._weight_step(0, 0.5)
    assert all(torch.equal(logits[name], value) for name, value in search.architecture.logits().items())
    assert all(parameter.grad is None for parameter in search.architecture.parameters())


def test_logits_rest_while_the_weights_warm_up(search):
    assert "arch_loss" not in search.step(0, 0.0)
    assert "arch_loss" in search.step(1, search.settings.warmup)


def test_the_anchor_of_dirichlet_is_the_divergence_from_the_flat_law():
    logits = torch.tensor([[0.5, -1.0, 0.2], [-2.0, 1.5, -math.inf]], dtype=torch.float64, requires_grad=True)
    price = Dirichlet(anchor=2.0).objective(lambda s: torch.zeros(()), {"cell": logits}, 0.0, keyed(0), None)
    expected = 0.0
    for row in logits:
        concentration = F.elu(row[row.isfinite()]) + 1
        law, flat = (
            torch.distributions.Dirichlet(concentration),
            torch.distributions.Dirichlet(torch.ones_like(concentration)),
        )
        expected = expected + 2.0 * torch.distributions.kl_divergence(law, flat)
    # A dozen roundings of numbers of order one.
    assert price.item() == pytest.approx(expected.item(), rel=1e-12)
    found, wanted = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (price, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_dirichlet_draws_have_the_mean_and_variance_of_the_law():
    """Of the live candidates alone, whatever the mask; five standard errors of 4,000 draws."""
    logits = torch.tensor([[0.5, -1.0, -math.inf, 0.2]])
    concentration = F.elu(logits[logits.isfinite()]) + 1
    law, generator = torch.distributions.Dirichlet(concentration), keyed(3)
    draws = torch.stack([Dirichlet().select(logits, 0.0, generator).weights[0] for _ in range(4000)])
    assert not draws[:, 2].any()
    live = draws[:, [0, 1, 3]]
    assert ((live.mean(0) - law.mean).abs() < 5 * (law.variance / 4000).sqrt()).all()
    fourth = ((live - law.mean) ** 2).var(0)
    assert ((live.var(0) - law.variance).abs() < 5 * (fourth / 4000).sqrt()).all()
    assert torch.allclose(Dirichlet().probabilities(logits)[0, [0, 1, 3]], law.mean)


def test_a_candidate_outside_the_support_of_entmax_does_not_run():
    logits = torch.tensor([[3.0, 0.0, -3.0], [0.1, 0.0, -0.1]])
    selection = Entmax().select(logits, 0.0, keyed(0))
    assert selection.paths[1] == (0, 1, 2)
    assert 2 not in selection.paths[0]
    assert Entmax(alpha=2.0).select(logits, 0.0, keyed(0)).paths[0] == (0,)
    with pytest.raises(ValueError, match=r"alpha must be 1\.5"):
        Entmax(alpha=1.7)


def test_decisions_are_drawn_at_the_forward_temperature(tmp_path):
    """At 4, log-odds of 2 become 1/2; the gradient in the logits is that of what was drawn, over the temperature."""
    config = Config(
        space=NASBench201(channels=4, cells_per_stage=1),
        selector=StraightThrough(),
        dataset=Digits(),
        search=Search(epochs=1, batch_size=8, forward_temperature=Constant(value=4.0)),
    )
    with session(tmp_path, config, "search", quiet=True) as work:
        search = BilevelSearch(work)
        with torch.no_grad():
            search.architecture.tables["cell"].zero_()[:, 0] += 2.0
        count = sum(path == (0,) for i in range(300) for path in search.decide(0.5, "test", i)["cell"].paths)
        expected = math.exp(0.5) / (math.exp(0.5) + 4)
        # Four standard errors of 1,800 draws.
        assert count / 1800 == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 1800))


def test_the_entropy_bonus_pulls_towards_even_decisions(tmp_path):
    """With a bonus alone the gradient is -bonus dH/dlogits; it is what the bonus adds to the architecture step."""
    gradients = []
    for bonus in (0.0, 0.5):
        config = Config(
            space=NASBench201(channels=4, cells_per_stage=1),
            dataset=Digits(),
            search=Search(epochs=1, batch_size=8, entropy=Constant(value=bonus)),
        )
        with session(tmp_path / str(bonus), config, "search", quiet=True) as work:
            search = BilevelSearch(work)
            table = search.architecture.tables["cell"]
            with torch.no_grad():
                table[:, 0] += 1.0
            p = table.detach().softmax(-1)
            with patch("nas.runs.search.descend_along") as descend:
                search._architecture_step(0, 0.5)
            gradients.append(descend.call_args.args[0][0])
    added = 0.5 * p * (p.log() - (p * p.log()).sum(-1, keepdim=True))
    # Float32 sums of a gradient of order 0.1.
    torch.testing.assert_close(gradients[1] - gradients[0], added, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", registry.names(Selector.registry))
@pytest.mark.parametrize(
    "row", [[0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3], ids=["nan", "inf", "masked"]
)
def test_logits_that_say_nothing_are_refused(name, row):
    selector = registry.load(Selector.registry, name)()
    with pytest.raises(ValueError, match="logits must be finite, or -inf for a masked candidate"):
        selector.select(torch.tensor([[0.0, 1.0, 2.0], row]), 0.5, keyed(0))


@pytest.mark.parametrize("name", registry.names(Selector.registry))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_give_finite_decisions(name, dtype):
    selector, draws = registry.load(Selector.registry, name)(), keyed(0)
    for _ in range(50):
        weights = selector.select(8 * torch.randn(14, 8).to(dtype), 0.5, draws).weights
        assert weights.isfinite().all()
