"""Schedules: end values, monotony and the formulas."""

import itertools
import math

import pytest

from nas.schedules import Constant, Cosine, Exponential, Linear, Schedule

GRID = [step / 64 for step in range(65)]
ENDS = [(10.0, 0.1), (0.1, 10.0), (1.0, 1.0)]
BETWEEN = [cls(start=start, end=end) for cls in (Linear, Exponential, Cosine) for start, end in ENDS]


@pytest.mark.parametrize("schedule", BETWEEN, ids=repr)
def test_the_ends_are_the_given_values(schedule):
    # One rounding of the sum, and one of the power for the exponential: two units in the last place.
    assert schedule(0.0) == pytest.approx(schedule.start, rel=4e-16)
    assert schedule(1.0) == pytest.approx(schedule.end, rel=4e-16, abs=4e-16 * schedule.start)


@pytest.mark.parametrize("schedule", BETWEEN, ids=repr)
def test_values_are_monotone(schedule):
    values = [schedule(progress) for progress in GRID]
    assert values == sorted(values, reverse=schedule.start > schedule.end)


def test_a_constant_is_constant():
    assert {Constant(value=0.3)(progress) for progress in GRID} == {0.3}


def test_linear_steps_are_equal():
    schedule = Linear(start=10.0, end=2.0)
    assert {schedule(b) - schedule(a) for a, b in itertools.pairwise(GRID)} == {-0.125}  # exact in binary


def test_exponential_ratios_are_equal():
    schedule = Exponential(start=10.0, end=0.1)
    ratios = [schedule(b) / schedule(a) for a, b in itertools.pairwise(GRID)]
    assert ratios == pytest.approx([0.01 ** (1 / 64)] * 64, rel=1e-14)


def test_cosine_follows_the_annealed_rate_of_sgdr():
    """eta_min + (eta_max - eta_min) (1 + cos(pi T_cur / T)) / 2, equation 5 of arXiv:1608.03983."""
    schedule = Cosine(start=0.025, end=0.001)
    for epoch in range(51):
        rate = 0.001 + 0.5 * (0.025 - 0.001) * (1 + math.cos(epoch / 50 * math.pi))
        assert schedule(epoch / 50) == pytest.approx(rate, rel=1e-14)
    assert schedule(0.5) == pytest.approx(0.013, rel=1e-14)


@pytest.mark.parametrize(("start", "end", "name"), [(0.0, 1.0, "start"), (1.0, -1.0, "end"), (1.0, math.nan, "end")])
def test_an_exponential_needs_positive_ends(start, end, name):
    with pytest.raises(ValueError, match=f"^{name} must be positive"):
        Exponential(start=start, end=end)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Linear(start=1.0, end=-1.0), "temperature.end must be positive, got -1"),
        (Cosine(start=0.0, end=1.0), "temperature.start must be positive, got 0"),
        (Constant(value=-2.0), "temperature.value must be positive, got -2"),
    ],
)
def test_a_requirement_names_the_end_that_breaks_it(schedule, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        schedule.require("temperature", lambda value: value > 0, "positive")


def test_a_requirement_that_holds_is_silent():
    Linear(start=10.0, end=0.1).require("temperature", lambda value: value > 0, "positive")


def test_the_base_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Schedule()
