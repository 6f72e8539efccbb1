"""How many passages of the whole corpus answer each question: what a random ranking, and a perfect one, would reach.

A `string` answer is looked for only in the passages that hold its rarest token, so that 2,000 questions and 16,000
passages take seconds. Expressions have no such key: every one is tried on every passage.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrows.passages import Passage
from narrows_tools.evaluation.answers import AnswerMatcher, token_lines
from narrows_tools.evaluation.questions import Question
from narrows_tools.evaluation.steps import Advance

SAMPLE_PASSAGES = 2000  # to learn which tokens are rare


@dataclass(frozen=True, slots=True)
class CorpusCounts:
    """For each question, passages of the corpus that hold an answer, and how many of its positives are there."""

    passage_count: int
    matching: tuple[int, ...]
    positives: tuple[int, ...]


def count(
    questions: Sequence[Question], passages: Iterable[Passage], advance: Advance = lambda count: None
) -> CorpusCounts:
    """Goes through all passages once; `advance` is told of every passage. The questions share one answer kind."""
    iterator = iter(passages)
    sample = list(itertools.islice(iterator, SAMPLE_PASSAGES))
    if questions and questions[0].answer_kind == "regex":
        matched = _by_expressions(questions)
    else:
        matched = _by_tokens(questions, sample)
    asked: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        for identifier in question.positive_ids:
            asked.setdefault(identifier, []).append(number)
    passage_count, matching, positives = 0, [0] * len(questions), [0] * len(questions)
    for passage in itertools.chain(sample, iterator):
        passage_count += 1
        for number in matched(passage.text):
            matching[number] += 1
        for number in asked.get(passage.id, ()):
            positives[number] += 1
        advance(1)
    return CorpusCounts(passage_count, tuple(matching), tuple(positives))


def random_accuracy(matching: Sequence[int], passage_count: int, cutoffs: Sequence[int]) -> dict[int, float]:
    """Expected top-k accuracy of a uniformly random ranking, exactly.

    The chance that none of m passages out of N is among the first k is hypergeometric,
    C(N - m, k) / C(N, k) = prod over i < k of (N - m - i) / (N - i).
    """
    rest = passage_count - np.asarray(matching, dtype=np.float64)
    missed: npt.NDArray[np.float64] = np.ones(len(rest))
    by_cutoff, drawn = {}, 0
    for k in sorted(cutoffs):
        for i in range(drawn, min(k, passage_count)):
            missed *= np.maximum(rest - i, 0.0) / (passage_count - i)
        drawn = k
        by_cutoff[k] = float(1.0 - missed.mean())
    return by_cutoff


def _by_expressions(questions: Sequence[Question]) -> Callable[[str], Iterable[int]]:
    matcher = AnswerMatcher("regex")

    def matched(text: str) -> Iterable[int]:
        return (number for number, question in enumerate(questions) if matcher.matches(question.answers, text))

    return matched


def _by_tokens(questions: Sequence[Question], sample: Sequence[Passage]) -> Callable[[str], Iterable[int]]:
    """A function from a text to the questions that it answers."""
    frequency: Counter[str] = Counter()
    for passage in sample:
        frequency.update(set(token_lines(passage.text).split("\n")))
    askers: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        for answer in question.answers:
            askers.setdefault(token_lines(answer), []).append(number)
    everywhere = askers.pop("\n", [])  # an answer without a token
    by_key: dict[str, list[tuple[str, list[int]]]] = {}
    for phrase, numbers in askers.items():
        key = min(phrase.strip("\n").split("\n"), key=lambda token: (frequency[token], token))
        by_key.setdefault(key, []).append((phrase, numbers))
    keys = frozenset(by_key)

    def matched(text: str) -> Iterable[int]:
        lines = token_lines(text)
        found = set(everywhere)
        for key in keys.intersection(lines.split("\n")):
            for phrase, numbers in by_key[key]:
                if phrase in lines:
                    found.update(numbers)
        return found

    return matched
