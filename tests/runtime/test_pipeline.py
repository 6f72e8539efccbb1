"""Answers in the order of their items, a bounded number of them outstanding; and a stream that breaks or hangs."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import InvalidRequestError, ServerError, UnavailableError
from narrows.pipeline import Pipeline, in_order
from narrows.v1 import retrieval_pb2 as pb


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 6), max_size=30), st.integers(1, 8))
def test_the_order_is_that_of_the_items_and_the_bound_holds(turns: list[int], in_flight: int) -> None:
    async def run() -> None:
        taken, yielded, most = 0, 0, 0

        def items() -> Iterator[int]:
            nonlocal taken, most
            for number in range(len(turns)):
                taken += 1
                most = max(most, taken - yielded)
                yield number

        async def ask(number: int) -> int:
            for _ in range(turns[number]):
                await asyncio.sleep(0)
            return number

        found = []
        async for answer in in_order(items(), ask, in_flight):
            yielded += 1
            found.append(answer)
        assert found == list(range(len(turns)))
        assert most <= in_flight + 1  # the answer on its way to the caller

    asyncio.run(run())


async def collect(answers: AsyncIterator[int], found: list[int]) -> None:
    async for answer in answers:
        found.append(answer)  # noqa: PERF401  (what came before an error counts)


async def same(number: int) -> int:
    return number


def test_an_answer_does_not_wait_for_the_next_item() -> None:
    async def run() -> None:
        answered = asyncio.Event()

        async def items() -> AsyncIterator[int]:
            yield 0
            await answered.wait()  # would never come if answers were held back
            yield 1

        found = []
        async for answer in in_order(items(), same, 4):
            found.append(answer)
            answered.set()
        assert found == [0, 1]

    asyncio.run(asyncio.wait_for(run(), 30))


def test_the_first_error_ends_it_and_what_is_outstanding_is_cancelled() -> None:
    async def run() -> None:
        cancelled = []

        async def ask(number: int) -> int:
            if number == 1:
                raise InvalidRequestError("bad", "questions[0]")
            if number > 1:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.append(number)
                    raise
            return number

        found: list[int] = []
        with pytest.raises(InvalidRequestError):
            await collect(in_order(range(100), ask, 4), found)
        assert found == [0]
        assert cancelled
        assert max(cancelled) < 6

    asyncio.run(run())


def test_leaving_early_cancels_the_rest_and_an_error_of_the_items_comes_through() -> None:
    async def run() -> None:
        async with aclosing(in_order(range(1000), same, 2)) as answers:
            async for answer in answers:
                if answer == 3:
                    break
        assert len(asyncio.all_tasks()) == 1

        def items() -> Iterator[int]:
            yield 0
            raise OSError("the file ends here")

        found: list[int] = []
        with pytest.raises(OSError, match="ends here"):
            await collect(in_order(items(), same, 2), found)
        assert found == [0]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_none_in_flight_is_refused() -> None:
    async def run() -> None:
        with pytest.raises(InvalidRequestError, match="in_flight"):
            await anext(in_order([1], same, 0))

    asyncio.run(run())


class Call:
    """A stream whose writes hang, or fail as grpc.aio's do; then the call ends with the same status."""

    def __init__(self, failure: grpc.aio.AioRpcError | None) -> None:
        self.failure = failure
        self.ended = asyncio.Event()

    async def write(self, item: object) -> None:
        if self.failure is None:
            await asyncio.Event().wait()
        else:
            self.ended.set()
            raise self.failure

    async def __aiter__(self) -> AsyncIterator[object]:
        await self.ended.wait()
        assert self.failure is not None
        raise self.failure
        yield

    def cancel(self) -> None:
        self.failure = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata())
        self.ended.set()


def pipeline(call: Call) -> Pipeline[Any, Any]:
    def open_stream() -> Any:
        return call

    return Pipeline(open_stream, "server")


@pytest.mark.parametrize(
    ("trailers", "expected"), [((), UnavailableError), ((("narrows-reason", "INTERNAL"),), ServerError)]
)
def test_a_write_that_fails_is_a_broken_stream_and_no_failure_of_the_server(
    trailers: tuple[tuple[str, str], ...], expected: type[Exception]
) -> None:
    async def run() -> None:
        status = grpc.StatusCode.INTERNAL
        failure = grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), "from Core")
        asking = pipeline(Call(failure))
        for _ in range(2):
            with pytest.raises(expected, match="server: " if expected is UnavailableError else "INTERNAL"):
                await asking.ask(pb.SearchStreamRequest(), 1e9)

    asyncio.run(asyncio.wait_for(run(), 30))


class Item:
    """A request that can be watched."""

    request_id = ""
    timeout_ms = 0


def test_requests_that_are_given_up_are_not_kept_while_the_stream_hangs() -> None:
    async def run() -> None:
        asking = pipeline(Call(None))
        kept: weakref.WeakSet[Item] = weakref.WeakSet()

        async def ask() -> None:
            item = Item()
            kept.add(item)
            await asking.ask(item, 1e9)

        tasks = [asyncio.create_task(ask()) for _ in range(50)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        tasks.clear()
        del task
        assert len(kept) <= 1  # the one that is being written
        await asking.close()

    asyncio.run(asyncio.wait_for(run(), 30))
