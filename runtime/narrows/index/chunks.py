"""Stored passages -> embeddings, in chunks of rows: tokenized, grouped by like length, encoded."""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from narrows.costs import CostTable
from narrows.encoder import Embeddings
from narrows.passages import Passages
from narrows.tokenizer import TokenizedText
from narrows.towers import Tower

CHUNK_PASSAGES = 1024  # tokenized and sorted by length together; what a stopped build loses at most
SAMPLE_PASSAGES = 512  # tokenized for the estimate


def estimate_s(passages: Passages, first: int, tower: Tower, costs: CostTable) -> float:
    """Seconds to encode the rows from `first` on, from the lengths of an even sample and the measured costs."""
    rows = np.unique(np.linspace(first, len(passages) - 1, SAMPLE_PASSAGES).astype(np.int64))
    sample = tokenize(passages, tower, rows)
    return sum(costs.item_ms(len(text.ids)) for text in sample) / len(sample) * (len(passages) - first) / 1e3


def tokenize(passages: Passages, tower: Tower, rows: npt.NDArray[np.int64]) -> list[TokenizedText]:
    """The token ids of these rows."""
    return tower.tokenizer.passages([(passage.title, passage.text) for passage in passages.get(rows)])


def encode(
    passages: Passages, first: int, tower: Tower, costs: CostTable, encoded: Callable[[int], None]
) -> Iterator[tuple[Embeddings, list[TokenizedText]]]:
    """Yields the embeddings of consecutive rows from `first` on, float32 (rows, dim), and the texts they are of.

    `encoded` is told how many more passages are done. An embedding does not depend on where a chunk begins (contract
    2), so a build that goes on from any row gives the same bits.
    """
    for start in range(first, len(passages), CHUNK_PASSAGES):
        rows = np.arange(start, min(start + CHUNK_PASSAGES, len(passages)))
        texts = tokenize(passages, tower, rows)
        yield encode_texts(texts, tower, costs, encoded), texts


def encode_texts(
    texts: Sequence[TokenizedText], tower: Tower, costs: CostTable, encoded: Callable[[int], None]
) -> Embeddings:
    """The embeddings of texts, float32 (texts, dim), computed in batches of like length."""
    embeddings = np.empty((len(texts), tower.manifest.dim), dtype=np.float32)
    for batch in _batches([len(text.ids) for text in texts], costs):
        embeddings[batch] = tower.encoder.encode([texts[number].ids for number in batch])
        encoded(len(batch))
    return embeddings


def _batches(lengths: Sequence[int], costs: CostTable) -> list[list[int]]:
    """Positions grouped by like length; the groups shuffled with a fixed seed, so that the ETA holds from the start."""
    longest_first = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    batches = []
    while longest_first:
        cap = costs.cap(lengths[longest_first[0]])
        batches.append(longest_first[:cap])
        longest_first = longest_first[cap:]
    random.Random(0).shuffle(batches)  # noqa: S311  (no secret)
    return batches
