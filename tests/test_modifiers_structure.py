"""Modifiers that change the supernet: partial channels, auxiliary skips, entangled weights; and edge normalisation."""

import copy
import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_engine import assert_agree, run, select
from test_resume import DARTS as DARTS_SMALL
from test_resume import NAS_BENCH, assert_same, finish, flags, products, stop  # noqa: F401 - stop is a fixture
from torch import Tensor, nn

from nas import ops, registry
from nas.derivation import discretise, sample, uniform
from nas.errors import ConfigError
from nas.hypergradients import FirstOrder, Neumann, SingleLevel, Unrolled
from nas.randomness import generator as keyed
from nas.runs.bench.steps import fixed_subject
from nas.runs.modifiers.auxiliary_skip import AUXILIARY, AuxiliarySkip
from nas.runs.modifiers.entanglement import Entanglement
from nas.runs.modifiers.partial import PartialChannels
from nas.runs.search import loss_at_border
from nas.schedules import Constant
from nas.selection import Selection
from nas.selectors import Selector
from nas.selectors.edge_normalised import EdgeNormalised
from nas.selectors.edges import EdgeGates, EdgeTopK
from nas.selectors.gdas import GDAS
from nas.selectors.softmax import Softmax
from nas.selectors.straight_through import StraightThroughGumbelSoftmax
from nas.selectors.uniform import Uniform
from nas.space import Cell, CellSlot, Edge, SearchSpace, Task
from nas.supernet import MixedCell, Network, reference
from nas.supernet.backends import choose
from nas.supernet.inspection import inspect
from nas.supernet.nesting import nested, shares
from nas.testing import check_selector
from search_spaces.chain import Chain
from search_spaces.darts import DARTS
from search_spaces.nas_bench_201 import NASBench201

CPU = torch.device("cpu")
TASK = Task(channels=3, height=9, width=7, classes=4)
SPACES = {
    "nas-bench-201": NASBench201(channels=4, cells_per_stage=1),
    "darts": DARTS(channels=4, depth=3, nodes=2),
    "chain": Chain(channels=4, stages=2),
}
MODIFIERS = {
    "partial-channels": {"name": "partial-channels", "share": 2},
    "auxiliary-skip": "auxiliary-skip",
    "entanglement": "entanglement",
}
BACKENDS = ["reference", "aten", "native"]


@pytest.fixture
def searching(searching):
    """Searches are four steps long here."""
    return partial(searching, epochs=4)


def images(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(shape, generator=keyed(key, "images"), dtype=torch.float64)


def network_of(space: SearchSpace, **settings) -> Network:
    torch.manual_seed(0)
    return Network(space, TASK, searching=True, **settings).double()


def draw_weights(space: SearchSpace, seed: int = 0) -> dict[str, Tensor]:
    draws = keyed(seed, "weights")
    return {
        name: torch.rand(cell.mask.shape, generator=draws, dtype=torch.float64).masked_fill(~cell.mask, 0.0)
        for name, cell in space.cells.items()
    }


def mixture(space: SearchSpace, seed: int = 0) -> dict[str, Selection]:
    return {
        name: Selection.mixture(w.requires_grad_(), space.cells[name].mask)
        for name, w in draw_weights(space, seed).items()
    }


def draw_logits(space: SearchSpace, seed: int = 0) -> dict[str, Tensor]:
    draws = keyed(seed, "logits")
    tables = {n: torch.randn(c.mask.shape, generator=draws, dtype=torch.float64) for n, c in space.cells.items()}
    return {n: t.masked_fill(~space.cells[n].mask, -torch.inf).requires_grad_() for n, t in tables.items()}


def assert_near(found: Tensor, expected: Tensor) -> None:
    """In float64, where a dozen layers with batch norms amplify rounding by less than 1e4."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11 * max(float(expected.detach().abs().max()), 1e-3))


# Partial channels


OPERATIONS = {
    "skip_connect": lambda s: ops.skip_connect(s.in_channels, s.channels, s.stride, affine=False),
    "conv": lambda s: ops.relu_conv_norm(s.in_channels, s.channels, 3, s.stride, affine=False),
    "pool": lambda s: ops.average_pool(3, s.stride),
    "none": lambda s: ops.Zero(s.channels, s.stride),
}
EDGES = tuple(Edge(s, t, tuple(OPERATIONS)[: 4 - (s + t) % 2]) for t in (2, 3) for s in range(t))


def partial_cell(share: int, stride: int) -> MixedCell:
    torch.manual_seed(0)
    cell = Cell(EDGES, outputs=(2, 3), inputs=2)
    return MixedCell(cell, CellSlot("cell", 8, stride, partial=share), OPERATIONS, searching=True).double()


def published_edge(operations: list[nn.Module], x: Tensor, weights: Tensor, share: int, stride: int) -> Tensor:
    """PC-DARTS's mixed operation, channel by channel: its channel i * share + g was g * C / share + i."""
    part = x.shape[1] // share
    seen, passed = x[:, :part], x[:, part:]
    mixed = sum(weight * operation(seen) for weight, operation in zip(weights, operations, strict=False))
    if stride == 2:
        passed = F.pad(passed, (0, passed.shape[3] % 2, 0, passed.shape[2] % 2), value=-torch.inf)
        windows = [passed[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        passed = torch.stack(windows).amax(0)
    whole = torch.cat([mixed, passed], dim=1)
    return torch.stack([whole[:, g * part + i] for i in range(part) for g in range(share)], dim=1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("share", [2, 4])
@pytest.mark.parametrize("weighed", [False, True])
def test_a_partial_cell_is_the_published_mixed_operation(weighed, share, stride):
    cell = partial_cell(share, stride)
    inputs = [images(2, 8, 5, 7, key=i).requires_grad_() for i in (0, 1)]
    weights = torch.rand(len(EDGES), 4, generator=keyed(0), dtype=torch.float64).requires_grad_()
    gates = torch.rand(len(EDGES), generator=keyed(1), dtype=torch.float64).requires_grad_()
    scale = gates if weighed else torch.ones_like(gates)
    nodes = dict(enumerate(inputs))
    for target in (2, 3):
        nodes[target] = sum(
            scale[e]
            * published_edge(
                cell.candidates[e], nodes[edge.source], weights[e], share, stride if edge.source < 2 else 1
            )
            for e, edge in enumerate(EDGES)
            if edge.target == target
        )
    expected = torch.cat([nodes[2], nodes[3]], dim=1)
    selection = Selection.mixture(weights * scale[:, None], cell.cell.mask)
    selection = Selection(selection.paths, selection.weights, gates=gates if weighed else None)
    found = reference.run_cell(cell, inputs, selection)
    assert_near(found, expected)
    wanted = [weights, *inputs, *cell.parameters(), *([gates] if weighed else [])]
    factor = images(*expected.shape, key=7)
    for one, other in zip(*(torch.autograd.grad((y * factor).sum(), wanted) for y in (found, expected)), strict=True):
        assert_near(one, other)


def test_probes_see_the_candidates_own_channels():
    """A sampled path's weights have the gradient that they have if every candidate runs, unsampled ones at weight 0."""
    cell, inputs = partial_cell(4, 1), [images(2, 8, 5, 5, key=i) for i in (0, 1)]
    hard = F.one_hot(torch.tensor([1, 0, 0, 1, 2]), 4).double()
    gradients = []
    for probing in (True, False):
        weights = hard.clone().requires_grad_()
        path, everything = Selection.single_path(weights, cell.cell.mask), Selection.mixture(weights, cell.cell.mask)
        assert all(path.probes)
        y = reference.run_cell(cell, inputs, path if probing else everything)
        gradients.append(torch.autograd.grad((y * images(*y.shape, key=7)).sum(), weights)[0])
    assert_near(*gradients)
    assert (gradients[0] != 0).sum() > len(EDGES)


def test_a_partial_edge_that_runs_nothing_passes_nothing_and_one_that_runs_none_its_bypass():
    cell, inputs = partial_cell(4, 1), [images(2, 8, 5, 5, key=i) for i in (0, 1)]
    blank = reference.run_cell(cell, inputs, Selection(((),) * len(EDGES)))
    assert torch.equal(blank, torch.zeros(2, 16, 5, 5, dtype=torch.float64))
    none = EDGES[0].operations.index("none")
    y = reference.run_cell(cell, inputs, Selection(((none,), (), (), (), ())))[:, :8]
    assert torch.equal(y[:, 0::4], torch.zeros(2, 2, 5, 5, dtype=torch.float64))
    assert torch.equal(y[:, 1::4], inputs[0][:, 2:4])


@pytest.mark.parametrize("name", ["nas-bench-201", "darts"])
def test_the_discretised_partial_supernet_is_the_derived_network_with_bypasses(name):
    space = PartialChannels(share=2).modify(SPACES[name])
    supernet = network_of(space)
    batch = images(4, 3, 9, 7)
    for key in range(3):
        genotype = sample(space, uniform(space), keyed(key))
        derived = network_of(space.fix(genotype))
        derived.load_state_dict({k: supernet.state_dict()[k].clone() for k in derived.state_dict()})
        assert torch.equal(supernet(batch, discretise(space, genotype)).scores, derived(batch).scores)


@pytest.mark.parametrize("backend", ["aten", "native"])
@pytest.mark.parametrize(
    "selector",
    [Softmax(), StraightThroughGumbelSoftmax(), GDAS(), EdgeTopK(keep=1), EdgeGates(), EdgeNormalised(), Uniform()],
    ids=lambda selector: type(selector).__name__,
)
@pytest.mark.parametrize("name", ["nas-bench-201", pytest.param("darts", marks=pytest.mark.slow)])
def test_engines_agree_on_partial_channels(name, selector, backend):
    space = PartialChannels(share=2).modify(SPACES[name])
    plain = network_of(space)
    fast = copy.deepcopy(plain)
    fast.run, fast.fast = choose(backend, CPU), True
    for seed, logits in ((0, False), (1, selector.learns)):
        selections = select(space, selector, seed, gradient=logits)
        found, expected = (
            run(network, images(4, 3, 9, 7), selections, weights=not logits, logits=logits) for network in (fast, plain)
        )
        assert_agree(found, expected)


def test_dense_convolutions_on_partial_channels_can_be_rounded_and_scores_stay_in_float32():
    space = PartialChannels(share=2).modify(SPACES["nas-bench-201"])
    selections = {name: Selection(s.paths, s.weights.float()) for name, s in mixture(space).items()}
    scores = []
    for settings in ({}, {"run": choose("aten", CPU, "bfloat16"), "fast": True}):
        torch.manual_seed(0)
        network = Network(space, TASK, searching=True, **settings)
        scores.append(network(images(4, 3, 9, 7).float(), selections).scores)
    assert scores[1].dtype == torch.float32
    assert not torch.equal(scores[1], scores[0])
    # Relative errors of 2^-9 in each factor, through a few batch norms, which keep them relative.
    torch.testing.assert_close(scores[1], scores[0], rtol=0.1, atol=0.1 * float(scores[0].detach().abs().max()))


@pytest.mark.parametrize(
    ("name", "share", "message"),
    [
        ("nas-bench-201", 3, "cell 'cell' maps 4 to 4 channels; to run on 1/3 of them"),
        ("chain", 2, "cell 'stage1-block0' maps 4 to 8 channels"),
    ],
)
def test_channels_that_cannot_be_parted_are_refused_before_the_search(name, share, message):
    with pytest.raises(ConfigError, match=message) as raised:
        inspect(PartialChannels(share=share).modify(SPACES[name]), TASK, searching=True)
    assert "search.modifiers" in str(raised.value)


# Edge normalisation


INNER = [
    name
    for name in registry.names(Selector.registry)
    if registry.load(Selector.registry, name).learns and not registry.load(Selector.registry, name).weighs_edges
]


QUICK = ("softmax", "st-gs")


@pytest.mark.parametrize(
    "inner", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in INNER]
)
def test_any_selector_that_learns_passes_the_conformance_suite_inside(inner):
    check_selector(EdgeNormalised(inner=registry.load(Selector.registry, inner)()))


def test_the_edges_into_a_node_share_a_softmax_and_those_of_other_nodes_do_not():
    space = SPACES["darts"]
    selector = EdgeNormalised().on(space.cells)
    for name, selection in selector.decide(draw_logits(space), 0.5, keyed(0)).items():
        cell = space.cells[name]
        for node in cell.order:
            assert selection.gates[cell.in_edges(node)].sum().item() == pytest.approx(1)
        assert torch.equal(
            selection.weights,
            Softmax().select(draw_logits(space)[name], 0.5, keyed(0)).weights * selection.gates[:, None],
        )


def test_a_lone_edge_is_not_scaled():
    space = SPACES["chain"]
    found = EdgeNormalised().on(space.cells).decide(draw_logits(space), 0.5, keyed(0))
    assert all(selection.gates.tolist() == [1.0] for selection in found.values())


@pytest.mark.parametrize("name", ["nas-bench-201", "darts"])
def test_rows_and_their_means_are_the_published_logits_and_betas(name):
    """Loss and gradients are those of separate tables, softmax(alpha) per edge and softmax(beta) per node."""
    space = SPACES[name]
    network, batch = network_of(PartialChannels(share=2).modify(space)), images(6, 3, 9, 7)
    labels = torch.arange(6) % 4
    logits = draw_logits(space)
    alphas, betas, published = {}, {}, {}
    for cell_name, cell in space.cells.items():
        row = logits[cell_name].detach()
        betas[cell_name] = row.mean(-1).requires_grad_()
        alphas[cell_name] = (row - row.mean(-1, keepdim=True)).requires_grad_()
        shares = torch.ones(len(cell.edges), dtype=torch.float64)
        for node in cell.order:
            group = cell.in_edges(node)
            shares = shares.index_put((torch.tensor(group),), betas[cell_name][group].softmax(0))
        weights = alphas[cell_name].softmax(-1) * shares[:, None]
        published[cell_name] = Selection(Selection.mixture(weights, cell.mask).paths, weights, gates=shares)
    expected = F.cross_entropy(network(batch, published).scores, labels)
    selector = EdgeNormalised().on(space.cells)
    found = selector.objective(lambda s: loss_at_border(network, batch, labels, s), logits, 0.5, keyed(0), None)
    assert_near(found, expected)
    tables = torch.autograd.grad(found, [*logits.values()])
    of_alphas = torch.autograd.grad(expected, [*alphas.values()], retain_graph=True)
    of_betas = torch.autograd.grad(expected, [*betas.values()])
    for table, alpha, beta in zip(tables, of_alphas, of_betas, strict=True):
        assert beta.abs().max() > 1e-6
        assert_near(table, alpha + beta[:, None] / table.shape[1])


def test_the_gradient_of_a_level_leaves_the_candidates_alone():
    table = torch.tensor([[0.3, -1.0, -torch.inf], [0.2, 0.1, 2.0]], requires_grad=True)
    gates = EdgeNormalised().gates("", table, 0.5, keyed(0))
    (gradient,) = torch.autograd.grad(gates[0], table)
    assert gradient[0, 0] == gradient[0, 1] != 0
    assert gradient[0, 2] == 0
    assert len(set(gradient[1].tolist())) == 1


def test_a_derivation_ranks_by_the_product_of_candidate_and_edge():
    space = SPACES["nas-bench-201"]
    logits = draw_logits(space)
    ranks = EdgeNormalised().on(space.cells).ranking(logits)["cell"]
    gates = EdgeNormalised().on(space.cells).gates("cell", logits["cell"], 1.0, keyed(0))
    assert torch.equal(ranks, logits["cell"].softmax(-1) * gates[:, None])


def test_it_draws_what_its_inner_selector_draws():
    assert not EdgeNormalised().stochastic
    assert EdgeNormalised(inner=StraightThroughGumbelSoftmax()).stochastic
    assert not EdgeNormalised().on(SPACES["darts"].cells).stochastic


# Auxiliary skips


@pytest.mark.parametrize("name", SPACES)
def test_every_edge_that_offers_a_skip_has_another_and_logits_know_nothing_of_it(name):
    space, modified = SPACES[name], AuxiliarySkip().modify(SPACES[name])
    for cell, other in zip(space.cells.values(), modified.cells.values(), strict=True):
        for edge, longer in zip(cell.edges, other.edges, strict=True):
            assert longer.operations == edge.operations + (AUXILIARY,) * ("skip_connect" in edge.operations)
    modified.check()


def aside(cell: MixedCell, inputs: list[Tensor], weights: Tensor, beta: Tensor) -> Tensor:
    """The sum over candidates and, at weight beta[e], the auxiliary skip."""
    nodes = dict(enumerate(inputs))
    for target in (2, 3):
        terms = []
        for e, edge in enumerate(cell.cell.edges):
            if edge.target == target:
                x = nodes[edge.source]
                own = edge.operations.index(AUXILIARY)
                terms += [weights[e, k] * cell.candidates[e][k](x) for k in range(own)]
                terms.append(beta[e] * cell.candidates[e][own](x))
        nodes[target] = sum(terms)
    return torch.cat([nodes[2], nodes[3]], dim=1)


def accompanied_cell(stride: int) -> tuple[Cell, MixedCell]:
    torch.manual_seed(0)
    known = Cell(EDGES, outputs=(2, 3), inputs=2)
    longer = Cell(tuple(Edge(e.source, e.target, (*e.operations, AUXILIARY)) for e in EDGES), (2, 3), 2)
    operations = {**OPERATIONS, AUXILIARY: OPERATIONS["skip_connect"]}
    return known, MixedCell(longer, CellSlot("cell", 4, stride), operations, searching=True).double()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("weighed", [False, True])
def test_the_skip_is_added_to_the_mixture_at_its_own_weight(weighed, stride, backend):
    known, cell = accompanied_cell(stride)
    inputs = [images(2, 4, 6, 6, key=i).requires_grad_() for i in (0, 1)]
    weights = torch.rand(known.mask.shape, generator=keyed(0), dtype=torch.float64).masked_fill(~known.mask, 0)
    weights.requires_grad_()
    gates = torch.rand(len(EDGES), generator=keyed(1), dtype=torch.float64).requires_grad_()
    scale = gates if weighed else torch.ones_like(gates)
    selection = Selection.mixture(weights * scale[:, None], known.mask)
    selection = Selection(selection.paths, selection.weights, gates=gates if weighed else None)
    found = choose(backend, CPU)(cell, inputs, selection.beside(cell.cell, AUXILIARY, 0.375))
    expected = aside(cell, inputs, weights * scale[:, None], 0.375 * scale)
    assert_near(found, expected)
    wanted = [weights, *inputs, *cell.parameters(), *([gates] if weighed else [])]
    factor = images(*expected.shape, key=7)
    # The engines' own promise: 1e-9 of the largest entry.
    for one, other in zip(*(torch.autograd.grad((y * factor).sum(), wanted) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9 * float(other.abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sampled_path_with_probes_and_offset_has_its_skip_too(backend):
    known, cell = accompanied_cell(1)
    inputs = [images(2, 4, 6, 6, key=i) for i in (0, 1)]
    hard = F.one_hot(torch.tensor([1, 0, 0, 1, 2]), 4).double().requires_grad_()
    offset = (hard - hard.detach()).sum(1)
    path = Selection.single_path(hard, known.mask, offset=offset)
    everything = Selection(Selection.mixture(hard, known.mask).paths, hard, offset=offset)
    outputs, gradients = [], []
    for execute, selection in ((choose(backend, CPU), path), (reference.run_cell, everything)):
        y = execute(cell, inputs, selection.beside(cell.cell, AUXILIARY, 0.375))
        outputs.append(y)
        gradients += torch.autograd.grad((y * images(*y.shape, key=7)).sum(), hard, retain_graph=True)
    assert_near(*outputs)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9 * float(gradients[1].abs().max()))


def test_without_weights_the_candidate_counts_one_and_the_skip_beta():
    _, cell = accompanied_cell(1)
    inputs = [images(2, 4, 6, 6, key=i) for i in (0, 1)]
    chosen = (1, 0, 0, 1, 2)
    found = Selection(tuple((k,) for k in chosen)).beside(cell.cell, AUXILIARY, 0.375)
    weights = F.one_hot(torch.tensor(chosen), 4).double()
    expected = aside(cell, inputs, weights, torch.full((len(EDGES),), 0.375, dtype=torch.float64))
    assert_near(reference.run_cell(cell, inputs, found), expected)


def test_the_weights_of_candidates_stay_what_they_are_and_an_edge_that_runs_nothing_stays_closed():
    known, cell = accompanied_cell(1)
    weights = torch.rand(known.mask.shape, generator=keyed(0)).masked_fill(~known.mask, 0)
    paths = Selection.mixture(weights, known.mask).paths
    found = Selection((paths[0], (), *paths[2:]), weights).beside(cell.cell, AUXILIARY, 0.3)
    for e, edge in enumerate(cell.cell.edges):
        own = edge.operations.index(AUXILIARY)
        assert torch.equal(found.weights[e, :own], weights[e, :own])
        assert found.paths[e] == ((*paths[e], own) if e != 1 else ())
        assert found.weights[e, own] == (torch.tensor(0.3) if e != 1 else 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["nas-bench-201", "chain", pytest.param("darts", marks=pytest.mark.slow)])
def test_at_weight_zero_nothing_of_the_skip_is_left_to_the_bit(name, training, backend):
    space = SPACES[name]
    settings = {"run": choose(backend, CPU), "fast": backend != "reference"}
    with_skip = network_of(AuxiliarySkip().modify(space), **settings).train(training)
    without = network_of(space, **settings).train(training)
    without.load_state_dict({k: with_skip.state_dict()[k].clone() for k in without.state_dict()})
    with_skip.companions[AUXILIARY] = 0.0
    genotype = sample(space, uniform(space), keyed(0))
    for selections in (mixture(space), discretise(space, genotype)):
        scores = [network(images(4, 3, 9, 7), selections).scores for network in (with_skip, without)]
        assert torch.equal(*scores)
    with_skip.companions[AUXILIARY] = 0.5
    assert not torch.equal(with_skip(images(4, 3, 9, 7), selections).scores, scores[0])


def test_a_derived_network_is_part_of_the_supernet_without_its_skips():
    space = SPACES["darts"]
    supernet = network_of(AuxiliarySkip().modify(space))
    supernet.companions[AUXILIARY] = 0.0
    genotype = sample(space, uniform(space), keyed(0))
    derived = network_of(space.fix(genotype))
    assert derived.state_dict().keys() < supernet.state_dict().keys()
    derived.load_state_dict({k: supernet.state_dict()[k].clone() for k in derived.state_dict()})
    batch = images(4, 3, 9, 7)
    assert torch.equal(supernet(batch, discretise(space, genotype)).scores, derived(batch).scores)


def test_beta_is_a_function_of_the_step_alone(searching):
    search = searching("nas-bench-201", "auxiliary-skip")
    for step in (3, 0, 2):  # in any order, as after a resumption
        search.attached[0].before(step, search.progress(step))
        assert search.network.companions == {AUXILIARY: pytest.approx(1 - step / 3)}
    search.settle()
    assert search.network.companions == {AUXILIARY: 0.0}


def test_logits_have_the_columns_of_the_configured_space_and_skips_no_share(searching):
    search = searching("darts", "auxiliary-skip")
    search.step(0, 0.0)
    assert all(table.shape == (5, 8) for table in search.architecture.logits().values())
    assert all((table.sum(-1) - 1).abs().max() < 1e-6 for table in search.probabilities().values())


def test_the_measured_supernet_is_the_one_without_skips(searching):
    search = searching("nas-bench-201", "auxiliary-skip")
    for step in range(search.steps):
        search.step(step, search.progress(step))
    search.settle()
    plain = searching("nas-bench-201")
    state = search.network.state_dict()
    plain.network.load_state_dict({k: state[k].clone() for k in plain.network.state_dict()})
    decision = search.decide(1.0, "here")
    assert search.accuracy(decision) == plain.accuracy(decision)
    assert torch.equal(*(s.network(s.train.batch(0)[0], decision).scores for s in (search, plain)))


def test_a_space_without_skips_refuses_auxiliary_ones():
    class Bare:
        cells = {}

    with pytest.raises(ConfigError, match="auxiliary-skip needs a space with a candidate skip_connect"):
        AuxiliarySkip().require(Bare(), None)


# Entanglement


def names_of(network: Network) -> dict[int, str]:
    return {id(parameter): name for name, parameter in network.named_parameters()}


def entangled(network: Network):
    """Returns the modifier at work on a network that no search trains."""
    return Entanglement().attach(SimpleNamespace(network=network, hypergradient=FirstOrder()))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nas-bench-201", {("nor_conv_1x1", "nor_conv_3x3")}),
        ("darts", {("sep_conv_3x3", "sep_conv_5x5"), ("dil_conv_3x3", "dil_conv_5x5")}),
        ("chain", {(f"mb_k{k}_e{e}", "mb_k7_e6") for k in (3, 5, 7) for e in (3, 6) if (k, e) != (7, 6)}),
    ],
)
def test_what_nests_in_the_built_in_spaces(name, expected):
    network = network_of(SPACES[name])
    known = names_of(network)
    pairs = [(known[id(s.small)].split("."), known[id(s.large)].split(".")) for s in entangled(network).shares]
    assert {(small[4], large[4]) for small, large in pairs} == expected
    assert all(small[:4] == large[:4] and small[5:] == large[5:] for small, large in pairs)  # cell, edge and module


CANDIDATES = {
    "sep": lambda kernel, stride: ops.twice_separable_conv(4, 4, kernel, stride, affine=False),
    "dil": lambda kernel, stride: ops.separable_conv(4, 6, kernel, stride, 2, affine=True),
    "conv": lambda kernel, stride: ops.relu_conv_norm(3, 5, kernel, stride, affine=False),
    "block": lambda kernel, stride: ops.InvertedResidual(4, 4, kernel, stride, 3, affine=False),
}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", CANDIDATES)
def test_the_shared_part_computes_what_the_small_candidate_does(kind, stride):
    """The large one, zero but for the shared parts, is the small one: so they read the same pixels."""
    small, large = (CANDIDATES[kind](kernel, stride).double() for kernel in (3, 7))
    found = nested(small, large)
    assert len(found) == len([*small.modules()]) - len([m for m in small.modules() if not isinstance(m, nn.Conv2d)])
    with torch.no_grad():
        for each in found:
            each.large.zero_()
            each.of(each.large).copy_(each.small)
    x = images(2, next(small.parameters()).shape[1] if kind == "conv" else 4, 9, 8)
    assert_near(large(x), small(x))


def test_fewer_channels_are_the_first():
    small, large = (ops.InvertedResidual(4, 4, 3, 1, ratio, affine=False).double() for ratio in (2, 3))
    with torch.no_grad():
        for each in nested(small, large):
            assert [(along.start, along.stop) for along in each.part[:2]] == [(0, few) for few in each.small.shape[:2]]
            each.large.zero_()
            each.of(each.large).copy_(each.small)
    assert_near(large(images(2, 4, 5, 5)), small(images(2, 4, 5, 5)))


def conv(*shape: int, **settings) -> nn.Conv2d:
    return nn.Conv2d(*shape, **settings)


class Scaled(nn.Sequential):
    def __init__(self, scale: float, *parts: nn.Module) -> None:
        super().__init__(*parts)
        self.scale = scale


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (conv(4, 4, 3, padding=1), conv(4, 4, 5, padding=1)),  # off centre
        (conv(4, 4, 2), conv(4, 4, 3, padding=1)),  # no centre
        (conv(4, 4, 3, padding=1), conv(4, 4, 5, padding=2, stride=2)),
        (conv(4, 4, 3, padding=1), conv(4, 4, 5, padding=2, dilation=2)),
        (conv(4, 4, 3, padding=1), conv(4, 4, 3, padding=1)),  # equals do not nest
        (conv(4, 4, 3, padding=1, bias=False), conv(4, 4, 5, padding=2)),
        (conv(4, 4, 3, padding=1), conv(2, 8, 3, padding=1)),  # neither has more of both
        (conv(4, 4, 3, padding=1, groups=2), conv(8, 8, 3, padding=1, groups=2)),  # groups of other channels
        (conv(4, 4, 3, padding=1, groups=4), conv(4, 4, 5, padding=2)),
        (conv(4, 4, 3, padding="same"), conv(4, 4, 5, padding=2)),
        (nn.Sequential(nn.ReLU(), conv(4, 4, 1)), nn.Sequential(nn.ReLU6(), conv(4, 4, 3, padding=1))),
        (nn.Sequential(nn.LeakyReLU(0.1), conv(4, 4, 1)), nn.Sequential(nn.LeakyReLU(0.2), conv(4, 4, 3, padding=1))),
        (Scaled(1.0, conv(4, 4, 1)), Scaled(2.0, conv(4, 4, 3, padding=1))),
        (nn.Sequential(conv(4, 4, 1), nn.Linear(4, 4)), nn.Sequential(conv(4, 4, 3, padding=1), nn.Linear(4, 4))),
        (nn.Sequential(conv(4, 4, 1)), nn.Sequential(conv(4, 4, 3, padding=1), nn.ReLU())),
        (nn.MaxPool2d(3), nn.MaxPool2d(3)),
    ],
)
def test_what_differs_in_more_than_kernel_and_channels_does_not_nest(small, large):
    assert nested(small, large) == []
    assert list(shares([small, large])) == []


@pytest.mark.parametrize("name", ["nas-bench-201", "chain"])
def test_a_step_is_that_of_parameters_that_are_truly_shared(name):
    """Beside it runs a network whose small candidates read slices of one tensor; momentum, weight decay, clipping."""
    space = SPACES[name]
    network = network_of(space)
    work = entangled(network)
    known = names_of(network)
    inner = {known[id(s.small)]: (known[id(s.large)], s.part) for s in work.shares}
    own = {n: p.detach().clone().requires_grad_() for n, p in network.named_parameters() if n not in inner}
    twin = copy.deepcopy(network)
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    optimizers = [torch.optim.SGD(network.parameters(), **settings), torch.optim.SGD(own.values(), **settings)]
    labels = torch.arange(6) % 4
    for step in range(8):
        weights = {n: w.detach() for n, w in draw_weights(space, step).items()}
        if step % 2:  # one path, which leaves the large one out as often as not
            weights = {n: F.one_hot(w.argmax(-1), w.shape[1]).double() for n, w in weights.items()}
        decision = {n: Selection.single_path(w) for n, w in weights.items()}
        batch = images(6, 3, 9, 7, key=step)
        tied = {**own, **{n: own[large][part] for n, (large, part) in inner.items()}}
        optimizers[0].zero_grad(), optimizers[1].zero_grad()
        F.cross_entropy(network(batch, decision).scores, labels).backward()
        work.gradients(step, 0.0)
        F.cross_entropy(torch.func.functional_call(twin, tied, (batch, decision)).scores, labels).backward()
        for optimizer in optimizers:
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.5)
            optimizer.step()
        work.after(step, 0.0)
    found = dict(network.named_parameters())
    tied = {**own, **{n: own[large][part] for n, (large, part) in inner.items()}}
    for parameter, value in tied.items():
        # Eight steps of float64, each amplifying rounding by less than ten.
        torch.testing.assert_close(found[parameter], value, rtol=1e-8, atol=1e-8, msg=lambda m, n=parameter: n + m)
    assert not any(each.small in optimizers[0].state for each in work.shares)
    start = dict(network_of(space).named_parameters())
    assert all((found[n] - start[n]).detach().abs().max() > 1e-3 for n in {large for large, _ in inner.values()})


def test_small_candidates_are_parts_of_large_ones_before_the_first_step_and_after_each(searching):
    search = searching("chain", "entanglement", selector="st-gs")
    for step in range(3):
        assert search.attached[0].shares
        for each in search.attached[0].shares:
            assert torch.equal(each.small, each.of(each.large))
        search.step(step, search.progress(step))


def test_statistics_of_batch_norms_are_not_shared(searching):
    search = searching("nas-bench-201", "entanglement")
    search.step(0, 0.0)
    edge = search.network.mixed_cells[0].edges["0-1"]
    assert not torch.equal(edge["nor_conv_1x1"][2].running_mean, edge["nor_conv_3x3"][2].running_mean)


class Pools(NASBench201):
    """Nothing nests."""

    @property
    def cells(self):
        return {"cell": Cell((Edge(0, 1, ("avg_pool_3x3", "nor_conv_3x3")),), outputs=(1,))}


def test_entanglement_is_refused_where_nothing_nests():
    with pytest.raises(ConfigError, match="entanglement has nothing to share"):
        entangled(network_of(Pools(channels=4, cells_per_stage=1)))


@pytest.mark.parametrize("hypergradient", [Unrolled(), Neumann()])
def test_entanglement_is_refused_where_each_weight_is_displaced_on_its_own(hypergradient):
    network = network_of(SPACES["nas-bench-201"])
    with pytest.raises(ConfigError, match="use first-order or single-level"):
        Entanglement().attach(SimpleNamespace(network=network, hypergradient=hypergradient))
    Entanglement().attach(SimpleNamespace(network=network, hypergradient=SingleLevel()))


# All of them


@pytest.mark.parametrize("selector", ["softmax", "st-gs", "pair-reinmax", "edge-normalised"])
@pytest.mark.parametrize("modifier", MODIFIERS)
def test_a_search_trains_weights_and_logits(modifier, selector, searching):
    search = searching("nas-bench-201", MODIFIERS[modifier], selector=selector)
    logits = {name: table.clone() for name, table in search.architecture.tables.items()}
    for step in range(3):
        values = search.step(step, search.progress(step))
        assert all(bool(value.isfinite()) for value in values.values())
    assert all(bool(p.isfinite().all()) for p in search.network.parameters())
    for name, before in logits.items():
        moved = search.architecture.tables[name] - before
        assert (moved.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("backend", ["aten", "native"])
@pytest.mark.parametrize("modifier", MODIFIERS)
def test_engines_take_the_same_steps(modifier, backend, searching, monkeypatch):
    losses = []
    for engine in ("reference", backend):
        search = searching("nas-bench-201", MODIFIERS[modifier], selector="st-gs")
        search.network.double()
        search.network.run, search.network.fast = choose(engine, CPU), engine != "reference"
        for batches in (search.train, search.arch):
            make = batches.batch
            monkeypatch.setattr(batches, "batch", lambda step, make=make: (make(step)[0].double(), make(step)[1]))
        losses.append([float(v) for step in range(3) for v in search.step(step, 0.5).values()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)


@pytest.mark.parametrize("modifier", MODIFIERS)
def test_a_search_stopped_and_resumed_leaves_the_same_bytes(modifier, nas_command, stop, tmp_path):  # noqa: F811
    given = {"selector": "st-gs", "search.modifiers": json.dumps([MODIFIERS[modifier]])}
    command = ["search", *flags(**NAS_BENCH, **given)]
    assert nas_command(*command, "--out", tmp_path / "whole").code == 0
    stop(lambda count: count == 2)
    again = tmp_path / "run"
    assert finish(nas_command, [*command, "--out", again], resume_with=["resume", again]) == 1
    assert_same(again, products(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("modifier", "space"),
    [
        ("all", NAS_BENCH),
        pytest.param("all", DARTS_SMALL, marks=pytest.mark.slow),
        *(pytest.param(name, NAS_BENCH, marks=pytest.mark.slow) for name in MODIFIERS),
    ],
)
def test_a_whole_run_derives_retrains_and_measures_the_full_network(modifier, space, nas_command, tmp_path):
    chosen = [*MODIFIERS.values()] if modifier == "all" else [MODIFIERS[modifier]]
    settings = {"selector": "edge-normalised", "search.modifiers": json.dumps(chosen), "retrain.epochs": 1}
    outcome = nas_command("run", *flags(**space, **settings, **{"retrain.seeds": 1}), "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    gap = json.loads((tmp_path / "run" / "gap.json").read_text())
    full = SPACES[space["space"]]
    size = inspect(full.fix(full.parse(gap["genotype"])), Task(1, 8, 8, 10), searching=False)
    assert gap["parameters"] == size.parameters


def test_modifiers_and_their_settings_are_listed(nas_command):
    listed = {entry["name"]: entry for entry in json.loads(nas_command("list", "modifiers", "--json").out)}
    assert listed["partial-channels"]["settings"] == {"share": 4}
    assert listed["auxiliary-skip"]["settings"] == {"beta": {"name": "linear", "start": 1.0, "end": 0.0}}
    assert listed["entanglement"]["settings"] == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PartialChannels(share=1), "share must be at least 2"),
        (lambda: AuxiliarySkip(beta=Constant(value=-1.0)), "beta.value must be at least 0, got -1"),
        (lambda: EdgeNormalised(inner=EdgeTopK()), "inner must decide among candidates"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_the_plain_network_beside_which_a_search_is_measured_has_no_modifiers(searching):
    search = searching("nas-bench-201", "auxiliary-skip")
    genotype = sample(search.session.config.space, uniform(search.session.config.space), keyed(0))
    assert not fixed_subject(search.session, genotype).network.companions


def test_diagnose_refuses_modifiers(nas_command):
    outcome = nas_command("diagnose", "--set", "search.modifiers=auxiliary-skip")
    assert outcome.code == 2
    assert "leave search.modifiers away" in outcome.err


@pytest.mark.parametrize("selector", [Softmax(), StraightThroughGumbelSoftmax(), EdgeTopK(keep=1), EdgeNormalised()])
def test_every_tensor_of_a_decision_follows_the_network_to_its_device(selector):
    """On torch's meta device, where a tensor that stayed behind cannot be added."""
    space, device = SPACES["darts"], torch.device("meta")
    with device:
        network = Network(PartialChannels(share=2).modify(AuxiliarySkip().modify(space)), TASK, searching=True)
    network.companions[AUXILIARY] = 0.5
    decision = selector.on(space.cells).decide(draw_logits(space), 0.5, keyed(0))
    for moved in (
        {name: each.detach().to(device) for name, each in decision.items()},
        {name: replace(each.at_leaves(device), probes=()) for name, each in decision.items()},
    ):
        assert network(torch.empty(2, 3, 8, 8, device=device), moved).scores.shape == (2, 4)
