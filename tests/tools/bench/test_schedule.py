"""Poisson schedules: fixed by their seed, ascending, with the rate asked for."""

import numpy as np
import pytest

from narrows_tools.bench.schedule import poisson


@pytest.mark.parametrize("rate_per_s", [0.5, 40.0, 3000.0])
def test_gaps_are_exponential_with_the_mean_of_the_rate(rate_per_s: float) -> None:
    schedule = poisson(rate_per_s, 20_000, seed=3)
    assert schedule.shape == (20_000,)
    gaps = np.diff(schedule, prepend=0.0)
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / rate_per_s, rel=0.001)  # of any seed
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # as an exponential distribution has it
    assert np.mean(gaps > 2 / rate_per_s) == pytest.approx(np.exp(-2), rel=0.05)


def test_a_seed_fixes_it_and_a_rate_only_stretches_it() -> None:
    np.testing.assert_array_equal(poisson(50, 100, seed=1), poisson(50, 100, seed=1))
    np.testing.assert_allclose(poisson(50, 100, seed=1), 2 * poisson(100, 100, seed=1))
    assert not np.allclose(poisson(50, 100, seed=1), poisson(50, 100, seed=2))
