"""Hypergradients against the closed form of a quadratic bilevel problem, and against each other on a supernet."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from nas import registry
from nas.data import Digits
from nas.errors import ConfigError
from nas.hypergradients import (
    Bilevel,
    ConjugateGradient,
    FirstOrder,
    Hypergradient,
    Neumann,
    SingleLevel,
    Unrolled,
    UnrolledExact,
    displaced,
    dot,
)
from nas.runs.bilevel import ArchitectureStep
from nas.runs.configuration import Config, Search
from nas.runs.optimizers import SGD, AdamW
from nas.runs.search import BilevelSearch
from nas.runs.session import session
from nas.schedules import Constant
from nas.selectors.score_function import Reinforce, ScoreControlVariate
from nas.selectors.softmax import Softmax
from nas.selectors.straight_through import StraightThroughGumbelSoftmax
from search_spaces.nas_bench_201 import NASBench201

LR, DECAY = 0.05, 0.3
NAMES = registry.names(Hypergradient.registry)


class Quadratic:
    """G = 1/2 w'Hw - w'Ba, F = 1/2 |w - t|^2 + c'a; weights in two pieces, as parameters come."""

    def __init__(self, seed=0):
        draws = torch.Generator().manual_seed(seed)
        root = torch.randn(5, 5, generator=draws, dtype=torch.float64)
        self.h = root @ root.T / 5 + torch.eye(5, dtype=torch.float64)
        self.b = torch.randn(5, 3, generator=draws, dtype=torch.float64)
        self.t = torch.randn(5, generator=draws, dtype=torch.float64)
        self.c = torch.randn(3, generator=draws, dtype=torch.float64)
        self.a = torch.randn(3, generator=draws, dtype=torch.float64).requires_grad_()
        start = torch.randn(5, generator=draws, dtype=torch.float64)
        self.pieces = [nn.Parameter(start[:2].clone()), nn.Parameter(start[2:].clone())]

    def w(self):
        return torch.cat([*self.pieces])

    def inner_loss(self):
        return self.w() @ self.h @ self.w() / 2 - self.w() @ self.b @ self.a

    def outer_loss(self):
        return ((self.w() - self.t) ** 2).sum() / 2 + self.c @ self.a

    def problem(self, momentum=(0.0, 0.0)):
        def gradient(loss):
            return lambda tensors: [*torch.autograd.grad(loss(), tensors, allow_unused=True, materialize_grads=True)]

        def step(gradients):
            return [
                -LR * (past + g + DECAY * w.detach())
                for past, g, w in zip(momentum, gradients, self.pieces, strict=True)
            ]

        inner, outer = gradient(self.inner_loss), gradient(self.outer_loss)
        settings = {"step": step, "lr": LR, "weight_decay": DECAY, "graph": self.inner_loss}
        return Bilevel(weights=self.pieces, logits=[self.a], outer=outer, inner=inner, **settings)

    def stepped(self, momentum=0.0):
        """The weights after a step, and dw/da there."""
        w, a = self.w().detach(), self.a.detach()
        return w - LR * (momentum + self.h @ w - self.b @ a + DECAY * w), LR * self.b

    def implicit(self, damping=0.0):
        """dF/da through w*(a), with the gradient of F at the present weights."""
        inverse = torch.linalg.inv(self.h + (DECAY + damping) * torch.eye(5, dtype=torch.float64))
        return self.c + self.b.T @ inverse @ (self.w().detach() - self.t)


@pytest.fixture(params=range(3))
def quadratic(request):
    return Quadratic(request.param)


def close(found, expected, rtol=1e-8):
    # Differences of a quadratic are exact but for rounding: 1e-16 over a distance of 1e-2, a few times.
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)


def test_first_order_takes_the_weights_as_constants(quadratic):
    close(FirstOrder().estimate(quadratic.problem())[0], quadratic.c, 1e-14)


def test_single_level_descends_the_inner_loss(quadratic):
    close(SingleLevel().estimate(quadratic.problem())[0], -quadratic.b.T @ quadratic.w().detach(), 1e-14)


@pytest.mark.parametrize("rule", [Unrolled(), Unrolled(radius=1.0), UnrolledExact()])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_unrolled_is_the_gradient_through_one_step(quadratic, rule, momentum):
    w, slope = quadratic.stepped(momentum)
    expected = quadratic.c + slope.T @ (w - quadratic.t)
    close(rule.estimate(quadratic.problem((momentum, momentum)))[0], expected)


def test_unrolled_is_the_numerical_derivative_of_the_stepped_outer_loss(quadratic):
    def after(a):
        w = quadratic.w().detach()
        stepped = w - LR * (quadratic.h @ w - quadratic.b @ a + DECAY * w)
        return ((stepped - quadratic.t) ** 2).sum() / 2 + quadratic.c @ a

    (expected,) = torch.autograd.grad(after(quadratic.a), quadratic.a)
    close(Unrolled().estimate(quadratic.problem())[0], expected)


def test_conjugate_gradients_solve_as_many_equations_as_there_are_weights(quadratic):
    rule = ConjugateGradient(iterations=5, damping=0.2)
    close(rule.estimate(quadratic.problem())[0], quadratic.implicit(0.2), 1e-6)


def test_the_neumann_series_converges_to_the_implicit_gradient(quadratic):
    largest = torch.linalg.eigvalsh(quadratic.h).max() + DECAY
    errors = []
    for terms in (0, 5, 20, 200):
        found = Neumann(terms=terms, rate=float(1 / largest)).estimate(quadratic.problem())[0]
        errors.append((found - quadratic.implicit()).norm().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_a_neumann_series_of_given_length_is_its_formula(quadratic):
    curved = quadratic.h + DECAY * torch.eye(5, dtype=torch.float64)
    v, total = quadratic.w().detach() - quadratic.t, torch.zeros(5, dtype=torch.float64)
    for power in range(4):
        total += LR * torch.linalg.matrix_power(torch.eye(5, dtype=torch.float64) - LR * curved, power) @ v
    close(Neumann(terms=3).estimate(quadratic.problem())[0], quadratic.c + quadratic.b.T @ total, 1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_what_they_were_bit_for_bit(quadratic, name):
    before = [piece.detach().clone() for piece in quadratic.pieces]
    same = [id(piece) for piece in quadratic.pieces]
    registry.load(Hypergradient.registry, name)().estimate(quadratic.problem())
    assert all(torch.equal(piece, kept) for piece, kept in zip(quadratic.pieces, before, strict=True))
    assert [id(piece) for piece in quadratic.pieces] == same


def test_weights_return_after_an_error_too():
    w = nn.Parameter(torch.tensor([0.1, 1e8]))
    kept = w.detach().clone()
    with pytest.raises(KeyError), displaced([w], [torch.tensor([1e8, 0.1])]):
        raise KeyError
    assert torch.equal(w, kept)


@pytest.mark.parametrize(
    "wrong",
    [
        # The finite difference divided by 2 and multiplied by epsilon, as some published code has it.
        lambda p, n, epsilon: (p - n) / 2.0 * epsilon,
        lambda p, n, epsilon: (p - n) / epsilon,
        lambda p, n, epsilon: (n - p) / (2 * epsilon),
    ],
)
def test_a_wrong_finite_difference_fails_the_closed_form(quadratic, wrong):
    class Wrong(Bilevel):
        def _difference(self, tensors, v, radius):
            epsilon, sides = radius / math.sqrt(dot(v, v)), []
            for sign in (1.0, -1.0):
                with displaced(self.weights, [sign * epsilon * each for each in v]):
                    sides.append(self.inner(tensors))
            return [wrong(ahead, behind, epsilon) for ahead, behind in zip(*sides, strict=True)]

    w, slope = quadratic.stepped()
    expected = quadratic.c + slope.T @ (w - quadratic.t)
    found = Unrolled().estimate(Wrong(**vars(quadratic.problem())))[0]
    assert (found - expected).norm() > 1e-3 * expected.norm()


def test_an_outer_loss_that_the_weights_do_not_move_leaves_the_partial_derivative(quadratic):
    problem = replace(quadratic.problem(), outer=lambda tensors: [torch.zeros_like(t) for t in tensors])
    for name in set(NAMES) - {"single-level"}:
        assert not registry.load(Hypergradient.registry, name)().estimate(problem)[0].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Unrolled(radius=0.0), "radius must be positive, got 0"),
        (lambda: Neumann(terms=-1), "terms must be at least 0, got -1"),
        (lambda: Neumann(rate=-0.5), "rate must be at least 0, got -0.5"),
        (lambda: ConjugateGradient(iterations=0), "iterations must be at least 1, got 0"),
        (lambda: ConjugateGradient(damping=-1.0), "damping must be at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


FIRST_ORDER = FirstOrder()


def make_search(folder, selector, rule=FIRST_ORDER, backend="reference", **settings):
    config = Config(
        space=NASBench201(channels=4, cells_per_stage=1),
        selector=selector,
        dataset=Digits(limit=48),
        search=Search(epochs=1, batch_size=12, hypergradient=rule, warmup=0.0, **settings),
        threads=1,
    )
    config = replace(config, engine=replace(config.engine, backend=backend))
    return session(folder, config, "search", quiet=True)


def doubled(search):
    """A search in float64, after a step, so that there is momentum."""
    search.step(0, 0.3)
    search.network.double()
    for slot in search.weights.state.values():
        slot["momentum_buffer"] = slot["momentum_buffer"].double()
    search.architecture.double()
    for batches in (search.arch, search.train):
        plain = batches.batch
        batches.batch = lambda step, plain=plain: (plain(step)[0].double(), plain(step)[1])
    return search


@pytest.mark.parametrize("selector", [Softmax(), StraightThroughGumbelSoftmax()], ids=lambda s: type(s).__name__)
def test_on_a_supernet_the_finite_difference_is_the_exact_derivative(selector, tmp_path):
    with make_search(tmp_path, selector) as work:
        search = doubled(BilevelSearch(work))
        exact = UnrolledExact().estimate(ArchitectureStep(search, 1, 0.5).problem())[0]
        found = Unrolled(radius=1e-5).estimate(ArchitectureStep(search, 1, 0.5).problem())[0]
        first = FirstOrder().estimate(ArchitectureStep(search, 1, 0.5).problem())[0]
    # A smaller radius than usual: of 1e-4 and more, ReLUs change sides on the way in so small a network.
    largest = exact.abs().max()
    assert (exact - first).abs().max() > 1e-3 * largest
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4 * largest.item())


def test_a_long_neumann_series_is_what_conjugate_gradients_find(tmp_path):
    with make_search(tmp_path, Softmax(), weights=SGD(lr=Constant(value=0.02), weight_decay=1000.0)) as work:
        search = doubled(BilevelSearch(work))
        found = [
            rule.estimate(ArchitectureStep(search, 1, 0.5).problem())[0]
            for rule in (
                Neumann(terms=60, rate=1 / 1500, radius=1e-5),
                ConjugateGradient(iterations=40, damping=0.0, radius=1e-5),
            )
        ]
    # The weight decay outweighs what is not convex, and eigenvalues of 1,000 to 2,000 leave at most (1/3)^60.
    torch.testing.assert_close(*found, rtol=0, atol=1e-3 * found[0].abs().max().item())


@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_step_leaves_weights_momentum_and_statistics(name, tmp_path):
    rule = registry.load(Hypergradient.registry, name)()
    with make_search(tmp_path, StraightThroughGumbelSoftmax(), rule, backend="auto") as work:
        search = BilevelSearch(work)
        search.step(0, 0.3)
        before = copy.deepcopy(search.network.state_dict())
        momentum = [slot["momentum_buffer"].clone() for slot in search.weights.state.values()]
        logits = search.architecture.tables["cell"].detach().clone()
        loss = search._architecture_step(1, 0.5)
        assert loss.isfinite()
        assert all(torch.equal(before[key], value) for key, value in search.network.state_dict().items())
        after = [slot["momentum_buffer"] for slot in search.weights.state.values()]
        assert all(torch.equal(a, b) for a, b in zip(momentum, after, strict=True))
        assert not torch.equal(logits, search.architecture.tables["cell"])


@pytest.mark.parametrize("name", ["unrolled", "neumann", "conjugate-gradient"])
def test_what_a_selector_remembers_learns_once_a_step(name, tmp_path):
    rule = registry.load(Hypergradient.registry, name)()
    with make_search(tmp_path, Reinforce(), rule) as work:
        search = BilevelSearch(work)
        search._architecture_step(0, 0.5)
        assert search.memory.weight.item() == pytest.approx(0.1)


def test_scores_have_no_exact_unrolled_gradient(tmp_path):
    with make_search(tmp_path, ScoreControlVariate(), UnrolledExact()) as work:
        search = BilevelSearch(work)
        with pytest.raises(ConfigError, match="unrolled-exact differentiates the weights of decisions"):
            search._architecture_step(0, 0.5)


def test_unrolling_needs_gradient_descent(tmp_path):
    with make_search(tmp_path, Softmax(), Unrolled(), weights=AdamW()) as work:
        search = BilevelSearch(work)
        with pytest.raises(ConfigError, match=r"search\.weights\.name=sgd"):
            search._architecture_step(0, 0.5)


def test_the_command_line_sets_it_by_name(nas_command, tmp_path):
    small = ("space.channels=4", "dataset.limit=48", "search.batch_size=24", "threads=1")
    for name in NAMES:
        settings = [part for setting in (*small, f"search.hypergradient.name={name}") for part in ("--set", setting)]
        outcome = nas_command("search", "--epochs", 1, "--quiet", "--json", "--out", tmp_path / name, *settings)
        assert outcome.code == 0, outcome.err
