"""Looking for the highest rate: on a server that is a formula."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows_tools.bench.rates import highest_rate
from narrows_tools.bench.results import Row
from narrows_tools.bench.session import found_rate

SERVICE_MS = 5.0


def p99_ms(rate_per_s: float) -> float:
    """Of a queue with exponential times of service (M/M/1): the 99th percentile of the time in it."""
    left = 1 / SERVICE_MS - rate_per_s / 1e3
    return 4.6 / left if left > 0 else float("inf")


@settings(derandomize=True, deadline=None, max_examples=100)
@given(bound_ms=st.floats(25, 2000), resolution=st.floats(0.01, 0.2))
def test_it_is_the_highest_to_within_the_resolution_and_was_measured(bound_ms: float, resolution: float) -> None:
    measured: dict[float, float] = {}

    def measure(rate_per_s: float) -> float:
        measured[rate_per_s] = p99_ms(rate_per_s)
        return measured[rate_per_s]

    rate_per_s, found = highest_rate(measure, lambda ms: ms <= bound_ms, 10.0, 300.0, resolution)
    true_rate = 1e3 * (1 / SERVICE_MS - 4.6 / bound_ms)
    assert true_rate >= 10
    assert true_rate / (1 + resolution) <= rate_per_s <= true_rate
    assert found == measured[rate_per_s] <= bound_ms
    assert len(measured) < 12


def test_a_server_that_keeps_up_with_the_highest_rate_is_not_asked_again() -> None:
    asked: list[float] = []
    assert highest_rate(lambda rate: asked.append(rate) or rate, lambda rate: True, 10, 100, 0.03) == (100, 100)
    assert asked == [10, 100]


def test_a_server_that_fails_at_the_lowest_rate_has_none() -> None:
    assert highest_rate(lambda rate: rate, lambda rate: False, 10, 100, 0.03) == (0.0, 10)


def test_a_row_without_a_rate_claims_no_throughput() -> None:
    """What was measured at the lowest rate did not keep the bound: nothing of it counts."""
    row = Row("narrows", "server", "short", 30.0, 1, {"throughput_per_s": 29.0, "goodput_per_s": 20.0, "p99_ms": 400.0})
    assert found_rate(row, 0.0, 100.0).load == 0
    assert found_rate(row, 0.0, 100.0).metrics["throughput_per_s"] == 0
    assert found_rate(row, 30.0, 100.0).metrics == {**row.metrics, "bound_ms": 100.0}


def test_the_formula_is_one() -> None:
    assert p99_ms(100) == pytest.approx(46)
