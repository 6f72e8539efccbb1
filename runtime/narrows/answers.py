"""From a reader's logits to the words that answer, for all passages of a question at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from narrows.spans import Logits, SpanRule, best_spans
from narrows.tokenizer import Reading, TowerTokenizer

LOGITS = 3
START, END, RELEVANCE = range(LOGITS)  # of a token


@dataclass(frozen=True, slots=True)
class Answer:
    """Words of a passage, and how sure the reader is: of the words within the passage, and of the passage.

    `passage` is its place among those given; `start_byte` and `end_byte` (exclusive) are in the UTF-8 of its text. For
    words that begin in the title, where a rule allows that, both are 0, and `text` is what the tokens say.
    """

    text: str
    passage: int
    start_byte: int
    end_byte: int
    span_score: float
    relevance_score: float


class AnswerFinder:
    """From logits to answers, with a reader's tokenizer."""

    def __init__(self, tokenizer: TowerTokenizer) -> None:
        self._tokenizer = tokenizer
        self._continues = tokenizer.continuing()

    def find(self, readings: Sequence[Reading], logits: Sequence[Logits], rule: SpanRule, count: int) -> list[Answer]:
        """The best answers: by the passage's relevance, then by the span's score, at most `count`.

        Of equally relevant passages the earlier one comes first.

        Args:
            readings: of the passages.
            logits: of each, flat, LOGITS for each token.
            rule: which words may be an answer.
            count: answers wanted.
        """
        if not readings:
            return []
        lengths = np.array([len(reading.ids) for reading in readings])
        firsts = np.array([reading.first_title if rule.titles else reading.first_text for reading in readings])
        padded = np.zeros((len(readings), lengths.max(), LOGITS), dtype=np.float32)
        continues = np.zeros(padded.shape[:2], dtype=bool)
        real = np.arange(lengths.max()) < lengths[:, None]
        padded[real] = np.concatenate(logits).reshape(-1, LOGITS)
        continues[real] = self._continues[np.concatenate([reading.ids for reading in readings])]
        spans = best_spans(padded[:, :, START], padded[:, :, END], firsts, lengths, continues, rule)
        relevance = padded[:, 0, RELEVANCE]
        answers: list[Answer] = []
        for row in np.argsort(-relevance, kind="stable"):
            found = zip(spans.starts[row].tolist(), spans.ends[row].tolist(), spans.scores[row].tolist(), strict=True)
            for start, end, score in found:
                if start >= 0:
                    words = self._words(readings[row], start, end)
                    answers.append(Answer(words[0], int(row), *words[1:], score, float(relevance[row])))
            if len(answers) >= count:
                break
        return answers[:count]

    def _words(self, reading: Reading, start: int, end: int) -> tuple[str, int, int]:
        """The words of a span, and where they begin and end."""
        if start < reading.first_text:
            return self._tokenizer.decode(reading.ids[start : end + 1]), 0, 0
        first, beyond = reading.characters(start, end)
        words = reading.text[first:beyond]
        start_byte = len(reading.text[:first].encode())
        return words, start_byte, start_byte + len(words.encode())
