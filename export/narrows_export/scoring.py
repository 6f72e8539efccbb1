"""What the questions of a gate found -> means, differences from fp32 and their 95 % intervals."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrows.quality import Accuracy, Estimate, Scale
from narrows_tools.evaluation.paired import bootstrap_mean, paired_shares

ACCURACY_AT = (1, 5, 20, 100)
RESAMPLES = 1000
DIGITS = 6  # kept in the manifest
NOT_COUNTED = -1

Values = npt.NDArray[np.float64]
Ranks = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Found:
    """What each question found by one pair among so many passages; all arrays are of shape (questions,).

    `by_answers` and `by_positives` are the 0-based rank of the first right passage, or the number of passages looked
    at if none was right; NOT_COUNTED for a question without answers, or without a positive among the passages.
    """

    passages: int
    overlap: Values  # share of the first ten in common with fp32 x fp32, tie-safe
    by_answers: Ranks
    by_positives: Ranks


def scale(found: Found, reference: Found, seed: int) -> Scale:
    """Sums up a pair over one number of passages, beside fp32 x fp32 over the same."""
    by_answers, answers_questions = _accuracies(found.by_answers, reference.by_answers)
    by_positives, positives_questions = _accuracies(found.by_positives, reference.by_positives)
    return Scale(
        passages=found.passages,
        top10_overlap=estimate(found.overlap, seed),
        by_answers=by_answers,
        answers_questions=answers_questions,
        by_positives=by_positives,
        positives_questions=positives_questions,
    )


def estimate(values: Values, seed: int) -> Estimate:
    """Mean and 95 % bootstrap interval of `values`, float64 (questions,)."""
    return _rounded(float(values.mean()), *bootstrap_mean(values, seed, RESAMPLES))


def _accuracies(ranks: Ranks, reference: Ranks) -> tuple[tuple[Accuracy, ...], int]:
    """Accuracy at each k over the questions that count, and how many those are."""
    counted = reference != NOT_COUNTED
    if not counted.any():
        return (), 0
    accuracies = []
    for k in ACCURACY_AT:
        change = paired_shares(reference[counted] < k, ranks[counted] < k)
        paired = _rounded(change.difference, change.low, change.high)
        accuracies.append(Accuracy(k, round(change.second, DIGITS), paired))
    return tuple(accuracies), int(counted.sum())


def _rounded(mean: float, low: float, high: float) -> Estimate:
    return Estimate(round(mean, DIGITS), round(low, DIGITS), round(high, DIGITS))
