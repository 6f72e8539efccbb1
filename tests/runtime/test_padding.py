"""Batches as rectangles, and the few shapes that a GPU is given."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from narrows.device import GPU_SHAPES
from narrows.padding import Shapes, pad_right

REPRODUCIBLE = settings(derandomize=True, deadline=None, max_examples=200)
SMALL = Shapes(texts=(1, 2, 4, 8), tokens=(8, 16, 32), max_cells=64)


def test_every_pair_that_is_not_too_large_is_a_shape_and_the_largest_comes_first() -> None:
    assert SMALL.all() == [(8, 8), (4, 16), (2, 32), (4, 8), (2, 16), (1, 32), (2, 8), (1, 16), (1, 8)]


@pytest.mark.parametrize(
    ("texts", "tokens", "shape"),
    [(1, 1, (1, 8)), (1, 8, (1, 8)), (1, 9, (1, 16)), (3, 8, (4, 8)), (8, 5, (8, 8)), (2, 32, (2, 32))],
)
def test_the_smallest_shape_that_holds_a_batch(texts: int, tokens: int, shape: tuple[int, int]) -> None:
    assert SMALL.fit(texts, tokens) == shape


def test_a_tower_sets_the_longest_shape() -> None:
    assert SMALL.within(24).tokens == (8, 16, 24)
    assert SMALL.within(512).tokens == (8, 16, 32, 512)
    assert SMALL.within(512).fit(1, 300) == (1, 512)  # a single text always fits
    assert SMALL.within(512).most_texts(300) == 1


LENGTHS = st.integers(1, 512) | st.integers(8, 25) | st.integers(8, 25) | st.integers(8, 25)  # most questions are short


@given(lengths=st.lists(LENGTHS, min_size=1, max_size=300))
@example(lengths=[16] * 40 + [512])
@example(lengths=[20] * 255 + [512, 20])
@REPRODUCIBLE
def test_any_batch_is_cut_in_order_into_such_as_fit(lengths: list[int]) -> None:
    shapes = GPU_SHAPES.within(512)
    known = set(shapes.all())
    parts = list(shapes.parts(lengths))
    assert [length for part in parts for length in lengths[part]] == lengths
    for part in parts:
        texts, tokens = len(lengths[part]), max(lengths[part])
        rows, width = shapes.fit(texts, tokens)
        assert (rows, width) in known
        assert rows >= texts
        assert width >= tokens


def test_a_shape_that_is_larger_than_its_batch_is_filled_with_rows_that_have_something_to_attend_to() -> None:
    ids, mask = pad_right([np.array([5, 6, 7]), np.array([8])], pad_id=1, shape=(4, 5))
    assert ids.tolist() == [[5, 6, 7, 1, 1], [8, 1, 1, 1, 1], [1] * 5, [1] * 5]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
