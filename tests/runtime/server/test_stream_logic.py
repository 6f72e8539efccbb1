"""The logic of a stream against a context that the test holds: what is read when, what deadlines are set, what ends.

Sockets show the same from outside (tests/e2e/test_streams.py), but buffer too much to count what has been read.
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import grpc.aio
import pytest

from narrows.errors import OverloadedError, UnavailableError
from narrows.server.activity import Activity
from narrows.server.errors import SPREAD
from narrows.server.streams import StreamKind, StreamLimits, serve_stream
from narrows.v1 import retrieval_pb2 as pb


class Client:
    """The far side: puts requests in, sees what was read and written; `takes` lets answers through."""

    def __init__(self, *ids: str, remaining_s: float | None = None) -> None:
        self.unread = [item(request_id) for request_id in ids]
        self.half_closed = False
        self.answers: list[pb.SearchStreamResponse] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self._remaining_s = remaining_s

    async def read(self) -> object:
        while not self.unread:
            if self.half_closed:
                return grpc.aio.EOF
            await asyncio.sleep(0)
        return self.unread.pop(0)

    async def write(self, answer: pb.SearchStreamResponse) -> None:
        await self.takes.wait()
        self.answers.append(answer)

    def time_remaining(self) -> float | None:
        return self._remaining_s


class Engine:
    """Answers when the test lets it: `hold` ids wait for `release`, the others are answered at once."""

    def __init__(self, *hold: str) -> None:
        self.hold = set(hold)
        self.release = asyncio.Event()
        self.begun: list[str] = []
        self.dropped: list[str] = []
        self.deadlines_s: list[float] = []

    async def answer(self, request: pb.SearchRequest, deadline_s: float) -> pb.SearchResponse:
        name = request.questions[0]
        self.begun.append(name)
        self.deadlines_s.append(deadline_s)
        if name == "bad":
            raise OverloadedError("too many", 250)
        if name == "broken":
            raise RuntimeError("a defect")
        try:
            if name in self.hold:
                await self.release.wait()
        except asyncio.CancelledError:
            self.dropped.append(name)
            raise
        return pb.SearchResponse(truncated=[1])


def item(request_id: str, timeout_ms: int = 0) -> pb.SearchStreamRequest:
    search = pb.SearchRequest(questions=[request_id])
    return pb.SearchStreamRequest(request_id=request_id, search=search, timeout_ms=timeout_ms)


def serving(
    client: Client, engine: Engine, max_in_flight: int = 64, activity: Activity | None = None
) -> Coroutine[Any, Any, None]:
    kind = StreamKind("search", engine.answer, pb.SearchStreamResponse)
    context: Any = client
    return serve_stream(context, kind, StreamLimits(max_in_flight, 7.0), activity or Activity())


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_answers_come_as_they_are_ready_and_half_closing_waits_for_all() -> None:
    async def run() -> None:
        client, engine = Client("slow", "fast", "bad", "broken"), Engine("slow")
        client.half_closed = True
        stream = asyncio.create_task(serving(client, engine))
        await settle()
        assert [answer.request_id for answer in client.answers] == ["fast", "bad", "broken"]
        bad, broken = client.answers[1].error, client.answers[2].error
        assert (bad.code, bad.reason, bad.message) == (8, "OVERLOADED", "too many")
        assert 250 <= bad.retry_after_ms <= 250 * SPREAD[1]
        assert (broken.code, broken.reason) == (13, "INTERNAL")
        assert "defect" not in broken.message
        engine.release.set()
        await stream
        assert client.answers[-1].request_id == "slow"
        assert client.answers[-1].result.truncated == [1]

    asyncio.run(run())


@pytest.mark.parametrize("max_in_flight", [1, 2, 5])
def test_no_more_is_read_than_may_be_in_flight(max_in_flight: int) -> None:
    async def run() -> None:
        names = [str(number) for number in range(10)]
        client, engine = Client(*names), Engine(*names)
        client.half_closed = True
        stream = asyncio.create_task(serving(client, engine, max_in_flight))
        await settle()
        assert len(client.unread) == 10 - max_in_flight
        assert engine.begun == names[:max_in_flight]
        engine.release.set()
        await stream
        assert sorted(answer.request_id for answer in client.answers) == names

    asyncio.run(run())


def test_answers_that_nobody_takes_stop_the_reading() -> None:
    async def run() -> None:
        client, engine = Client(*map(str, range(10))), Engine()
        client.takes.clear()
        client.half_closed = True
        stream = asyncio.create_task(serving(client, engine, 3))
        await settle()
        assert len(engine.begun) == 3
        assert len(client.unread) == 7
        client.takes.set()
        await stream
        assert len(client.answers) == 10

    asyncio.run(run())


def test_a_client_that_hangs_up_drops_what_is_outstanding() -> None:
    async def run() -> None:
        client, engine = Client("a", "b"), Engine("a", "b")
        stream = asyncio.create_task(serving(client, engine))
        await settle()
        stream.cancel()  # as grpc.aio does
        with pytest.raises(asyncio.CancelledError):
            await stream
        assert sorted(engine.dropped) == ["a", "b"]
        assert client.answers == []

    asyncio.run(run())


def test_draining_answers_what_was_read_and_reads_no_more() -> None:
    async def run() -> None:
        activity, client, engine = Activity(), Client("a", "b", "c"), Engine("a", "b")
        stream = asyncio.create_task(serving(client, engine, 2, activity))
        await settle()
        draining = asyncio.create_task(activity.drain())
        await settle()
        assert not stream.done()
        engine.release.set()
        with pytest.raises(UnavailableError, match="shutting down"):
            await stream
        assert [answer.request_id for answer in client.answers] == ["a", "b"]
        assert [left.request_id for left in client.unread] == ["c"]
        await draining
        with pytest.raises(UnavailableError):  # a stream that was accepted just before
            await serving(Client("d"), engine, 2, activity)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("timeout_ms", "remaining_s", "expected_s"),
    [(0, None, 7.0), (2500, None, 2.5), (60_000, None, 60.0), (60_000, 4.0, 4.0), (2500, 4.0, 2.5), (0, 100.0, 7.0)],
)
def test_a_deadline_is_the_requests_own_the_default_or_the_calls(
    timeout_ms: int, remaining_s: float | None, expected_s: float
) -> None:
    async def run() -> None:
        client, engine = Client(remaining_s=remaining_s), Engine()
        client.unread = [item("a", timeout_ms)]
        client.half_closed = True
        before_s = time.monotonic()
        await serving(client, engine)
        assert before_s + expected_s <= engine.deadlines_s[0] <= time.monotonic() + expected_s

    asyncio.run(run())


def test_a_request_that_takes_too_long_is_dropped_and_told_so_alone() -> None:
    async def run() -> None:
        client, engine = Client(), Engine("late", "patient")
        client.unread = [item("late", timeout_ms=1), item("patient")]
        stream = asyncio.create_task(serving(client, engine))
        while not client.answers:
            await asyncio.sleep(0)
        assert client.answers[0].request_id == "late"
        assert client.answers[0].error.reason == "DEADLINE_EXCEEDED"
        assert engine.dropped == ["late"]
        engine.release.set()
        client.half_closed = True
        await stream
        assert client.answers[1].result.truncated == [1]

    asyncio.run(run())
