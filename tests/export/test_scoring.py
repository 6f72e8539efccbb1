"""Intervals and accuracies of a gate, on numbers whose answer is known."""

import numpy as np
import pytest

from narrows_export.scoring import NOT_COUNTED, Found, estimate, scale

TOP = 100


def found(by_answers: list[int], by_positives: list[int] | None = None, overlap: float = 1.0) -> Found:
    ranks = np.array(by_answers)
    positives = np.full_like(ranks, NOT_COUNTED) if by_positives is None else np.array(by_positives)
    return Found(5000, np.full(len(ranks), overlap), ranks, positives)


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide():
    values = np.random.default_rng(1).random(2000)
    found = estimate(values, seed=0)
    error = values.std() / np.sqrt(2000)
    assert found.mean == pytest.approx(values.mean(), abs=1e-6)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(1).random(50)
    assert estimate(values, 7) == estimate(values, 7) != estimate(values, 8)


def test_accuracies_count_ranks_below_k():
    ranks = [0, 0, 1, 4, 5, 19, 20, 99, TOP, TOP]
    result = scale(found(ranks), found(ranks), seed=0)
    assert [(each.k, each.share) for each in result.by_answers] == [(1, 0.2), (5, 0.4), (20, 0.6), (100, 0.8)]
    assert all(each.change.mean == 0 and each.change.low < 0 < each.change.high for each in result.by_answers)
    assert (result.passages, result.answers_questions) == (5000, 10)
    assert (result.by_positives, result.positives_questions) == ((), 0)


def test_questions_that_do_not_count_are_left_out():
    mine = found([0] * 10, [0, 5, NOT_COUNTED, NOT_COUNTED, 1, 0, NOT_COUNTED, 0, 0, 0])
    result = scale(mine, mine, seed=0)
    assert result.positives_questions == 7
    assert result.by_positives[0].share == pytest.approx(5 / 7, abs=1e-6)
    assert result.by_answers[0].share == 1


def test_differences_are_paired():
    """Two pairs that swap half of their hits differ by nothing on average; one that only loses differs surely."""
    reference = found([0] * 500 + [TOP] * 500)
    swapped = found([TOP] * 250 + [0] * 500 + [TOP] * 250)
    lost = found([TOP] * 20 + [0] * 480 + [TOP] * 500)
    change = scale(swapped, reference, 0).by_answers[0].change
    assert change.mean == 0
    assert change.low < -0.03
    assert change.high > 0.03
    change = scale(lost, reference, 0).by_answers[0].change
    assert change.mean == pytest.approx(-0.02)
    assert -0.03 < change.low < change.high < -0.01  # two independent intervals would reach 0.06 to both sides


def test_overlap_has_its_own_interval():
    overlap = np.array([1.0] * 80 + [0.5] * 20)
    result = scale(Found(10, overlap, np.zeros(100, int), np.zeros(100, int)), found([0] * 100, [0] * 100), 0)
    assert result.top10_overlap.mean == 0.9
    assert 0.85 < result.top10_overlap.low < 0.9 < result.top10_overlap.high < 0.95
