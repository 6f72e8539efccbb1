"""Many requests at a time: one stream of the contract shared by many tasks, and answers in the order of their items."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

import grpc
import grpc.aio

from narrows import messages
from narrows.errors import InvalidRequestError, NarrowsError, ServerError, UnavailableError
from narrows.v1 import retrieval_pb2 as pb

T = TypeVar("T")
R = TypeVar("R")


class Item(Protocol):
    """A message of a stream of requests."""

    request_id: str
    timeout_ms: int


class Response(Protocol):
    """A message of a stream of answers."""

    @property
    def request_id(self) -> str: ...  # noqa: D102
    @property
    def error(self) -> pb.ItemError: ...  # noqa: D102
    def HasField(self, field_name: Any) -> bool: ...  # noqa: ANN401, D102, N802


ItemT = TypeVar("ItemT", bound=Item)
ResponseT = TypeVar("ResponseT", bound=Response)


class Pipeline(Generic[ItemT, ResponseT]):
    """Asks over one stream, opened at the first request and again at the first one after it broke."""

    def __init__(self, open_stream: "Callable[[], grpc.aio.StreamStreamCall[ItemT, ResponseT]]", target: str) -> None:
        self._open_stream = open_stream
        self._target = target
        self._stream: _Stream[ItemT, ResponseT] | None = None

    async def ask(self, item: ItemT, deadline_s: float) -> ResponseT:
        """Sends a request and awaits its answer. Cancelling one task harms no other.

        Args:
            item: gets its `request_id`, and when it leaves its `timeout_ms`.
            deadline_s: on the loop's clock, for the server; the caller sees to its own.

        Raises:
            UnavailableError: the stream broke before the answer came.
            NarrowsError: the error that the answer holds.
        """
        if self._stream is None or self._stream.ended:
            self._stream = _Stream(self._open_stream(), self._target)
        response = await self._stream.ask(item, deadline_s)
        if response.HasField("error"):
            raise messages.item_error(response.error, self._target)
        return response

    async def close(self) -> None:
        """Ends the stream; what is outstanding gets an UnavailableError."""
        if self._stream is not None:
            await self._stream.close()


class _Stream(Generic[ItemT, ResponseT]):
    """One stream until it ends.

    Only two tasks of its own touch the call: grpc.aio cancels a call whose `read` or `write` is cancelled, and with it
    everybody's requests.
    """

    def __init__(self, call: "grpc.aio.StreamStreamCall[ItemT, ResponseT]", target: str) -> None:
        self.ended = False
        self._call = call
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[ResponseT]] = {}
        self._unsent: dict[str, tuple[ItemT, float]] = {}  # what has a task that waits for it, and no more
        self._outbox: asyncio.Queue[str] = asyncio.Queue()
        self._writer = asyncio.create_task(self._write())
        self._reader = asyncio.create_task(self._read())

    async def ask(self, item: ItemT, deadline_s: float) -> ResponseT:
        item.request_id = str(next(self._ids))
        future: asyncio.Future[ResponseT] = self._loop.create_future()
        self._waiting[item.request_id] = future
        self._unsent[item.request_id] = (item, deadline_s)
        self._outbox.put_nowait(item.request_id)
        try:
            return await future
        finally:
            self._waiting.pop(item.request_id, None)
            self._unsent.pop(item.request_id, None)
            if future.done() and not future.cancelled():
                future.exception()  # seen, even where the task was cancelled in the same moment

    async def close(self) -> None:
        self._call.cancel()  # which ends the reader; cancelled itself before it began, it would tell nobody
        await asyncio.gather(self._reader, self._writer, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            unsent = self._unsent.pop(await self._outbox.get(), None)
            if unsent is None:
                continue  # its task has given up
            item, deadline_s = unsent
            left_ms = round((deadline_s - self._loop.time()) * 1e3)
            item.timeout_ms = min(max(left_ms, 1), messages.MAX_TIMEOUT_MS)
            try:
                await self._call.write(item)
            except (grpc.RpcError, asyncio.InvalidStateError):
                return  # the reader learns why, and tells everybody

    async def _read(self) -> None:
        error: NarrowsError = UnavailableError(f"{self._target}: the client is closed")
        try:
            async for response in self._call:
                future = self._waiting.pop(response.request_id, None)
                if future is not None and not future.done():
                    future.set_result(response)
            error = UnavailableError(f"{self._target}: the server ended the stream")
        except grpc.aio.AioRpcError as failed:
            error = messages.status_error(failed, self._target)
            # A failed write hides the true status behind an INTERNAL of grpc.aio's own, which has no metadata.
            if failed.code() is grpc.StatusCode.INTERNAL and self._writer.done() and not failed.trailing_metadata():
                error = UnavailableError(f"{self._target}: the stream broke while a request was sent")
        finally:
            self.ended = True
            self._writer.cancel()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(_broken(error))


def _broken(error: NarrowsError) -> NarrowsError:
    """What each outstanding request gets, an exception of its own: the stream's end is nobody's bad request."""
    return ServerError(str(error)) if isinstance(error, ServerError) else UnavailableError(str(error))


async def in_order(
    items: Iterable[T] | AsyncIterable[T], ask: Callable[[T], Awaitable[R]], in_flight: int
) -> AsyncGenerator[R, None]:
    """Asks for each item, and yields the answers in the order of the items, each as soon as it may.

    At most `in_flight` items are taken and their answers not yet yielded. The first error, be it of the items or of an
    answer, ends it; what is outstanding then, or when the generator is closed, is cancelled.
    """
    if in_flight < 1:
        raise InvalidRequestError("it must be at least 1", "in_flight")
    free = asyncio.Semaphore(in_flight)
    asked: asyncio.Queue[asyncio.Future[R] | None] = asyncio.Queue()
    outstanding: set[asyncio.Future[R]] = set()

    async def feed() -> None:
        try:
            source = aiter(items) if isinstance(items, AsyncIterable) else _each(items)
            await free.acquire()
            async for item in source:
                future = asyncio.ensure_future(ask(item))
                outstanding.add(future)
                asked.put_nowait(future)
                await free.acquire()
        finally:
            asked.put_nowait(None)

    feeding = asyncio.create_task(feed())
    try:
        while (future := await asked.get()) is not None:
            answer = await future
            outstanding.discard(future)
            free.release()
            yield answer
        await feeding  # an error of the items
    finally:
        feeding.cancel()
        for future in outstanding:
            future.cancel()
        await asyncio.gather(feeding, *outstanding, return_exceptions=True)


async def _each(items: Iterable[T]) -> AsyncGenerator[T, None]:
    for item in items:
        yield item
