"""Modifiers of a search's steps: perturbed weights, early stopping of operations, shrinking, beta-decay, alignment."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from test_resume import KILLED, NAS_BENCH, STEPS, assert_same, finish, flags, products, stop  # noqa: F401 - a fixture
from torch import nn

from nas import registry
from nas.architecture import Architecture, describe
from nas.config import build, from_setting
from nas.derivation import discretise
from nas.errors import ConfigError
from nas.hypergradients import displaced
from nas.randomness import generator, seed_global
from nas.runs.bilevel import ArchitectureStep
from nas.runs.configuration import Config
from nas.runs.derive import default_rule
from nas.runs.modifiers import Modifier
from nas.runs.modifiers.beta_decay import BetaDecay
from nas.runs.modifiers.lambda_darts import LambdaDARTS, Slots, aligned, alignment
from nas.runs.modifiers.oles import OperationEarlyStopping
from nas.runs.modifiers.perturbed import Ball, PerturbedWeights
from nas.runs.modifiers.shrinking import Shrinking
from nas.schedules import Constant, Linear
from nas.selection import Selection
from nas.selectors import Selector
from nas.selectors.mixtures import Entmax
from nas.selectors.uniform import Uniform
from nas.space import Cell, CellSlot, Edge, SearchSpace
from search_spaces.chain import Chain
from search_spaces.darts import DARTS
from search_spaces.nas_bench_201 import NASBench201

MIXTURES = {"softmax", "gumbel-softmax", "dirichlet", "entmax", "sigmoid"}
SELECTORS = registry.names(Selector.registry)


def of_name(group, name, **settings):
    return registry.load(group.registry, name)(**settings)


def take(search, *steps):
    """Takes steps as the loop does."""
    for step in steps:
        seed_global(search.seed, search.stage, step)
        search.step(step, search.progress(step))
    return search


def state(search):
    modules = {name: search.modules[name].state_dict() for name in ("network", "architecture")}
    return {f"{name}.{key}": value.clone() for name, found in modules.items() for key, value in found.items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def doubled(search):
    """A search in float64."""
    search.network.double()
    search.architecture.double()
    for batches in (search.arch, search.train):
        plain = batches.batch
        batches.batch = lambda step, plain=plain: (plain(step)[0].double(), plain(step)[1])
    return search


# Beta-decay


def test_beta_decay_is_the_mean_over_edges_of_the_live_logits_logsumexp():
    weight = Linear(start=0.0, end=50.0)
    attached = BetaDecay(weight=weight).attach(None)
    # log(e^0 + e^log3) = log 4; two logits of 2: 2 + log 2; one alone: itself.
    x = torch.tensor([[0.0, math.log(3), -torch.inf], [2.0, 2.0, -torch.inf]]).requires_grad_()
    y = torch.tensor([[-1.0]]).requires_grad_()
    found = attached.penalty({"x": x, "y": y}, 0.5)
    expected = 25 * (math.log(4) + 2 + math.log(2) - 1) / 3
    assert found.item() == pytest.approx(expected, rel=1e-6)
    found.backward()
    # Softmax, by edge, times 25 / 3.
    torch.testing.assert_close(x.grad * 3 / 25, torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.5, 0.0]]))
    torch.testing.assert_close(y.grad * 3 / 25, torch.ones(1, 1))
    assert attached.penalty({"x": x}, 0.0) is None


def test_beta_decay_is_added_to_what_an_architecture_step_descends(searching):
    plain, decayed = (searching("nas-bench-201", *more) for more in ([], [{"name": "beta-decay", "weight": 6.0}]))
    gradients = [ArchitectureStep(search, 0, 0.5).problem() for search in (plain, decayed)]
    first, second = (problem.outer(problem.logits) for problem in gradients)
    shares = [table.softmax(-1) for table in plain.architecture.logits().values()]
    edges = sum(len(table) for table in shares)
    for a, b, share in zip(first, second, shares, strict=True):
        torch.testing.assert_close(b - a, 6 * share.detach() / edges, rtol=1e-4, atol=1e-6)


# Shrinking


def planted(search, seed=0):
    """Distinct logits, of deviation 1."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in search.architecture.tables.values():
            table.copy_(torch.randn(table.shape, generator=draws))
    return {name: table.detach().clone() for name, table in search.architecture.tables.items()}


@pytest.mark.parametrize("selector", ["softmax", "sigmoid", "edge-gates", "reinforce"])
def test_edges_drop_what_is_ranked_lowest_at_the_given_shares(selector, searching):
    search = searching("darts", "shrinking", selector=selector)
    tables = planted(search)
    for progress, count in ((0.0, 8), (0.33, 8), (0.34, 5), (0.5, 5), (0.67, 3), (0.99, 3)):
        search.attached[0].before(1, progress)
        for name, table in tables.items():
            expected = torch.zeros_like(table, dtype=torch.bool).scatter(1, table.topk(count).indices, True)
            assert torch.equal(search.architecture.live[name], expected)
    assert search.attached[0].end_epoch(1, 1.0) == {"candidates": 3.0}


def test_what_was_dropped_stays_dropped_though_its_logit_should_rise(searching):
    search = searching("nas-bench-201", "shrinking")
    planted(search)
    search.attached[0].before(1, 0.4)
    first = search.architecture.live["cell"].clone()
    assert first.sum(-1).tolist() == [3] * 6
    with torch.no_grad():
        search.architecture.tables["cell"][~first] = 9.0
    search.attached[0].before(2, 0.7)
    assert search.architecture.live["cell"].sum(-1).tolist() == [2] * 6
    assert not (search.architecture.live["cell"] & ~first).any()


def test_a_resumed_search_does_not_begin_the_shrinking_again(searching):
    search = searching("darts", "shrinking")
    planted(search)
    search.attached[0].before(1, 0.4)
    again = searching("darts", "shrinking")
    for name, module in again.modules.items():
        module.load_state_dict(search.modules[name].state_dict())
    planted(again, seed=1)  # so that dropping anew would drop others
    again.attached[0].before(1, 0.4)
    for name, mask in search.architecture.live.items():
        assert torch.equal(mask, again.architecture.live[name])
        assert mask.sum(-1).tolist() == [5] * len(mask)


def test_a_search_ended_early_is_measured_with_what_it_had(searching):
    search = searching("darts", "shrinking")
    search.settle()
    assert all(mask.all() for mask in search.architecture.live.values())


def test_a_sparse_selectors_ties_are_decided_by_the_logits(searching):
    search = searching("darts", "shrinking", selector="entmax")
    tables = {name: 9 * table for name, table in planted(search).items()}
    with torch.no_grad():
        for name, table in tables.items():
            search.architecture.tables[name].copy_(table)
    assert ((Entmax().probabilities(tables["normal"]) == 0).sum(-1) > 3).all()
    search.attached[0].before(1, 0.4)
    for name, table in tables.items():
        expected = torch.zeros_like(table, dtype=torch.bool).scatter(1, table.topk(5).indices, True)
        assert torch.equal(search.architecture.live[name], expected)


def linear_loss(values, count):
    """The loss of a decision that adds a number for every candidate, times its weight."""

    def loss_of(decision):
        total = torch.zeros(())
        for name, selection in decision.items():
            weights = selection.weights
            if weights is None:
                weights = torch.tensor([[float(k in path) for k in range(count)] for path in selection.paths])
            total = total + (weights * values[name]).sum()
        return total

    return loss_of


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_goes_on_without_the_dropped_candidates(name):
    selector, architecture = of_name(Selector, name).on(DARTS().cells), Architecture(DARTS(), 0)
    draws = generator(0, name)
    values = {each: torch.randn(table.shape, generator=draws) for each, table in architecture.tables.items()}
    memory = selector.memory(DARTS().cells)
    for stage in range(2):
        for step in range(3):
            logits = architecture.logits()
            objective = selector.objective(linear_loss(values, 8), logits, 0.5, generator(step), memory)
            assert objective.isfinite()
            if selector.learns:
                found = torch.autograd.grad(
                    objective, [*architecture.tables.values()], allow_unused=True, materialize_grads=True
                )
                for each, mask in zip(found, architecture.live.values(), strict=True):
                    assert each.isfinite().all()
                    assert not each[~mask].any()
            decision = selector.decide(logits, 0.5, generator(step))
            for each, selection in decision.items():
                gone = (~architecture.live[each]).tolist()
                runs = zip(selection.paths, selection.probes or ((),) * len(gone), gone, strict=True)
                assert not any(row[k] for path, probes, row in runs for k in (*path, *probes))
        probabilities = {each: selector.probabilities(table) for each, table in logits.items()}
        described = describe(DARTS().cells, probabilities)
        assert all(math.isfinite(value) for value in described.values())
        if stage:
            assert described["share/none"] == described["share/sep_conv_3x3"] == 0.0
            ranks = selector.ranking(logits)
            assert not any(ranks[each][~mask].any() for each, mask in architecture.live.items())
        operations = DARTS().operations
        gone = torch.tensor([name in ("none", "sep_conv_3x3") for name in operations])
        architecture.drop({each: gone.expand(table.shape) for each, table in architecture.tables.items()})


@pytest.mark.parametrize("modifier", ["fair-paths", {"name": "sandwich", "paths": 3}])
def test_weight_steps_on_paths_train_nothing_that_was_dropped(modifier, searching):
    search = searching("nas-bench-201", "shrinking", modifier)
    planted(search)
    for progress, count in ((0.0, 5), (0.5, 3), (0.9, 2)):
        search.attached[0].before(1, progress)
        live = search.architecture.live["cell"]
        assert live.sum(-1).tolist() == [count] * 6
        for decision in search.attached[1].decisions([], 1, progress):
            assert all(live[e, k] for e, path in enumerate(decision["cell"].paths) for k in path)


def test_a_genotype_has_nothing_that_was_dropped(searching):
    search = searching("darts", "shrinking")
    tables = planted(search)
    search.attached[0].before(1, 0.7)
    rule = default_rule(search.session.config)
    genotype = rule.derive(search.session.config.space, search.ranking(), None, generator(0))
    for name, selection in discretise(search.session.config.space, genotype).items():
        live = search.architecture.live[name]
        assert all(live[e, k] for e, path in enumerate(selection.paths) for k in path)
        assert tables[name].shape == live.shape


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("at: []", "at must rise between 0 and 1, got ()"),
        ("at: [0.5, 0.4]", "at must rise between 0 and 1"),
        ("at: [0.5, 1.0]", "at must rise between 0 and 1"),
        ("at: [0.5]", "keep must have a share for each of the 1 in at"),
        ("keep: [0.3, 0.6]", "keep must fall between 1 and 0"),
        ("keep: [1.0, 0.5]", "keep must fall between 1 and 0"),
    ],
)
def test_shrinking_refuses_stages_that_are_none(text, message):
    with pytest.raises(ConfigError) as raised:
        build(Config, [from_setting(f"search.modifiers=[{{name: shrinking, {text}}}]")])
    assert f"search.modifiers.0.{message}" in str(raised.value)


def test_shrinking_refuses_selectors_without_ranks_and_spaces_without_much_choice():
    with pytest.raises(ConfigError, match="this one learns no ranks"):
        Shrinking().require(DARTS(), Uniform())
    with pytest.raises(ConfigError, match="drops nothing of 2 candidates"):
        Shrinking().require(Scaled(), of_name(Selector, "softmax"))


# Perturbed weights


def test_random_weights_are_drawn_in_the_ball_and_scaled_to_their_edges_sum():
    # A mixture, one with weights near the border, a single path, a gated edge, and one that runs nothing.
    centre = torch.tensor([[0.5, 0.3, 0.2], [0.98, 0.02, 0.0], [1.0, 0, 0], [0.2, 0.2, 0.1], [0, 0, 0]])
    ball = Ball(Selection(((0, 1, 2), (0, 1), (0,), (0, 1, 2), ()), centre), 0.1)
    seen = []
    for seed in range(200):
        found = ball.draw(generator(seed))
        noise = torch.rand(centre.shape, generator=generator(seed)) * 0.2 - 0.1
        assert (found >= 0).all()
        assert torch.equal(found[[2, 4]], centre[[2, 4]])
        assert found[1, 2] == 0
        torch.testing.assert_close(found.sum(-1), centre.sum(-1))
        moved = (centre + noise).clamp(0, 1)
        moved[1, 2] = 0
        expected = moved / moved.sum(-1, keepdim=True) * centre.sum(-1, keepdim=True)
        torch.testing.assert_close(found[[0, 1, 3]], expected[[0, 1, 3]])
        seen.append(found)
    # Uniform of deviation .1 / sqrt(3), less what the common scale takes from the largest: over .03.
    assert (torch.stack(seen).std(0)[0] > 0.025).all()


def test_a_row_that_the_radius_wipes_out_goes_to_its_largest():
    ball = Ball(Selection(((0, 1),), torch.tensor([[0.4, 0.1]])), 0.5)
    assert torch.equal(ball.project(torch.tensor([[-9.0, -9.0]])), torch.tensor([[0.5, 0.0]]))


def test_the_ascent_finds_the_worst_weights_of_a_linear_loss(searching, monkeypatch):
    modifier = {"name": "perturbed-weights", "kind": "adversarial", "radius": 0.05, "step_size": 3.0}
    search = searching(Scaled(), modifier)
    monkeypatch.setattr(search, "loss_on", lambda step, batches: linear_loss({"cell": torch.tensor([[1.0, -2.0]])}, 2))
    planted(search)
    own = search.decide(0.5, "train", 0)
    (found,) = search.attached[0].decisions([own], 0, 0.5)
    # Three radii cross the ball from wherever it starts; two weights of a sum end at opposite ends.
    torch.testing.assert_close(found["cell"].weights, own["cell"].weights + torch.tensor([[0.05, -0.05]]))


@pytest.mark.parametrize("space", ["nas-bench-201", "darts"])
def test_adversarial_weights_have_a_larger_loss_and_random_ones_a_smaller_one_than_those(space, searching):
    losses = {}
    for kind in ("random", "adversarial"):
        search = searching(space, {"name": "perturbed-weights", "kind": kind, "radius": 0.1})
        loss_of, own = search.loss_on(0, search.train), search.decide(0.5, "train", 0)
        (found,) = search.attached[0].decisions([own], 0, 0.5)
        losses[kind], plain = loss_of(found).item(), loss_of(own).item()
    assert losses["adversarial"] > max(plain, losses["random"]) + 0.01


def test_an_ascent_that_gains_nothing_leaves_the_decision_as_it_is(searching, monkeypatch):
    search = searching("nas-bench-201", {"name": "perturbed-weights", "kind": "adversarial", "radius": 0.1})
    own = search.decide(0.5, "train", 0)

    def peak(decision):  # flat but at the decision's own weights, where no gradient leads
        return 0 * decision["cell"].weights.sum() + float(torch.equal(decision["cell"].weights, own["cell"].weights))

    monkeypatch.setattr(search, "loss_on", lambda step, batches: peak)
    (found,) = search.attached[0].decisions([own], 0, 0.5)
    assert torch.equal(found["cell"].weights, own["cell"].weights)


@pytest.mark.parametrize("kind", ["random", "adversarial"])
def test_only_the_weight_step_sees_perturbed_weights(kind, searching):
    perturbed = {"name": "perturbed-weights", "kind": kind, "radius": 0.2}
    search = searching("darts", "skip-dropout", perturbed, selector="gumbel-softmax")
    before, noise = state(search), torch.get_rng_state()
    own = search.decide(0.5, "train", 0)
    (found,) = search.attached[1].decisions([own], 0, 0.5)
    assert same(before, state(search))  # logits, weights and running statistics
    assert torch.equal(noise, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in search.network.parameters())
    assert search.network.training
    for name in own:
        assert not torch.equal(own[name].weights, found[name].weights)
        assert torch.equal(own[name].weights, search.decide(0.5, "train", 0)[name].weights)
    # The step of the logits is the one that a search without perturbation takes.
    plain = searching("darts", "skip-dropout", selector="gumbel-softmax")
    tables = [take(each, 0).architecture.tables for each in (plain, search)]
    assert all(torch.equal(tables[0][name], tables[1][name]) for name in own)
    assert not same(plain.network.state_dict(), search.network.state_dict())


def test_the_weight_step_trains_under_the_perturbed_weights(searching):
    search = searching("nas-bench-201", {"name": "perturbed-weights", "radius": 0.3}, clip=0)
    images, labels = search.train.batch(0)
    (found,) = search.attached[0].decisions([search.decide(0.0, "train", 0)], 0, 0.0)
    with torch.no_grad():
        twin = copy.deepcopy(search.network)
        expected = F.cross_entropy(twin(images, found).scores, labels)
    assert search._weight_step(0, 0.0)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_perturbations_are_a_function_of_the_step(searching):
    search = searching("nas-bench-201", {"name": "perturbed-weights", "radius": 0.1})
    drawn = []
    for seed, step in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(seed)
        own = search.decide(0.5, "train", 0)
        drawn.append(search.attached[0].decisions([own], step, 0.5)[0]["cell"].weights)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", SELECTORS)
def test_only_mixtures_are_perturbed(name):
    selector = of_name(Selector, name)
    if name in MIXTURES or not selector.weighs_edges:
        cases = [(selector, name in MIXTURES)]
    else:
        inner = {each: of_name(Selector, each) for each in ("st-gs", "softmax")}
        if "inner" not in vars(selector):
            pytest.skip("it has no inner selector")
        cases = [(replace(selector, inner=inner["st-gs"]), False), (replace(selector, inner=inner["softmax"]), True)]
    for each, allowed in cases:
        for space in (NASBench201(), DARTS(), Chain()):
            if allowed:
                PerturbedWeights().require(space, each)
            else:
                with pytest.raises(ConfigError, match="runs one candidate on an edge"):
                    PerturbedWeights().require(space, each)


# Early stopping of operations


def oles(**settings):
    return {"name": "oles", "every": 1, "window": 2, **settings}


def test_the_alignment_of_closed_edges_is_none(searching):
    search = searching("nas-bench-201", "lambda-darts", selector={"name": "edge-gates", "inner": "softmax"})
    with torch.no_grad():
        for table in search.architecture.parameters():
            table -= 30  # every gate closes
    values = search.step(2, 1.0)
    assert all(torch.isfinite(value) for value in values.values())


def test_frozen_candidates_stay_as_they_are_and_others_train_on(searching):
    search = take(searching("nas-bench-201", oles(threshold=1.0, every=2, window=1)), 0)
    attached = search.attached[0]
    assert attached.end_epoch(1, 0.0) == {"frozen/nor_conv_1x1": 0.0, "frozen/nor_conv_3x3": 0.0}
    frozen = {id(parameter) for each in attached.candidates for parameter in each.parameters}
    for step in (1, 2):  # the step in which they freeze, and a later one
        before = {parameter: parameter.detach().clone() for parameter in search.network.parameters()}
        momentum = {p: search.weights.state[p]["momentum_buffer"].clone() for p in before if id(p) in frozen}
        assert momentum  # which would go on moving them, as weight decay would
        assert all(each.any() for each in momentum.values())
        take(search, step)
        for parameter, value in before.items():
            assert torch.equal(parameter, value) == (id(parameter) in frozen)
        assert all(torch.equal(search.weights.state[p]["momentum_buffer"], each) for p, each in momentum.items())
        assert attached.end_epoch(1, 0.5) == {"frozen/nor_conv_1x1": 1.0, "frozen/nor_conv_3x3": 1.0}


def test_a_candidate_freezes_in_the_step_that_completes_its_window(searching):
    search = searching("nas-bench-201", oles(threshold=0.5, window=3))
    attached, count = search.attached[0], len(search.attached[0].candidates)
    planned = torch.full((3, count), 0.9)
    planned[:, 1] = torch.tensor([1.0, 0.0, 0.4])  # a mean of 0.4667
    planned[:, 2] = torch.tensor([0.0, 0.6, 1.0])  # a mean of 0.5333
    planned[0, 3] = torch.nan  # did not run

    def compare(step, progress):
        ran = planned[step].isfinite()
        attached.total[ran] += planned[step][ran]
        attached.compared[ran] += 1

    attached._compare = compare
    for step in range(3):
        assert not attached.frozen.any()
        attached.gradients(step, 0.5)
    assert attached.frozen.nonzero().flatten().tolist() == [1]
    assert attached.compared.tolist() == [2 if i == 3 else 0 for i in range(count)]
    assert attached.total.nonzero().flatten().tolist() == [3]
    for operation, share in attached.end_epoch(1, 0.5).items():
        mine = [each.operation == operation.removeprefix("frozen/") for each in attached.candidates]
        assert share == mine[1] / sum(mine)


@pytest.mark.parametrize("selector", ["softmax", "st-gs"])
def test_scores_are_cosines_of_the_gradients_on_both_halves_of_the_data(selector, searching):
    search = searching("nas-bench-201", oles(window=9), selector=selector)
    attached, gradients = search.attached[0], []
    decision = search.decide(0.5, "train", 0)
    for batches in (search.train, search.arch):
        twin = copy.deepcopy(search.network)
        images, labels = batches.batch(0)
        F.cross_entropy(twin(images, decision).scores, labels).backward()
        gradients.append([parameter.grad for parameter in twin.parameters()])
    search._weight_step(0, 0.5)
    places = {id(parameter): i for i, parameter in enumerate(search.network.parameters())}
    ran = 0
    for i, candidate in enumerate(attached.candidates):
        mine = [places[id(parameter)] for parameter in candidate.parameters]
        sides = [[side[place] for place in mine] for side in gradients]
        assert attached.compared[i] == (sides[0][0] is not None)
        if sides[0][0] is not None:
            ran += 1
            one, other = (torch.cat([each.flatten() for each in side]) for side in sides)
            assert attached.total[i].item() == pytest.approx(
                ((one @ other) / one.norm() / other.norm()).item(), abs=1e-5
            )
    assert 0 < ran < len(attached.candidates) + (selector == "softmax")


def test_comparing_alone_changes_nothing(searching):
    searches = [searching("nas-bench-201", "skip-dropout", *more) for more in ([], [oles(threshold=-1.0)])]
    first, second = (take(search, 0, 1, 2) for search in searches)
    assert same(state(first), state(second))


def test_a_trial_step_moves_no_frozen_weight(searching):
    search = take(searching("nas-bench-201", oles(threshold=1.0, window=1), hypergradient="unrolled"), 0)
    search.attached[0].before(1, 0.5)
    frozen = {id(parameter) for each in search.attached[0].candidates for parameter in each.parameters}
    weights = ArchitectureStep(search, 1, 0.5).problem().weights
    assert {id(p) for p in search.network.parameters()} - {id(p) for p in weights} == frozen
    take(search, 1)


@pytest.mark.parametrize("backend", ["aten", "native"])
def test_engines_agree_on_a_supernet_that_is_partly_frozen(backend, searching):
    gradients = []
    for each in ("reference", backend):
        search = searching("darts", oles(threshold=1.0), backend=each)
        attached = search.attached[0]
        attached.frozen[::2] = True
        attached.before(0, 0.5)
        attached.settings = replace(attached.settings, every=9)
        search._weight_step(0, 0.5)
        gradients.append([p.grad for p in search.network.parameters()])
    assert any(a is None for a in gradients[0])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_early_stopping_needs_candidates_with_parameters(searching):
    with pytest.raises(ConfigError, match="none has parameters"):
        searching(Scaled(), oles())
    with pytest.raises(ConfigError, match="oles beside entanglement: candidates that share parameters"):
        searching("darts", oles(), "entanglement")


# Alignment


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


@dataclass(frozen=True, kw_only=True)
class Scaled(SearchSpace):
    """Two slots of one edge each, which only scale: the network's output is (w1 + 3 w2)(v1 + 3 v2) x."""

    operations = {"once": lambda site: nn.Identity(), "thrice": lambda site: Times(3.0)}

    @property
    def cells(self):
        return {"cell": Cell((Edge(0, 1, ("once", "thrice")),), outputs=(1,))}

    def layers(self, task, searching):
        stem = nn.Conv2d(task.channels, 4, 3, padding=1)
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, task.classes))
        return [stem, CellSlot("cell", 4), CellSlot("cell", 4), head]


def test_slots_that_do_the_same_are_aligned(searching):
    search = searching(Scaled(), "lambda-darts")
    planted(search)
    slots = search.attached[0].slots
    slopes = Slots(search, slots, 0, 0.5).slopes()
    found, directions = aligned(slots, slopes)
    assert found == pytest.approx(1.0, abs=1e-6)
    # At the largest value there is no slope, but for float32's rounding of unit vectors.
    assert all(each.abs().max() < 1e-6 / slope.norm() for each, slope in zip(directions, slopes, strict=True))


def test_alignment_is_the_mean_cosine_over_pairs_of_slots_of_one_cell(searching):
    search = searching(DARTS(channels=4, depth=6, nodes=2), "lambda-darts")
    slots, draws = search.attached[0].slots, generator(0)
    assert [slot.name for slot in slots] == ["normal", "normal", "reduce", "normal", "reduce", "normal"]
    slopes = [torch.randn(5, 8, generator=draws) for _ in slots]
    pairs = [(i, j) for i, j in combinations(range(6), 2) if slots[i].name == slots[j].name]
    assert len(pairs) == 7
    flat = [each.flatten() for each in slopes]
    cosines = [float(flat[i] @ flat[j] / flat[i].norm() / flat[j].norm()) for i, j in pairs]
    assert alignment(slots, slopes).item() == pytest.approx(sum(cosines) / 7, abs=1e-6)
    # Edges that agree within each slot do not matter, slots do: opposite slots are at -1 though all their rows agree.
    row = torch.randn(8, generator=draws).expand(5, 8)
    assert alignment(slots[:2], [row, -row]).item() == pytest.approx(-1.0, abs=1e-6)
    # One without a gradient is left out.
    assert alignment(slots[:2], [row, torch.zeros(5, 8)]) is None
    assert aligned(slots[:2], [row, torch.zeros(5, 8)])[0] == 0.0


@pytest.mark.parametrize("backend", ["reference", "aten", "native"])
@pytest.mark.parametrize("selector", ["softmax", "st-gs"])
def test_the_slopes_of_all_slots_sum_to_the_gradient_in_what_they_share(selector, backend, searching):
    search = searching("nas-bench-201", "lambda-darts", selector=selector, backend=backend)
    planted(search)
    work = Slots(search, search.attached[0].slots, 0, 0.5)
    run = search.network.run
    slopes = work.slopes()
    assert search.network.run is run
    weights = work.decision["cell"].weights.clone().requires_grad_()
    loss = search.loss_on(0, search.train)({"cell": replace(work.decision["cell"], weights=weights)})
    (shared,) = torch.autograd.grad(loss, weights)
    assert len(slopes) == 3
    torch.testing.assert_close(sum(slopes), shared, rtol=1e-3, atol=1e-5)


def test_slots_are_as_before_when_the_loss_fails(searching):
    search = searching("nas-bench-201", "lambda-darts")
    work, run = Slots(search, search.attached[0].slots, 0, 0.5), search.network.run
    with pytest.raises(RuntimeError):
        work.loss([torch.zeros(7, 5)] * 3)
    assert search.network.run is run


@pytest.mark.parametrize("selector", ["softmax", "gumbel-softmax", "st-gs"])
def test_the_difference_is_the_alignments_exact_gradient(selector, searching):
    search = doubled(searching("nas-bench-201", "lambda-darts", selector=selector, backend="reference"))
    planted(search)
    slots, weights = search.attached[0].slots, [*search.network.parameters()]
    work = Slots(search, slots, 0, 0.5)
    leaves = work.leaves()
    slopes = torch.autograd.grad(work.loss(leaves), leaves, create_graph=True)
    exact = torch.autograd.grad(alignment(slots, slopes), weights, allow_unused=True, materialize_grads=True)
    value, directions = aligned(slots, work.slopes())
    assert value == pytest.approx(alignment(slots, slopes).item(), abs=1e-12)
    found = work.ascent(weights, directions, 1e-6)  # so little that no ReLU changes sides
    largest = max(each.abs().max() for each in exact)
    assert largest > 0.01
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * largest.item())


@pytest.mark.parametrize("radius", [0.1, 1e-5])
@pytest.mark.parametrize("space", ["nas-bench-201", "darts"])
def test_the_weight_steps_gradient_raises_the_alignment(space, radius, searching):
    space = DARTS(channels=4, depth=5, nodes=2) if space == "darts" else space
    modifier = {"name": "lambda-darts", "weight": 1.0, "radius": radius}
    search = searching(space, modifier)
    weights, attached = [*search.network.parameters()], search.attached[0]
    found = []
    for weight in (0.0, 1.0):
        attached.settings = replace(attached.settings, weight=Constant(value=weight))
        search.weights.zero_grad()
        before = {name: value.clone() for name, value in search.network.named_buffers()}
        images, labels = search.train.batch(0)
        search._backward(images, labels, search.decide(0.5, "train", 0), 1)
        search.network.load_state_dict(before, strict=False)
        attached.gradients(0, 0.5)
        assert all(torch.equal(value, before[name]) for name, value in search.network.named_buffers())
        found.append([weight.grad.clone() for weight in weights])
    change = [b - a for a, b in zip(*found, strict=True)]
    length = torch.cat([each.flatten() for each in change]).norm()

    def value():
        return aligned(attached.slots, Slots(search, attached.slots, 0, 0.5).slopes())[0]

    start = value()
    with displaced(weights, [-0.02 * each / length for each in change]):  # as descent does
        assert value() > start + 0.01
    with displaced(weights, [0.02 * each / length for each in change]):
        assert value() < start - 0.01


def test_alignment_trains_only_what_the_step_trains_and_is_logged(searching):
    search = searching("nas-bench-201", {"name": "lambda-darts", "weight": 1.0}, selector="st-gs")
    for step in range(2):
        search._weight_step(step, 0.5)
        decision = search.decide(0.5, "train", step)["cell"]
        for cell in search.network.mixed_cells:
            for e, path in enumerate(decision.paths):
                for k, candidate in enumerate(cell.candidates[e]):
                    assert all((p.grad is not None) == (k in path) for p in candidate.parameters())
    logged = search.attached[0].end_epoch(1, 0.5)
    assert -1 <= logged["alignment"] <= 1
    assert search.attached[0].end_epoch(2, 0.5) == {}


@pytest.mark.parametrize("name", SELECTORS)
def test_alignment_needs_a_gradient_in_the_weights_of_decisions(name):
    selector = of_name(Selector, name)
    if name in ("reinforce", "score-cv", "rebar", "relax", "uniform"):
        with pytest.raises(ConfigError, match="learns by the loss alone, or not at all"):
            LambdaDARTS().require(NASBench201(), selector)
    else:
        LambdaDARTS().require(NASBench201(), selector)


def test_alignment_needs_cells_that_have_two_places(searching):
    with pytest.raises(ConfigError, match="every cell has one place only"):
        searching("chain", "lambda-darts")


# All of them


ALL = {
    "beta-decay": {"name": "beta-decay"},
    "shrinking": {"name": "shrinking", "at": [0.3, 0.7]},
    "random": {"name": "perturbed-weights"},
    "adversarial": {"name": "perturbed-weights", "kind": "adversarial", "steps": 2},
    "oles": {"name": "oles", "threshold": 0.9, "window": 1, "every": 2},
    "lambda-darts": {"name": "lambda-darts", "weight": 0.1},
}
TOGETHER = [each for name, each in ALL.items() if name != "random"]
RUNS = {
    **{name: [each] for name, each in ALL.items()},
    "together": TOGETHER,
    "unrolled": [{"name": "skip-dropout"}, *TOGETHER],
}


def command(name):
    rule = "unrolled" if name == "unrolled" else "first-order"
    settings = {"search.modifiers": json.dumps(RUNS[name]), "search.hypergradient.name": rule}
    return ["search", *flags(**NAS_BENCH, **settings)]


@pytest.fixture(scope="module")
def undisturbed(nas_command, tmp_path_factory):
    """What searches leave that nobody disturbed, by name."""
    found = {}

    def search(name):
        if name not in found:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            outcome = nas_command(*command(name), "--out", folder)
            assert outcome.code == 0, outcome.err
            found[name] = products(folder)
        return found[name]

    return search


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in [*ALL, "together"]), "unrolled"]
)
def test_a_search_stopped_on_its_way_leaves_the_same_bytes(name, undisturbed, nas_command, stop, tmp_path):  # noqa: F811
    expected = undisturbed(name)
    often = name in ALL
    stop(lambda count: often or count == 3)
    assert finish(nas_command, [*command(name), "--out", tmp_path / "run"]) == (STEPS - 1 if often else 1)
    assert_same(tmp_path / "run", expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["together", "unrolled"])
def test_a_search_killed_on_its_way_leaves_the_same_bytes(name, undisturbed, nas_command, tmp_path):
    again = [*command(name), "--out", tmp_path / "run"]
    often = [*again, "--set", "checkpoint_seconds=0"]
    killed = subprocess.run([sys.executable, "-c", KILLED, "4", *often], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    outcome = nas_command(*again)
    assert outcome.code == 0, outcome.err
    assert_same(tmp_path / "run", undisturbed(name))


def test_what_is_resumed_had_something_to_remember(undisturbed):
    rows = [json.loads(line) for line in undisturbed("unrolled")["metrics.jsonl"].decode().splitlines()]
    last = [row for row in rows if "epoch" in row][-1]
    assert last["candidates"] == 2.0
    assert last["frozen/nor_conv_3x3"] > 0
    assert -1 <= last["alignment"] <= 1
    assert last["beta_decay"] == 50.0


def test_the_command_line_refuses_what_cannot_go_together(nas_command, tmp_path):
    for modifiers, selector, message in (
        ("perturbed-weights", "st-gs", "perturbed-weights moves the weights of mixtures"),
        ("lambda-darts", "reinforce", "lambda-darts aligns gradients in the weights of decisions"),
        ("beta-decay", "uniform", "beta-decay penalises logits"),
        ("[sandwich, perturbed-weights]", "softmax", "perturbed-weights beside sandwich"),
        ("{name: oles, threshold: 2}", "softmax", "search.modifiers.0.threshold must be between -1 and 1"),
        ("{name: lambda-darts, radius: 0}", "softmax", "search.modifiers.0.radius must be positive"),
        ("{name: perturbed-weights, steps: 0}", "softmax", "search.modifiers.0.steps must be at least 1"),
        ("{name: perturbed-weights, radius: 2}", "softmax", "search.modifiers.0.radius.value must be between 0 and 1"),
    ):
        settings = ("--set", f"search.modifiers={modifiers}", "--set", "dataset.limit=48")
        outcome = nas_command("search", "--selector", selector, *settings, "--out", tmp_path / "run")
        assert outcome.code == 2, outcome.err
        assert message in outcome.err.replace("\n", " ")


@pytest.mark.parametrize("cls", [BetaDecay, LambdaDARTS, OperationEarlyStopping, PerturbedWeights, Shrinking])
def test_each_is_registered_and_names_its_source(cls):
    assert registry.load(Modifier.registry, registry.name_of(Modifier.registry, cls)) is cls
    assert "Source: " in cls.__doc__
