"""`nas diagnose`: the exact gradient is exact, figures mean what they say, and estimators have the biases they must."""

import itertools
import json
import math
import os
import signal
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas import registry
from nas.errors import ConfigError, Interrupted, NumericsError
from nas.estimators import local_expectation
from nas.report.diagnose import plot_diagnosis
from nas.runs.diagnose import measure
from nas.runs.diagnose.estimates import Estimates, estimate
from nas.runs.diagnose.measure import LIMIT, Settings, diagnose
from nas.runs.diagnose.problem import Problem
from nas.runs.diagnose.reference import Reference, enumerated, every_path, sampled
from nas.runs.diagnose.statistics import compare, size
from nas.runs.diagnose.subjects import Subject, subjects
from nas.runs.optimizers import Adam
from nas.runs.pipeline import configure
from nas.schedules import Constant
from nas.selection import Selection
from nas.selectors import Selector
from nas.selectors.score_function import Reinforce
from nas.space import Cell, CellSlot, Edge, SearchSpace, Task
from nas.subspace import Subspace, architectures, in_words, reduced
from nas.supernet import Network
from nas.supernet.inspection import inspect

TASK = Task(channels=1, height=6, width=6, classes=3)
THREE, ONE = ("skip_connect", "nor_conv_3x3", "avg_pool_3x3"), ("nor_conv_1x1",)
SCORES = ("reinforce", "score-cv", "rebar", "relax")
JUDGED = {
    "softmax": 3,
    "gumbel-softmax": 3,
    "st-gs": 3,
    "st-gs-single-path": 1,
    "gdas": 1,
    "straight-through": 3,
    "gumbel-rao": 3,
    "reinmax": 3,
    "pair-reinmax": 2,
    "reinforce": 1,
    "score-cv": 1,
    "rebar": 7,
    "relax": 1,
    "dirichlet": 3,
    "sigmoid": 3,
}
"""Candidates run and probed per edge of three, as design.md's table says."""

SPACE = """
from dataclasses import dataclass

from torch import nn

from nas import ops
from nas.selectors import Selector
from nas.selectors.softmax import Softmax
from nas.space import Cell, CellSlot, Edge, SearchSpace


@dataclass(frozen=True, kw_only=True)
class Space(SearchSpace):
    operations = {
        "skip": lambda s: nn.Identity(),
        "conv": lambda s: ops.relu_conv_norm(s.in_channels, s.channels, 3, s.stride, affine=not s.searching),
        "pool": lambda s: ops.average_pool(3, s.stride),
    }

    @property
    def cells(self):
        names = tuple(self.operations)
        return {"cell": Cell((Edge(0, 1, names), Edge(0, 2, names), Edge(1, 2, names)), outputs=(2,))}

    def layers(self, task, searching):
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, task.classes))
        return [nn.Conv2d(task.channels, 4, 3, padding=1), CellSlot("cell", 4), head]


@dataclass(frozen=True, kw_only=True)
class Mixture(Selector):
    def select(self, logits, progress, generator):
        return Softmax().select(logits, progress, generator)
"""

TINY = (
    *("--set", "dataset.limit=64", "--set", "search.batch_size=16", "--batch-size", 16),
    *("--threads", 1, "--draws", 6, "--burn-in", 3, "--epochs", 1, "--device", "cpu"),
)


def nas_bench(**changes):
    return registry.load("nas.search_spaces", "nas-bench-201")(channels=4, cells_per_stage=1, **changes)


def small_space():
    """27 architectures: three candidates on three edges of NAS-Bench-201's cell, one on the others."""
    return Subspace(base=nas_bench(), kept={"cell": (THREE, ONE, THREE, ONE, THREE, ONE)})


def problem_of(space, seed=0, task=TASK, batch=12):
    torch.manual_seed(seed)
    network = Network(space, task, searching=True).double().train()
    for parameter in network.parameters():
        parameter.requires_grad = False
    images = torch.randn(batch, task.channels, task.height, task.width, dtype=torch.float64)
    labels = torch.arange(batch) % task.classes
    logits = {
        name: torch.randn(cell.mask.shape).masked_fill(~cell.mask, -math.inf)  # float32, as in a search
        for name, cell in space.cells.items()
    }
    return Problem(network, images, labels, logits)


@pytest.fixture(scope="module")
def problem():
    return problem_of(small_space())


@pytest.fixture(scope="module")
def exact(problem):
    return enumerated(problem, lambda: None)


@pytest.fixture(scope="module")
def drawn(problem):
    """Estimates of a selector, kept for all tests."""
    known = {}

    def of(name, temperature=None, draws=200, burn_in=100):
        key = (name, temperature, draws, burn_in)
        if key not in known:
            subject = Subject(name, temperature, selector_of(name, temperature))
            optimizer = Adam(lr=Constant(value=0.01))
            known[key] = estimate(problem, subject, optimizer, draws, burn_in, 0, lambda: None)
        return known[key]

    return of


def selector_of(name, temperature=None):
    selector = registry.load("nas.selectors", name)()
    return selector if temperature is None else replace(selector, temperature=Constant(value=temperature))


def judged(estimates, reference):
    return compare(estimates, reference, np.random.default_rng(0))


# The exact gradient


def losses_of(problem):
    """Returns the loss of every architecture of a space with one cell, by its candidates, run by hand."""
    ((name, cell),) = problem.cells.items()
    found = {}
    with torch.no_grad():
        for chosen in itertools.product(*(range(len(edge.operations)) for edge in cell.edges)):
            scores = problem.network(problem.images, {name: Selection(tuple((k,) for k in chosen))}).scores
            found[chosen] = float(F.cross_entropy(scores, problem.labels))
    return found


def expected(losses, logits):
    p = logits.softmax(-1)
    shares = [math.prod(float(p[e, k]) for e, k in enumerate(chosen)) for chosen in losses]
    return sum(share * loss for share, loss in zip(shares, losses.values(), strict=True))


def test_the_enumerated_gradient_is_the_derivative_of_the_expected_loss(problem, exact):
    losses, logits, step = losses_of(problem), problem.logits["cell"].double(), 1e-4
    assert len(losses) == 27
    slopes = []
    for e, k in problem.choices["cell"].nonzero().tolist():
        sides = []
        for move in (step, -step):
            moved = logits.clone()
            moved[e, k] += move
            sides.append(expected(losses, moved))
        slopes.append((sides[0] - sides[1]) / (2 * step))
    # The error of central differences is a sixth of step^2 times a third derivative, below the losses' range.
    assert np.abs(exact.gradient - slopes).max() < step**2 * (max(losses.values()) - min(losses.values()))
    assert exact.loss == pytest.approx(expected(losses, logits), abs=1e-12)
    squares = {chosen: (loss - exact.loss) ** 2 for chosen, loss in losses.items()}
    assert exact.deviation == pytest.approx(expected(squares, logits) ** 0.5)
    assert exact.gradient.shape == (9,)


def test_the_mean_local_expectation_is_the_exact_gradient(problem, exact):
    losses = losses_of(problem)

    def loss_of(sample):
        return torch.tensor(losses[tuple(sample.argmax(1).tolist())], dtype=torch.float64)

    logits, total = problem.logits["cell"].double().requires_grad_(), 0
    log_shares = logits.detach().log_softmax(-1)
    for chosen in losses:
        sample = torch.zeros_like(logits).scatter(1, torch.tensor(chosen)[:, None], 1.0)
        share = log_shares[torch.arange(len(chosen)), list(chosen)].sum().exp()
        total = total + share * local_expectation(loss_of, logits, sample)
    (gradient,) = torch.autograd.grad(total, logits)
    assert np.abs(problem.flat({"cell": gradient}) - exact.gradient).max() < 1e-13


def test_cells_with_logits_of_their_own_are_enumerated_together():
    problem = problem_of(Chain(blocks=2))
    assert len(list(every_path(problem))) == architectures(Chain(blocks=2)) == 9
    found = enumerated(problem, lambda: None)
    logits = {name: table.double().requires_grad_() for name, table in problem.logits.items()}
    total = sum(
        problem.loss(paths)
        * torch.stack([logits[name].softmax(-1)[0, rows[0][0]] for name, rows in paths.items()]).prod()
        for paths in every_path(problem)
    )
    gradients = torch.autograd.grad(total, [*logits.values()])
    assert np.abs(problem.flat(dict(zip(logits, gradients, strict=True))) - found.gradient).max() < 1e-13


def test_many_sampled_decisions_give_the_exact_gradient_within_their_errors(problem, exact):
    found = sampled(problem, 2000, torch.Generator().manual_seed(0), lambda: None)
    errors = found.terms.std(0, ddof=1) / len(found.terms) ** 0.5
    assert (np.abs(found.gradient - exact.gradient) < 4 * errors).all()
    norm, error = size(found)
    assert 0 < error < 0.1 * norm
    assert abs(norm - size(exact)[0]) < 4 * error
    assert size(exact) == (np.linalg.norm(exact.gradient), 0.0)


def test_too_few_sampled_decisions_are_refused(problem):
    with pytest.raises(ConfigError, match=r"lost in the noise of 4 decisions; raise --decisions"):
        size(sampled(problem, 4, torch.Generator().manual_seed(0), lambda: None))


def test_diagnosing_leaves_weights_and_statistics_as_they_are(problem, drawn):
    before = {name: value.clone() for name, value in problem.network.state_dict().items()}
    drawn("st-gs", 1.0, draws=2, burn_in=1)
    enumerated(problem, lambda: None)
    assert all(torch.equal(value, before[name]) for name, value in problem.network.state_dict().items())


# What the estimators must show


@pytest.mark.parametrize("name", SCORES)
def test_score_functions_are_unbiased(name, drawn, exact):
    found = judged(drawn(name), exact)
    assert found["bias"] <= 4 * found["bias_error"]
    assert found["cosine"] > 0.9


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "entmax"])
def test_deterministic_selectors_have_a_variance_of_exactly_zero(name, drawn, exact):
    found = judged(drawn(name), exact)
    assert found["variance"] == 0
    assert found["bias"] > 0.1
    assert {value for key, value in found.items() if key.endswith("_error")} == {0}
    assert found["mse_per_64_candidates"] == found["mse_per_second"] == pytest.approx(found["bias"] ** 2)


@pytest.mark.parametrize("name", [*JUDGED])
def test_candidates_are_counted_as_the_design_says(name, drawn):
    tau = 1.0 if hasattr(selector_of(name), "temperature") and name not in SCORES else None
    assert drawn(name, tau, *((200, 100) if name in SCORES else (12, 1))).candidates == JUDGED[name]


def test_pair_reinmax_has_the_mean_of_reinmax(drawn):
    one, two = drawn("reinmax").gradients, drawn("pair-reinmax").gradients
    errors = ((one.var(0, ddof=1) + two.var(0, ddof=1)) / 200) ** 0.5
    assert (np.abs(one.mean(0) - two.mean(0)) < 4 * errors).all()


@dataclass(frozen=True, kw_only=True)
class Chain(SearchSpace):
    """Edges in a row, each followed by a batch norm that reads nothing else."""

    blocks: int = 2

    operations: ClassVar = {
        **{f"conv{size}": lambda s, size=size: nn.Conv2d(3, 3, size, padding=size // 2) for size in (1, 3)},
        "pool": lambda s: nn.MaxPool2d(3, 1, 1),
    }

    @property
    def cells(self):
        return {f"block{i}": Cell((Edge(0, 1, tuple(self.operations)),), outputs=(1,)) for i in range(self.blocks)}

    def layers(self, task, searching):
        layers = [nn.Conv2d(task.channels, 3, 3, padding=1)]
        for name in self.cells:
            layers += [CellSlot(name, 3), nn.Sequential(nn.BatchNorm2d(3, eps=1e-12), nn.ReLU())]
        return [*layers, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, task.classes))]


@pytest.mark.parametrize("name", ["st-gs-single-path", "gdas"])
def test_single_path_gradients_vanish_before_a_batch_norm_that_reads_one_edge(name):
    problem = problem_of(Chain())
    subject = Subject(name, 1.0, selector_of(name, 1.0))
    found = judged(estimate(problem, subject, Adam(), 50, 1, 0, lambda: None), enumerated(problem, lambda: None))
    assert found["bias"] == pytest.approx(1, abs=1e-6)
    assert found["variance"] < 1e-9
    other = Subject("st-gs", 1.0, selector_of("st-gs", 1.0))
    assert (
        judged(estimate(problem, other, Adam(), 50, 1, 0, lambda: None), enumerated(problem, lambda: None))["variance"]
        > 1e-3
    )


# Figures and their errors


def gaussian(count, bias, deviation, seed):
    random = np.random.default_rng(seed)
    return Estimates(random.normal(0, deviation, (count, 6)) + np.array([1.0 + bias, 0, 0, 0, 0, 0]), 2.0, 0.5)


TRUTH = Reference(np.array([1.0, 0, 0, 0, 0, 0]), None, 0.0, 0.0)


@pytest.mark.parametrize(("bias", "tolerance"), [(0.0, 4), (0.5, 4), (3.0, 4)])
def test_bias_and_variance_are_found_within_their_errors(bias, tolerance):
    found = [judged(gaussian(100, bias, 1.0, seed), TRUTH) for seed in range(60)]
    for name, true in (("bias", bias), ("variance", 6.0)):
        values, errors = ([row[key] for row in found] for key in (name, f"{name}_error"))
        assert all(abs(value - true) <= tolerance * error for value, error in zip(values, errors, strict=True))
        if true == 0.5:  # that of a bias whose square is within a few errors of 0 errs on the safe side
            assert 1 < np.mean(errors) / np.std(values) < 2.5
        elif true:  # the spread of 60 values is known within a tenth
            assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


def test_the_noise_of_the_draws_is_taken_off_the_bias():
    squares = [judged(gaussian(20, 0.0, 1.0, seed), TRUTH)["bias"] ** 2 for seed in range(200)]
    raw = 6 / 20  # tr(Cov) / N, what the mean's squared distance would be
    assert np.mean(squares) < 0.4 * raw
    assert np.median(squares) < 0.1 * raw


def test_mean_squared_errors_follow_from_bias_variance_and_cost():
    found = judged(gaussian(50, 0.5, 1.0, 0), TRUTH)
    assert found["mse_per_64_candidates"] == pytest.approx(found["bias"] ** 2 + found["variance"] * 2 / 64)
    assert found["mse_per_second"] == pytest.approx(found["bias"] ** 2 + found["variance"] * 0.5)
    assert 0 < found["mse_per_64_candidates_error"] < 1


def test_the_noise_of_a_sampled_reference_is_taken_off_too():
    random = np.random.default_rng(0)
    squares, errors = [], []
    for seed in range(40):
        terms = random.normal(0, 3.0, (500, 6)) + TRUTH.gradient
        noisy = Reference(terms.mean(0), terms, 0.0, 0.0)
        found = judged(gaussian(100, 0.0, 0.1, seed), noisy)
        squares.append(found["bias"] ** 2)
        errors.append(found["bias_error"])
        assert found["bias"] <= 4 * found["bias_error"]
    assert np.median(squares) < 0.3 * 54 / 500  # tr(Cov) / M
    assert np.mean(errors) > 0.1


def test_equal_signs_are_counted_over_the_logits():
    truth = Reference(np.array([1.0, -1, 1, -1]), None, 0.0, 0.0)
    found = judged(Estimates(np.array([[2.0, -1, -1, -3]] * 3), 1.0, 1.0), truth)
    assert found["sign_agreement"] == 0.75
    assert found["cosine"] == pytest.approx(5 / (15**0.5 * 2))


# Reduced spaces


@pytest.mark.parametrize("name", registry.names("nas.search_spaces"))
@pytest.mark.parametrize("limit", [3, 100, LIMIT])
def test_a_reduced_space_keeps_graph_and_layers_and_the_limit(name, limit):
    space = registry.load("nas.search_spaces", name)()
    small = reduced(space, limit)
    assert isinstance(small, Subspace)
    assert 2 <= architectures(small) <= limit < architectures(space)
    small.check()
    for whole, less in zip(space.cells.values(), small.cells.values(), strict=True):
        assert [(edge.source, edge.target) for edge in less.edges] == [(e.source, e.target) for e in whole.edges]
        assert replace(less, edges=()) == replace(whole, edges=())
        for edge, kept in zip(whole.edges, less.edges, strict=True):
            assert [operation for operation in edge.operations if operation in kept.operations] == [*kept.operations]
            assert "none" not in kept.operations or kept == edge  # all are kept, where too few others are
    assert f"{architectures(small):,} of " in in_words(small)
    inspect(small, Task(channels=3, height=32, width=32, classes=10), searching=True)


def test_nas_bench_201_keeps_three_candidates_on_every_edge():
    small = reduced(nas_bench(), LIMIT)
    assert small.kept == {"cell": (("skip_connect", "nor_conv_3x3", "avg_pool_3x3"),) * 6}
    assert in_words(small) == "3 of 5 candidates on each of 6 edges: 729 of 15,625 architectures"


def test_darts_keeps_choices_in_both_cells():
    small = reduced(registry.load("nas.search_spaces", "darts")(), LIMIT)
    for cell in small.cells.values():
        assert Counter(len(edge.operations) for edge in cell.edges) == {3: 3, 1: 11}
        assert len({edge.operations for edge in cell.edges}) > 5  # the fixed edges do not all run the same


def test_none_stays_where_there_is_too_little_else():
    space = Subspace(base=nas_bench(), kept={"cell": (("none", "skip_connect"),) * 6})
    assert reduced(space, LIMIT) is space
    small = reduced(space, 4)
    assert sorted({edge.operations for edge in small.cells["cell"].edges}) == [
        ("none", "skip_connect"),
        ("skip_connect",),
    ]


def test_a_reduced_supernet_has_parameters_of_the_whole_one():
    whole, less = (Network(space, TASK, searching=True).state_dict() for space in (nas_bench(), small_space()))
    assert less.keys() < whole.keys()
    assert all(whole[name].shape == value.shape for name, value in less.items())


# What is judged


def test_all_are_the_registered_selectors_that_can_be_judged():
    found = subjects(configure(), "all", ".1,1")
    names = {each.name for each in found}
    assert names >= {*JUDGED, "entmax"}
    assert not names & {"uniform", "edge-top-k", "edge-gates"}
    counts = Counter(each.name for each in found)
    assert (counts["st-gs"], counts["gdas"], counts["reinforce"], counts["rebar"]) == (2, 2, 1, 1)
    for each in found:
        held = isinstance(each.temperature, float)
        assert not held or each.selector.temperature == Constant(value=each.temperature)


def test_a_configured_selector_keeps_its_settings_and_others_have_their_defaults():
    config = configure(selector={"name": "reinforce", "decisions": 4})
    first, second = subjects(config, "reinforce,score-cv", "1")
    assert first.selector == Reinforce(decisions=4)
    assert second.selector == selector_of("score-cv")
    assert subjects(configure(), "reinforce, reinforce", "1")[0].selector == Reinforce()


def test_a_memory_learns_in_every_draw_and_before_the_first_that_counts(problem):
    calls = []

    @dataclass(frozen=True, kw_only=True)
    class Learner(Selector):
        def select(self, logits, progress, generator):
            return selector_of("softmax").select(logits, progress, generator)

        def memory(self, cells):
            return nn.Linear(1, 1, bias=False)

        def objective(self, loss_of, logits, progress, generator, memory):
            calls.append(float(memory.weight.detach()))
            return super().objective(loss_of, logits, progress, generator, memory) + memory.weight.sum()

    found = estimate(problem, Subject("learner", None, Learner()), Adam(), 5, 7, 0, lambda: None)
    assert len(calls) == 12
    assert len(found.gradients) == 5
    assert calls == sorted(calls, reverse=True)
    assert len({*calls}) == 12


def test_estimates_that_are_not_finite_are_refused(problem):
    @dataclass(frozen=True, kw_only=True)
    class Broken(Selector):
        def select(self, logits, progress, generator):
            return selector_of("softmax").select(logits, progress, generator)

        def objective(self, *arguments):
            return super().objective(*arguments) * math.nan

    with pytest.raises(NumericsError, match="selector broken are not finite"):
        estimate(problem, Subject("broken", None, Broken()), Adam(), 2, 1, 0, lambda: None)


# The command


def deterministic(rows):
    timed = ("seconds_per_draw", "mse_per_second", "mse_per_second_error")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """A file with a space of 27 architectures and a selector."""
    path = tmp_path_factory.mktemp("plugin") / "mine.py"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="module")
def found(nas_command, plugin):
    """A diagnosis by the command line, with its figure."""
    plot = plugin.with_name("figure.png")
    flags = ("--selectors", "softmax,st-gs,reinforce", "--temperatures", ".5,1", "--plot", plot)
    outcome = nas_command("diagnose", "--space", f"{plugin}:Space", *TINY, *flags, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out), outcome.err, plot


def test_the_result_has_rows_at_both_weights_reference_machine_and_setting(found):
    result, err, plot = found
    keys = {"selector", "temperature", "candidates", "seconds_per_draw", "draws"}
    for name in ("bias", "variance", "cosine", "sign_agreement", "mse_per_64_candidates", "mse_per_second"):
        keys |= {name, f"{name}_error"}
    for rows in (result["rows"], result["initial_rows"]):
        pairs = [(row["selector"], row["temperature"]) for row in rows]
        assert pairs == [("softmax", None), ("st-gs", 0.5), ("st-gs", 1.0), ("reinforce", None)]
        assert all(set(row) == keys for row in rows)
    assert result["rows"] != result["initial_rows"]
    assert (result["architectures"], result["architectures_of_space"]) == (27, 27)
    assert result["reference"] == "enumerated"
    assert result["reduced"] is None
    assert result["gradient_norm"].keys() == {"initial", "trained"}
    assert result["gradient_norm_error"] == {"initial": 0, "trained": 0}
    assert result["space"]["name"].endswith("mine.py:Space")
    assert result["machine"]["threads"] == 1
    setting = result["setting"]
    assert (setting["draws"], setting["batch_size"], setting["epochs"], setting["seed"]) == (6, 16, 1, 0)
    assert (setting["logits"], setting["dataset"]["name"], setting["decisions"]) == ("normal", "digits", None)
    assert "train the supernet" in err
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_seed_gives_the_same_result_whatever_else_is_judged(found, nas_command, plugin):
    command = ("diagnose", "--space", f"{plugin}:Space", *TINY, "--json")
    result = json.loads(nas_command(*command, "--selectors", "reinforce,st-gs", "--temperatures", ".5").out)
    for key in ("rows", "initial_rows"):
        known = {(row["selector"], row["temperature"]): row for row in deterministic(found[0][key])}
        assert all(row == known[row["selector"], row["temperature"]] for row in deterministic(result[key]))
    assert result["gradient_norm"] == found[0]["gradient_norm"]
    other = json.loads(nas_command(*command, "--selectors", "reinforce", "--seed", 1, "--weights", "initial").out)
    assert other["gradient_norm"]["initial"] != result["gradient_norm"]["initial"]


def test_a_table_for_a_reader_says_what_was_compared_with_what(nas_command):
    flags = ("--selectors", "softmax,st-gs", "--temperatures", "1", "--logits", "flat", "--quiet")
    outcome = nas_command("diagnose", "--set", "space.channels=4", *TINY, *flags)
    assert (outcome.code, outcome.err) == (0, "")
    for part in ("at initial weights", "at trained weights", "st-gs 1", "729 of 15,625", "flat logits", "bias"):
        assert part in outcome.out
    assert max(map(len, outcome.out.splitlines()[:8])) <= 80


def test_a_sampled_reference_is_of_the_whole_space(nas_command):
    flags = ("--selectors", "reinforce", "--reference", "sampled", "--decisions", 200, "--weights", "initial")
    result = json.loads(nas_command("diagnose", "--set", "space.channels=4", *TINY, *flags, "--json").out)
    assert (result["reference"], result["reduced"], result["architectures"]) == ("sampled", None, None)
    assert result["rows"] == []
    assert result["gradient_norm_error"]["initial"] > 0
    assert result["setting"]["decisions"] == 200


def test_a_selector_of_the_users_own(nas_command, plugin, monkeypatch):
    monkeypatch.chdir(plugin.parent)
    flags = ("--space", "mine.py:Space", "--selectors", "mine.py:Mixture,softmax", "--weights", "initial")
    outcome = nas_command("diagnose", *TINY, *flags, "--json", "--plot", "figure.svg")
    mine, softmax = json.loads(outcome.out)["initial_rows"]
    assert mine["selector"] == "mine.py:Mixture"
    assert mine["bias"] == softmax["bias"]
    assert plugin.with_name("figure.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["--selectors", "st-gz"], 2, ["unknown selector 'st-gz'", "did you mean 'st-gs'?", "--selectors"]),
        (["--selectors", "uniform"], 2, ["uniform learns no logits"]),
        (["--selectors", "st-gs,edge-gates"], 2, ["edge-gates weighs whole edges"]),
        (["--selectors", ""], 2, ["--selectors must be", "got ''"]),
        (["--selectors", "st-gs,,gdas"], 2, ["--selectors must be"]),
        (["--selectors", "absent.py:Mine"], 2, ["no file"]),
        (["--temperatures", "0.5,0"], 2, ["--temperatures must be positive numbers", "got '0'"]),
        (["--temperatures", "cold"], 2, ["--temperatures must be positive numbers", "got 'cold'"]),
        (["--temperatures", "inf"], 2, ["got 'inf'"]),
        (["--temperatures", ""], 2, ["--temperatures must be positive numbers", "got ''"]),
        (["--draws", "1"], 2, ["--draws must be at least 2, got 1"]),
        (["--burn-in", "0"], 2, ["--burn-in must be at least 1, got 0"]),
        (["--epochs", "0"], 2, ["--epochs must be at least 1, got 0"]),
        (["--batch-size", "0"], 2, ["--batch-size must be at least 1, got 0"]),
        (["--decisions", "1"], 2, ["--decisions must be at least 2, got 1"]),
        (["--threads", "-1"], 2, ["threads must be at least 0, got -1", "--threads"]),
        (["--set", "selector.decisions=2"], 2, ["selector.decisions"]),
        (["--space", "dart"], 2, ["did you mean 'darts'?"]),
        (["--plot", "figure.doc"], 2, ["--plot must end in .png", "'figure.doc'"]),
        (["--plot", "absent/figure.png"], 5, ["cannot write absent/figure.png"]),
        (["--dataset", "absent.npz"], 3, ["no such file"]),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(arguments, code, parts, nas_command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "BilevelSearch", None)
    outcome = nas_command("diagnose", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert "Traceback" not in outcome.err
    (message,) = [line for line in outcome.err.splitlines() if line.startswith("nas: ")]
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("flag", ["--weights", "--logits", "--reference"])
def test_a_choice_that_is_none_is_a_usage_error(flag, nas_command):
    outcome = nas_command("diagnose", flag, "perhaps")
    assert outcome.code == 2
    assert "'perhaps' is not one of" in outcome.err


def test_a_space_without_a_choice_is_refused():
    space = Subspace(base=nas_bench(), kept={"cell": (ONE,) * 6})
    config = configure(device="cpu")
    with pytest.raises(ConfigError, match="one architecture only"):
        diagnose(replace(config, space=space), subjects(config, "st-gs", "1"), Settings())


def test_a_gradient_of_zero_is_refused():
    with pytest.raises(ConfigError, match="the exact gradient is zero"):
        size(Reference(np.zeros(3), None, 1.0, 0.0))


def test_help_has_examples(nas_command):
    outcome = nas_command("diagnose", "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert "\n  nas diagnose" in outcome.out
    assert "\n  diagnose " in nas_command("--help").out


def test_a_signal_stops_it_after_the_evaluation_at_hand(monkeypatch):
    counts = []
    original = Problem.loss

    def loss(self, paths):
        counts.append(1)
        if len(counts) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, paths)

    monkeypatch.setattr(Problem, "loss", loss)
    config = configure(device="cpu", threads=1, dataset={"name": "digits", "limit": 64})
    with pytest.raises(Interrupted, match="stopped by SIGTERM during: exact gradient") as caught:
        diagnose(config, subjects(config, "softmax", "1"), Settings(weights="initial", batch_size=8), quiet=True)
    assert caught.value.signal_number == signal.SIGTERM
    assert len(counts) == 3


def test_a_figure_needs_no_temperatures(found, tmp_path):
    result = dict(found[0])
    for key in ("rows", "initial_rows"):
        result[key] = [row for row in result[key] if row["temperature"] is None]
        result[key].append({**result[key][0], "bias": 0.0, "mse_per_64_candidates": 0.0})
    plot_diagnosis(result, tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_a_whole_diagnosis_finds_score_functions_unbiased_and_mixtures_not(nas_command):
    flags = ("--set", "space.channels=4", "--threads", 1, "--device", "cpu", "--draws", 400, "--weights", "trained")
    flags = (*flags, "--selectors", ",".join([*SCORES, "softmax", "gumbel-softmax", "gdas", "st-gs-single-path"]))
    result = json.loads(nas_command("diagnose", *flags, "--json").out)
    rows = {(row["selector"], row["temperature"]): row for row in result["rows"]}
    for name in SCORES:
        assert rows[name, None]["bias"] <= 4 * rows[name, None]["bias_error"]
    for key in (("softmax", None), ("gumbel-softmax", 1.0), ("gdas", 1.0), ("st-gs-single-path", 1.0)):
        assert rows[key]["bias"] > 4 * rows[key]["bias_error"]
    assert rows["gumbel-softmax", 0.1]["variance"] > rows["gumbel-softmax", 1.0]["variance"]
    assert rows["score-cv", None]["mse_per_64_candidates"] < rows["softmax", None]["mse_per_64_candidates"]
