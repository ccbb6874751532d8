"""The statistics of the gap report."""

import math

import numpy as np
import pytest

from nas.runs.statistics import kendall, spread


@pytest.mark.parametrize("count", [6, 12, 30])
def test_the_interval_of_kendalls_tau_covers_independence_as_often_as_it_says(count):
    draws = np.random.default_rng(0)
    trials = 1000
    intervals = [kendall(list(range(count)), draws.permutation(count).tolist())["interval"] for _ in range(trials)]
    covered = sum(low <= 0 <= high for low, high in intervals) / trials
    # 4 standard errors of a proportion around .95, and the formula's own error of a percent or two for few pairs.
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / trials) + 0.02)


def test_a_perfect_order_of_few_leaves_doubt():
    found = kendall([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert found["tau"] == pytest.approx(1)
    assert found["interval"][0] < 0.5
    assert found["interval"][1] < 1


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0])])
def test_where_tau_is_not_defined_none_is_given(first, second):
    assert kendall(first, second) == {"tau": None, "n": len(first), "interval": None}


def test_four_pairs_have_a_tau_and_no_interval():
    found = kendall([1, 2, 3, 4], [2, 1, 3, 4])
    assert found["tau"] == pytest.approx(2 / 3)  # five of six pairs agree, one does not
    assert found["interval"] is None


def test_a_spread_has_the_sample_deviation_and_an_interval_within_the_values():
    found = spread([1.0, 2.0, 6.0], seed=0)
    assert found["mean"] == pytest.approx(3)
    assert found["deviation"] == pytest.approx(math.sqrt(7))
    low, high = found["interval"]
    assert 1 <= low < 3 < high <= 6
    assert spread([1.0, 2.0, 6.0], seed=0) == found
    assert spread([2.0], seed=0) == {"mean": 2.0, "deviation": None, "interval": None, "values": [2.0]}
    assert spread([], seed=0)["mean"] is None
