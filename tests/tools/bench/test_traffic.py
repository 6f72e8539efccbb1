"""Texts: distinct, as long as they say, fixed by the seed."""

import numpy as np
import pytest

from narrows.bundle import Bundle
from narrows.errors import BundleError
from narrows.tokenizer import TowerTokenizer, load_tokenizer
from narrows_tools.bench.traffic import SHORT_TOKENS, Traffic, single_token_words


@pytest.fixture(scope="module")
def tokenizer(small_bundle: Bundle) -> TowerTokenizer:
    tower = small_bundle.tower("question_encoder")
    return load_tokenizer(small_bundle, tower)


@pytest.fixture(scope="module")
def words(tokenizer: TowerTokenizer) -> tuple[str, ...]:
    return single_token_words(tokenizer)


def test_texts_have_the_tokens_that_they_say_and_none_comes_twice(
    tokenizer: TowerTokenizer, words: tuple[str, ...]
) -> None:
    traffic = Traffic(words, tokenizer.max_tokens, seed=0)
    texts = traffic.short(2000) + traffic.mixed(300) + traffic.short(2000)
    assert [len(found.ids) for found in tokenizer.questions([text.text for text in texts])] == [
        text.tokens for text in texts
    ]
    assert len({text.text for text in texts}) == len(texts)


def test_the_lengths_of_a_run_are_the_same_whatever_the_seed_and_shuffled(words: tuple[str, ...]) -> None:
    one, other = (Traffic(words, 256, seed) for seed in (1, 2))
    short = [text.tokens for text in one.short(200)]
    assert sorted(short) == sorted(text.tokens for text in other.short(200))
    assert sorted(short) == sorted(SHORT_TOKENS * 10)
    assert short != sorted(short)
    mixed = [text.tokens for text in one.mixed(249)]
    assert sorted(mixed) == list(range(8, 257))
    assert mixed != sorted(mixed)


def test_mixed_lengths_stop_where_the_tower_does(words: tuple[str, ...]) -> None:
    lengths = [text.tokens for text in Traffic(words, 64, seed=0).mixed(570)]
    assert (min(lengths), max(lengths)) == (8, 64)
    assert np.mean(lengths) == pytest.approx(36)


def test_a_seed_fixes_the_texts(words: tuple[str, ...]) -> None:
    assert Traffic(words, 256, 5).short(50) == Traffic(words, 256, 5).short(50)
    assert Traffic(words, 256, 5).short(50) != Traffic(words, 256, 6).short(50)


def test_too_few_words_for_so_many_texts_is_an_error_and_not_an_endless_loop() -> None:
    traffic = Traffic(["one"], 256, 0)
    with pytest.raises(BundleError, match="too few words"):
        traffic.short(100)
