"""Judging and averages, against values worked out by hand, by brute force and by the metrics library."""

import itertools
import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_answers import has_answer

from narrows.client import Hit
from narrows.passages import Passage
from narrows_tools.evaluation.answers import AnswerMatcher
from narrows_tools.evaluation.corpus import CorpusCounts, count, random_accuracy
from narrows_tools.evaluation.metrics import Judged, cutoffs, judge, summarize
from narrows_tools.evaluation.questions import Question

REPRODUCIBLE = settings(derandomize=True, deadline=None, max_examples=150)


def ranking(*texts: str) -> tuple[Hit, ...]:
    """Hits a, b, c, ... with these texts, all of one score: the order is that of the ranking, not of the scores."""
    return tuple(Hit("abcdefghij"[rank], "Rome", text, 1.0) for rank, text in enumerate(texts))


def judged(question: Question, *texts: str) -> Judged:
    return judge(question, ranking(*texts), AnswerMatcher(question.answer_kind))[0]


def test_the_text_counts_and_not_the_title() -> None:
    question = Question("q", "?", ("Rome",), ("c", "x"))
    item, has = judge(question, ranking("no", "rome", "no", "in Rome"), AnswerMatcher())
    assert has == [False, True, False, True]
    assert item == Judged("q", True, 1, True, 2, pytest.approx(1 / 3), pytest.approx(0.5 / (1 + 1 / math.log2(3))))


def test_a_miss_has_no_rank() -> None:
    assert judged(Question("q", "?", ("Oslo",), ("x",)), "a", "b") == Judged("q", True, None, True, None, 0.0, 0.0)
    assert judged(Question("q", "?", ("a",)), "a") == Judged("q", True, 0, False, None, 0.0, 0.0)
    assert judged(Question("q", "?", (), ("a",)), "a") == Judged("q", False, None, True, 0, 1.0, 1.0)


def test_ndcg_stops_at_ten_and_knows_all_positives() -> None:
    item = judged(Question("q", "?", (), ("j", "i", "absent")), *["no"] * 10)
    ideal = sum(1 / math.log2(rank + 2) for rank in range(3))
    assert item.ndcg_10 == pytest.approx((1 / math.log2(10) + 1 / math.log2(11)) / ideal)


@REPRODUCIBLE
@given(st.permutations(range(12)), st.sets(st.integers(0, 14), min_size=1))
def test_reciprocal_rank_and_ndcg_are_the_librarys(order: list[int], positives: set[int]) -> None:
    hits = tuple(Hit(str(number), "", "", 50.0 - rank) for rank, number in enumerate(order))
    item, _ = judge(Question("q", "?", (), tuple(map(str, sorted(positives)))), hits, AnswerMatcher())
    evaluator = pytrec_eval.RelevanceEvaluator({"q": {str(p): 1 for p in positives}}, {"recip_rank", "ndcg_cut.10"})
    expected = evaluator.evaluate({"q": {hit.id: hit.score for hit in hits}})["q"]
    assert item.reciprocal_rank == pytest.approx(expected["recip_rank"])
    assert item.ndcg_10 == pytest.approx(expected["ndcg_cut_10"])


def found(identifier: str, answer_rank: int | None, positive_rank: int | None, by_answers: bool = True) -> Judged:
    rank = 0.0 if positive_rank is None else 1 / (positive_rank + 1)
    return Judged(identifier, by_answers, answer_rank, True, positive_rank, rank, rank / 2)


def test_averages_by_hand() -> None:
    items = [found("1", 0, 4), found("2", 5, 19), found("3", None, None), found("4", None, 0, by_answers=False)]
    counts = CorpusCounts(passage_count=40, matching=(4, 1, 0, 9), positives=(1, 1, 0, 2))
    metrics = summarize(items, 20, counts)
    answers, positives, ranks = metrics.by_answers, metrics.by_positives, metrics.ranks
    assert answers is not None
    assert answers.question_count == 3
    assert answers.accuracy == pytest.approx({1: 1 / 3, 5: 1 / 3, 20: 2 / 3})
    assert (answers.ceiling, answers.answerable_count) == (pytest.approx(2 / 3), 2)
    assert answers.answerable == pytest.approx({1: 1 / 2, 5: 1 / 2, 20: 1})
    assert answers.random is not None
    assert answers.random[1] == pytest.approx((4 / 40 + 1 / 40) / 3)
    assert answers.interval[1][0] < 1 / 3 < answers.interval[1][1]
    assert positives is not None
    assert positives.accuracy == pytest.approx({1: 1 / 4, 5: 2 / 4, 20: 3 / 4})
    assert positives.ceiling == pytest.approx(3 / 4)
    assert ranks is not None
    assert (ranks.mean_positive_rank, ranks.missed_count) == (pytest.approx((4 + 19 + 20 + 0) / 4), 1)
    assert ranks.mrr == pytest.approx((1 / 5 + 1 / 20 + 0 + 1) / 4)
    assert ranks.ndcg_10 == pytest.approx((1 / 10 + 1 / 40 + 0 + 1 / 2) / 4)


def test_what_cannot_be_judged_has_no_numbers() -> None:
    metrics = summarize([Judged("1", True, 0, False, None, 0.0, 0.0)], 5, None)
    assert metrics.by_positives is None
    assert metrics.ranks is None
    assert metrics.by_answers is not None
    assert metrics.by_answers.random is metrics.by_answers.ceiling is metrics.by_answers.answerable is None


@pytest.mark.parametrize(
    ("depth", "table"), [(100, (1, 5, 20, 100)), (1, (1,)), (7, (1, 5, 7)), (200, (1, 5, 20, 100, 200))]
)
def test_cutoffs(depth: int, table: tuple[int, ...]) -> None:
    assert cutoffs(depth) == table


# --- the corpus: chance and ceiling


@pytest.mark.parametrize("matching", [(0,), (1,), (3,), (6,), (7,), (0, 2, 7)])
def test_random_accuracy_is_that_of_all_rankings(matching: tuple[int, ...]) -> None:
    """All ways to draw k of 7 passages, of which the first m match."""
    by_k = random_accuracy(matching, 7, (1, 2, 5, 7, 9))
    for k, share in by_k.items():
        draws = list(itertools.combinations(range(7), min(k, 7)))
        expected = np.mean([any(row < m for row in draw) for m in matching for draw in draws])
        assert share == pytest.approx(expected, abs=1e-12)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "A", "é", "e\u0301", "-", "\u200b"]), max_size=6).map(" ".join)


@REPRODUCIBLE
@given(
    st.lists(st.tuples(st.lists(WORDS, max_size=3), st.sets(st.integers(0, 9), max_size=3)), min_size=1, max_size=6),
    st.lists(WORDS, max_size=8),
    st.sampled_from(["string", "regex"]),
)
def test_matching_passages_are_those_of_the_reference(
    asked: list[tuple[list[str], set[int]]], texts: list[str], kind: str
) -> None:
    questions = [
        Question(str(n), "?", tuple(answers), tuple(map(str, ids)), kind)  # type: ignore[arg-type]
        for n, (answers, ids) in enumerate(asked)
    ]
    told: list[int] = []
    counts = count(questions, (Passage(str(row), "", text) for row, text in enumerate(texts)), told.append)
    assert counts.matching == tuple(sum(has_answer(answers, text, kind) for text in texts) for answers, _ in asked)
    assert counts.positives == tuple(sum(number < len(texts) for number in ids) for _, ids in asked)
    assert counts.passage_count == len(texts) == sum(told)
