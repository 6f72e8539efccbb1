"""What every method of a service is wrapped in: its errors become gRPC statuses, and it is known to be answering."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import grpc.aio

from narrows.server.activity import Activity
from narrows.server.errors import failure_of
from narrows.server.streams import Context

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Method = Callable[[Any, Request, Context], Awaitable[Reply]]


class Servicer(Protocol):
    """Knows what is being answered."""

    activity: Activity


def rpc(method: Method[Request, Reply]) -> Method[Request, Reply]:
    """Turns exceptions of a Servicer's method into gRPC statuses, by the one table."""

    @functools.wraps(method)
    async def wrapped(self: Servicer, request: Request, context: Context) -> Reply:
        with self.activity.answering():
            try:
                return await method(self, request, context)
            except Exception as error:
                failure = failure_of(error)
        try:
            await context.abort(failure.code, failure.message, failure.trailers())
        except grpc.aio.InternalError:  # the caller's own deadline passed meanwhile: nobody is there to be told
            raise asyncio.CancelledError from None
        raise AssertionError("abort raises")

    return wrapped


def deadline_s(context: Context, default_timeout_s: float) -> float:
    """The caller's deadline on CLOCK_MONOTONIC; the server's default one where it set none."""
    remaining_s = context.time_remaining()
    return time.monotonic() + (default_timeout_s if remaining_s is None else remaining_s)
