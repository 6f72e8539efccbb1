"""Metrics in batches: by hand, against scikit-learn on the same scores, and the arithmetic of the Spanish card."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, classification_report, f1_score, log_loss

from narrows_tools.evaluation.batch_metrics import BatchMetrics, judge, summarize

REPRODUCIBLE = settings(derandomize=True, deadline=None, max_examples=100)


def scored(*rows: tuple[float, ...]) -> npt.NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


def test_an_example_by_hand() -> None:
    """Two questions with two contexts each; the second question prefers the first one's gold passage."""
    batch = judge(scored((2, 0, 1, 0), (3, 0, 2, 1)), np.array([0, 2]))
    assert batch.ranks.tolist() == [0, 1]
    assert batch.pairs == 8
    first = -math.log(math.exp(2) / (math.exp(2) + 1 + math.e + 1))
    second = -math.log(math.exp(2) / (math.exp(3) + 1 + math.exp(2) + math.e))
    assert batch.nll == pytest.approx([first, second])
    found = summarize([batch])
    assert (found.wrong, found.average_rank) == (1, 0.5)
    assert found.loss == pytest.approx((first + second) / 2)
    assert found.batch_means_over_questions == pytest.approx((first + second) / 4)
    assert (found.accuracy, found.f1, found.acc_and_f1) == (6 / 8, 0.5, 0.625)
    assert (found.gold.support, found.other.support) == (2, 6)


def test_the_two_losses_differ_by_the_batch_size() -> None:
    """And by more where the last batch is small, as its mean weighs as much as that of a full one."""
    full = judge(scored((0, 0), (0, 0)), np.array([0, 1]))
    last = judge(scored((0,)), np.array([0]))
    found = summarize([full, full, last])
    assert found.loss == pytest.approx(math.log(2) * 4 / 5)
    assert found.batch_means_over_questions == pytest.approx(math.log(2) * 2 / 5)


def test_of_equal_scores_the_first_context_is_predicted() -> None:
    """Three copies of one gold passage: only the first question's own is predicted, unless copies are masked."""
    scores, gold = np.ones((3, 3), dtype=np.float32), np.arange(3)
    plain = judge(scores, gold)
    assert plain.ranks.tolist() == [0, 1, 2]
    masked = judge(scores, gold, ~np.eye(3, dtype=np.bool_))
    assert masked.ranks.tolist() == [0, 0, 0]
    assert masked.nll.tolist() == [0.0, 0.0, 0.0]
    assert masked.pairs == 3
    found = summarize([masked])
    assert (found.accuracy, found.gold.f1) == (1.0, 1.0)
    assert (found.other.precision, found.other.recall, found.other.f1, found.other.support) == (0.0, 0.0, 0.0, 0)


def test_large_scores_do_not_overflow() -> None:
    batch = judge(scored((90_000, 89_000), (-90_000, 89_000)), np.array([0, 0]))
    assert batch.nll.tolist() == [0.0, 179_000.0]


@REPRODUCIBLE
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    step=st.sampled_from([0.01, 1.0, 50.0]),
    masking=st.booleans(),
)
def test_scikit_learn_agrees(seed: int, sizes: list[int], step: float, masking: bool) -> None:
    """On rounded scores, so that there are ties, with and without masked pairs."""
    draw = np.random.default_rng(seed)
    batches, labels, predicted, losses, ranks = [], [], [], [], []
    for size in sizes:
        contexts = 2 * size
        scores = (np.round(draw.normal(0, 2, (size, contexts))) * step).astype(np.float32)
        gold = np.arange(size) * 2
        masked = draw.random((size, contexts)) < 0.3 if masking else np.zeros((size, contexts), dtype=np.bool_)
        masked[np.arange(size), gold] = False
        batch = judge(scores, gold, masked if masking else None)
        batches.append(batch)
        for number in range(size):
            kept = np.flatnonzero(~masked[number])
            own = int(np.flatnonzero(kept == gold[number])[0])
            order = np.argsort(-scores[number, kept], kind="stable")
            ranks.append(int(np.flatnonzero(order == own)[0]))
            labels.append(np.arange(len(kept)) == own)
            predicted.append(np.arange(len(kept)) == order[0])
            odds = np.exp(scores[number, kept].astype(np.float64) - scores[number, kept].max())
            share = odds / odds.sum()
            # scikit-learn clips at the machine's epsilon, and knows no single class.
            if len(kept) > 1 and share[own] > 1e-14:
                losses.append(log_loss([own], share[None], labels=np.arange(len(kept))))
                assert batch.nll[number] == pytest.approx(losses[-1], rel=1e-9, abs=1e-12)
    found = summarize(batches)
    flat, told = np.concatenate(labels), np.concatenate(predicted)
    assert found.average_rank == pytest.approx(np.mean(ranks))
    assert found.wrong == sum(rank > 0 for rank in ranks)
    assert found.accuracy == pytest.approx(accuracy_score(flat, told))
    assert found.f1 == pytest.approx(f1_score(flat, told))
    assert found.acc_and_f1 == pytest.approx((accuracy_score(flat, told) + f1_score(flat, told)) / 2)
    expected = classification_report(
        flat, told, labels=[False, True], target_names=["other", "gold"], output_dict=True, zero_division=0
    )
    for name, ours in (("other", found.other), ("gold", found.gold)):
        theirs = expected[name]
        assert ours.support == theirs["support"]
        assert (ours.precision, ours.recall, ours.f1) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"])
        )


def of_the_card(wrong: int) -> BatchMetrics:
    """17,547 questions in batches of 32, each with one hard negative; so many of them prefer their hard negative."""
    batches, left = [], wrong
    for start in range(0, 17_547, 32):
        size = min(32, 17_547 - start)
        scores = np.zeros((size, 2 * size), dtype=np.float32)
        gold = np.arange(size) * 2
        scores[np.arange(size), gold] = 20.0
        missed = np.arange(min(left, size))
        left -= len(missed)
        scores[missed, gold[missed] + 1] = 26.2
        batches.append(judge(scores, gold))
    return summarize(batches)


def test_the_spanish_cards_figures_fit_together() -> None:
    """avacaondata's dpr-spanish card (allqa): accuracy 0.9983, F1 0.9446, support 1,122,546, and a loss of 0.0108.

    The loss is no mean: 972 questions that are wrong have at least log 2 each, which is 0.038 in the mean.
    """
    found = of_the_card(wrong=972)
    assert (found.questions, found.batches, found.wrong) == (17_547, 549, 972)
    assert found.gold.support + found.other.support == 1_122_546 == 548 * 32 * 64 + 11 * 22
    assert round(found.accuracy, 4) == 0.9983
    assert round(found.f1, 4) == round(found.question_accuracy, 4) == 0.9446
    assert found.loss > 972 * math.log(2) / 17_547 > 0.0108
    assert found.batch_means_over_questions == pytest.approx(found.loss / 32, rel=0.01)
    assert round(found.batch_means_over_questions, 4) == 0.0107  # for misses by 6.2: the card's order of magnitude
