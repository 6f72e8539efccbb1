"""Many requests over one stream: answers as they are ready, errors by item, a bounded number in flight.

Handlers read and write through the context instead of being async generators: when a client is gone, grpc.aio cancels
the handler's task, and a generator that is suspended at a `yield` would not be told.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import grpc.aio
from google.protobuf.message import DecodeError

from narrows.errors import DeadlineExceededError, InvalidRequestError, UnavailableError
from narrows.passage_files import MAX_ID_BYTES
from narrows.server.activity import Activity
from narrows.server.errors import failure_of
from narrows.v1 import retrieval_pb2 as pb

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")
Result = TypeVar("Result")


class Item(Protocol):
    """A message of a stream of requests, beside the request that it carries."""

    request_id: str
    timeout_ms: int

    def HasField(self, field_name: Any) -> bool: ...  # noqa: ANN401, D102, N802


class Response(Protocol):
    """Makes a message of a stream of answers, with either `result` or `error`."""

    def __call__(self, *, request_id: str, result: Any = None, error: pb.ItemError | None = None) -> object: ...  # noqa: ANN401, D102


@dataclass(frozen=True, slots=True)
class StreamKind(Generic[Request, Result]):
    """What tells the streams apart: `field` of an item holds its request, `answer` takes it and its deadline."""

    field: str
    answer: Callable[[Request, float], Awaitable[Result]]
    response: Response


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """`max_in_flight` requests are read and not yet answered; `default_timeout_s` is for those that set none."""

    max_in_flight: int
    default_timeout_s: float


async def serve_stream(
    context: Context, kind: StreamKind[Request, Result], limits: StreamLimits, activity: Activity
) -> None:
    """Answers one stream until the client half-closes or hangs up, or the server drains.

    A request counts as in flight until its answer has left for the client, so a client that does not read stops the
    reading of its requests as well.

    Raises:
        UnavailableError: the server is draining; what was read before is answered.
    """
    remaining_s = context.time_remaining()
    ends_s = float("inf") if remaining_s is None else time.monotonic() + remaining_s
    slots = asyncio.Semaphore(limits.max_in_flight)
    writing = asyncio.Lock()  # a context takes one write at a time

    async def answer(item: Item | DecodeError) -> None:
        response = await _response(kind, item, limits.default_timeout_s, ends_s)
        # A write fails when the client is gone; grpc.aio then cancels this whole stream, by its own notice of that.
        async with writing:
            with contextlib.suppress(grpc.aio.InternalError):
                await context.write(response)
        slots.release()

    async def read() -> None:
        while True:
            await slots.acquire()
            try:
                item = await context.read()
            except DecodeError as error:
                item = error
            if item is grpc.aio.EOF:
                return
            answering.create_task(answer(item))

    # The group ends when every answer has left; when the client hangs up, its tasks are cancelled with this one.
    async with asyncio.TaskGroup() as answering:
        reading = answering.create_task(read())
        with activity.until_draining(reading.cancel):
            await asyncio.wait([reading])
    if reading.cancelled():
        raise UnavailableError("the server is shutting down; requests without an answer were not begun")


async def _response(
    kind: StreamKind[Request, Result], item: Item | DecodeError, default_timeout_s: float, ends_s: float
) -> object:
    """The answer to one item, be it a result or an error."""
    arrived_s = time.monotonic()
    request_id = ""
    try:
        if isinstance(item, DecodeError):
            raise InvalidRequestError(f"the message cannot be decoded: {item}")
        if len(item.request_id.encode()) > MAX_ID_BYTES:
            message = f"it has over {MAX_ID_BYTES} bytes, and begins with {item.request_id[:32]!r}"
            raise InvalidRequestError(message, "request_id")
        request_id = item.request_id
        if not item.HasField(kind.field):
            raise InvalidRequestError("it is not set", kind.field)
        timeout_s = item.timeout_ms / 1e3 or default_timeout_s
        deadline_s = min(arrived_s + timeout_s, ends_s)
        async with asyncio.timeout(deadline_s - arrived_s):
            result = await kind.answer(getattr(item, kind.field), deadline_s)
        return kind.response(request_id=request_id, result=result)
    except TimeoutError:
        error: Exception = DeadlineExceededError("the deadline passed before the answer was ready")
    except Exception as failed:
        error = failed
    return kind.response(request_id=request_id, error=failure_of(error).item_error())
