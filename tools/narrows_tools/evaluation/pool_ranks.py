"""Ranks of gold passages in a pool of passages, by embeddings alone, in blocks of bounded memory."""

import numpy as np
import numpy.typing as npt

from narrows.encoder import Embeddings
from narrows_tools.evaluation.steps import Advance

Rows = npt.NDArray[np.int64]

BLOCK_SCORES = 2**22  # 16 MiB as float32, and twice that again while they are counted


def pool_ranks(
    questions: Embeddings,
    passages: Embeddings,
    counts: Rows,
    gold: Rows,
    advance: Advance = lambda count: None,
    block_scores: int = BLOCK_SCORES,
) -> tuple[Rows, Rows]:
    """For each question, how many passages of the pool score above its gold one, and how many others the same.

    Args:
        questions: float32 (questions, dim).
        passages: the distinct passages of the pool, float32 (passages, dim).
        counts: how often each stands in the pool, int64 (passages,).
        gold: the row of each question's gold passage, int64 (questions,).
        advance: told how many more passages are done.
        block_scores: inner products held at a time.

    Returns:
        Ranks from 0, and ties, both int64 (questions,). Further copies of the gold passage are ties.
    """
    own = np.einsum("ij,ij->i", questions, passages[gold])
    above = np.zeros(len(questions), dtype=np.int64)
    level = np.zeros(len(questions), dtype=np.int64)
    size = max(1, block_scores // len(questions))
    for start in range(0, len(passages), size):
        weights = counts[start : start + size].astype(np.float64)  # exact below 2**53, and BLAS adds them up
        scores = questions @ passages[start : start + size].T
        here = np.flatnonzero((gold >= start) & (gold < start + len(weights)))
        scores[here, gold[here] - start] = own[here]  # the same product, which may be rounded otherwise in a block
        above += ((scores > own[:, None]) @ weights).astype(np.int64)
        level += ((scores == own[:, None]) @ weights).astype(np.int64)
        advance(len(weights))
    return above, level - 1
