"""Stored passages -> tokenized texts, chunk by chunk; and how long their encoding should take."""

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from narrows import offline
from narrows.passages import Passages
from narrows.tokenizer import TokenizedText
from narrows.towers import Tower

CHUNK_PASSAGES = 512  # sorted by length, and written, together; a stopped build loses this one and the one begun
SAMPLE_PASSAGES = 512  # tokenized for the estimate
TIMED_PASSAGES = 16  # of these, encoded for it


def tokenize(passages: Passages, tower: Tower, rows: npt.NDArray[np.int64]) -> list[TokenizedText]:
    """The token ids of these rows."""
    return tower.tokenizer.passages([(passage.title, passage.text) for passage in passages.get(rows)])


def tokenized(passages: Passages, first: int, tower: Tower) -> Iterator[list[TokenizedText]]:
    """Yields the texts of consecutive rows from `first` on.

    On a CPU an embedding does not depend on where a chunk begins (contract 2): a build that goes on from any row gives
    the same bits.
    """
    for start in range(first, len(passages), CHUNK_PASSAGES):
        yield tokenize(passages, tower, np.arange(start, min(start + CHUNK_PASSAGES, len(passages))))


def estimate_s(passages: Passages, first: int, tower: Tower, threads: int) -> float:
    """Seconds to encode the rows from `first` on, from the lengths of an even sample; encodes a few, twice.

    The first time warms the tower up.
    """
    rows = np.unique(np.linspace(first, len(passages) - 1, SAMPLE_PASSAGES).astype(np.int64))
    sample = tokenize(passages, tower, rows)
    timed = sample[:: max(1, len(sample) // TIMED_PASSAGES)]
    for _ in range(2):
        started_s = time.monotonic()
        offline.embed(tower, timed, threads)
        token_s = (time.monotonic() - started_s) / sum(len(text.ids) for text in timed)
    return token_s * sum(len(text.ids) for text in sample) / len(sample) * (len(passages) - first)
