"""Tokenizing for the front: the same ids at once or on the thread, and a bound on what waits."""

import asyncio

import pytest

from narrows.bundle import Bundle
from narrows.errors import OverloadedError
from narrows.server.texts import INLINE_CHARS, MAX_WAITING_CHARS, Texts
from narrows.towers import load_towers


@pytest.fixture(scope="module")
def texts(small_bundle: Bundle) -> Texts:
    towers = load_towers(small_bundle, "fp32", 1, ["question_encoder", "context_encoder"])
    return Texts(towers["question_encoder"].tokenizer, towers["context_encoder"].tokenizer)


def test_long_calls_get_the_ids_that_short_ones_get(texts: Texts) -> None:
    async def run() -> None:
        (alone,) = await texts.tokenize(["where do rivers end?"], [])
        padding = " " * INLINE_CHARS
        question, passage = await texts.tokenize([padding + "where do rivers end?"], [("", "where do rivers end?")])
        assert question.ids.tolist() == passage.ids.tolist() == alone.ids.tolist()

    asyncio.run(run())


def test_more_text_than_may_wait_is_overload_and_goes_again_when_there_is_room(texts: Texts) -> None:
    async def run() -> None:
        first = asyncio.create_task(texts.tokenize([" " * MAX_WAITING_CHARS + "river"], []))
        await asyncio.sleep(0)  # lets it begin
        with pytest.raises(OverloadedError) as refused:
            await texts.tokenize(["x" * (INLINE_CHARS + 1)], [])
        assert refused.value.retry_after_ms > 0
        assert len(await texts.tokenize(["a short one is answered all the same"], [])) == 1
        await first
        assert len(await texts.tokenize(["x" * (INLINE_CHARS + 1)], [])) == 1

    asyncio.run(run())
