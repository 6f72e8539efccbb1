"""AsyncClient against a real server: the answers of Client, many at a time, and what happens when the server goes."""

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import ServerProcess, server

from narrows import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    Encoding,
    InvalidRequestError,
    MismatchError,
    NarrowsError,
    NotFoundError,
    ReplyTooLargeError,
    SearchResult,
    UnavailableError,
    messages,
)
from narrows.bundle import Bundle
from narrows_export import corpus

QUESTIONS = [question.question for question in corpus.questions("en")]
PAIRS = [(passage.title, passage.text) for passage in corpus.passages("en")[:100]]
LONG = "river " * 400
SLOW = [("", " ".join(text for _, text in PAIRS[:12]))] * 16
START_S = 60.0


def run(address: str, test: Callable[[AsyncClient], Coroutine[Any, Any, None]]) -> None:
    """Runs a test with a client of the server."""

    async def connected() -> None:
        before = tasks_left()
        async with AsyncClient(address, timeout_s=60.0) as client:
            await test(client)
        assert tasks_left() == before

    asyncio.run(asyncio.wait_for(connected(), 120))


def tasks_left() -> set[object]:
    """What runs on, without grpc.aio's own tasks, which see the end of a call a moment later."""
    return {task for task in asyncio.all_tasks() if "_AioCall" not in repr(task)}


def hits(results: list[SearchResult]) -> list[object]:
    return [(result.hits, result.truncated, result.served.generation) for result in results]


def test_many_at_a_time_get_the_answers_of_the_blocking_client(running: ServerProcess, client: Client) -> None:
    async def test(many: AsyncClient) -> None:
        results = await asyncio.gather(*(many.search(question, k=7) for question in QUESTIONS))
        assert hits(list(results)) == hits(client.search(QUESTIONS, k=7))
        assert hits(await many.search(QUESTIONS, k=7)) == hits(list(results))
        assert results[0].served.passage_variant == "fp32"
        vectors = client.encode_questions(QUESTIONS[:70])
        assert hits(await many.search(vectors, k=7)) == hits(client.search(vectors, k=7))
        np.testing.assert_array_equal(await many.encode_questions(QUESTIONS[:70]), vectors)
        np.testing.assert_array_equal(await many.encode_passages(PAIRS), client.encode_passages(PAIRS))
        both, expected = (
            await many.encode(["rivers", LONG], PAIRS[:20]),
            client.encode(["rivers", LONG], PAIRS[:20]),
        )
        np.testing.assert_array_equal(both.embeddings, expected.embeddings)
        assert (
            (both.token_counts, both.truncated)
            == (expected.token_counts, expected.truncated)
            == (
                expected.token_counts,
                (1,),
            )
        )
        assert await many.server_info() == client.server_info()
        ids = ["en-300", "no-such", "en-001"]
        assert (
            list(await many.get_passages(ids, view="title")) == list(client.get_passages(ids)) == ["en-300", "en-001"]
        )

    run(running.address, test)


def test_each_gets_its_own_error(running: ServerProcess) -> None:
    async def test(client: AsyncClient) -> None:
        asked = [
            client.search("rivers", k=1),
            client.search(" "),
            client.search(["rivers", LONG], on_too_long="error"),
            client.search("rivers", corpus="wikipedia"),
            client.search("rivers", expected_bundle="other"),
            client.search("rivers", timeout_s=0.0001),
            client.search("rivers", view="all"),  # type: ignore[call-overload]
            client.search("rivers", k=0),
            client.search("x" * 3_000_000),
            client.search(["lakes"], k=1, corpus="demo", expected_bundle="small", view="id"),
        ]
        answers: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [
            SearchResult, InvalidRequestError, InvalidRequestError, NotFoundError, MismatchError,
            DeadlineExceededError, InvalidRequestError, InvalidRequestError, InvalidRequestError, list,
        ]  # fmt: skip
        assert [answers[number].field for number in (1, 2, 6, 7)] == ["questions[0]", "questions[1]", "view", "k"]
        assert "more than 256 tokens" in str(answers[2])
        assert "too large" in str(answers[8])
        for wrong in (client.get_passages("en-001"), client.encode_questions("rivers")):
            with pytest.raises(InvalidRequestError, match="give a list"):
                await wrong
        with pytest.raises(InvalidRequestError, match="give a list"):
            client.search_many("rivers")
        assert await client.search([]) == []
        assert (await client.encode_passages([])).shape == (0, 64)

    run(running.address, test)


def test_answers_too_large_for_one_reply_come_in_parts(
    running: ServerProcess, client: Client, small_bundle: Bundle, small_index: Path
) -> None:
    async def test(many: AsyncClient) -> None:
        assert hits(await many.search(QUESTIONS[:64], k=300)) == hits(client.search(QUESTIONS[:64], k=300))

    run(running.address, test)

    async def one_is_too_large(many: AsyncClient) -> None:
        with pytest.raises(ReplyTooLargeError):
            await many.search(QUESTIONS[:4], k=300)

    with server(small_bundle.path, small_index, max_reply_bytes="20000") as small:
        run(small.address, one_is_too_large)


def test_half_precision_is_what_the_server_rounded(running: ServerProcess, client: Client) -> None:
    async def test(many: AsyncClient) -> None:
        full = client.encode(QUESTIONS[:3]).embeddings
        for half in (client.encode(QUESTIONS[:3], dtype="float16"), await many.encode(QUESTIONS[:3], dtype="float16")):
            assert half.embeddings.dtype == np.float16
            np.testing.assert_array_equal(half.embeddings, full.astype(np.float16))

    run(running.address, test)


def test_the_blocking_client_has_the_options_too(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="more than 256 tokens") as refused:
        client.search(["rivers", LONG], on_too_long="error")
    assert refused.value.field == "questions[1]"
    with pytest.raises(InvalidRequestError, match="more than 256 tokens"):
        client.encode(passages=[("", LONG)], on_too_long="error")
    with pytest.raises(MismatchError):
        client.encode(["rivers"], expected_bundle="other")
    with pytest.raises(InvalidRequestError, match="on_too_long"):
        client.search(["rivers"], on_too_long="cut")  # type: ignore[arg-type]
    assert client.get_passages(["en-001"], view="id")["en-001"].title == ""
    info = client.server_info()
    assert (info.question_text_preset, info.context_text_preset, info.passage_variant) == ("hf", "hf", "fp32")
    assert info.max_stream_in_flight == 64
    assert "search_stream" in info.features


def test_a_stream_of_questions_is_answered_in_order(running: ServerProcess, client: Client) -> None:
    async def test(many: AsyncClient) -> None:
        expected = client.search(QUESTIONS, k=3)

        async def questions() -> AsyncIterator[str]:
            for question in QUESTIONS:
                yield question

        for source in (QUESTIONS, iter(QUESTIONS), questions()):
            results = [result async for result in many.search_many(source, k=3, in_flight=100)]
            assert hits(results) == hits(expected)
        vectors = client.encode_questions(QUESTIONS)
        found = [result async for result in many.search_many(vectors, k=3)]
        assert hits(found) == hits(client.search(vectors, k=3))
        streamed = [vector async for vector in many.encode_many_questions(QUESTIONS)]
        np.testing.assert_array_equal(np.stack(streamed), vectors)
        streamed = [vector async for vector in many.encode_many_passages(PAIRS)]
        np.testing.assert_array_equal(np.stack(streamed), client.encode_passages(PAIRS))
        async with aclosing(many.search_many(QUESTIONS * 100, k=3)) as endless:
            assert (await anext(endless)).hits == expected[0].hits
        assert (await many.search(QUESTIONS[1], k=3)).hits == expected[1].hits

    run(running.address, test)


def test_a_task_that_gives_up_harms_no_other(running: ServerProcess) -> None:
    async def test(client: AsyncClient) -> None:
        expected = (await client.search("rivers", k=3)).hits
        tasks = [asyncio.create_task(client.search("rivers", k=3)) for _ in range(60)]
        slow = [asyncio.create_task(client.encode(passages=SLOW)) for _ in range(4)]
        for turn in range(6):  # before it is queued, written, answered
            for task in (*tasks[turn::12], *slow[:2]):
                task.cancel()
            await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, *slow, return_exceptions=True)
        gave_up = [result for result in results if isinstance(result, asyncio.CancelledError)]
        assert len(gave_up) == 32
        assert all(result.hits == expected for result in results[:60] if isinstance(result, SearchResult))
        assert not any(isinstance(result, Exception) for result in results)

    run(running.address, test)


def test_a_killed_server_is_unavailable_and_one_in_its_place_answers(small_bundle: Bundle, small_index: Path) -> None:
    async def test(client: AsyncClient) -> None:
        expected = (await client.search("rivers", k=3)).hits
        outstanding = [asyncio.create_task(client.encode(passages=SLOW)) for _ in range(12)]
        searches = [asyncio.create_task(client.search([LONG] * 64)) for _ in range(12)]
        await asyncio.wait(outstanding, return_when=asyncio.FIRST_COMPLETED)  # the server is at work on the others
        first.process.kill()
        answers = await asyncio.gather(*outstanding, *searches, return_exceptions=True)
        lost = [answer for answer in answers if isinstance(answer, UnavailableError)]
        assert lost
        assert all(isinstance(answer, NarrowsError) for answer in answers if isinstance(answer, Exception))
        assert first.address in str(lost[0])
        first.process.wait()
        with pytest.raises(UnavailableError):
            await client.search("rivers", k=3)
        with server(small_bundle.path, small_index, "--listen", first.address):
            assert (await until_available(client)).hits == expected
            assert (await client.encode(passages=SLOW)).embeddings.shape == (16, 64)

    with server(small_bundle.path, small_index) as first:
        run(first.address, test)


def test_a_draining_server_answers_what_it_has_begun(small_bundle: Bundle, small_index: Path) -> None:
    async def test(client: AsyncClient) -> None:
        tasks = [asyncio.create_task(client.encode(passages=SLOW)) for _ in range(8)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        running.process.terminate()
        for answer in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(answer, UnavailableError):
                assert "not begun" in str(answer)
            else:
                assert isinstance(answer, Encoding)
        with pytest.raises(UnavailableError):
            await client.search("rivers")

    with server(small_bundle.path, small_index) as running:
        run(running.address, test)
        assert running.process.wait(30) == 0


def test_closing_ends_what_is_outstanding(running: ServerProcess) -> None:
    async def test() -> None:
        client = AsyncClient(running.address)
        await client.search("rivers")
        tasks = [asyncio.create_task(client.encode(passages=SLOW)) for _ in range(4)]
        await asyncio.sleep(0)
        await client.close()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(answer) for answer in answers} == {UnavailableError}

    asyncio.run(test())


def test_closing_ends_what_has_only_begun(small_bundle: Bundle, small_index: Path) -> None:
    async def test() -> None:
        for ticks, knows_limits in itertools.product(range(6), (False, True)):
            client = AsyncClient(slow.address, timeout_s=60.0)
            if knows_limits:
                await client.encode_questions(["rivers"])
            slow.process.send_signal(signal.SIGSTOP)  # no answer comes before the end
            tasks = [asyncio.create_task(client.search("rivers")), asyncio.create_task(client.get_passages(["en-001"]))]
            for _ in range(ticks):
                await asyncio.sleep(0)
            await client.close()
            answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
            assert {type(answer) for answer in answers} == {UnavailableError}
            with pytest.raises(UnavailableError, match="is closed"):
                await client.server_info()
            slow.process.send_signal(signal.SIGCONT)

    with server(small_bundle.path, small_index) as slow:
        asyncio.run(test())


def test_a_timeout_of_any_length_is_kept_and_one_that_is_no_number_is_refused(
    running: ServerProcess, client: Client
) -> None:
    async def test(many: AsyncClient) -> None:
        for timeout_s in (1e30, float("inf")):
            assert len(await many.search("rivers", timeout_s=timeout_s)) == 10
            assert await many.server_info(timeout_s=timeout_s) == client.server_info(timeout_s=timeout_s)
        with pytest.raises(InvalidRequestError, match="timeout_s"):
            await many.search("rivers", timeout_s=float("nan"))
        with pytest.raises(InvalidRequestError, match="timeout_s"):
            client.search(["rivers"], timeout_s=float("nan"))
        assert len(await many.search("rivers")) == 10, "the stream goes on"

    run(running.address, test)


def test_a_server_that_hangs_holds_nobody_up_beyond_the_timeout(small_bundle: Bundle, small_index: Path) -> None:
    async def test(client: AsyncClient) -> None:
        hung.process.send_signal(signal.SIGSTOP)
        asked = [ask for _ in range(10) for ask in (client.search(["rivers"], timeout_s=1.0),
                                                    client.get_passages(["en-001"], timeout_s=1.0))]  # fmt: skip
        started_s = time.monotonic()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert time.monotonic() - started_s < 5.0
        assert {type(answer) for answer in answers} == {DeadlineExceededError}
        hung.process.send_signal(signal.SIGCONT)
        assert len(await client.search("rivers")) == 10

    with server(small_bundle.path, small_index) as hung:
        run(hung.address, test)


def test_a_connection_that_swallows_everything_is_given_up(
    small_bundle: Bundle, small_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"grpc.keepalive_time_ms": 200, "grpc.keepalive_timeout_ms": 400, "grpc.http2.ping_timeout_ms": 400}
    assert times.keys() <= dict(messages.CHANNEL_OPTIONS).keys()
    quick = [(name, times.get(name, value)) for name, value in messages.CHANNEL_OPTIONS]
    monkeypatch.setattr(messages, "CHANNEL_OPTIONS", quick)

    async def test(client: AsyncClient) -> None:
        expected = (await client.search("rivers", k=3)).hits
        running.process.send_signal(signal.SIGSTOP)
        with pytest.raises(UnavailableError):
            await client.search("rivers", k=3)  # its own time-out is a minute
        running.process.send_signal(signal.SIGCONT)
        assert (await until_available(client)).hits == expected

    with server(small_bundle.path, small_index) as running:
        run(running.address, test)


def test_an_unreachable_server_is_unavailable() -> None:
    async def test(client: AsyncClient) -> None:
        for asked in (client.search("rivers"), client.encode_questions(["rivers"]), client.get_passages(["en-001"])):
            with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
                await asked

    run("127.0.0.1:1", test)


async def until_available(client: AsyncClient) -> SearchResult:
    """The first answer of a server that has just come back; gRPC connects again within seconds."""
    give_up_s = time.monotonic() + START_S
    while True:
        try:
            return await client.search("rivers", k=3)
        except UnavailableError:
            assert time.monotonic() < give_up_s
            await asyncio.sleep(0.05)
