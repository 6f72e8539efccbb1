"""Intervals: published values, and what any interval of a difference must keep to."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows_tools.evaluation.paired import Difference, paired_means, paired_shares, wilson

REPRODUCIBLE = settings(derandomize=True, deadline=None, max_examples=150)
COUNTS = st.tuples(*[st.integers(0, 60)] * 4).filter(lambda counts: sum(counts) > 0)


def arrays(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


@pytest.mark.parametrize(
    ("found", "count", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17:857-872, 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(found: int, count: int, low: float, high: float) -> None:
    assert wilson(found, count) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(
    ("both", "only_second", "only_first", "neither", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17:2635-2650, 1998, method 10
        (36, 12, 2, 0, 0.0569, 0.3404),
        (18, 12, 2, 18, 0.0562, 0.3290),
        (53, 0, 0, 1, -0.0729, 0.0729),
    ],
)
def test_paired_shares_as_published(
    both: int, only_second: int, only_first: int, neither: int, low: float, high: float
) -> None:
    result = paired_shares(*arrays(both, only_first, only_second, neither))
    assert (result.low, result.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@REPRODUCIBLE
@given(COUNTS)
def test_a_difference_of_shares_lies_in_its_interval(counts: tuple[int, int, int, int]) -> None:
    result = paired_shares(*arrays(*counts))
    assert result.difference == pytest.approx(result.second - result.first)
    assert -1 - 1e-12 <= result.low <= result.difference <= result.high <= 1 + 1e-12
    assert result.high > result.low, "even equal results leave a doubt"


@REPRODUCIBLE
@given(COUNTS)
def test_swapping_the_systems_mirrors_the_interval(counts: tuple[int, int, int, int]) -> None:
    first, second = arrays(*counts)
    one, other = paired_shares(first, second), paired_shares(second, first)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))


@pytest.mark.parametrize(("both", "only_first", "only_second"), [(0.4, 0.1, 0.1), (0.85, 0.02, 0.03), (0.3, 0.2, 0.05)])
def test_95_of_100_intervals_hold_the_true_difference(both: float, only_first: float, only_second: float) -> None:
    shares = [both, only_first, only_second, 1 - both - only_first - only_second]
    draws = np.random.default_rng(5).multinomial(80, shares, size=2000)
    results = [paired_shares(*arrays(*map(int, draw))) for draw in draws]
    covered = np.mean([result.low <= only_second - only_first <= result.high for result in results])
    assert 0.93 <= covered <= 0.985


def test_pairing_narrows_the_interval() -> None:
    paired = paired_shares(*arrays(500, 10, 20, 470))
    crossed = paired_shares(*arrays(255, 255, 265, 225))
    assert paired.verdict() == "no difference shown"
    assert paired.high - paired.low < (crossed.high - crossed.low) / 3


def test_a_difference_of_means_by_bootstrap() -> None:
    random = np.random.default_rng(1)
    first = random.normal(size=400)
    second = first + random.normal(0.1, 0.5, size=400)
    result = paired_means(first, second)
    assert result == paired_means(first, second), "a fixed seed"
    assert result.difference == pytest.approx(float((second - first).mean()))
    half = 1.96 * float((second - first).std(ddof=1)) / 20
    assert result.low == pytest.approx(result.difference - half, abs=0.01)
    assert result.high == pytest.approx(result.difference + half, abs=0.01)


def test_verdicts() -> None:
    better, worse, open_ = (Difference(0, 0, 0, low, high) for low, high in ((0.1, 0.3), (-0.3, -0.1), (-0.1, 0.1)))
    assert [each.verdict() for each in (better, worse, open_)] == ["better", "worse", "no difference shown"]
    assert better.verdict(higher_is_better=False) == "worse"
    assert worse.verdict(higher_is_better=False) == "better"
