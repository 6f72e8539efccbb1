"""A reader judged on retrieved passages: for each number of passages, how often its best answer is right."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from narrows.answers import Answer
from narrows.errors import QuestionFileError
from narrows.reader import Reader
from narrows.spans import SpanRule
from narrows_tools.evaluation.exact_match import exact_match, f1
from narrows_tools.evaluation.paired import wilson

CUTOFFS = (1, 5, 10, 20, 50, 100)


class Retrieved(msgspec.Struct, frozen=True):
    """A passage of a ranking; what else it has is left alone."""

    text: str
    title: str = ""


class Ranked(msgspec.Struct, frozen=True):
    """A question with its right answers and what was retrieved for it, best first: an item of DPR's retriever results.

    They are what `narrows eval retrieval --out-dpr` writes, and what the original's reader takes.
    """

    question: str
    answers: list[str]
    ctxs: list[Retrieved]


@dataclass(frozen=True, slots=True)
class Judged:
    """The best answer to a question from its first `passages`; empty where no passage gives one."""

    passages: int
    answer: str
    exact_match: bool
    f1: float


@dataclass(frozen=True, slots=True)
class Scores:
    """Averages over all questions, with the 95 % interval of the exact matches (Wilson)."""

    passages: int
    questions: int
    exact_match: float
    exact_match_interval: tuple[float, float]
    f1: float


def read_rankings(file: Path) -> list[Ranked]:
    """Reads DPR's retriever results.

    Raises:
        QuestionFileError: the file cannot be read, or is not such a list, or an item lacks something; says which.
    """
    try:
        found = msgspec.json.decode(file.read_bytes(), type=list[Ranked])
    except OSError as error:
        raise QuestionFileError(f"{file}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise QuestionFileError(
            f"{file}: not DPR's retriever results, a list of question, answers and ctxs: {error}"
        ) from None
    for number, item in enumerate(found, start=1):
        if not item.answers or not item.ctxs:
            raise QuestionFileError(f"{file}: item {number} has no {'ctxs' if item.answers else 'answers'}")
    if not found:
        raise QuestionFileError(f"{file}: holds no questions")
    return found


def cutoffs(passages: int) -> tuple[int, ...]:
    """The rows of the table: the usual numbers up to the one that is read."""
    return (*(cutoff for cutoff in CUTOFFS if cutoff < passages), passages)


def judge(
    reader: Reader, rankings: Sequence[Ranked], passages: int, rule: SpanRule, advance: Callable[[int], object]
) -> Iterator[list[Judged]]:
    """Reads the first `passages` of each question once; yields what each of `cutoffs` of them would have answered.

    The last of `cutoffs` is what the longest ranking has, where that is less.
    """
    table = cutoffs(min(passages, max(len(ranked.ctxs) for ranked in rankings)))
    for ranked in rankings:
        read = [(passage.title, passage.text) for passage in ranked.ctxs[:passages]]
        answers = reader.read(ranked.question, read, rule, count=len(read) * rule.per_passage)
        yield [_judged(ranked, answers, cutoff) for cutoff in table]
        advance(1)


def _judged(ranked: Ranked, answers: Sequence[Answer], cutoff: int) -> Judged:
    best = next((answer.text for answer in answers if answer.passage < cutoff), "")
    return Judged(cutoff, best, exact_match(best, ranked.answers), f1(best, ranked.answers))


def summarize(judged: Sequence[Sequence[Judged]]) -> list[Scores]:
    """The averages for each number of passages."""
    rows = []
    for column in zip(*judged, strict=True):
        right = sum(item.exact_match for item in column)
        mean_f1 = float(np.mean([item.f1 for item in column]))
        rows.append(Scores(column[0].passages, len(column), right / len(column), wilson(right, len(column)), mean_f1))
    return rows
