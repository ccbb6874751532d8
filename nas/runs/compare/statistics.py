"""Means over seeds, and tests of their differences, as functions of numbers.

The tests are t tests: they hold if the differences (paired) or the values (Welch) are normal, which a handful of seeds
can neither show nor refute. The exact permutation tests beside them need no such law, but with N pairs their p is never
below 2^(1-N): .25 for three seeds, so that they could show nothing at all.

Long tails make the tests careful and the intervals too narrow. Of three random cells of NAS-Bench-201, whose regrets
have a mean of 7.3 points and a deviation of 12.9, a t interval held that mean 76% of the time; Welch's test at .05
rejected the equality of two such samples 1.7% of the time.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.runs.statistics import CONFIDENCE

LEVEL = 0.05
"""Corrected p below which a difference counts as shown."""

ENUMERATED = 2**16
"""Relabellings up to which a permutation test is computed."""

Values = Sequence[float]


@dataclass(frozen=True)
class Test:
    """A two-sided test of whether two means differ.

    Attributes:
        difference: First mean minus second.
        p: Of the t test; of the permutation test where the values have no deviation from which a t could be formed.
        error: Standard error of the difference; 0 if there is no deviation.
        freedom: Degrees of freedom of t; 0 if there is no deviation.
        permutation_p: Of the exact permutation test; None where too many relabellings would have to be tried.
    """

    difference: float
    p: float
    error: float
    freedom: float
    permutation_p: float | None

    def detectable(self, level: float) -> float | None:
        """Returns the difference from which on p would have been below `level` with this error; None without one."""
        return self.error * _quantile(1 - level / 2, self.freedom) if self.error else None


def t_interval(values: Values) -> list[float] | None:
    """Returns Student's 95% interval of a mean; None for a single value, or if all are equal.

    A percentile bootstrap lies within the range of the N values, which holds the centre of a symmetric law with
    probability 1 - 2^(1-N) only: 75% for three seeds. This one holds the mean of a normal law as often as it says.
    """
    if len(values) < 2 or _constant(np.asarray(values)):
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = error * _quantile(0.5 + CONFIDENCE / 2, len(values) - 1)
    return [mean - half, mean + half]


def paired(first: Values, second: Values) -> Test:
    """Tests whether the mean of N >= 2 differences is 0, by Student's t, and by all 2^N changes of their signs."""
    differences = np.subtract(first, second)
    count, mean = len(differences), float(np.mean(differences))
    exact = _sign_flips(differences)
    if _constant(differences):
        p = 1.0 if mean == 0 else 2.0 ** (1 - count)
        return Test(mean, p, 0.0, 0.0, exact)
    error = float(np.std(differences, ddof=1)) / math.sqrt(count)
    return Test(mean, _two_sided(mean / error, count - 1), error, count - 1, exact)


def welch(first: Values, second: Values) -> Test:
    """Tests whether two independent samples, of two values or more each, have equal means (Welch, 1947).

    Variances may differ; the degrees of freedom are Satterthwaite's. Beside it, all divisions of the values in two.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    difference = float(a.mean() - b.mean())
    exact = _divisions(a, b)
    if _constant(a) and _constant(b):
        ways = math.comb(len(a) + len(b), len(a))
        p = 1.0 if difference == 0 else exact or min(1.0, 2 / ways)
        return Test(difference, p, 0.0, 0.0, exact)
    parts = [0.0 if _constant(sample) else float(sample.var(ddof=1)) / len(sample) for sample in (a, b)]
    error = math.sqrt(sum(parts))
    shares = ((part / error**2) ** 2 / (len(sample) - 1) for part, sample in zip(parts, (a, b), strict=True))
    freedom = 1 / sum(shares)
    return Test(difference, _two_sided(difference / error, freedom), error, freedom, exact)


def holm(ps: Values) -> list[float]:
    """Returns corrected p values, in the order given (Holm, 1979).

    The i-th smallest of m is multiplied by m - i + 1, and is no smaller than the corrected one before it. Rejecting
    what is below a level then keeps the probability of any false rejection below it, however the tests depend.
    """
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        largest = max(largest, min(1.0, ps[place] * (len(ps) - rank)))
        corrected[place] = largest
    return corrected


def _constant(values: NDArray[np.float64]) -> bool:
    """Whether values are equal but for rounding, so that they have no deviation to measure by."""
    return bool(np.ptp(values) <= 1e-9 * np.abs(values).max())


def _two_sided(t: float, freedom: float) -> float:
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))


def _quantile(probability: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def _sign_flips(differences: NDArray[np.float64]) -> float | None:
    """Returns how many of the 2^N sign changes give a sum at least as far from 0."""
    if 2 ** len(differences) > ENUMERATED:
        return None
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    return _as_far(signs @ differences, float(differences.sum()))


def _divisions(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Returns how many of the divisions into samples of these sizes give means at least as far apart."""
    if math.comb(len(a) + len(b), len(a)) > ENUMERATED:
        return None
    together = np.concatenate([a, b])
    chosen = np.array(list(itertools.combinations(range(len(together)), len(a))))
    sums = together[chosen].sum(1)
    return _as_far(sums / len(a) - (together.sum() - sums) / len(b), float(a.mean() - b.mean()))


def _as_far(found: NDArray[np.float64], observed: float) -> float:
    return float(np.mean(np.abs(found) >= abs(observed) * (1 - 1e-9)))
