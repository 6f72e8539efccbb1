"""In-batch metrics, from scores alone: how a batch's contexts are told apart by each of its questions.

These are the numbers of DPR's training loss (Karpukhin et al. 2020, equation 2) and of the reports that Haystack 1 and
FARM print (TextSimilarityHead and farm.evaluation.metrics), from which the Spanish DPR cards are: every question
predicts one context of its batch, and every pair of a question and a context is classified, as predicted or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of one batch's questions: float64 and int64, both (questions,), and the pairs that were counted."""

    nll: npt.NDArray[np.float64]
    ranks: Rows
    pairs: int


@dataclass(frozen=True, slots=True)
class ClassReport:
    """How pairs of one class were told, as scikit-learn's classification_report has it; 0 where it divides by 0."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class BatchMetrics:
    """Over all batches. The names are those of FARM where it has one; see `summarize` for what each is."""

    questions: int
    batches: int
    wrong: int
    question_accuracy: float
    average_rank: float
    loss: float
    batch_means_over_questions: float
    accuracy: float
    f1: float
    acc_and_f1: float
    gold: ClassReport
    other: ClassReport


def judge(scores: Scores, gold: Rows, masked: Mask | None = None) -> Batch:
    """Judges one batch.

    The context with the highest score is predicted. Equal scores are ordered as the contexts stand in the batch, so a
    question whose gold passage stands in the batch twice is right only where its own copy comes first.

    Args:
        scores: float32 (questions, contexts), finite.
        gold: the gold context's column, int64 (questions,).
        masked: bool (questions, contexts): pairs to leave out, never that of a gold context.
    """
    questions = np.arange(len(scores))
    seen = np.where(masked, -np.inf, scores.astype(np.float64)) if masked is not None else scores.astype(np.float64)
    own = seen[questions, gold][:, None]
    earlier = np.arange(scores.shape[1]) < gold[:, None]
    ranks = ((seen > own) | ((seen == own) & earlier)).sum(axis=1, dtype=np.int64)
    highest = seen.max(axis=1, keepdims=True)  # taken off first: exp must not overflow
    nll = np.log(np.exp(seen - highest).sum(axis=1)) - (own - highest)[:, 0]
    return Batch(nll, ranks, seen.size - (int(masked.sum()) if masked is not None else 0))


def summarize(batches: Sequence[Batch]) -> BatchMetrics:
    """Averages over batches, at least one.

    `loss` is the mean negative log likelihood of the gold context over questions. `batch_means_over_questions` is what
    FARM calls loss: the sum of the batches' means divided by the number of questions, so about `loss` divided by the
    batch's size. `accuracy`, `f1` and the two classes are over pairs; f1 is that of the class `gold`. As each question
    predicts one pair and has one, precision, recall and F1 of that class are all the share of right questions.
    """
    nll = np.concatenate([batch.nll for batch in batches])
    ranks = np.concatenate([batch.ranks for batch in batches])
    questions, pairs = len(nll), sum(batch.pairs for batch in batches)
    wrong = int((ranks > 0).sum())
    gold = _class_report(questions - wrong, questions, questions)
    other = _class_report(pairs - questions - wrong, pairs - questions, pairs - questions)
    accuracy = 1.0 - 2 * wrong / pairs  # a wrong question is two wrong pairs: the one predicted, and the gold one
    return BatchMetrics(
        questions=questions,
        batches=len(batches),
        wrong=wrong,
        question_accuracy=1.0 - wrong / questions,
        average_rank=float(ranks.mean()),
        loss=float(nll.mean()),
        batch_means_over_questions=float(sum(batch.nll.mean() for batch in batches) / questions),
        accuracy=accuracy,
        f1=gold.f1,
        acc_and_f1=(accuracy + gold.f1) / 2,
        gold=gold,
        other=other,
    )


def _class_report(right: int, predicted: int, support: int) -> ClassReport:
    """From how many pairs of a class were told rightly, were said to be of it, and are of it."""
    precision = right / predicted if predicted else 0.0
    recall = right / support if support else 0.0
    f1 = 2 * right / (predicted + support) if predicted + support else 0.0
    return ClassReport(precision, recall, f1, support)
