"""Optimizers as configuration: what torch is given, the schedule of the learning rate, refused values."""

import pytest
import torch
from torch import nn

from nas import registry
from nas.config import build, dump, from_mapping, from_setting
from nas.errors import ConfigError
from nas.runs.optimizers import SGD, Adam, AdamW, Optimizer
from nas.schedules import Constant, Cosine, Linear

CASES = [
    (
        SGD(lr=Linear(start=0.2, end=0.1), momentum=0.8, weight_decay=0.01, nesterov=True),
        torch.optim.SGD,
        {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.01, "nesterov": True, "dampening": 0},
    ),
    (
        Adam(lr=Constant(value=0.02), betas=(0.4, 0.9), weight_decay=0.1),
        torch.optim.Adam,
        {"lr": 0.02, "betas": (0.4, 0.9), "weight_decay": 0.1, "amsgrad": False},
    ),
    (
        AdamW(lr=Cosine(start=0.03, end=0.0), betas=(0.8, 0.95), weight_decay=0.2),
        torch.optim.AdamW,
        {"lr": 0.03, "betas": (0.8, 0.95), "weight_decay": 0.2, "amsgrad": False},
    ),
]
EVERY = [SGD(), Adam(), AdamW()]


def parameters():
    draws = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=draws, dtype=torch.float64)) for shape in ((3, 2), (4,))]


@pytest.mark.parametrize(("optimizer", "cls", "numbers"), CASES, ids=["sgd", "adam", "adamw"])
def test_torch_is_given_the_configured_numbers(optimizer, cls, numbers):
    built = optimizer.build(parameters())
    assert type(built) is cls
    (group,) = built.param_groups
    assert {name: group[name] for name in numbers} == numbers
    assert [p.shape for p in group["params"]] == [(3, 2), (4,)]


@pytest.mark.parametrize("optimizer", EVERY, ids=["sgd", "adam", "adamw"])
def test_every_registered_optimizer_is_tested_here(optimizer):
    registered = {registry.load(Optimizer.registry, name) for name in registry.names(Optimizer.registry)}
    assert type(optimizer) in registered
    assert registered == {type(one) for one in EVERY}


@pytest.mark.parametrize("optimizer", EVERY, ids=["sgd", "adam", "adamw"])
def test_the_schedule_sets_the_rate_of_every_group(optimizer):
    built = optimizer.build(parameters())
    built.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 123.0})
    for progress in (0.0, 0.3, 1.0):
        rate = optimizer.schedule(built, progress)
        assert rate == optimizer.lr(progress)
        assert [group["lr"] for group in built.param_groups] == [rate, rate]


def test_a_rate_of_zero_at_the_end_moves_nothing():
    for optimizer in (SGD(lr=Cosine(start=0.1, end=0.0)), AdamW()):
        values = parameters()
        built = optimizer.build(values)
        before = [value.detach().clone() for value in values]
        for moves in (False, True):
            optimizer.schedule(built, 0.0 if moves else 1.0)
            sum((value**2).sum() for value in values).backward()
            built.step()
            assert moves != all(torch.equal(a, b) for a, b in zip(before, values, strict=True))


def test_a_step_of_sgd_follows_its_formula():
    """v <- momentum v + (gradient + decay w); w <- w - lr v."""
    optimizer = SGD(lr=Linear(start=0.2, end=0.1), momentum=0.5, weight_decay=0.1)
    (weight,) = parameters()[1:]
    built, expected, velocity = optimizer.build([weight]), weight.detach().clone(), 0
    for progress in (0.0, 0.5, 1.0):
        rate = optimizer.schedule(built, progress)
        built.zero_grad()
        (weight**3).sum().backward()
        built.step()
        velocity = 0.5 * velocity + 3 * expected**2 + 0.1 * expected
        expected = expected - rate * velocity
        # Three steps of a handful of roundings.
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("optimizer", EVERY, ids=["sgd", "adam", "adamw"])
def test_only_parameters_with_a_gradient_move_and_each_as_if_it_were_alone(optimizer):
    """Sampling gives another part of the parameters a gradient in every step, some of them for the first time."""
    together, alone = parameters(), parameters()
    both, each = optimizer.build(together), [optimizer.build([value]) for value in alone]
    for active in ((0,), (1,), (0, 1), (0,), (1,)):
        both.zero_grad()
        for index in active:
            for value in (together[index], alone[index]):
                value.grad = 2 * value.detach() + 0.1
            each[index].step()
        both.step()
        assert all(torch.equal(one, two) for one, two in zip(together, alone, strict=True))


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_first_step_starts_from_no_momentum(nesterov):
    (weight,) = parameters()[1:]
    expected = weight.detach() - 0.1 * (1.9 if nesterov else 1.0) * 3.0
    built = SGD(lr=Constant(value=0.1), momentum=0.9, weight_decay=0.0, nesterov=nesterov).build([weight])
    weight.grad = torch.full_like(weight, 3.0)
    built.step()
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-15, atol=1e-15)  # two roundings


def test_the_defaults_are_those_of_darts():
    """Section 3.1 of arXiv:1806.09055: what its supernet's weights and its logits are trained with."""
    assert SGD() == SGD(lr=Cosine(start=0.025, end=0.001), momentum=0.9, weight_decay=3e-4)
    assert Adam() == Adam(lr=Constant(value=3e-4), betas=(0.5, 0.999), weight_decay=1e-3)


@pytest.mark.parametrize("cls", [SGD, Adam, AdamW])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": Linear(start=0.1, end=-0.1)}, "lr.end must be at least 0, got -0.1"),
        ({"lr": Cosine(start=-1.0, end=0.0)}, "lr.start must be at least 0, got -1"),
        ({"lr": Constant(value=float("nan"))}, "lr.value must be at least 0, got nan"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0, got -0.0001"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0, got nan"),
    ],
)
def test_bad_values_are_refused_by_name(cls, settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        cls(**settings)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (SGD, {"momentum": -0.1}, "momentum must be at least 0 and below 1, got -0.1"),
        (SGD, {"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1"),
        (SGD, {"momentum": 0.0, "nesterov": True}, "nesterov needs a momentum above 0"),
        (Adam, {"betas": (0.5, 1.0)}, "betas must be at least 0 and below 1, got \\(0.5, 1.0\\)"),
        (AdamW, {"betas": (-0.1, 0.9)}, "betas must be at least 0 and below 1, got \\(-0.1, 0.9\\)"),
    ],
)
def test_numbers_that_torch_would_refuse_later_are_refused_at_once(cls, settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        cls(**settings)


@pytest.mark.parametrize("optimizer", [case[0] for case in CASES] + EVERY, ids=repr)
def test_yaml_gives_an_optimizer_back(optimizer):
    from nas import yaml_guard

    tree, _ = yaml_guard.parse(dump(optimizer), "YAML")
    assert build(Optimizer, [from_mapping(tree, "YAML")]) == optimizer


def test_a_bad_setting_is_named_with_its_place():
    with pytest.raises(ConfigError, match=r"lr.end must be at least 0, got -1 \(--set lr=.*\)"):
        build(SGD, [from_setting("lr={name: cosine, start: 0.1, end: -1.0}")])
