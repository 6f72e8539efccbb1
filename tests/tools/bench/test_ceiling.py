"""The ceiling of towers whose batches are only noted down."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from narrows.encoder import Encoder
from narrows.tokenizer import TokenIds
from narrows_tools.bench.ceiling import ceiling_of


class NotingEncoder:
    """Notes the lengths of the texts of each batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def encode(self, token_ids: Sequence[TokenIds]) -> None:
        self.batches.append([len(ids) for ids in token_ids])


def test_every_text_is_encoded_whatever_the_batch_size() -> None:
    """Without what is left beyond whole batches the longest texts would be missing, and the ceiling too high."""
    lengths = [30, 4, 9, 17, 5, 12, 256]
    noting = NotingEncoder()
    found = ceiling_of({1: cast(Encoder, noting)}, [np.zeros(length, np.int64) for length in lengths], 1e-9)
    runs: dict[int, list[list[int]]] = {}
    batches = iter(noting.batches)
    for name in found.grid:
        size = int(name.partition("x")[2])
        next(batches)  # of the warm-up
        runs[size] = [next(batches) for _ in range(-(-len(lengths) // size))]
    assert list(batches) == []
    assert set(runs) >= {1, 2, 4}
    assert all([length for batch in run for length in batch] == sorted(lengths) for run in runs.values())
    assert runs[4] == [[4, 5, 9, 12], [17, 30, 256]]
    assert found.batch_size in runs
    assert found.per_s == max(found.grid.values())
