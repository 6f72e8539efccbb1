"""What the questions of a gate found -> means, differences from fp32 and their 95 % intervals."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrows.quality import Accuracy, Estimate, Scale

ACCURACY_AT = (1, 5, 20, 100)
RESAMPLES = 1000
INTERVAL_PERCENT = (2.5, 97.5)
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
    by_answers, answers_questions = _accuracies(found.by_answers, reference.by_answers, seed)
    by_positives, positives_questions = _accuracies(found.by_positives, reference.by_positives, seed)
    return Scale(
        passages=found.passages,
        top10_overlap=estimates(found.overlap[:, None], seed)[0],
        by_answers=by_answers,
        answers_questions=answers_questions,
        by_positives=by_positives,
        positives_questions=positives_questions,
    )


def estimates(values: Values, seed: int) -> list[Estimate]:
    """Mean and 95 % interval of each column of `values`, float64 (questions, columns).

    The interval is the percentile bootstrap over questions (Efron and Tibshirani, An Introduction to the Bootstrap,
    section 13.3), with the same resamples for every column.
    """
    count = len(values)
    random = np.random.default_rng(seed)
    resampled = np.empty((RESAMPLES, values.shape[1]))
    for number in range(RESAMPLES):
        weights = np.bincount(random.integers(count, size=count), minlength=count)
        resampled[number] = weights @ values / count
    low, high = np.percentile(resampled, INTERVAL_PERCENT, axis=0)
    means = values.mean(axis=0)
    return [
        Estimate(*(round(float(value), DIGITS) for value in column)) for column in zip(means, low, high, strict=True)
    ]


def _accuracies(ranks: Ranks, reference: Ranks, seed: int) -> tuple[tuple[Accuracy, ...], int]:
    counted = reference != NOT_COUNTED
    if not counted.any():
        return (), 0
    hits, reference_hits = (
        (found[counted][:, None] < np.array(ACCURACY_AT)).astype(np.float64) for found in (ranks, reference)
    )
    changes = estimates(hits - reference_hits, seed)
    accuracies = tuple(
        Accuracy(k, round(float(share), DIGITS), change)
        for k, share, change in zip(ACCURACY_AT, hits.mean(axis=0), changes, strict=True)
    )
    return accuracies, int(counted.sum())
