"""From rankings to numbers: what was found for each question, and the averages over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytrec_eval

from narrows_tools.evaluation.answers import AnswerMatcher
from narrows_tools.evaluation.corpus import CorpusCounts, random_accuracy
from narrows_tools.evaluation.paired import wilson
from narrows_tools.evaluation.questions import Question
from narrows_tools.evaluation.search import Ranking

CUTOFFS = (1, 5, 20, 100)


@dataclass(frozen=True, slots=True)
class Judged:
    """What was found for one question. Ranks are from 0, and None for what is not within the depth of the run.

    `by_answers` and `by_positives` say whether the question can be judged so at all.
    """

    id: str
    by_answers: bool
    answer_rank: int | None
    by_positives: bool
    positive_rank: int | None
    reciprocal_rank: float  # of the first positive; 0 if missed
    ndcg_10: float  # gain 1 for each positive


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Top-k accuracy by one way of judging: tables by k.

    `random` is what a random ranking is expected to reach, and `ceiling` the share of questions that any passage of
    the corpus answers (`answerable_count` of them; `answerable` is the accuracy over those alone). All four are None
    where the corpus was not counted.
    """

    question_count: int
    accuracy: dict[int, float]
    interval: dict[int, tuple[float, float]]  # Wilson, 95 %
    random: dict[int, float] | None = None
    ceiling: float | None = None
    answerable_count: int | None = None
    answerable: dict[int, float] | None = None


@dataclass(frozen=True, slots=True)
class Ranks:
    """Averages over the questions that have positive passages. A miss counts as rank `depth`, so as a lower bound."""

    mean_positive_rank: float
    missed_count: int
    mrr: float
    ndcg_10: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """The numbers of one run; None for a way of judging that no question allows."""

    by_answers: Accuracies | None
    by_positives: Accuracies | None
    ranks: Ranks | None


def judge(question: Question, ranking: Ranking, matcher: AnswerMatcher) -> tuple[Judged, list[bool]]:
    """Judges one ranking; also returns, for each hit, whether its text holds an answer."""
    has_answer = matcher.matching(question.answers, [hit.text for hit in ranking])
    answer_rank = has_answer.index(True) if True in has_answer else None
    positives = set(question.positive_ids)
    positive_rank = next((rank for rank, hit in enumerate(ranking) if hit.id in positives), None)
    reciprocal_rank, ndcg_10 = _trec_eval(positives, ranking) if positive_rank is not None else (0.0, 0.0)
    judged = Judged(
        question.id,
        bool(question.answers),
        answer_rank,
        bool(positives),
        positive_rank,
        reciprocal_rank,
        ndcg_10,
    )
    return judged, has_answer


def _trec_eval(positives: set[str], ranking: Ranking) -> tuple[float, float]:
    """Reciprocal rank and nDCG@10 as trec_eval has them.

    It orders by score, and equal scores by id in its own way; so it is given the ranks themselves.
    """
    evaluator = pytrec_eval.RelevanceEvaluator({"q": dict.fromkeys(positives, 1)}, {"recip_rank", "ndcg_cut.10"})
    run = {hit.id: float(len(ranking) - rank) for rank, hit in enumerate(ranking)}
    values = evaluator.evaluate({"q": run})["q"]
    return values["recip_rank"], values["ndcg_cut_10"]


def cutoffs(depth: int) -> tuple[int, ...]:
    """The k of the tables: 1, 5, 20, 100 as far as the depth goes, and the depth."""
    return tuple(sorted({k for k in CUTOFFS if k < depth} | {depth}))


def summarize(judged: Sequence[Judged], depth: int, counts: CorpusCounts | None) -> Metrics:
    """Averages over the questions; `counts` are those of the same questions in the same order."""
    answers = [(item.answer_rank, number) for number, item in enumerate(judged) if item.by_answers]
    positives = [(item.positive_rank, number) for number, item in enumerate(judged) if item.by_positives]
    return Metrics(
        _accuracies(answers, depth, counts.matching if counts else None, counts),
        _accuracies(positives, depth, counts.positives if counts else None, counts),
        _ranks([item for item in judged if item.by_positives], depth),
    )


def _accuracies(
    ranks: Sequence[tuple[int | None, int]], depth: int, present: Sequence[int] | None, counts: CorpusCounts | None
) -> Accuracies | None:
    if not ranks:
        return None
    table = cutoffs(depth)
    found = {k: sum(rank is not None and rank < k for rank, _ in ranks) for k in table}
    accuracy = {k: found[k] / len(ranks) for k in table}
    interval = {k: wilson(found[k], len(ranks)) for k in table}
    if present is None or counts is None:
        return Accuracies(len(ranks), accuracy, interval)
    matching = [present[number] for _, number in ranks]
    answerable = sum(each > 0 for each in matching)
    return Accuracies(
        len(ranks),
        accuracy,
        interval,
        random_accuracy(matching, counts.passage_count, table),
        answerable / len(ranks),
        answerable,
        {k: found[k] / answerable for k in table} if answerable else None,
    )


def _ranks(judged: Sequence[Judged], depth: int) -> Ranks | None:
    if not judged:
        return None
    count = len(judged)
    return Ranks(
        sum(rank_or_depth(item, depth) for item in judged) / count,
        sum(item.positive_rank is None for item in judged),
        sum(item.reciprocal_rank for item in judged) / count,
        sum(item.ndcg_10 for item in judged) / count,
    )


def rank_or_depth(item: Judged, depth: int) -> int:
    """The rank of the first positive from 0; `depth` where it is missed."""
    return depth if item.positive_rank is None else item.positive_rank
