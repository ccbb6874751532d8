"""Score-function selectors: each step's gradient is its formula, with what the memory knew before the step."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_selectors import PROGRESS, SPACES, build_supernet, draw_logits, given_winner, memory_of
from torch import nn

from nas.randomness import generator as keyed
from nas.runs.search import loss_at_border
from nas.selection import Selection
from nas.selectors.control_variates import Critic, Rebar, Relax, RelaxMemory
from nas.selectors.score_function import Reinforce, ScoreControlVariate

SCORE = [Reinforce(), ScoreControlVariate(), Rebar(), Relax()]


@pytest.fixture(scope="module", params=["nas-bench-201", "padded"])
def supernet(request):
    return SPACES[request.param], *build_supernet(SPACES[request.param])


def plain_loss(supernet, weights):
    """Returns the loss of a plain mixture, differentiable as often as one likes."""
    _, network, images, labels = supernet
    selections = {}
    for name, table in weights.items():
        cell = network.mixed_cells[0].cell
        selections[name] = Selection.mixture(table, cell.mask)
    return F.cross_entropy(network(images, selections).scores, labels)


def step(selector, supernet, logits, seed, memory):
    space, network, images, labels = supernet
    objective = selector.on(space.cells).objective(
        lambda selections: loss_at_border(network, images, labels, selections), logits, PROGRESS, keyed(seed), memory
    )
    return objective, dict(
        zip(logits, torch.autograd.grad(objective, [*logits.values()], retain_graph=True), strict=True)
    )


def draw(table, draws):
    noise = -torch.empty(table.shape, dtype=table.dtype).exponential_(generator=draws).log()
    perturbed = table.detach() + noise
    return perturbed, F.one_hot(perturbed.argmax(-1), table.shape[1]).to(table.dtype)


def scores(logits, hard):
    return {name: hard[name] - table.detach().softmax(-1) for name, table in logits.items()}


def assert_same(found, expected):
    largest = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        # Float64 through a dozen layers.
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-11 * largest)


def test_reinforce_subtracts_the_mean_of_past_losses(supernet):
    selector = Reinforce(momentum=0.8)
    logits, memory, past, weight = draw_logits(supernet[0], 0), memory_of(selector, supernet[0]), 0.0, 0.0
    for seed in range(4):
        hard = {name: draw(table, draws)[1] for draws in [keyed(seed)] for name, table in logits.items()}
        loss = plain_loss(supernet, hard).item()
        objective, found = step(selector, supernet, logits, seed, memory)
        assert objective.item() == pytest.approx(loss, rel=1e-12)
        baseline = past / weight if weight else 0.0
        assert_same(found, {name: (loss - baseline) * score for name, score in scores(logits, hard).items()})
        past, weight = 0.8 * past + 0.2 * loss, 0.8 * weight + 0.2


def test_leave_one_out_subtracts_the_mean_of_the_others(supernet):
    selector, logits, draws = Reinforce(baseline="leave-one-out", decisions=3), draw_logits(supernet[0], 1), keyed(5)
    assert selector.memory(supernet[0].cells) is None
    hard = [{name: draw(table, draws)[1] for name, table in logits.items()} for _ in range(3)]
    losses = [plain_loss(supernet, each).item() for each in hard]
    objective, found = step(selector, supernet, logits, 5, None)
    assert objective.item() == pytest.approx(sum(losses) / 3, rel=1e-12)
    expected = {name: torch.zeros_like(table) for name, table in logits.items()}
    for loss, each in zip(losses, hard, strict=True):
        for name, score in scores(logits, each).items():
            expected[name] += (loss - (sum(losses) - loss) / 2) * score / 3
    assert_same(found, expected)


def test_antithetic_decisions_come_in_pairs_from_mirrored_noise(supernet):
    selector = Reinforce(baseline="none", decisions=2, antithetic=True)
    logits, draws = draw_logits(supernet[0], 2), keyed(6)
    u = {n: (-torch.empty(t.shape, dtype=t.dtype).exponential_(generator=draws)).exp() for n, t in logits.items()}
    expected = {name: torch.zeros_like(table) for name, table in logits.items()}
    for mirror in (False, True):
        hard = {}
        for name, table in logits.items():
            uniform = 1 - u[name] if mirror else u[name]
            perturbed = table.detach() - (-uniform.log()).log()
            hard[name] = F.one_hot(perturbed.argmax(-1), table.shape[1]).to(table.dtype)
        loss = plain_loss(supernet, hard).item()
        for name, score in scores(logits, hard).items():
            expected[name] += loss * score / 2
    assert_same(step(selector, supernet, logits, 6, None)[1], expected)


def test_score_cv_is_its_formula_with_a_ridge_fitted_on_the_past(supernet):
    """(L - Q(D))(D - pi) + J_pi b; b from the normal equations of all losses before, weighted by age."""
    selector = ScoreControlVariate(forgetting=0.9, ridge=0.5)
    logits, memory = draw_logits(supernet[0], 3), memory_of(selector, supernet[0])
    features, targets, past, weight = [], [], 0.0, 0.0
    for seed in range(6):
        hard = {name: draw(table, draws)[1] for draws in [keyed(seed)] for name, table in logits.items()}
        loss = plain_loss(supernet, hard).item()
        size = sum(table.numel() for table in logits.values())
        b = torch.zeros(size, dtype=torch.float64)
        if features:
            ages = torch.tensor([0.9 ** (len(features) - 1 - i) for i in range(len(features))], dtype=torch.float64)
            x, y = torch.stack(features), torch.tensor(targets, dtype=torch.float64)
            b = torch.linalg.solve(
                x.T @ (ages[:, None] * x) + 0.5 * torch.eye(size, dtype=torch.float64), x.T @ (ages * y)
            )
        constant = past / weight if weight else 0.0
        parts = torch.split(b, [table.numel() for table in logits.values()])
        tables = {name: part.view(logits[name].shape) for name, part in zip(logits, parts, strict=True)}
        q = constant + sum((tables[name] * hard[name]).sum().item() for name in logits)
        expected = {}
        for name, score in scores(logits, hard).items():
            pi = logits[name].detach().softmax(-1)
            average = (pi * tables[name]).sum(-1, keepdim=True)
            expected[name] = (loss - q) * score + pi * (tables[name] - average)
        assert_same(step(selector, supernet, logits, seed, memory)[1], expected)
        features.append(torch.cat([hard[name].flatten() for name in logits]))
        targets.append(loss - constant if weight else 0.0)
        past, weight = 0.9 * past + 0.1 * loss, 0.9 * weight + 0.1


def relaxed_pair(logits, seed, tau):
    """Returns one-hot decisions and the relaxations of their noise and of noise given them, by cell name."""
    draws = keyed(seed)
    leaves = {name: table.detach().requires_grad_() for name, table in logits.items()}
    filled = {name: table.masked_fill(table == -math.inf, -1e30) for name, table in leaves.items()}
    noise = {n: -torch.empty(t.shape, dtype=t.dtype).exponential_(generator=draws).log() for n, t in logits.items()}
    hard = {n: F.one_hot((t + noise[n]).argmax(-1), t.shape[1]).to(t.dtype) for n, t in filled.items()}
    again = {
        n: given_winner(t, hard[n].argmax(-1), torch.empty(t.shape, dtype=t.dtype).exponential_(generator=draws))
        for n, t in filled.items()
    }
    y = {n: ((t + noise[n]) / tau).softmax(-1) for n, t in filled.items()}
    return leaves, hard, y, {n: (t.masked_fill(t == -math.inf, -1e30) / tau).softmax(-1) for n, t in again.items()}


@pytest.mark.parametrize("seed", range(3))
def test_rebar_is_its_formula(seed):
    supernet = SPACES["nas-bench-201"], *build_supernet(SPACES["nas-bench-201"])
    logits, memory = draw_logits(supernet[0], seed), memory_of(Rebar(), supernet[0])
    with torch.no_grad():
        memory.scale.fill_(0.7)
    leaves, hard, y, again = relaxed_pair(logits, seed, memory.temperature.item())
    loss, free, bound = (plain_loss(supernet, weights) for weights in (hard, y, again))
    paths = torch.autograd.grad(0.7 * (free - bound), [*leaves.values()])
    expected = {
        name: (loss - 0.7 * bound).detach() * score + path
        for (name, score), path in zip(scores(logits, hard).items(), paths, strict=True)
    }
    objective, found = step(Rebar(), supernet, logits, seed, memory)
    assert_same(found, expected)
    # The scale's gradient is that of the squared norm, which is a parabola in the scale.
    (slope,) = torch.autograd.grad(objective, memory.scale)
    plain = {name: loss.detach() * score for name, score in scores(logits, hard).items()}
    change = {name: (expected[name] - plain[name]) / 0.7 for name in expected}
    assert slope.item() == pytest.approx(2 * sum((expected[n] * change[n]).sum().item() for n in expected), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_relax_is_its_formula_with_its_critic(seed):
    supernet = SPACES["padded"], *build_supernet(SPACES["padded"])
    logits, memory = draw_logits(supernet[0], seed), memory_of(Relax(), supernet[0])
    before, _ = step(Relax(), supernet, logits, 100 + seed, memory)  # its loss is the mean of past ones
    leaves, hard, y, again = relaxed_pair(logits, seed, memory.temperature.item())
    loss = plain_loss(supernet, hard).item()
    free, bound = (memory.critic([*tables.values()]) for tables in (y, again))
    paths = torch.autograd.grad(free - bound, [*leaves.values()])
    expected = {
        name: (loss - before.item() - bound.item()) * score + path
        for (name, score), path in zip(scores(logits, hard).items(), paths, strict=True)
    }
    objective, found = step(Relax(), supernet, logits, seed, memory)
    assert objective.item() == pytest.approx(loss, rel=1e-12)
    assert_same(found, expected)
    slopes = torch.autograd.grad(objective, [*memory.parameters()])
    assert all(slope.isfinite().all() for slope in slopes)
    assert any(slope.any() for slope in slopes)


def test_relax_learns_a_critic_that_makes_it_quieter():
    """On a loss that is additive over two edges, the learned control variate removes most of the variance."""
    reward = torch.tensor([[1.0, 2.0, 4.0], [0.5, 3.0, 1.0]])
    logits = {"cell": torch.zeros(2, 3, requires_grad=True)}

    def loss_of(selections):
        (selection,) = selections.values()
        return sum(reward[e, path[0]] for e, path in enumerate(selection.paths))

    def variance(memory, learn):
        optimizer, estimates = torch.optim.Adam(memory.parameters(), lr=0.01), []
        for seed in range(1500):
            objective = Relax().objective(loss_of, logits, 0.0, keyed(seed), memory)
            gradient, *slopes = torch.autograd.grad(objective, [logits["cell"], *memory.parameters()])
            estimates.append(gradient)
            if learn:
                for parameter, slope in zip(memory.parameters(), slopes, strict=True):
                    parameter.grad = slope
                optimizer.step()
        return torch.stack(estimates[-500:]).var(0).sum().item()

    torch.manual_seed(0)
    fresh = RelaxMemory(0.5, Critic(6, 32))
    with torch.no_grad():
        fresh.critic.layers[2].weight.zero_()
        fresh.critic.layers[2].bias.zero_()
    before = variance(fresh, learn=False)
    # Both are right to about a tenth, being the variances of 500 draws.
    assert variance(fresh, learn=True) < 0.75 * before


@pytest.mark.parametrize("selector", SCORE, ids=lambda s: type(s).__name__)
def test_memory_is_restored_from_its_state(selector):
    cells = SPACES["padded"].cells
    first, second = selector.memory(cells), selector.memory(cells)
    with torch.no_grad():
        for value in first.state_dict().values():
            value.add_(1.0)
    second.load_state_dict(first.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reinforce(momentum=1.0), "momentum must be at least 0 and below 1, got 1"),
        (lambda: Reinforce(baseline="leave-one-out"), "decisions must be at least 2 for baseline leave-one-out, got 1"),
        (lambda: Reinforce(decisions=0), "decisions must be at least 1 for baseline running-mean, got 0"),
        (lambda: Reinforce(antithetic=True), "antithetic needs an even number of decisions"),
        (
            lambda: Reinforce(antithetic=True, decisions=2, baseline="leave-one-out"),
            "antithetic needs an even number of decisions and no leave-one-out",
        ),
        (lambda: ScoreControlVariate(forgetting=0.0), "forgetting must be above 0 and at most 1, got 0"),
        (lambda: ScoreControlVariate(ridge=0.0), "ridge must be positive, got 0"),
        (lambda: Rebar(temperature=0.0), "temperature must be positive, got 0"),
        (lambda: Relax(temperature=math.nan), "temperature must be positive, got nan"),
        (lambda: Relax(hidden=0), "hidden must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_a_module_is_a_memory():
    assert all(isinstance(selector.memory(SPACES["padded"].cells), nn.Module) for selector in SCORE)
