"""Question and passages -> the words that answer: DPR's extractive reader."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from narrows.bundle import Bundle
from narrows.device import CPU, Device
from narrows.spans import SpanRule, best_spans
from narrows.tokenizer import Reading
from narrows.towers import Tower, load_towers

BATCH_READINGS = 8  # of like length: more gain nothing on a CPU
START, END, RELEVANCE = range(3)  # logits of a token


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


class Reader:
    """A bundle's reader, ready to read."""

    def __init__(self, bundle: Bundle, variant: str, threads: int, device: Device = CPU) -> None:
        """Loads it, and checks it on this machine.

        Raises:
            BundleError: the bundle has no reader, or it cannot be loaded, or is off its golden logits.
        """
        self._tower: Tower = load_towers(bundle, variant, threads, ["reader"], device=device)["reader"]
        self._continues = self._tower.tokenizer.continuing()

    def read(self, question: str, passages: Sequence[tuple[str, str]], rule: SpanRule, count: int) -> list[Answer]:
        """The best answers in some passages, (title, text): by the passage's relevance, then by the span's score.

        Of equally relevant passages the earlier one comes first. At most `count` are returned.
        """
        readings = self._tower.tokenizer.readings(question, passages)
        answers: list[Answer] = []
        by_length = sorted(range(len(readings)), key=lambda number: len(readings[number].ids))
        for start in range(0, len(by_length), BATCH_READINGS):
            numbers = by_length[start : start + BATCH_READINGS]
            some = [readings[number] for number in numbers]
            answers += self._answers(numbers, some, [passages[number] for number in numbers], rule)
        answers.sort(key=lambda answer: (-answer.relevance_score, answer.passage))  # stable: spans stay best first
        return answers[:count]

    def _answers(
        self, numbers: Sequence[int], readings: Sequence[Reading], passages: Sequence[tuple[str, str]], rule: SpanRule
    ) -> list[Answer]:
        """Those of one batch; of each passage, best first."""
        logits = self._tower.encoder.encode([reading.ids for reading in readings])
        lengths = np.array([len(reading.ids) for reading in readings])
        firsts = np.array([reading.first_title if rule.titles else reading.first_text for reading in readings])
        continues = np.zeros(logits.shape[:2], dtype=bool)
        for row, reading in enumerate(readings):
            continues[row, : len(reading.ids)] = self._continues[reading.ids]
        spans = best_spans(logits[:, :, START], logits[:, :, END], firsts, lengths, continues, rule)
        return [
            self._answer(number, readings[row], passages[row][1], span, float(logits[row, 0, RELEVANCE]))
            for row, number in enumerate(numbers)
            for span in zip(
                spans.starts[row].tolist(), spans.ends[row].tolist(), spans.scores[row].tolist(), strict=True
            )
            if span[0] >= 0
        ]

    def _answer(
        self, passage: int, reading: Reading, text: str, span: tuple[int, int, float], relevance: float
    ) -> Answer:
        start, end, score = span
        if start < reading.first_text:
            return Answer(self._tower.tokenizer.decode(reading.ids[start : end + 1]), passage, 0, 0, score, relevance)
        start_byte = reading.text_bytes[start - reading.first_text][0]
        end_byte = reading.text_bytes[end - reading.first_text][1]
        words = text.encode("utf-8", "surrogatepass")[start_byte:end_byte].decode("utf-8", "surrogatepass")
        return Answer(words, passage, start_byte, end_byte, score, relevance)
