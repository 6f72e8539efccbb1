"""Ranks in a pool: worked out by hand, and by sorting the whole pool as DPR does."""

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows_tools.evaluation.pool_ranks import pool_ranks

REPRODUCIBLE = settings(derandomize=True, deadline=None, max_examples=150)


def vectors(*rows: tuple[float, ...]) -> npt.NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


def counted(*counts: int) -> npt.NDArray[np.int64]:
    return np.array(counts, dtype=np.int64)


def test_an_example_by_hand() -> None:
    """Scores of the first question 3, 1, 2, of the second 0, 5, 5; the gold passages are the third and the second."""
    questions = vectors((1, 0), (0, 1))
    passages = vectors((3, 0), (1, 5), (2, 5))
    ranks, ties = pool_ranks(questions, passages, counted(1, 1, 1), counted(2, 1))
    assert ranks.tolist() == [1, 0], "only what is strictly higher counts"
    assert ties.tolist() == [0, 1]
    assert ranks.mean() == 0.5


def test_copies_count_as_often_as_they_stand_in_the_pool() -> None:
    questions = vectors((1,), (1,))
    ranks, ties = pool_ranks(questions, vectors((3,), (2,), (9,)), counted(4, 3, 0), counted(1, 0))
    assert ranks.tolist() == [4, 0], "four copies of a better passage; one that is not in the pool is nowhere"
    assert ties.tolist() == [2, 3], "copies of the gold passage are level with it"


@REPRODUCIBLE
@given(data=st.data(), questions=st.integers(1, 6), passages=st.integers(1, 12), block=st.integers(1, 40))
def test_the_rank_is_the_best_place_in_any_descending_order(
    data: st.DataObject, questions: int, passages: int, block: int
) -> None:
    """Small integers, so that there are many ties and no rounding; any block gives the same."""
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    asked = draw.integers(-2, 3, (questions, 3)).astype(np.float32)
    found = draw.integers(-2, 3, (passages, 3)).astype(np.float32)
    gold, counts = draw.integers(0, passages, questions), draw.integers(1, 4, passages)
    done: list[int] = []
    ranks, ties = pool_ranks(asked, found, counts, gold, done.append, block_scores=block)
    assert sum(done) == passages
    pool = np.repeat(np.arange(passages), counts)
    for number in range(questions):
        scores = found[pool] @ asked[number]
        for same_first in (True, False):  # the gold passage's first copy before, and after, all that is level with it
            own = int(np.flatnonzero(pool == gold[number])[0])
            order = np.lexsort((np.arange(len(pool)) != own if same_first else np.arange(len(pool)) == own, -scores))
            place = int(np.flatnonzero(order == own)[0])
            assert place == ranks[number] + (0 if same_first else ties[number])


def test_a_rounding_error_is_no_rank() -> None:
    """The gold passage's score is not held against another rounding of itself."""
    draw = np.random.default_rng(0)
    asked = draw.standard_normal((50, 768)).astype(np.float32)
    ranks, ties = pool_ranks(asked, asked, np.full(50, 7), np.arange(50), block_scores=50 * 7)
    assert ranks.tolist() == [0] * 50
    assert ties.tolist() == [6] * 50
