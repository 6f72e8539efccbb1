"""Texts of different lengths -> one rectangle of token ids; and the few rectangles that a GPU is given."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrows.tokenizer import TokenIds

INPUT_IDS, ATTENTION_MASK, EMBEDDING = "input_ids", "attention_mask", "embedding"  # what a graph takes and gives

Padded = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Shapes:
    """Every pair of these numbers of texts and of tokens, both ascending, whose product is at most `max_cells`.

    Memory is bounded by the largest, each is run once before it is needed, and nothing is allocated afterwards.
    """

    texts: tuple[int, ...]
    tokens: tuple[int, ...]
    max_cells: int

    def within(self, max_tokens: int) -> "Shapes":
        """For a tower of `max_tokens`, which is the longest of them."""
        tokens = (*(length for length in self.tokens if length < max_tokens), max_tokens)
        return Shapes(self.texts, tokens, max(self.max_cells, max_tokens))

    def most_texts(self, tokens: int) -> int:
        """The largest batch whose longest text is of so many tokens."""
        length = self._length(tokens)
        return max(size for size in self.texts if size == self.texts[0] or size * length <= self.max_cells)

    def fit(self, texts: int, tokens: int) -> tuple[int, int]:
        """The smallest shape that holds a batch of at most `most_texts`."""
        return self.texts[bisect_left(self.texts, texts)], self._length(tokens)

    def all(self) -> list[tuple[int, int]]:
        """Largest first: whatever a later one needs is there."""
        pairs = [(size, length) for length in self.tokens for size in self.texts if size <= self.most_texts(length)]
        return sorted(pairs, key=lambda pair: -pair[0] * pair[1])

    def parts(self, lengths: Sequence[int]) -> Iterator[slice]:
        """Cuts a batch, in its order, into such as fit."""
        start = longest = 0
        for number, length in enumerate(lengths):
            longest = max(longest, length)
            if number - start >= self.most_texts(longest):
                yield slice(start, number)
                start, longest = number, length
        yield slice(start, len(lengths))

    def _length(self, tokens: int) -> int:
        return self.tokens[bisect_left(self.tokens, tokens)]


def pad_right(token_ids: Sequence[TokenIds], pad_id: int, shape: tuple[int, int] | None = None) -> Padded:
    """Returns (input_ids, attention_mask), both int64 of `shape`, or of (texts, tokens of the longest text).

    A row that no text fills is one pad token, which the mask shows: attention to nothing at all is not defined.
    """
    rows, width = shape or (len(token_ids), max(len(ids) for ids in token_ids))
    input_ids = np.full((rows, width), pad_id, dtype=np.int64)
    mask = np.zeros_like(input_ids)
    mask[len(token_ids) :, 0] = 1
    for row, ids in enumerate(token_ids):
        input_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return input_ids, mask
