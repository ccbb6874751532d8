"""Means with their spread, and rank correlations with their doubt."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000


def spread(values: Sequence[float], seed: int) -> dict[str, Any]:
    """Returns mean, sample deviation, values, and a bootstrap interval of the mean (percentile, 95%)."""
    if not values:
        return {"mean": None, "deviation": None, "interval": None, "values": []}
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    interval = None
    if len(values) > 1:
        draws = np.random.default_rng(seed).choice(values, (RESAMPLES, len(values)))
        interval = _percentiles(draws.mean(1))
    return {"mean": float(np.mean(values)), "deviation": deviation, "interval": interval, "values": list(values)}


def kendall(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Returns Kendall's tau-b with its N and a 95% interval; None where one is not defined.

    The interval is that of Fieller, Hartley and Pearson (1957): artanh(tau) is normal with variance .437 / (N - 4).
    It needs N > 4; a perfect order counts as one pair short of it, since no sample shows more. A bootstrap over so few
    pairs repeats some and is far too narrow.
    """
    from scipy.stats import kendalltau

    count = len(first)
    if count < 2 or len(set(first)) < 2 or len(set(second)) < 2:
        return {"tau": None, "n": count, "interval": None}
    tau = float(kendalltau(first, second).statistic)
    interval = None
    if count > 4:
        most = 1 - 2 / (count * (count - 1))
        centre, half = math.atanh(min(max(tau, -most), most)), 1.96 * math.sqrt(0.437 / (count - 4))
        interval = [math.tanh(centre - half), math.tanh(centre + half)]
    return {"tau": tau, "n": count, "interval": interval}


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns Spearman's rank correlation; None where it is not defined."""
    from scipy.stats import spearmanr

    if len(first) < 2 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def _percentiles(draws: Any) -> list[float]:
    tail = 50 * (1 - CONFIDENCE)
    return [float(value) for value in np.percentile(draws, [tail, 100 - tail])]
