"""Exact scores of candidates: the same bits whatever found them, and whoever else is asking."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from narrows.index.vector_file import Vectors

BLOCK_ROWS = 8192  # scored at once in float64: bounds the memory of a pass

Best = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
Rows = npt.NDArray[np.int64]
Lookup = Callable[[Rows], Vectors]


def inner_products(lookup: Lookup, query: npt.NDArray[np.float32], rows: Rows) -> npt.NDArray[np.float32]:
    """Inner products of `query` with the vectors of some rows: float64, in one order of summation, rounded once."""
    exact = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        # Each product is exact: 24 + 24 bits fit into 53.
        block = np.multiply(lookup(rows[start : start + BLOCK_ROWS]), query, dtype=np.float64)
        exact[start : start + BLOCK_ROWS] = block.sum(axis=1)
    return exact


def ranked(scores: npt.NDArray[np.float32], rows: Rows, id_rank: npt.NDArray[np.uint32], k: int) -> Best:
    """The k best by score descending, then id ascending."""
    order = np.lexsort((id_rank[rows], -scores))[:k]
    return scores[order], rows[order]
