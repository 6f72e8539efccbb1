"""Many texts at a time: each embedding as if its text were alone, chunks in order, and no thread left behind."""

import threading
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.bundle import Bundle
from narrows.encoder import OFFLINE_TOKENS
from narrows.offline import CHUNKS_AHEAD, batches, embed, embed_chunks
from narrows.tokenizer import TokenizedText
from narrows.towers import Tower, load_towers


@pytest.fixture(scope="module")
def tower(small_bundle: Bundle) -> Tower:
    return load_towers(small_bundle, "fp32", 1, ["context_encoder"])["context_encoder"]


def tokenized(tower: Tower, count: int) -> list[TokenizedText]:
    """Texts of very different lengths, in no order."""
    texts = tower.tokenizer.passages([("", "word " * (number * 37 % 150) + str(number)) for number in range(count)])
    assert len({len(text.ids) for text in texts}) > min(count, 100) // 2
    return texts


def encoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("encode")]


def most_texts(tokens: int) -> int:
    return max(1, OFFLINE_TOKENS // tokens)


@given(st.lists(st.integers(1, 2 * OFFLINE_TOKENS), max_size=80))
def test_batches_hold_every_text_once_and_few_tokens(lengths: list[int]) -> None:
    grouped = batches(lengths, most_texts)
    assert sorted(number for batch in grouped for number in batch) == list(range(len(lengths)))
    for batch in grouped:
        padded = len(batch) * max(lengths[number] for number in batch)
        assert len(batch) == 1 or 0 < padded <= OFFLINE_TOKENS
    # Of like length: no two batches overlap in the lengths that they hold.
    spans = sorted((min(lengths[n] for n in batch), max(lengths[n] for n in batch)) for batch in grouped)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_embedding_is_the_same_as_alone(tower: Tower, threads: int) -> None:
    texts = tokenized(tower, 100)
    counted: list[int] = []
    found = embed(tower, texts, threads, counted.append)
    assert (found.dtype, found.shape) == (np.float32, (100, tower.manifest.dim))
    for text, embedding in zip(texts, found, strict=True):
        assert np.array_equal(embedding, tower.encoder.encode([text.ids])[0])
    assert sum(counted) == 100
    assert len(counted) > 10
    assert encoding_threads() == []


def test_no_texts(tower: Tower) -> None:
    assert embed(tower, [], 2).shape == (0, tower.manifest.dim)
    assert list(embed_chunks(tower, [], 2, lambda count: None)) == []


def test_chunks_are_taken_as_they_are_needed_and_come_in_order(tower: Tower) -> None:
    texts = tokenized(tower, 60)
    taken = 0

    def chunks() -> Iterator[list[TokenizedText]]:
        nonlocal taken
        for start in range(0, 60, 10):
            taken += 1
            yield texts[start : start + 10]

    for number, (chunk, embeddings) in enumerate(embed_chunks(tower, chunks(), 2, lambda count: None)):
        assert chunk == texts[10 * number : 10 * number + 10]
        assert np.array_equal(embeddings, embed(tower, chunk, 1))
        assert taken == min(number + 1 + CHUNKS_AHEAD, 6)
    assert number == 5


def test_a_batch_that_fails_ends_it_all(tower: Tower) -> None:
    texts = tokenized(tower, 200)
    texts[7] = TokenizedText(np.array([10**6], dtype=np.int64), 0)  # no such token
    with pytest.raises(Exception, match=r"indices element out of data bounds|out of range|input_ids"):
        embed(tower, texts, 2)
    assert encoding_threads() == []
