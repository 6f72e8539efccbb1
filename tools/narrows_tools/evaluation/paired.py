"""Intervals for shares, and for the difference between two systems that answered the same questions."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point
RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 250  # bounds the memory: questions x 8 bytes each
SEED = 0

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True, slots=True)
class Difference:
    """Second minus first, with its 95 % interval."""

    first: float
    second: float
    difference: float
    low: float
    high: float

    def verdict(self, higher_is_better: bool = True) -> Verdict:
        """What the interval says of the second."""
        if self.low <= 0.0 <= self.high:
            return "no difference shown"
        return "better" if (self.low > 0.0) == higher_is_better else "worse"


def wilson(found: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22:209-212), without continuity correction."""
    square = Z_95**2
    middle = (found + square / 2) / (count + square)
    half = Z_95 * math.sqrt(found * (count - found) / count + square / 4) / (count + square)
    # At the ends the formula gives 0 and 1 but for rounding.
    return (0.0 if found == 0 else middle - half, 1.0 if found == count else middle + half)


def paired_shares(first: npt.ArrayLike, second: npt.ArrayLike) -> Difference:
    """Difference of two shares over the same questions; both arrays are bool (questions,), in the same order.

    Newcombe's hybrid score interval, method 10 of "Improved confidence intervals for the difference between binomial
    proportions based on paired data", Statistics in Medicine 17:2635-2650, 1998. Unlike a bootstrap it does not
    collapse to a point where both find exactly the same questions.
    """
    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    n = len(one)
    both = int((one & two).sum())
    only_one, only_two = int(one.sum()) - both, int(two.sum()) - both
    neither = n - both - only_one - only_two
    p1, p2 = (both + only_one) / n, (both + only_two) / n
    (low1, high1), (low2, high2) = wilson(both + only_one, n), wilson(both + only_two, n)
    phi = _correlation(both, only_one, only_two, neither)
    below = math.sqrt((p2 - low2) ** 2 - 2 * phi * (p2 - low2) * (high1 - p1) + (high1 - p1) ** 2)
    above = math.sqrt((high2 - p2) ** 2 - 2 * phi * (high2 - p2) * (p1 - low1) + (p1 - low1) ** 2)
    difference = (only_two - only_one) / n
    return Difference(p1, p2, difference, difference - below, difference + above)


def _correlation(both: int, only_one: int, only_two: int, neither: int) -> float:
    """Newcombe's corrected phi; 0 where a margin is empty."""
    n = both + only_one + only_two + neither
    margins = (both + only_one) * (only_two + neither) * (both + only_two) * (only_one + neither)
    if margins == 0:
        return 0.0
    excess = both * neither - only_one * only_two
    corrected = max(excess - n / 2, 0.0) if excess > 0 else float(excess)
    return corrected / math.sqrt(margins)


def paired_means(first: npt.ArrayLike, second: npt.ArrayLike) -> Difference:
    """Difference of two means over the same questions; both arrays are float (questions,), in the same order.

    A bootstrap with a fixed seed, so that the same results give the same interval.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    differences = two - one
    low, high = bootstrap_mean(differences, SEED, RESAMPLES)
    return Difference(float(one.mean()), float(two.mean()), float(differences.mean()), low, high)


def bootstrap_mean(values: npt.NDArray[np.float64], seed: int, resamples: int) -> tuple[float, float]:
    """95 % interval of the mean of `values`, float64 (questions,).

    Percentile bootstrap over questions (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).
    `resamples` is a multiple of RESAMPLES_AT_ONCE.
    """
    random = np.random.default_rng(seed)
    n = len(values)
    means = np.concatenate(
        [
            values[random.integers(n, size=(RESAMPLES_AT_ONCE, n))].mean(axis=1)
            for _ in range(resamples // RESAMPLES_AT_ONCE)
        ]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
