"""DPR's extractive reader: a bundle's tower of logits, and reading without a server."""

from collections.abc import Sequence

import numpy as np

from narrows.answers import Answer, AnswerFinder
from narrows.bundle import Bundle
from narrows.encoder import Encoder
from narrows.spans import Logits, SpanRule
from narrows.tokenizer import TokenIds
from narrows.towers import load_towers

BATCH_READINGS = 8  # of like length: more gain nothing on a CPU


def read_batch(encoder: Encoder, token_ids: Sequence[TokenIds]) -> list[Logits]:
    """The logits of a batch: of each sequence, flat, three for each of its tokens."""
    padded = encoder.encode(token_ids)
    return [logits[: len(ids)].reshape(-1) for logits, ids in zip(padded, token_ids, strict=True)]


class Reader:
    """A bundle's reader, to read with without a server."""

    def __init__(self, bundle: Bundle, variant: str, threads: int) -> None:
        """Loads it, and checks it on this machine.

        Raises:
            BundleError: the bundle has no reader, or it cannot be loaded, or is off its golden logits.
        """
        tower = load_towers(bundle, variant, threads, ["reader"])["reader"]
        self._tokenizer, self._encoder = tower.tokenizer, tower.encoder
        self._finder = AnswerFinder(tower.tokenizer)

    def read(self, question: str, passages: Sequence[tuple[str, str]], rule: SpanRule, count: int) -> list[Answer]:
        """The best answers in some passages, (title, text); as AnswerFinder.find."""
        readings = self._tokenizer.readings(question, passages)
        logits: list[Logits] = [np.empty(0, dtype=np.float32)] * len(readings)
        by_length = sorted(range(len(readings)), key=lambda number: len(readings[number].ids))
        for start in range(0, len(by_length), BATCH_READINGS):
            numbers = by_length[start : start + BATCH_READINGS]
            batch = read_batch(self._encoder, [readings[number].ids for number in numbers])
            for number, values in zip(numbers, batch, strict=True):
                logits[number] = values
        return self._finder.find(readings, logits, rule, count)
